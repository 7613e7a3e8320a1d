"""A whole BPL training against the dense network's own: compute and time, from steps measured in turns in one run.

    python benchmarks/whole_training.py [--arch resnet50] [--ratio 0.7] [--epochs 300] [--rounds 7]

BPL trains the network with partners until the masks freeze and the slimmed network with partners from then on. Steps
of both, and of the dense network, take turns; each round gives the time of a whole training over the dense one's,

    share * t(partners) / t(dense) + (1 - share) * t(slimmed) / t(dense)

where share is that of the epochs before the freeze (`RunConfig.freeze_epoch`). What happens once, ranking and slimming,
is timed too. Nothing is trained for hundreds of epochs: all epochs of a phase have the same steps.
"""

import argparse
import time

import torch
from steps import Step, make_grown

import bpl
from bpl.measure import count_macs, in_turns, quartiles


def compare(
    arch: str, ratio: float, epochs: int, freeze_at: float | None, image_size: int, batch: int, rounds: int, bf16: bool
) -> str:
    """The report, as text."""
    config = bpl.RunConfig("ucm", "bpl", tier="paper", arch=arch, ratio=ratio, epochs=epochs, freeze_at=freeze_at)
    share = config.freeze_epoch / config.epochs
    dense = make_grown(arch, image_size)
    partners = make_grown(arch, image_size, bpl.grow_partners)
    start = time.perf_counter()
    slimmed = bpl.slim(partners, bpl.prune_masks(partners, ratio, config.criterion, config.scope, config.round_to))
    once = time.perf_counter() - start
    models = {"dense": dense, "partners": partners, "slimmed": slimmed}
    macs = {name: 3 * count_macs(model, image_size) for name, model in models.items()}
    steps = {name: Step(model, batch, image_size, bf16=bf16) for name, model in models.items()}
    times = in_turns(steps, rounds, warm_up=2)

    lines = [
        f"{arch}, ratio {ratio:g}, {image_size} pixels, batch {batch}, {'bf16' if bf16 else 'float32'}, "
        f"{torch.get_num_threads()} threads, {rounds} rounds; masks freeze at epoch {config.freeze_epoch} of {epochs}"
    ]
    for name, values in times.items():
        relative = quartiles([a / b for a, b in zip(values, times["dense"], strict=True)])
        lines.append(
            f"  {name:9} {quartiles(values)[1]:8.1f} ms a step, {relative[1]:.2f} [{relative[0]:.2f}, "
            f"{relative[2]:.2f}] of the dense step; {macs[name] / macs['dense']:.2f} of its MACs"
        )
    rows = zip(times["dense"], times["partners"], times["slimmed"], strict=True)
    low, middle, high = quartiles([(share * before + (1 - share) * after) / whole for whole, before, after in rows])
    computed = (share * macs["partners"] + (1 - share) * macs["slimmed"]) / macs["dense"]
    even = quartiles([(d - s) / (p - s) for d, p, s in zip(*times.values(), strict=True)])[1]
    as_steps = 1e3 * once / quartiles(times["dense"])[1]
    lines += [
        f"the whole training: {middle:.3f} [{low:.3f}, {high:.3f}] of the dense network's time, "
        f"{computed:.3f} of its MACs",
        f"ranking and slimming, once: {once:.2f} s, as long as {as_steps:.1f} dense steps",
        f"as long as the dense training if masks froze after {100 * even:.0f} % of the epochs",
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
    parser.add_argument("--float32", action="store_true", help="float32 in place of bf16")
    o = parser.parse_args()
    print(compare(o.arch, o.ratio, o.epochs, o.freeze_at, o.image_size, o.batch, o.rounds, not o.float32))


if __name__ == "__main__":
    main()
