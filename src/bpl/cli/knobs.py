"""Which method reads which knob of a run's config, for those who set one on a command line."""

import re
from collections.abc import Collection

from bpl.config import RunConfig
from bpl.defaults import IDLE, METHODS, ONLY_FOR


def unread(given: Collection[str], config: RunConfig) -> list[str]:
    """The options that were given and change nothing.

    Args:
        given: names of fields of the config that were given.
        config: the run.

    Returns:
        Those that the method does not read, and those that another option's value leaves without effect, with it.
    """
    never = [name for name in ONLY_FOR if name in given and config.method not in ONLY_FOR[name]]
    never += ["ratio"] if config.method == "dense" and "ratio" in given else []  # nothing is removed from it
    idle = {
        name: f" (with {_option(other)} {getattr(config, other)})"
        for name, (other, values) in IDLE.items()
        if name in given and getattr(config, other) in values
    }
    sizes = [name for name in ("target", "budget") if getattr(config, name) is not None]
    if "ratio" in given and sizes:
        idle["ratio"] = f" (with {_option(sizes[0])} {getattr(config, sizes[0])})"
    return [_option(name) for name in never] + [_option(name) + why for name, why in idle.items()]


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def with_readers(text: str) -> str:
    """The description of a config, every knob's line with the methods that read it where not all do.

    Args:
        text: a docstring without its indentation, with a line ``    name: what for`` a knob.
    """

    def line(found: re.Match) -> str:
        return found[0] + (f" Read by {readers}." if (readers := _readers(found[1])) else "")

    return re.sub(r"^    (\w+): .+(?:\n {8}.+)*", line, text, flags=re.MULTILINE)


def _readers(name: str) -> str:
    if name not in ONLY_FOR:
        return ""
    others = [method for method in METHODS if method not in ONLY_FOR[name]]
    return f"all but {', '.join(others)}" if len(others) < len(METHODS) // 2 else ", ".join(ONLY_FOR[name])
