"""How memory and multiply-accumulates of a training step grow with width, depth, partners and image size.

    python benchmarks/memory.py [--out data/latency/growth.json]

Both are counted on the meta device (`bpl.memory`), so that every machine gives the same numbers; the page on latency
draws them from the file. Everything is for ResNets with BPL's partners, batch 8, unless the axis says otherwise.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import bpl
from bpl.machine.atomic import write_atomic
from bpl.measure import count_macs
from bpl.memory import step_memory

BATCH, CLASSES = 8, 21
# axis -> label -> what differs from the usual network; the first of an axis is what the others are compared with
AXES: dict[str, dict[str, dict[str, Any]]] = {
    "width": {str(width): {"width": width} for width in (16, 32, 64, 128)},
    "image size": {str(size): {"image_size": size} for size in (128, 192, 256, 384)},
    "depth, basic blocks": {arch[6:]: {"arch": arch} for arch in ("resnet18", "resnet34")},
    "depth, bottlenecks": {arch[6:]: {"arch": arch} for arch in ("resnet50", "resnet101")},
    "partners, ResNet-18": {kind or "none": {"partner": kind} for kind in (None, "same", "acnet", "dbb")},
    "partners, ResNet-50": {
        kind or "none": {"arch": "resnet50", "partner": kind} for kind in (None, "same", "acnet", "dbb")
    },
}


def cost(
    arch: str = "resnet18", *, width: int | None = None, image_size: int = 256, partner: str | None = "same"
) -> dict[str, int]:
    """Multiply-accumulates and bytes of one image's share of a training step."""
    model = bpl.build_model(arch, CLASSES, image_size, width)
    if partner is not None:
        model = bpl.grow_partners(model, partner)
    memory = step_memory(model, image_size, BATCH)
    return {"macs": 3 * count_macs(model, image_size), "bytes": memory.total, "maps_and_gradients": memory.peak}


def growth() -> list[dict[str, Any]]:
    """One entry for each network: its axis, its label, and its costs."""
    return [
        {"axis": axis, "label": label} | cost(**changes)
        for axis, cases in AXES.items()
        for label, changes in cases.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    rows = growth()
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        least = first.setdefault(row["axis"], row)
        print(
            f"{row['axis']:22} {row['label']:6} {row['macs'] / 1e9:8.2f} G MACs an image"
            f" ({row['macs'] / least['macs']:5.2f} x)"
            f" {row['bytes'] / 2**20:8.1f} MiB a step ({row['bytes'] / least['bytes']:5.2f} x)"
        )
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
        write_atomic(options.out, f'{{\n "schema": 1,\n "batch": {BATCH},\n "rows": [\n{lines}\n ]\n}}\n'.encode())


if __name__ == "__main__":
    main()
