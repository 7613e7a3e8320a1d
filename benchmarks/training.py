"""What a training step costs: images a second, the share of each part, and ratios measured side by side in one run.

    python benchmarks/training.py [--arch resnet50] [--image-size 256] [--batch 8] [--rounds 7]

Compared are the library's step on the network with partners, in float32 and in bf16, and

    (a) the dense network's own step in the same precision: what partners cost beside what they must cost by their MACs
    (b) the straightforward implementation, in the style of the released code, on the same network and masks: kernels
        concatenated in every step, two backward passes, a Python loop over the parameters, NCHW float32

All take turns, so that a drift of the machine's speed hits all alike; medians and quartiles of the ratios over the
rounds are printed. Masks are held in every step on both sides, as from a freeze on without slimming, the dearest case.
"""

import argparse

import torch
from steps import ReleasedStep, Step, make_grown

import bpl
from bpl.measure import count_macs, in_turns, quartiles


def compare(arch: str, image_size: int, batch: int, rounds: int) -> str:
    """The report, as text."""
    grown = {
        name: make_grown(arch, image_size, bpl.grow_partners)
        for name in ("partners float32", "partners bf16", "released")
    }
    masks = bpl.prune_masks(grown["released"], 0.7)
    dense = {name: make_grown(arch, image_size) for name in ("dense float32", "dense bf16")}
    macs = {name: count_macs(model, image_size) for name, model in (grown | dense).items()}
    steps = {name: Step(model, batch, image_size, bf16="bf16" in name) for name, model in dense.items()}
    for name in ("partners float32", "partners bf16"):
        steps[name] = Step(grown[name], batch, image_size, bf16="bf16" in name, masks=masks)
    steps["released"] = ReleasedStep(grown["released"], batch, image_size, masks)
    times = in_turns(steps, rounds, warm_up=2)

    bound = macs["partners bf16"] / macs["dense bf16"]
    lines = [f"{arch}, {image_size} pixels, batch {batch}, {torch.get_num_threads()} threads, {rounds} rounds"]
    for name, values in times.items():
        lines.append(
            f"  {name:18} {quartiles(values)[1]:9.1f} ms a step {1e3 * batch / quartiles(values)[1]:7.2f} images/s"
        )
    for precision in ("float32", "bf16"):
        ours = times[f"partners {precision}"]
        lines.append(f"the step with partners in {precision}:")
        lines.append(f"  (b) {_ratio(times['released'], ours)} times as fast as the released style")
        dearer = _ratio(ours, times[f"dense {precision}"])
        lines.append(f"  (a) {dearer} times the dense network's step; by MACs {bound:.2f}")
        parts = steps[f"partners {precision}"].parts
        whole = [sum(values) for values in zip(*parts.values(), strict=True)]
        shares = {
            part: quartiles([100 * a / b for a, b in zip(values, whole, strict=True)][2:])[1]
            for part, values in parts.items()
        }
        lines.append("  share of the step: " + ", ".join(f"{part} {share:.1f} %" for part, share in shares.items()))
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
    options = parser.parse_args()
    print(compare(options.arch, options.image_size, options.batch, options.rounds))


if __name__ == "__main__":
    main()
