"""One run: from a config to a record."""

import math
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from bpl.config import RunConfig
from bpl.data import CARDS, ImageSet, Split, load_images, make_split
from bpl.export import exports_of, load_model, read_description, save_model
from bpl.machine import processes
from bpl.machine.atomic import check_writable, folder_held, write_atomic
from bpl.machine.checkpoint import delete_checkpoint
from bpl.machine.ending import Stopped, Watch
from bpl.machine.run_lock import WAIT, RunBusy, only_here
from bpl.paths import work_folder
from bpl.recording import make_record
from bpl.records import Record, RecordError, check_images, load_record, record_path, save_record, source_digest
from bpl.runlog import logged
from bpl.train import Start, Trained, pretraining_of, train

DIGEST = "images.sha256"  # beside a shipped network: of the images that it was trained on


def run(
    config: RunConfig,
    *,
    folder: str | Path | None = None,
    work: str | Path | None = None,
    repeat: bool = False,
    progress: bool = True,
    watch: Watch | None = None,
    beside: int = 1,
    wait: bool = False,
) -> Record:
    """Run a config to its record; a run that is recorded already is not repeated.

    Where `torchrun` or `fabric run` started several processes, all of them call this and share the run; the first one
    writes all files, and all see the same folders.

    The shipped network lies beside the checkpoint afterwards: ``<work>/<run name>/model.safetensors`` and ``.json``;
    the run's log lies there from its start (`bpl.runlog`).

    Args:
        config: the run.
        folder: the results folder; None for the checkout's ``data/results``.
        work: folder for checkpoints and shipped networks; None for ``_build/runs``.
        repeat: run again, and replace the record, even if there is one. A repetition that was interrupted goes on where
            it is asked for again, with the same code and the same images; else it starts from the first epoch.
        progress: show a progress bar on standard error.
        watch: as of `bpl.train.train`; also asked while another process is waited for.
        beside: how many runs share the machine, this one included: recorded, since it bears on the times recorded.
        wait: where another process is at work on this run, wait for it.

    Returns:
        The finished run's record.

    Raises:
        RunBusy: another process is at work on this run.
        Stopped: `watch` said so; the same call goes on from there.
        ValueError: images, config, checkpoint or an existing record cannot be used; the message says which and why.
        OSError: a file could not be written.
        FloatingPointError, OutOfMemory, WorkerDied, ProcessLost: as of `bpl.train.train`.
    """
    folder, work = (None if place is None else Path(place) for place in (folder, work))
    processes.join(config)
    with processes.first_of_machine_first():
        images = load_images(config.dataset, config.image_size, config.data, progress and processes.rank() == 0)
    path = record_path(config, images.source, folder)

    place = (work or work_folder()) / path.stem
    checkpoint, repeating = place / "checkpoint.pt", place / "repeating"

    def recorded() -> Record | None:
        return _record_of(path, images) if path.exists() and not repeat else None

    def tidy() -> bool:
        """Remove the checkpoint that a kill left after the record was written."""
        if _is_left_over(checkpoint, path) and not repeating.exists():
            delete_checkpoint(checkpoint)
        return True

    if (record := processes.decide(recorded)) is not None:
        if processes.decide(lambda: _is_left_over(checkpoint, path)):
            with suppress(RunBusy, OSError), only_here(place):
                processes.decide(tidy)
        return record
    with only_here(place, wait, watch):
        if (record := processes.decide(recorded)) is not None:  # finished by another process meanwhile
            processes.decide(tidy)
            return record
        with logged(place, config) as log:
            split = make_split(images, config.split, config.seed)
            processes.decide(lambda: check_writable(path.parent))  # now: what is wrong must not come out after hours
            if repeat:
                processes.decide(lambda: _begin_again(checkpoint, repeating, images))
            where = {"folder": folder, "work": work, "progress": progress, "watch": watch, "beside": beside}

            def dense() -> nn.Module:
                log.write("dense", run=config.dense().run_name(images.source))
                return dense_network(config, images, split, **where)

            def start() -> Start:
                log.write("pretrained", run=config.pretraining().run_name(images.source))
                return pretrained_network(config, images, **where)

            def log_and_watch(epoch: int, row: dict[str, float]) -> bool:
                log.epoch(epoch, row)
                return watch is not None and watch(epoch, row)

            trained = train(
                config,
                images,
                split,
                checkpoint=checkpoint,
                dense=dense,
                start=start,
                progress=progress,
                watch=log_and_watch,
                saved=log.checkpoint,
            )

            def finish() -> Record:
                record = make_record(config, images, split, trained, beside)
                _save_shipped(trained, images, place)
                with folder_held(path.parent):
                    if path.exists() and not repeat:  # recorded meanwhile from another work folder: another lock
                        record = _record_of(path, images)
                    else:
                        save_record(record, path)
                repeating.unlink(missing_ok=True)
                delete_checkpoint(checkpoint)
                log.write("finished", test=record.accuracy["test"], seconds=record.seconds, record=path.name)
                return record

            return processes.decide(finish)


def _record_of(path: Path, images: ImageSet) -> Record:
    """A record of a run on these images; refused where it is of others."""
    record = load_record(path)
    check_images(record, path, images.digest, len(images.files))
    return record


