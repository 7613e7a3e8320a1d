"""Damaged and hostile inputs by the hundred, and what came of them.

An input is made from its number alone, so that a failure names the number and nothing else is needed to see it again.
"""

import copy
import json
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from trials import keep

SHORT = 150  # inputs of a target by default
LONG = 10_000  # of a target in the long mode


@dataclass
class Tally:
    """What came of the inputs of one target.

    Attributes:
        target: what was given hostile input.
        read: inputs that were read.
        refused: exception type -> inputs that were refused with it, in one sentence.
    """

    target: str
    read: int = 0
    refused: dict[str, int] = field(default_factory=dict)

    @property
    def inputs(self) -> int:
        return self.read + sum(self.refused.values())

    def __str__(self) -> str:
        refused = ", ".join(f"{count:,} {name}" for name, count in sorted(self.refused.items()))
        return f"{self.target}: {self.inputs:,} inputs, {self.read:,} read, refused: {refused or 'none'}, 0 crashes"


TALLIES: list[Tally] = []  # of this session; printed at its end by conftest.py


def fuzz(
    target: str,
    count: int,
    make: Callable[[random.Random], Any],
    use: Callable[[Any], object],
    documented: tuple[type[Exception], ...],
) -> Tally:
    """Give a target hostile inputs; anything but a result or a documented exception with one sentence is a crash.

    Args:
        target: its name, which also seeds the inputs.
        count: how many inputs.
        make: makes one, from its own source of chance.
        use: gives it to the target.
        documented: the exceptions that the target's docstring names.

    Returns:
        The counts.

    Raises:
        AssertionError: a crash; the message names the input's number.
    """
    tally = Tally(target)
    for number in range(count):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # odd EXIF and the like; pytest would make errors of them
                use(make(random.Random(f"{target} {number}")))
        except documented as error:
            said = str(error)
            assert said and "\n" not in said and len(said) < 2000, f"{target}, input {number}: said {said[:3000]!r}"
            name = type(error).__name__
            tally.refused[name] = tally.refused.get(name, 0) + 1
        except Exception as error:
            raise AssertionError(f"{target}, input {number}: {type(error).__name__}: {str(error)[:500]}") from error
        else:
            tally.read += 1
    TALLIES.append(tally)
    if count >= LONG:
        refused = sum(tally.refused.values())
        keep(f"hostile inputs, {target}", inputs=tally.inputs, read=tally.read, refused=refused, crashes=0)
    return tally


# -- bytes --------------------------------------------------------------------------------------------------------
def mutated_bytes(content: bytes, chance: random.Random) -> bytes:
    """A few changes of the kinds that transfer, storage and malice make."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 6)):
        place = chance.randrange(len(changed) + 1)
        end = min(len(changed), place + chance.choice((1, 2, 4, 8, 64, 512)))
        kind = chance.randrange(7)
        if kind == 0 and changed:
            changed[place - 1] ^= 1 << chance.randrange(8)
        elif kind == 1:
            changed[place:end] = bytes(chance.randrange(256) for _ in range(end - place))
        elif kind == 2:
            del changed[place:]
        elif kind == 3:
            del changed[place:end]
        elif kind == 4:
            changed[place:place] = changed[place:end]
        elif kind == 5:  # sizes and offsets at their limits
            width = chance.choice((1, 2, 4, 8))
            value = chance.choice((0, 1, (1 << 8 * width) - 1, 1 << (8 * width - 1)))
            changed[place : place + width] = value.to_bytes(width, chance.choice(("little", "big")))
        else:
            changed[place:end] = bytes(end - place)
    return bytes(changed)


# -- JSON ---------------------------------------------------------------------------------------------------------
def nested(depth: int) -> list:
    """Lists in lists."""
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


HOSTILE = (
    None, True, False, 0, 1, -1, 2, 3, 10**9, 10**30, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "",
    "../../etc/passwd", "/etc/passwd", "a\0b", "line\nbreak", "\ud800", "x" * 5000, "__class__", "nan", "1", [], {},
    [[]], [0], [1, 2, 3], ["a"], {"a": 1}, {"kind": "conv"}, nested(50),
)  # fmt: skip


def mutated_json(value: Any, chance: random.Random) -> Any:
    """The same with one to three places replaced, removed, doubled or moved."""
    value = copy.deepcopy(value)
    for _ in range(chance.randint(1, 3)):
        parent, key = _place(value, chance)
        kind = chance.randrange(6)
        if parent is None:
            value = chance.choice((value, copy.deepcopy(chance.choice(HOSTILE)))) if kind == 0 else value
        elif kind <= 2:
            parent[key] = copy.deepcopy(chance.choice(HOSTILE))
        elif kind == 3:
            del parent[key]
        elif kind == 4 and isinstance(parent, dict):
            parent[chance.choice(("", "x", "kind", "../x", "__init__", key + "x"))] = parent[key]
        else:
            other, other_key = _place(value, chance)
            parent[key] = copy.deepcopy(other[other_key] if other is not None else chance.choice(HOSTILE))
    return value


def _place(value: Any, chance: random.Random) -> tuple[Any, Any]:
    """Somewhere in a tree: a container and a key of it; None where the tree is no container or empty."""
    parent, key = None, None
    while isinstance(value, dict | list) and value:
        parent = value
        key = chance.choice(list(value)) if isinstance(value, dict) else chance.randrange(len(value))
        value = value[key]
        if chance.random() < 0.3:
            break
    return parent, key


def hostile_text(value: Any, chance: random.Random) -> str:
    """A JSON value as the text of a file: changed as a value, as a text, or buried deep."""
    text = json.dumps(mutated_json(value, chance))
    kind = chance.randrange(8)
    if kind == 0:
        return mutated_bytes(text.encode(), chance).decode(errors="surrogateescape")
    if kind == 1:
        return "[" * 100_000 + text
    if kind == 2:
        return text.replace("1", "9" * chance.choice((20, 5000)), 1)
    return text
