"""The one training loop, shared by all methods, so that they differ in one file each.

Everything that draws chance is seeded by (seed, epoch), the learning rate is a function of the step, and the state of
a run is its weights, its momentum and its masks: a run that was killed and resumed ends, on the CPU, with the weights
of one that was not. Where several processes share a run (`bpl.machine.processes`), each goes through this loop with its
share of every batch, and all of them end with the weights of a run in one process, up to rounding.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from bpl.config import RunConfig
from bpl.data import ImageSet, Share, Split, augment, batches, load_images, make_split, normalise
from bpl.data.cache import say
from bpl.data.streamed import death_said
from bpl.machine import processes
from bpl.machine.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from bpl.machine.compiled import Compiled
from bpl.machine.ending import Stopped, Watch
from bpl.machine.finite import check_finite
from bpl.machine.out_of_memory import out_of_memory_said
from bpl.machine.synchronised import Synchronised
from bpl.methods import REGISTRY, Batch, Material, Method, Training
from bpl.methods.sharing import check_shared
from bpl.models import build_model
from bpl.pretrain import transfer
from bpl.records import source_digest
from bpl.schedule import SCHEDULES, steps_an_epoch

CHECKPOINT_SECONDS = 20.0  # between two checkpoints: this much work is lost to a kill
CHECKPOINT_COST = 0.4  # seconds; where saving takes longer, it is done as much less often: 2 % of the time at most
EVALUATION_BATCH = 256  # images


@dataclass
class Trained:
    """What a training leaves.

    Attributes:
        network: the network as trained: with partners, and with masked channels where they were not removed.
        small: the ordinary network that ships.
        method: the method, with its masks.
        curves: name -> one value an epoch.
        training_macs: multiply-accumulates of all training steps (forward and backward, 3 x forward), with those of the
            dense network where the method needs one trained.
        seconds: wall time of the training, without evaluation, checkpoints and the training of that dense network.
        sources: digests of the library's source that trained it, in order; several where a run went on with another
            version of the library.
    """

    network: nn.Module
    small: nn.Module
    method: Method
    curves: dict[str, list[float]] = field(default_factory=dict)
    training_macs: int = 0
    seconds: float = 0.0
    sources: list[str] = field(default_factory=list)


@dataclass
class Start:
    """A network that was trained on another data set.

    Attributes:
        network: the network.
        training_macs: multiply-accumulates of its training.
    """

    network: nn.Module
    training_macs: int


@torch.no_grad()
def predict(model: Callable[[Tensor], Tensor], images: ImageSet, indices: Tensor) -> Tensor:
    """Logits of part of a data set.

    Args:
        model: a network in evaluation mode.
        images: the data set, on the network's device.
        indices: (n,) which images.

    Returns:
        (n, classes) float32, in the order of `indices`.
    """
    logits = [
        model(normalise(batch, images.mean, images.std).contiguous(memory_format=torch.channels_last)).float()
        for batch, _ in batches(images.images, images.labels, indices, EVALUATION_BATCH, None)
    ]
    return torch.cat(logits)


def _predict_together(model: nn.Module, images: ImageSet, indices: Tensor) -> Tensor:
    """`predict`, the batches dealt out over the processes; each has all logits afterwards."""
    dealt = torch.arange(len(indices)).split(EVALUATION_BATCH)[processes.rank() :: processes.count()]
    logits = torch.zeros(len(indices), len(images.classes), dtype=torch.float32, device=images.labels.device)
    if dealt:
        rows = torch.cat(dealt)
        logits[rows.to(logits.device)] = predict(model, images, indices[rows])
    return processes.add_up(logits)


def top1(logits: Tensor, labels: Tensor) -> float:
    """Share of the images whose largest logit is their class, in percent."""
    return 100.0 * (logits.argmax(1) == labels).double().mean().item()


def mean_per_class(logits: Tensor, labels: Tensor) -> float:
    """Top-1 of each class, averaged over the classes that have images, in percent: a small class counts as a large one.

    Also known as balanced accuracy.

    Args:
        logits: (n, classes).
        labels: (n,) indices of classes.
    """
    images = torch.bincount(labels)  # (C,)
    right = torch.bincount(labels[logits.argmax(1) == labels], minlength=len(images))  # (C,)
    there = images > 0
    return 100.0 * (right[there] / images[there].double()).mean().item()


def _seed_of(seed: int, epoch: int, what: int) -> int:
    """One seed per run, epoch and purpose."""
    return (seed * 1_000_003 + epoch) * 16 + what


@processes.loss_said()
@death_said()
def train(
    config: RunConfig,
    images: ImageSet,
    split: Split,
    *,
    checkpoint: Path | None = None,
    dense: Callable[[], nn.Module] | None = None,
    start: Callable[[], Start] | None = None,
    progress: bool = True,
    watch: Watch | None = None,
    saved: Callable[[int], None] | None = None,
) -> Trained:
    """Train one network by one method; where `torchrun` started several processes, all of them call it and share it.

    Args:
        config: the run.
        images: the data set, pixels as uint8.
        split: which images are for training, validation and test. The test part is measured, never used.
        checkpoint: file to resume from, if it exists, and to save to; None for neither.
        dense: gives the trained dense network to methods that need one; None to train it here and now.
        start: gives the network to start from, where the config names one (`pretrain`); None to train it here and now.
        progress: show a progress bar on standard error.
        watch: called after every epoch, in every process, with the number of epochs done and the epoch's values of the
            curves; where it returns True in any of them, the training saves its checkpoint and stops.
        saved: called with the number of epochs done after a checkpoint was saved, in the process that saved it.

    Returns:
        The trained and the shipped network, and the curves.

    Raises:
        Stopped: `watch` said so.
        CheckpointError: the checkpoint is corrupt or of another run.
        FloatingPointError: the loss or a weight is no longer finite.
        WorkerDied: a process that reads images has ended.
        ProcessLost: another of the processes that share the run has ended.
        OutOfMemory: a step needs more memory than there is.
        ValueError: the device is not there, or the processes cannot share the run.
    """
    fabric = processes.fabric_of(config)
    check_shared(config)
    progress = progress and processes.rank() == 0
    stored = _stored(config, images).to(fabric.device)
    images = images.to(fabric.device)
    torch.manual_seed(config.seed)
    if dense is None:
        dense = partial(_train_dense, config, images, split, progress)
    work = checkpoint and checkpoint.parent.parent  # where the runs' folders lie side by side
    method = REGISTRY[config.method](config, Material(images, split.train, dense, fabric.autocast, work))
    model = build_model(config.arch, len(images.classes), config.image_size, config.width)
    state = processes.decide(lambda: _resume(checkpoint, config, images, split))
    begun = None
    if config.pretrain is not None and state is None:
        with torch.random.fork_rng(devices=[]):  # trained or loaded: what is drawn from here on is the same
            begun = (start or partial(_train_start, config, images, progress))()
        transfer(begun.network, model)
    model = method.prepare(model) if state is None else method.prepare_again(model, state["method"])
    model = model.to(fabric.device, memory_format=torch.channels_last)  # first: a method's masks follow its device
    if state is not None:
        model = method.restore(model, state["method"])
        model.load_state_dict(state["model"])
    optimizer = torch.optim.SGD(
        model.parameters(), config.learning_rate, config.momentum, weight_decay=config.weight_decay, fused=True
    )
    training = Training(model, optimizer, epoch=0, epochs=config.epochs)
    to_train, out = method.training_part(split.train), Trained(model, model, method)
    if state is None:
        out.training_macs = method.macs_before() + (begun.training_macs if begun else 0)
    else:
        optimizer.load_state_dict(state["optimizer"])
        training.epoch, out.curves = state["epoch"], state["curves"]
        out.training_macs, out.seconds = state["training_macs"], state["seconds"]
        out.sources = state.get("sources", [])  # checkpoints of older versions do not say
    if source_digest() not in out.sources:
        if out.sources and processes.rank() == 0:
            say(
                f"{config.run_name(images.source)} was begun with another version of the library; it goes on with this "
                "one, and its record names both (--repeat makes it anew)."
            )
        out.sources.append(source_digest())

    last_save, pause = time.monotonic(), CHECKPOINT_SECONDS
    module, counted, macs = None, None, 0
    bar = tqdm(total=config.epochs, initial=training.epoch, desc=config.method, unit="epoch", disable=not progress)
    while training.epoch < config.epochs:
        if counted is not training.model:  # the first epoch, and after a method has put a smaller network there
            counted, macs = training.model, method.macs_per_image(training.model)  # may have to train a teacher again
            module = _set_up(config, training.model, fabric)
        started = time.monotonic()
        with out_of_memory_said(config.batch_size, config.image_size):
            loss, seen = _epoch(config, stored, to_train, training, module, method, fabric)
        out.training_macs += macs * seen
        training.epoch += 1
        added = method.after_epoch(training)
        out.seconds += time.monotonic() - started

        shipped = method.as_shipped(training.model).eval()
        row = {"loss": loss, "learning_rate": training.optimizer.param_groups[0]["lr"], **added}
        for part, indices in (("validation", split.validation), ("test", split.test)):
            if len(indices):
                with fabric.autocast():
                    logits = _predict_together(shipped, images, indices)
                row[part] = top1(logits, images.labels[indices.to(images.labels.device)])
        row["at_size"] = float(method.at_size(training))
        for name, value in row.items():
            out.curves.setdefault(name, []).append(value)
        bar.set_postfix(loss=f"{loss:.3f}", test=f"{row['test']:.1f}")
        bar.update()
        asked = processes.any_says(lambda row=row: watch is not None and watch(training.epoch, row))
        stop = asked and training.epoch < config.epochs
        writes = checkpoint is not None and processes.rank() == 0
        if writes and (stop or time.monotonic() - last_save > pause):
            began = time.monotonic()
            _save(checkpoint, config, images, split, training, method, out)
            last_save = time.monotonic()
            pause = CHECKPOINT_SECONDS * max(1.0, (last_save - began) / CHECKPOINT_COST)
            if saved is not None:
                saved(training.epoch)
        if stop:
            bar.close()
            processes.meet()  # a launcher ends all when one has left: none leaves before the checkpoint is there
            raise Stopped(f"stopped after epoch {training.epoch} of {config.epochs}")
    bar.close()
    out.network = method.as_trained(training.model.eval()).eval()
    out.small = method.finish(training.model).eval()
    return out


def _train_dense(config: RunConfig, images: ImageSet, split: Split, progress: bool) -> nn.Module:
    return train(config.dense(), images, split, progress=progress).small


def pretraining_of(config: RunConfig, images: ImageSet) -> tuple[RunConfig, ImageSet, Split]:
    """The dense run that comes before a run whose config has `pretrain`, with its images and their parts.

    Args:
        config: the run.
        images: its images.

    Raises:
        ValueError: the other data set's images are drawn where the run's are real or the other way round, or they are
            the run's own under another name.
    """
    before = config.pretraining()
    others = load_images(before.dataset, before.image_size, before.data, progress=False)
    if others.source != images.source:
        raise ValueError(
            f"pretrain is {config.pretrain!r}: of {before.dataset} there are {others.source} images, of "
            f"{config.dataset} {images.source} ones; they must be alike (bpl data --help says where images are looked "
            "for)"
        )
    other_split = (before.split, before.seed) != (config.split, config.seed)
    if others.digest == images.digest and other_split:
        raise ValueError(
            f"pretrain is {config.pretrain!r}: its images are those of {config.dataset}, and it would train on test "
            f"images of this run; give it the same name as the data set, {config.dataset}, or name another one"
        )
    return before, others, make_split(others, before.split, before.seed)


def _train_start(config: RunConfig, images: ImageSet, progress: bool) -> Start:
    trained = train(*pretraining_of(config, images), progress=progress)
    return Start(trained.small, trained.training_macs)


def _stored(config: RunConfig, images: ImageSet) -> ImageSet:
    """The images that training crops are sampled from: finer than what the network sees, where the config says so."""
    if config.stored_size == images.images.shape[-1]:
        return images
    where = "synthetic" if images.source == "synthetic" else config.data  # that there are no others was said already
    with processes.first_of_machine_first():
        stored = load_images(config.dataset, config.stored_size, where, progress=False)
    if stored.files != images.files:
        raise ValueError(f"the images of {images.name} changed between two readings: start again")
    # normalised as the network is tested and shipped: another size has other statistics, where no card states them
    return replace(stored, mean=images.mean, std=images.std)


def _set_up(config: RunConfig, model: nn.Module, fabric: Any) -> nn.Module:
    """The network as a step calls it: in the precision of the run, shared or, where the config says so, compiled."""
    if processes.count() > 1:
        called = Synchronised(model)
    else:
        called = model if config.compile == "off" else Compiled(model, config.compile)
    return fabric.setup_module(called, move_to_device=False)


def _epoch(
    config: RunConfig,
    images: ImageSet,
    indices: Tensor,
    training: Training,
    module: nn.Module,
    method: Method,
    fabric: Any,
) -> tuple[float, int]:
    """One pass over the training part of `images`; returns the mean loss and the number of images seen."""
    device = images.images.device
    torch.manual_seed(_seed_of(config.seed, training.epoch, 0))  # dropout
    chance = torch.Generator(device).manual_seed(_seed_of(config.seed, training.epoch, 1))
    share = Share(processes.rank(), processes.count())
    drop_last = len(indices) > config.batch_size  # a last batch of one image would break batch normalisation
    steps = steps_an_epoch(len(indices), config.batch_size)
    step = training.epoch * steps
    total, seen = torch.zeros((), device=device), 0
    module.train()
    order = _seed_of(config.seed, training.epoch, 2)
    for batch, labels in batches(images.images, images.labels, indices, config.batch_size, order, drop_last, share):
        rate = SCHEDULES[config.schedule](step, steps * config.epochs, config.learning_rate)
        for group in training.optimizer.param_groups:
            group["lr"] = rate
        x = normalise(augment(batch, config.augmentation, config.image_size, chance, share), images.mean, images.std)
        x = x.contiguous(memory_format=torch.channels_last)
        loss = method.loss(training, Batch(x, labels), module(x))
        fabric.backward(loss)
        method.before_step(training)
        training.optimizer.step()
        training.optimizer.zero_grad()
        method.after_step(training)
        total += loss.detach()  # stays on the device: no synchronisation within an epoch
        step, seen = step + 1, seen + share.of * len(batch)
    mean = float(processes.add_up(total)) / share.of / steps
    check_finite(mean, training.model, f"epoch {training.epoch + 1} of {config.epochs} (learning rate {rate:.2g})")
    return mean, seen


def _run_id(config: RunConfig, images: ImageSet, split: Split) -> str:
    """What a checkpoint must belong to: the config, the images by their pixels, and the split by its names."""
    return f"{config.identity('any')} {images.digest} {split.digest}"


def _save(
    path: Path,
    config: RunConfig,
    images: ImageSet,
    split: Split,
    training: Training,
    method: Method,
    out: Trained,
) -> None:
    state = {
        "run": _run_id(config, images, split),
        "epoch": training.epoch,
        "model": training.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "method": method.state(),
        "curves": out.curves,
        "training_macs": out.training_macs,
        "seconds": out.seconds,
        "sources": out.sources,
    }
    save_checkpoint(path, state)


def _resume(path: Path | None, config: RunConfig, images: ImageSet, split: Split) -> dict[str, Any] | None:
    """The state to go on from, or None to start anew."""
    if path is None or not path.exists():
        return None
    state = load_checkpoint(path)
    if state.get("run") != _run_id(config, images, split):
        raise CheckpointError(f"checkpoint {path} belongs to another run or other images: delete it to start anew")
    return state
