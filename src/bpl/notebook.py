"""What the pages that run something share: parameters checked at once, and one live run under ``_build/``."""

import dataclasses
from collections.abc import Collection, Iterable, MutableMapping
from pathlib import Path
from typing import Any

from bpl.config import RunConfig
from bpl.data import ImageSet, Split, load_images, make_split
from bpl.defaults import LEAKING_MASKS
from bpl.export import load_model
from bpl.machine.out_of_memory import OutOfMemory
from bpl.measure import check_backend, count_macs
from bpl.models import build_model
from bpl.paths import project_root
from bpl.pruning import prune_masks, slim
from bpl.records import Record, RecordError, load_record, record_path, source_digest
from bpl.run import run
from bpl.shown import flat, shown
from bpl.widths_file import config_widths

_EXACT = 1e-5  # of the largest logit: float rounding over a network's depth
_FOUND = "_parameters_found"  # a page's own note of the names that were parameters when it was first checked


class BadParameter(ValueError):
    """A notebook's parameter that cannot be used. IPython and papermill show its one sentence without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def configure(namespace: MutableMapping[str, Any]) -> tuple[RunConfig, ImageSet, Split]:
    """Check a notebook's parameters and load what they ask for, before anything takes time.

    Every plain value that the notebook has defined so far counts as a parameter, those that papermill injects too, so
    that a misspelt name is an error and every knob of `RunConfig` can be set. The cell may be run again.

    Args:
        namespace: the notebook's ``globals()``.

    Returns:
        The run, its images and their split.

    Raises:
        BadParameter: an unknown parameter, a value that is not allowed, or images that cannot be used; one sentence.
    """
    try:
        chosen = parameters(namespace, [field.name for field in dataclasses.fields(RunConfig)])
        config = RunConfig.from_dict(chosen)
        images = load_images(config.dataset, config.image_size, config.data)
        split = make_split(images, config.split, config.seed)
    except ValueError as error:
        raise BadParameter(flat(error, 2000)) from None
    namespace[_FOUND] = frozenset(chosen)
    return config, images, split


def check_choice(namespace: MutableMapping[str, Any], runs: Iterable[RunConfig], *names: str) -> list[RunConfig]:
    """Check the parameters of a page that shows recorded runs: each has a value that some run has.

    Args:
        namespace: the notebook's ``globals()``; plain values count as in `configure`.
        runs: the runs that the page can show.
        names: the page's parameters, knobs of `RunConfig`.

    Returns:
        The runs, all of them.

    Raises:
        BadParameter: an unknown parameter, or a value that no run has; one sentence.
    """
    runs, chosen = list(runs), known_parameters(namespace, names)
    for name, value in chosen.items():
        allowed = sorted({getattr(run, name) for run in runs if name != "ratio" or run.method != "dense"})
        if value not in allowed:
            raise BadParameter(f"{name} is {shown(value)}: the runs of this page have {', '.join(map(str, allowed))}")
    namespace[_FOUND] = frozenset(chosen)
    return runs


def check_measurement(namespace: MutableMapping[str, Any], *names: str) -> None:
    """Check the parameters of a page that times a pruned network, without training it.

    Args:
        namespace: the notebook's ``globals()``; plain values count as in `configure`.
        names: the page's parameters: knobs of `RunConfig`, and ``backend``.

    Raises:
        BadParameter: an unknown parameter, or a value that is not allowed; one sentence.
    """
    chosen = known_parameters(namespace, names)
    try:
        check_backend(chosen.pop("backend"))
        config = RunConfig.from_dict({"dataset": "synthetic", "method": "scratch"} | chosen)
        if config.ratio == 0:
            raise ValueError("ratio is 0: nothing would be pruned; it must be more than 0 and less than 1")
    except ValueError as error:
        raise BadParameter(flat(error, 2000)) from None
    namespace[_FOUND] = frozenset(chosen)


def known_parameters(namespace: MutableMapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """`parameters`, all of which a page must have.

    Raises:
        BadParameter: one that it has not.
    """
    chosen = parameters(namespace, names)
    for name, value in chosen.items():
        if name not in names:
            raise BadParameter(f"unknown parameter {name!r} is {shown(value)}: this page has {', '.join(names)}")
    return chosen


def parameters(namespace: MutableMapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The plain values among a notebook's names: what its parameter cells have set.

    A cell that is run again, after a parameter was changed, also sees what later cells have defined: that counts only
    where it was a parameter the first time, or has the name of one.

    Args:
        namespace: the notebook's ``globals()``.
        known: names of parameters.

    Returns:
        name -> value.
    """
    own = {"In", "Out"}  # IPython's
    plain = (bool, int, float, str, list, dict, type(None))
    found = namespace.get(_FOUND)
    return {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_")
        and name not in own
        and isinstance(value, plain)
        and (found is None or name in found or name in known)
    }


