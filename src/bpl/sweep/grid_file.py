"""The content of a grid file, YAML or JSON, from whoever wrote it: plain values, and not too many of them.

YAML is read with its safe loader, which makes no objects. What it does make is counted before it is made: an alias
(``*name``) stands for a whole value, so that ten lines can stand for a billion values. Words and numbers are those of
YAML 1.2, which has 5e-4 for a number and ``off`` for a word, where pyyaml knows YAML 1.1 only.
"""

import json
import re
from collections import Counter
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

from bpl.shown import flat

LARGEST = 1 << 20  # characters of a file
MOST_VALUES = 200_000  # of a file, aliases written out


class GridError(ValueError):
    """A grid that cannot be used; the message names the file and the entry."""


def read_grid_file(path: Path) -> list[Any]:
    """What a grid file holds, one item a stage.

    Args:
        path: a YAML file, or a JSON file that ends in .json.

    Returns:
        The documents of a YAML file; of JSON the lists in a list, or the one list.

    Raises:
        GridError: unreadable, or too much.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} characters")
        if path.suffix == ".json":
            content = json.loads(text, object_pairs_hook=_mapping)
            return content if isinstance(content, list) and content and isinstance(content[0], list) else [content]
        return _documents(text) or [None]
    except ModuleNotFoundError as error:
        raise GridError(f"grid {path} cannot be read without the package pyyaml: install it, or give JSON") from error
    except Exception as error:  # of the file, of the text, of JSON, of YAML: none is the user's business in detail
        raise GridError(f"grid {path} cannot be read: {flat(error, 300)}") from error


_WORDS = {  # of YAML 1.2's core schema: tag -> what is read as it, and what that may start with
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}


def _refuse_twice(keys: Iterable[Hashable]) -> None:
    """Raise an error where a mapping has a key twice: one of its values would be lost."""
    for key, count in Counter(keys).items():
        if count > 1:
            raise ValueError(f"the key {key!r} is given {count} times in one entry")


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON."""
    _refuse_twice(key for key, _ in pairs)
    return dict(pairs)


def _documents(text: str) -> list[Any]:
    """The documents of a YAML text."""
    import yaml  # here, so that a machine without it can still run a grid in JSON

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {
            first: [(tag, read) for tag, read in known if tag.rpartition(":")[2] not in _WORDS]
            for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    def whole_number(loader: Loader, node: yaml.ScalarNode) -> int:
        text = loader.construct_scalar(node)
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)  # 010 is ten, and 8 in YAML 1.1

    Loader.add_constructor("tag:yaml.org,2002:int", whole_number)
    for word, (pattern, first) in _WORDS.items():
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{word}", re.compile(f"^(?:{pattern})$"), list(first))
    loader, documents = Loader(text), []
    try:
        while loader.check_node():
            node = loader.get_node()
            if (values := _values(node, {})) > MOST_VALUES:
                raise ValueError(f"it stands for {values:,} values, at most {MOST_VALUES:,} are allowed")
            documents.append(loader.construct_document(node))
    finally:
        loader.dispose()
    return documents


def _values(node: Any, known: dict[int, int]) -> int:
    """How many values a YAML node stands for, aliases written out."""
    if not isinstance(node.value, list):
        return 1
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1  # what an alias to the node itself, from within it, would count for
        if node.id == "mapping":
            _refuse_twice(key.value for key, _ in node.value if isinstance(key.value, str))
        children = [child for item in node.value for child in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_values(child, known) for child in children)
    return known[id(node)]
