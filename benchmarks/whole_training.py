"""A whole BPL training against the dense network's own: compute and time, from steps measured in turns in one run.

    python benchmarks/whole_training.py [--arch resnet50] [--ratio 0.7] [--epochs 300] [--rounds 7]
    python benchmarks/whole_training.py --out data/latency/whole_training.json      # what the book's page reads

BPL trains the network with partners until the masks freeze and the slimmed network with partners from then on. Steps
of both, and of the dense network, take turns; each round gives the time of a whole training over the dense one's,

    share * t(partners) / t(dense) + (1 - share) * t(slimmed) / t(dense)

where share is that of the epochs before the freeze (`RunConfig.freeze_epoch`). What happens once, ranking and slimming,
is timed too. Nothing is trained for hundreds of epochs: all epochs of a phase have the same steps. On a machine that
other programs use, `--threads 1 --clock processor`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steps import Step, as_file, in_words, make_grown, measured_here, set_threads

import bpl
from bpl.measure import CLOCKS, OtherWork, clock_of, count_macs, in_turns, quartiles

PRECISIONS = ("float32", "bf16")
PHASES = ("dense", "partners", "slimmed")


def measure(
    arch: str,
    ratio: float,
    epochs: int,
    freeze_at: float | None,
    image_size: int,
    batch: int,
    rounds: int,
    precisions: Sequence[str] = PRECISIONS,
    clock: str = "wall",
) -> dict[str, Any]:
    """The measurements, as plain values: what `bpl.report.training` reads."""
    config = bpl.RunConfig("ucm", "bpl", tier="paper", arch=arch, ratio=ratio, epochs=epochs, freeze_at=freeze_at)
    partners = make_grown(arch, image_size, bpl.grow_partners)
    now = clock_of(clock)
    start = now()
    slimmed = bpl.slim(partners, bpl.prune_masks(partners, ratio, config.criterion, config.scope, config.round_to))
    once = now() - start
    models = dict(zip(PHASES, (make_grown(arch, image_size), partners, slimmed), strict=True))
    macs = {name: 3 * count_macs(model, image_size) for name, model in models.items()}
    others, times = OtherWork(), {}
    for precision in precisions:
        steps = {name: Step(model, batch, image_size, bf16=precision == "bf16") for name, model in models.items()}
        measured = in_turns(steps, rounds, warm_up=2, clock=clock)
        times[precision] = {name: [round(value, 2) for value in values] for name, values in measured.items()}
    return {
        "network": {"arch": arch, "image_size": image_size, "batch": batch, "ratio": ratio},
        "machine": measured_here(clock, others),
        "epochs": config.epochs,
        "freeze_epoch": config.freeze_epoch,
        "once_seconds": round(once, 3),
        "macs": macs,
        "times": times,
    }


def describe(measured: dict[str, Any]) -> str:
    """The report, as text."""
    n, macs, epochs, freeze = (measured[key] for key in ("network", "macs", "epochs", "freeze_epoch"))
    share = freeze / epochs
    computed = (share * macs["partners"] + (1 - share) * macs["slimmed"]) / macs["dense"]
    lines = [
        f"{n['arch']}, ratio {n['ratio']:g}, {n['image_size']} pixels, batch {n['batch']}, "
        f"masks freeze at epoch {freeze} of {epochs}; {in_words(measured['machine'])}"
    ]
    for precision, times in measured["times"].items():
        lines.append(f"{precision}, {len(times['dense'])} rounds:")
        for name, values in times.items():
            relative = quartiles([a / b for a, b in zip(values, times["dense"], strict=True)])
            lines.append(
                f"  {name:9} {quartiles(values)[1]:8.1f} ms a step, {relative[1]:.2f} [{relative[0]:.2f}, "
                f"{relative[2]:.2f}] of the dense step; {macs[name] / macs['dense']:.2f} of its MACs"
            )
        rounds = list(zip(*(times[phase] for phase in PHASES), strict=True))
        whole = quartiles([(share * before + (1 - share) * after) / dense for dense, before, after in rounds])
        even = quartiles([(dense - after) / (before - after) for dense, before, after in rounds])[1]
        dense_steps = 1e3 * measured["once_seconds"] / quartiles(times["dense"])[1]
        lines += [
            f"  the whole training: {whole[1]:.3f} [{whole[0]:.3f}, {whole[2]:.3f}] of the dense network's time, "
            f"{computed:.3f} of its MACs",
            f"  ranking and slimming, once: {measured['once_seconds']:.2f} s, as long as {dense_steps:.1f} dense steps",
            f"  as long as the dense training if masks froze after {100 * even:.0f} % of the epochs",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--ratio", type=float, default=0.7)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--freeze-at", type=float, help="share of the epochs; the method's own where not given")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", choices=PRECISIONS, help="one of the two; both where not given")
    parser.add_argument("--threads", type=int, help="threads of an operation; as many as cores where not given")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="processor, with one thread, on a busy machine")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    o = parser.parse_args()
    set_threads(parser, o.threads)
    precisions = PRECISIONS if o.precision is None else (o.precision,)
    measured = measure(o.arch, o.ratio, o.epochs, o.freeze_at, o.image_size, o.batch, o.rounds, precisions, o.clock)
    print(describe(measured))
    if o.out is not None:
        as_file(measured, o.out)


if __name__ == "__main__":
    main()