def live_run(config: RunConfig, images: ImageSet) -> tuple[Record, Path]:
    """Make one run under ``_build/live``, apart from the recorded ones.

    A run that was interrupted goes on; one that was finished by this very version of the library is not made again.

    Args:
        config: the run.
        images: its images, as `configure` found them.

    Returns:
        The record, and the file of the shipped network.

    Raises:
        BadParameter: a value of the config that the run cannot do: a device that is not there, a learning rate with
            which the loss is no longer finite, more images in a batch than fit into memory; one sentence.
    """
    folder = project_root() / "_build" / "live"
    path = record_path(config, images.source, folder)
    network = folder / "networks" / path.stem / "model.safetensors"
    current = network.exists() and _is_of(path, source_digest(), images.digest)
    if current:
        print("This run was finished before by this very code on these images; here is its record.")
        return load_record(path), network
    try:
        return run(config, folder=folder, work=folder / "networks", repeat=path.exists()), network
    except (ValueError, ArithmeticError, OutOfMemory) as error:  # what only the run itself can find out
        raise BadParameter(flat(error, 2000)) from None


def _is_of(path: Path, source: str, images: str) -> bool:
    """Whether there is a record that this code made from these images."""
    try:
        record = load_record(path)
    except RecordError:
        return False
    return record.environment["source"] == source and record.data["digest"] == images


def check_shipped(config: RunConfig, record: Record, network: Path, classes: int) -> None:
    """What must hold of a live run, whatever its images: what ships is the trained network, and as small as counted.

    Args:
        config: the run.
        record: what it measured.
        network: the file of the shipped network.
        classes: number of classes.

    Raises:
        AssertionError: one of both is not so; the message says what was found.
    """
    apart = record.equivalence["relative_error"]
    leaks = config.mask in LEAKING_MASKS  # cutting out channels that leave a constant changes the function
    assert leaks or apart < _EXACT, f"the shipped network's logits are {apart:.1e} apart"
    work = network.parent.parent  # where the run kept the widths that its target found
    macs, counted = count_macs(load_model(network), config.image_size), counted_macs(config, classes, work)
    assert macs == record.cost["macs"], (
        f"the shipped network costs {macs:,} MACs, the record says {record.cost['macs']:,}"
    )
    assert counted in (None, macs), f"the shipped network costs {macs:,} MACs, counted were {counted:,}"
    exact = "those of the trained network, to 1e-5"
    print(f"Outputs: {'not compared: these masks leave a constant behind' if leaks else exact}")
    print("MACs: as counted")  # how many they are depends on the classes, and so on the images at hand


def counted_macs(config: RunConfig, classes: int, work: Path | None = None) -> int | None:
    """Multiply-accumulates of the network that a run ships, counted without training it.

    Args:
        config: the run.
        classes: number of classes.
        work: folder of the runs' checkpoints, which has the widths of a measured target; None for the checkout's.

    Returns:
        Multiply-accumulates of convolutions and linear layers for one image; None for a method whose training decides
        the widths.
    """
    if config.method in ("compact_kd", "oed"):
        return None
    model = build_model(config.arch, classes, config.image_size, config.width)
    if config.method != "dense":
        widths = config_widths(config, model, work)
        masks = prune_masks(model, config.ratio, scope=config.scope, round_to=config.round_to, widths=widths)
        model = slim(model, masks)
    return count_macs(model, config.image_size)
