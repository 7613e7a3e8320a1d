"""Starting from a network that was trained on another data set: all of its weights but the classifier's."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bpl.models import classifier_name
from bpl.paths import is_there
from bpl.shown import shown


@dataclass(frozen=True)
class Pretraining:
    """What a run's network was trained on before.

    Attributes:
        dataset: name of a data set, or the path of a class-folder tree.
        epochs: passes over its training part.
    """

    dataset: str
    epochs: int

    @classmethod
    def parse(cls, text: str, names: tuple[str, ...]) -> "Pretraining":
        """Read what the option `pretrain` says, such as ``aid:20``.

        Args:
            text: a data set, a colon, and a number of epochs.
            names: of the data sets that the library knows.

        Raises:
            ValueError: another form, an unknown data set, or no whole number of epochs of at least 1.
        """
        dataset, _, epochs = str(text).rpartition(":")
        known = dataset in names or (dataset and is_there(dataset, Path.is_dir))
        if not known or not epochs.isdecimal() or int(epochs) < 1:
            raise ValueError(
                f"pretrain is {shown(text)}: it must be DATASET:EPOCHS, such as aid:20, where DATASET is one of "
                f"{', '.join(names)}, or a folder of class folders"
            )
        return cls(dataset, int(epochs))


@torch.no_grad()
def transfer(source: nn.Module, target: nn.Module) -> None:
    """Copy a trained network's weights and statistics into a fresh one, but for the last linear layer.

    Args:
        source: the trained network.
        target: a network of the same architecture; its number of classes may differ.

    Raises:
        ValueError: the networks differ in more than their classifier.
    """
    last = classifier_name(target)
    given, wanted = source.state_dict(), target.state_dict()
    features = {name: value for name, value in given.items() if not name.startswith(f"{last}.")}
    others = sorted(name for name in wanted if not name.startswith(f"{last}."))
    unlike = [name for name in others if name not in features or features[name].shape != wanted[name].shape]
    if unlike or len(features) != len(others):
        raise ValueError(
            f"{unlike[0] if unlike else min(features.keys() - set(others))!r} is not alike in both networks"
        )
    target.load_state_dict(features, strict=False)