def _is_left_over(checkpoint: Path, record: Path) -> bool:
    """Whether a checkpoint is of a run that has shipped its network and was recorded after it was saved."""
    try:
        shipped = checkpoint.with_name("model.json").exists()
        return shipped and checkpoint.stat().st_mtime_ns <= record.stat().st_mtime_ns
    except FileNotFoundError:
        return False


def _begin_again(checkpoint: Path, repeating: Path, images: ImageSet) -> None:
    """Start a repetition from its first epoch, unless its own checkpoint is there: what `repeating` says it is of."""
    begun = f"{source_digest()} {images.digest}\n"
    with suppress(FileNotFoundError, UnicodeDecodeError):
        if repeating.read_text() == begun:
            return
    delete_checkpoint(checkpoint)
    repeating.write_text(begun)


def dense_network(config: RunConfig, images: ImageSet, split: Split, **where: Any) -> nn.Module:
    """The trained dense network that a run learns from: what the dense run of the same recipe ships.

    Args:
        config: the run that needs it.
        images: its images.
        split: its parts.
        **where: as of `network_of`.

    Returns:
        The network.

    Raises:
        Stopped: `watch` said so.
    """
    return network_of(config.dense(), images, split, **where)


def pretrained_network(config: RunConfig, images: ImageSet, **where: Any) -> Start:
    """The network that a run starts from: what the dense run on the data set that `pretrain` names ships.

    Args:
        config: the run that needs it.
        images: its images: drawn scenes are no start for real ones.
        **where: as of `network_of`.

    Returns:
        The network, and what its training cost.

    Raises:
        Stopped: `watch` said so.
        ValueError: the other data set's images are not at hand.
    """
    before, others, split = pretraining_of(config, images)
    network = network_of(before, others, split, **where, with_record=True)
    path = record_path(before, images.source, where.get("folder"))
    return Start(network, load_record(path).cost["training_macs"])


def network_of(
    dense: RunConfig,
    images: ImageSet,
    split: Split,
    *,
    folder: Path | None = None,
    work: Path | None = None,
    progress: bool = True,
    watch: Watch | None = None,
    beside: int = 1,
    with_record: bool = False,
) -> nn.Module:
    """The network that a dense run ships: as the run left it, else trained now.

    Args:
        dense: the dense run.
        images: its images.
        split: its parts.
        folder: the results folder: a run that is made here is recorded there like any other.
        work: folder for checkpoints and shipped networks.
        progress: show a progress bar on standard error.
        watch: as of `run`.
        beside: as of `run`.
        with_record: its record has to be in the results folder too, which says what its training cost.

    Returns:
        The network.

    Raises:
        Stopped: `watch` said so.
        ValueError: the record or the network that is there is of other images.
    """
    where = {"folder": folder, "work": work, "progress": progress, "watch": watch, "beside": beside}
    place = (work or work_folder()) / dense.run_name(images.source)
    shipped = place / "model.json"  # written after the weights: where it is, both are whole
    recorded = record_path(dense, images.source, folder)
    processes.decide(lambda: _check_network(shipped, recorded, images))
    while not processes.decide(lambda: shipped.exists() and (recorded.exists() or not with_record)):
        try:
            if not processes.decide(recorded.exists):
                run(dense, **where)
                continue
            with only_here(place):  # recorded on another machine: only the network is made anew, not the record
                checkpoint = place / "checkpoint.pt"
                start = partial(pretrained_network, dense, images, **where)
                trained = train(
                    dense, images, split, checkpoint=checkpoint, start=start, progress=progress, watch=watch
                )
                if processes.rank() == 0:
                    _save_shipped(trained, images, place)
                    delete_checkpoint(checkpoint)
        except RunBusy:
            if processes.decide(lambda: watch is not None and watch(0, {})):
                raise Stopped("stopped while another process trains the dense network") from None
            time.sleep(WAIT)
    return load_model(shipped)


def _check_network(shipped: Path, recorded: Path, images: ImageSet) -> None:
    """Refuse the record and the network of a dense run where they are of other images; each may not be there yet."""
    if recorded.exists():
        _record_of(recorded, images)
    if shipped.exists() and not _is_of(shipped, images):
        raise RecordError(
            f"network {shipped.parent} was trained on other images than those at hand: delete that folder to have "
            "it trained anew, or use another --work"
        )


def _is_of(shipped: Path, images: ImageSet) -> bool:
    """Whether a network was trained on these images.

    By their digest; by their mean and spread where an older run left none, and for published sets, whose pixels depend
    on what decoded them.
    """
    if images.name not in CARDS and (noted := shipped.parent / DIGEST).exists():
        return noted.read_text(errors="replace") == images.digest
    said, here = read_description(shipped), {"mean": images.mean, "std": images.std}
    try:
        pairs = [pair for name, values in here.items() for pair in zip(said[name], values, strict=True)]
        return all(math.isclose(a, b, abs_tol=1e-5) for a, b in pairs)
    except (KeyError, TypeError, ValueError):
        return False


def _save_shipped(trained: Trained, images: ImageSet, place: Path) -> None:
    weights = place / "model.safetensors"
    for file in (place / DIGEST, *exports_of(weights)):
        file.unlink(missing_ok=True)  # of the network that is replaced
    save_model(trained.small, weights, classes=images.classes, mean=images.mean, std=images.std)
    write_atomic(place / DIGEST, images.digest.encode())
