"""From a trained run to its record: what its table rows need, measured."""

import dataclasses
import os
import platform
from typing import Any

import torch
from torch import Tensor, nn

from bpl.config import RunConfig
from bpl.data import ImageSet, Split
from bpl.machine import processes
from bpl.measure import count_macs, count_params, measure_latency, widths_of
from bpl.models import build_model
from bpl.records import Record, source_digest
from bpl.train import Trained, mean_per_class, predict, top1

LATENCY_BATCH = 1  # images; latency at other batch sizes is the latency notebook's subject


def make_record(config: RunConfig, images: ImageSet, split: Split, trained: Trained, beside: int = 1) -> Record:
    """Measure a trained run and write down all that its table rows need.

    Args:
        config: the run.
        images: its images.
        split: its parts.
        trained: what `bpl.train.train` returned.
        beside: how many runs shared the machine, this one included.

    Returns:
        The record.
    """
    small = trained.small.to(memory_format=torch.channels_last)
    images = images.to(next(small.parameters()).device)
    dense = build_model(config.arch, len(images.classes), config.image_size, config.width).to(images.images.device)
    measured = (part for part in ("test", "validation") if len(getattr(split, part)))
    logits = {part: predict(small, images, getattr(split, part)) for part in measured}
    return Record(
        name=config.run_name(images.source),
        config=config.to_dict(),
        data={
            "source": images.source,
            "name": images.name,
            "pixels": "on disk" if images.streamed else "in memory",
            "digest": images.digest,
            "split_digest": split.digest,
            "train": len(split.train),
            "validation": len(split.validation),
            "test": len(split.test),
            "classes": len(images.classes),
        },
        accuracy=accuracies(logits, images, split, trained.curves),
        curves=trained.curves,
        cost={
            "macs": count_macs(small, config.image_size),
            "params": count_params(small),
            "dense_macs": count_macs(dense, config.image_size),
            "dense_params": count_params(dense),
            "training_macs": trained.training_macs,
            "latency": dataclasses.asdict(measure_latency(small, config.image_size, LATENCY_BATCH)),
            "dense_latency": dataclasses.asdict(measure_latency(dense, config.image_size, LATENCY_BATCH)),
        },
        equivalence=equivalence(trained.network, logits["test"], images, split.test),
        widths=widths_of(small),
        environment=_environment(images.images.device)
        | {"runs_beside_each_other": beside}
        | ({"trained_by": trained.sources} if len(trained.sources) > 1 else {}),
        seconds=round(trained.seconds, 2),
    )


def accuracies(
    logits: dict[str, Tensor], images: ImageSet, split: Split, curves: dict[str, list[float]]
) -> dict[str, Any]:
    """Top-1 in percent, by every rule for choosing the epoch, and averaged over classes.

    Args:
        logits: of the shipped network in float32: ``test`` and, where that part has images, ``validation``, each
            (images of the part, classes).
        images: the images.
        split: the parts.
        curves: the training's curves, measured in the training's precision.

    Returns:
        ``test`` and ``validation`` of the shipped network (last epoch's weights), ``mean_per_class`` of its test
        images (each class counts alike, however many images it has), ``test_at_best_validation`` (first
        such epoch at the final size), ``best_test`` (chosen on the test part: not a fair number, kept to stand beside
        numbers obtained that way), and the epochs, counted from 1.
    """

    def seen(part: str) -> tuple[Tensor, Tensor]:
        return logits[part], images.labels[getattr(split, part).to(images.labels.device)]

    epochs = [i for i, at_size in enumerate(curves["at_size"]) if at_size]
    best_test = max(epochs, key=curves["test"].__getitem__)
    result: dict[str, Any] = {
        "test": top1(*seen("test")),
        "mean_per_class": mean_per_class(*seen("test")),
        "validation": top1(*seen("validation")) if "validation" in logits else None,
        "best_test": curves["test"][best_test],
        "best_test_epoch": best_test + 1,
        "test_at_best_validation": None,
        "best_validation_epoch": None,
    }
    if "validation" in curves:
        best = max(epochs, key=curves["validation"].__getitem__)
        result |= {"test_at_best_validation": curves["test"][best], "best_validation_epoch": best + 1}
    return result


def equivalence(network: nn.Module, shipped: Tensor, images: ImageSet, indices: Tensor) -> dict[str, float]:
    """How far the shipped network's logits are from the trained network's.

    Args:
        network: the network as trained, in evaluation mode.
        shipped: (n, classes) logits of the shipped network.
        images: the images.
        indices: (n,) which images.

    Returns:
        ``relative_error`` = largest absolute difference over the largest absolute logit, and ``same_top1`` = share of
        images with the same predicted class.
    """
    trained = predict(network, images, indices)
    return {
        "relative_error": float((trained - shipped).abs().max() / trained.abs().max()),
        "same_top1": float((trained.argmax(1) == shipped.argmax(1)).double().mean()),
    }


def _environment(device: torch.device) -> dict[str, Any]:
    import torchvision

    return {
        "source": source_digest(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": processes.count(),
        "device": "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
    }
