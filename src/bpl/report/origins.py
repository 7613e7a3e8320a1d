"""What a notebook's tables and figures are made from: campaigns and measured files, followed from cell to cell."""

import ast
from collections.abc import Iterable
from dataclasses import dataclass

_LOADERS = {"load_matrix": "foreign_networks.json", "load_card": "card.json"}  # their file is no text in the cell


@dataclass(frozen=True)
class Origin:
    """What something is made from.

    Attributes:
        grids: names of campaigns, in the order in which they are named.
        files: names of measured files.
    """

    grids: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def __or__(self, other: "Origin") -> "Origin":
        return Origin(
            tuple(dict.fromkeys(self.grids + other.grids)), tuple(dict.fromkeys(self.files + other.files))
        )  # fmt: skip


def origins(cells: Iterable[str]) -> list[Origin]:
    """What each code cell is made from, what it takes from the cells before it included.

    Followed are names: what is assigned to a name, or is the body of a function of that name, is what it is made from.

    Args:
        cells: the source of the code cells, in their order.

    Returns:
        One origin a cell.
    """
    known: dict[str, Origin] = {}
    found = []
    for source in cells:
        whole = Origin()
        for statement in ast.parse(source).body:
            made_from = _of(statement, known)
            if isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
                made_from = known.get(statement.target.id, Origin()) | made_from  # more is added to what it was
            whole |= made_from
            known |= dict.fromkeys(_assigned(statement), made_from)
        found.append(whole)
    return found


def _assigned(statement: ast.stmt) -> list[str]:
    """The names that a statement gives a value; those of a comprehension are its own."""
    if isinstance(statement, ast.FunctionDef):
        return [statement.name]
    own = {
        id(node)
        for comprehension in ast.walk(statement)
        if isinstance(comprehension, ast.comprehension)
        for node in ast.walk(comprehension.target)
    }
    nodes = (node for node in ast.walk(statement) if isinstance(node, ast.Name) and id(node) not in own)
    return [node.id for node in nodes if isinstance(node.ctx, ast.Store)]


def _of(statement: ast.stmt, known: dict[str, Origin]) -> Origin:
    nodes = list(ast.walk(statement))
    listed = {}
    for node in nodes:
        if isinstance(node, (ast.For, ast.comprehension)) and isinstance(node.target, ast.Name):
            listed[node.target.id] = [value for value in map(_text, ast.walk(node.iter)) if value]
    found = Origin()
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            found |= known.get(node.id, Origin())
        elif isinstance(node, ast.Attribute) and node.attr in _LOADERS:
            found |= Origin(files=(_LOADERS[node.attr],))
        elif _text(node).endswith(".json"):
            found |= Origin(files=(_text(node),))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "load_grid":
            found |= Origin(grids=tuple(_grids(node, listed)))
    return found


def _grids(call: ast.Call, listed: dict[str, list[str]]) -> list[str]:
    """The campaigns that a call reads: one that is named, or those of the loop that it stands in."""
    names = [
        text.removesuffix(".yaml") for text in map(_text, ast.walk(call)) if text.endswith(".yaml") and text != ".yaml"
    ]
    for node in ast.walk(call):
        if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.Name):
            names += listed.get(node.value.id, [])
    return names


def _text(node: ast.AST) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
