"""What a training step costs: images a second, the share of each part, and ratios measured side by side in one run.

    python benchmarks/training.py [--arch resnet50] [--image-size 256] [--batch 8] [--rounds 7]
    python benchmarks/training.py --out data/latency/training.json      # what the book's page on latency reads

Compared are the library's step on the network with partners, in float32 and in bf16, and

    (a) the dense network's own step in the same precision: what partners cost beside what they must cost by their MACs
    (b) the straightforward implementation, in the style of the released code, on the same network and masks: kernels
        concatenated in every step, two backward passes, a Python loop over the parameters, NCHW float32

All take turns, so that a drift of the machine's speed hits all alike; medians and quartiles of the ratios over the
rounds are printed. Masks are held in every step on both sides, as after the freeze. The library does not train like
that unless told to (`slim_at="none"`): its steps after the freeze are those of the slimmed network, the same steps to
rounding, and they are timed too. On a machine that other programs use, `--threads 1 --clock processor`.
"""

import argparse
from pathlib import Path
from typing import Any

from steps import ReleasedStep, Step, as_file, in_words, make_grown, measured_here, set_threads

import bpl
from bpl.measure import CLOCKS, OtherWork, count_macs, in_turns, quartiles

RATIO = 0.7
PRECISIONS = ("float32", "bf16")


def measure(arch: str, image_size: int, batch: int, rounds: int, clock: str = "wall") -> dict[str, Any]:
    """The measurements, as plain values: what `bpl.report.training` reads."""
    partners = {name: make_grown(arch, image_size, bpl.grow_partners) for name in (*PRECISIONS, "released")}
    masks = bpl.prune_masks(partners["released"], RATIO)
    steps: dict[str, Step | ReleasedStep] = {}
    for kind in ("dense", "partners", "slimmed"):
        for precision in PRECISIONS:
            if kind == "dense":
                model = make_grown(arch, image_size)
            else:
                model = partners[precision] if kind == "partners" else bpl.slim(partners["released"], masks)
            held = masks if kind == "partners" else None
            steps[f"{kind} {precision}"] = Step(
                model, batch, image_size, bf16=precision == "bf16", masks=held, clock=clock
            )
    steps["released"] = ReleasedStep(partners["released"], batch, image_size, masks)
    macs = {name: 3 * count_macs(step.model, image_size) for name, step in steps.items()}
    others = OtherWork()
    times = in_turns(steps, rounds, warm_up=2, clock=clock)
    return {
        "network": {"arch": arch, "image_size": image_size, "batch": batch, "ratio": RATIO},
        "machine": measured_here(clock, others),
        "macs": macs,
        "times": {name: [round(value, 2) for value in values] for name, values in times.items()},
        "parts": {name: _shares(steps[name]) for name in ("partners float32", "partners bf16")},
    }


def _shares(step: Step) -> dict[str, float]:
    """Median share of a step that each of its parts took, in percent, the two warm-up steps left out."""
    whole = [sum(values) for values in zip(*step.parts.values(), strict=True)]
    return {
        part: round(quartiles([100 * a / b for a, b in zip(values, whole, strict=True)][2:])[1], 2)
        for part, values in step.parts.items()
    }


def describe(measured: dict[str, Any]) -> str:
    """The report, as text."""
    n, times, macs = measured["network"], measured["times"], measured["macs"]
    lines = [
        f"{n['arch']}, {n['image_size']} pixels, batch {n['batch']}, ratio {n['ratio']:g}, "
        f"{len(times['released'])} rounds, {in_words(measured['machine'])}"
    ]
    for name, values in times.items():
        speed = 1e3 * n["batch"] / quartiles(values)[1]
        lines.append(f"  {name:18} {quartiles(values)[1]:9.1f} ms a step {speed:7.2f} images/s")
    for precision in PRECISIONS:
        dense = f"dense {precision}"
        for kind, what in (("partners", "the step with partners"), ("slimmed", "the step after slimming")):
            ours = f"{kind} {precision}"
            lines += [
                f"{what} in {precision}:",
                f"  (b) {_ratio(times['released'], times[ours])} times as fast as the released style",
                f"  (a) {_ratio(times[ours], times[dense])} times the dense network's step; "
                f"by MACs {macs[ours] / macs[dense]:.2f}",
            ]
            if ours in measured["parts"]:
                parts = measured["parts"][ours].items()
                lines.append("  share of the step: " + ", ".join(f"{part} {share:.1f} %" for part, share in parts))
    return "\n".join(lines)


def _ratio(one: list[float], other: list[float]) -> str:
    """Median and quartiles of the ratio of two lists of times, round by round."""
    low, middle, high = quartiles([a / b for a, b in zip(one, other, strict=True)])
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="threads of an operation; as many as cores where not given")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="processor, with one thread, on a busy machine")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    set_threads(parser, options.threads)
    measured = measure(options.arch, options.image_size, options.batch, options.rounds, options.clock)
    print(describe(measured))
    if options.out is not None:
        as_file(measured, options.out)


if __name__ == "__main__":
    main()
