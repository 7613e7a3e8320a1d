"""Training speed at the paper's scale on this machine's GPU: images a second, shares, ratio to the released style.

    python benchmarks/gpu.py [--compile default] [--arch resnet50] [--image-size 256] [--batch 64] [--out FILE]
    python benchmarks/gpu.py --small      # a tiny network: shows on a CPU, in seconds, that everything runs

Speeds are those of `bpl.train.train` itself, on noise images of the shape of UC Merced: median of the epochs after the
first of each phase, the time between two epochs whole (augmentation, steps, masks, a test image). The parts of a step
are timed one by one, waiting for the device after each, so that they add up to a little more than a step of the loop.
The released style (`steps.ReleasedStep`) works on images that lie on the device, in its favour: its own loader reads
files. FLOPs are those of convolutions and linear layers, two a multiply-accumulate, three times the forward pass.
"""

import time
from typing import Any

import torch
from steps import CLASSES, MEAN, STD, ReleasedStep, Step, as_file, device_here, gpu_options, make_grown, measured_here

import bpl
from bpl.data import ImageSet, Split
from bpl.measure import OtherWork, count_macs, in_turns, quartiles
from bpl.report.gpu import of_peak
from bpl.sweep.chips import known_peak, measured_peak
from bpl.train import train

EPOCHS = 4  # of a phase; the first warms up, and compiles
RATIO = 0.7


def noise(images: int, image_size: int) -> ImageSet:
    """A data set of noise images, as many of each class as of any other but one."""
    chance = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, image_size, image_size), dtype=torch.uint8, generator=chance)
    return ImageSet(
        name="noise",
        source="synthetic",
        images=pixels,
        labels=torch.arange(images) % CLASSES,
        classes=tuple(f"class {number}" for number in range(CLASSES)),
        files=tuple(f"noise/{number}.png" for number in range(images)),
        digest="noise",
        mean=MEAN,
        std=STD,
        root=None,
    )


def epoch_seconds(config: bpl.RunConfig, images: ImageSet) -> list[float]:
    """Seconds from the end of one epoch to the end of the next, by the training loop itself."""
    everything = torch.arange(len(images.labels))
    split = Split(everything[:-1], everything[:0], everything[-1:], digest="noise")
    times = [time.perf_counter()]

    def watch(epoch: int, row: dict[str, float]) -> bool:
        times.append(time.perf_counter())
        return False

    train(config, images, split, progress=False, watch=watch)
    return [after - before for before, after in zip(times, times[1:], strict=False)]


def phases_of_the_loop(
    arch: str, width: int | None, image_size: int, batch: int, steps: int, compile: str, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of the epochs of each phase: of a dense run, and of a BPL run before and after its network shrinks."""
    common = {
        "dataset": "synthetic", "tier": "paper", "arch": arch, "width": width, "image_size": image_size,
        "stored_size": image_size, "batch_size": batch, "split": "paper", "compile": compile, "device": device.type,
    }  # fmt: skip
    images = noise(steps * batch + 2, image_size).to(device)
    dense = epoch_seconds(bpl.RunConfig(method="dense", epochs=EPOCHS, **common), images)
    grown = epoch_seconds(bpl.RunConfig(method="bpl", ratio=RATIO, epochs=2 * EPOCHS, freeze_at=0.5, **common), images)
    return {"dense": dense, "bpl before slimming": grown[:EPOCHS], "bpl after slimming": grown[EPOCHS:]}


def measure(
    arch: str, width: int | None, image_size: int, batch: int, steps: int, rounds: int, compile: str
) -> dict[str, Any]:
    """Speeds of the phases, and the parts of their steps, as `bpl.report.gpu` reads them."""
    device, name = device_here()
    others = OtherWork()
    known = known_peak(name)
    peak = known or measured_peak(device, 8192 if device.type == "cuda" else 1024)
    partners = make_grown(arch, image_size, bpl.grow_partners, width=width)
    masks = bpl.prune_masks(partners, RATIO)
    models = {
        "dense": make_grown(arch, image_size, width=width),
        "bpl before slimming": partners,
        "bpl after slimming": bpl.slim(partners, masks),
    }
    macs = {phase: count_macs(model, image_size) for phase, model in models.items()}

    phases = phases_of_the_loop(arch, width, image_size, batch, steps, compile, device)
    ours: dict[str, Step | ReleasedStep] = {
        phase: Step(model, batch, image_size, bf16=True, device=device, compile=compile)
        for phase, model in models.items()
    }
    released = ReleasedStep(
        make_grown(arch, image_size, bpl.grow_partners, width=width), batch, image_size, masks, device
    )
    times = in_turns(ours | {"released": released}, rounds, warm_up=2)
    measured: dict[str, Any] = {}
    for phase, seconds in phases.items():
        epoch = quartiles(seconds[1:])[1]
        parts = {part: quartiles(values[2:])[1] for part, values in ours[phase].parts.items()}
        measured[phase] = {
            "images_per_second": steps * batch / epoch,
            "first_epoch_longer": seconds[0] - epoch,
            "macs": macs[phase],
            "parts": {part: 100 * value / sum(parts.values()) for part, value in parts.items()},
        }
    return {
        "network": {
            "arch": arch, "width": width, "image_size": image_size, "batch": batch, "steps": steps, "ratio": RATIO,
            "precision": "bf16", "compile": compile,
        },
        "machine": measured_here("wall", others),
        "device": name,
        "peak": {"flops": peak, "known": known is not None},
        "phases": measured,
        "released": 1e3 * batch / quartiles(times["released"])[1],
    }  # fmt: skip


def as_text(measured: dict[str, Any]) -> str:
    """The report."""
    network, machine, peak = (measured[name] for name in ("network", "machine", "peak"))
    phases, released = measured["phases"], measured["released"]
    lines = [
        f"{measured['device']}, torch {machine['torch']}, {machine['threads']} threads; at most "
        f"{peak['flops'] / 1e12:.3g} TFLOP/s in "
        + ("bf16, by its data sheet" if peak["known"] else "bf16, measured on a matrix product"),
        f"{network['arch']}, {network['image_size']} pixels, batch {network['batch']}, {network['precision']}, "
        f"channels_last, compile {network['compile']}, {network['steps']} steps an epoch",
    ]
    for phase, values in phases.items():
        speed = values["images_per_second"]
        share = of_peak(measured, phase)
        lines.append(
            f"  {phase:20} {speed:9.1f} images/s {share * peak['flops'] / 1e12:9.3f} TFLOP/s {100 * share:5.1f} % of "
            f"the peak, {speed / phases['dense']['images_per_second']:5.2f} of dense, {speed / released:6.2f} of the "
            f"released style; first epoch {values['first_epoch_longer']:.1f} s longer"
        )
    lines.append(f"  {'released style':20} {released:9.1f} images/s")
    for phase, values in phases.items():
        shares = (f"{part} {share:.1f} %" for part, share in values["parts"].items())
        lines.append(f"share of a step, {phase}: " + ", ".join(shares))
    return "\n".join(lines)


def main() -> None:
    parser = gpu_options(__doc__.splitlines()[0], rounds=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=26, help="an epoch; 26 are UC Merced's 80 %% in batches of 64")
    parser.add_argument("--compile", default="off", help="off, or a mode of torch.compile")
    o = parser.parse_args()
    if o.small:
        measured = measure("resnet18", 8, 32, 16, 3, 3, o.compile)
    else:
        measured = measure(o.arch, None, o.image_size, o.batch, o.steps, o.rounds, o.compile)
    print(as_text(measured))
    if o.out is not None:
        as_file(measured, o.out)


if __name__ == "__main__":
    main()
