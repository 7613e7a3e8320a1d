"""The content of a grid file, YAML or JSON, from whoever wrote it: plain values, and not too many of them.

YAML is read with its safe loader, which makes no objects. What it does make is counted before it is made: an alias
(``*name``) stands for a whole value, so that ten lines can stand for a billion values.
"""

import json
from pathlib import Path
from typing import Any

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
            content = json.loads(text)
            return content if isinstance(content, list) and content and isinstance(content[0], list) else [content]
        return _documents(text) or [None]
    except ModuleNotFoundError as error:
        raise GridError(f"grid {path} cannot be read without the package pyyaml: install it, or give JSON") from error
    except Exception as error:  # of the file, of the text, of JSON, of YAML: none is the user's business in detail
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise GridError(f"grid {path} cannot be read: {reason}") from error


def _documents(text: str) -> list[Any]:
    """The documents of a YAML text."""
    import yaml  # here, so that a machine without it can still run a grid in JSON

    loader, documents = yaml.SafeLoader(text), []
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
        children = [child for item in node.value for child in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_values(child, known) for child in children)
    return known[id(node)]
