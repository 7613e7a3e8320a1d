"""The widths that a run's target asks for, found once and kept in a file for its other seeds and when it is resumed.

What a width costs in time is measured, and a second search would find other widths: the runs of one table row would be
networks of different sizes.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bpl.config import RunConfig
from bpl.hardware import widths_for
from bpl.machine.atomic import folder_held, write_atomic
from bpl.machine.this_machine import machine
from bpl.paths import work_folder


def config_widths(config: RunConfig, model: nn.Module, work: Path | None = None) -> dict[str, int] | None:
    """The widths that a run's `target` asks for; None where it has none, and the ratio counts.

    They are kept in a file among the runs' checkpoints: a run that is resumed, and the other seeds of its row, get the
    widths that the first one found. Where that file holds no widths, those of a counted target are searched again,
    which finds the same ones; a measured target is refused, since another search would find others.

    Args:
        config: the run.
        model: its dense network, without partners.
        work: folder of the runs' checkpoints; None for the checkout's.

    Raises:
        ValueError: the target cannot be met, or the file of a measured target is damaged.
    """
    if config.target is None:
        return None
    asked = {
        "target": config.target, "scope": config.scope, "round_to": config.round_to, "image_size": config.image_size,
        "layers": {name: list(weight.shape) for name, weight in model.named_parameters()},
    }  # fmt: skip
    if config.target.startswith("latency"):
        asked["machine"] = machine()
    name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    path = (work or work_folder()) / "widths" / f"{name}.json"
    with folder_held(path.parent):  # of two runs at once the second waits for the first, which may be measuring
        widths = _read_widths(path, asked)
        if widths is None:
            with torch.random.fork_rng(devices=[]):  # measured or read: what a run draws after it is the same
                found = widths_for(
                    model, config.target, config.image_size, scope=config.scope, round_to=config.round_to
                )
            content = {"share": found.share, "widths": found.widths, "asked": asked}
            write_atomic(path, json.dumps(content, indent=1).encode())
            widths = found.widths
    return widths


def _read_widths(path: Path, asked: dict[str, Any]) -> dict[str, int] | None:
    """The widths in a file, which may hold anything; None where they are to be searched."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError):
        content = None
    widths = content.get("widths") if isinstance(content, dict) else None
    if isinstance(widths, dict) and widths and all(_fits(width, name, asked) for name, width in widths.items()):
        return widths
    if "machine" in asked:  # which is asked for where time is measured
        raise ValueError(f"{path} holds no widths of this network: delete the file to measure and search again")
    return None


def _fits(width: Any, name: str, asked: dict[str, Any]) -> bool:
    filters = asked["layers"].get(f"{name}.weight", [0])[0]
    return isinstance(width, int) and not isinstance(width, bool) and 1 <= width <= filters
