"""Which row of a table another one is held against."""

from typing import Any

from bpl.report.rows import COMMON, PROTOCOL, Row


def find(rows: list[Row], method: str, ratio: float | None = None) -> Row | None:
    """The row of a method: with its default settings if recorded, else trained otherwise, for few epochs first.

    Args:
        rows: the rows of one table.
        method: name of the method.
        ratio: pruning ratio; None for any.

    Returns:
        The row, or None where the method is not recorded at this ratio.
    """
    found = [row for row in rows if row.method == method and ratio in (None, row.ratio)]

    def departs(row: Row) -> tuple[bool, bool, int]:
        return not row.knobs.keys() <= set(COMMON), not row.is_default_method, row.config["epochs"]

    return min(found, key=departs, default=None)


def control(rows: list[Row], row: Row, method: str) -> Row | None:
    """The row to hold another against: a method at the same size (the dense network at none), trained alike.

    Args:
        rows: the rows of one table.
        row: the row that is to be compared.
        method: "scratch" or "dense", or any other method.

    Returns:
        The control, or None where there is none, or more than one.
    """
    found = [
        other
        for other in rows
        if other.method == method
        and (method == "dense" or size_of(other) == size_of(row))
        and _trained_alike(other, row)
    ]
    return found[0] if len(found) == 1 else None


def trained_longer(rows: list[Row], row: Row) -> list[Row]:
    """The rows of the same method and size that were trained for more epochs, and alike in all else.

    Args:
        rows: the rows of one table.
        row: the one to compare with.
    """
    return [
        other
        for other in rows
        if other.method == row.method
        and size_of(other) == size_of(row)
        and other.config["epochs"] > row.config["epochs"]
        and _trained_alike(other, row, but=("epochs",))
    ]


def _trained_alike(one: Row, other: Row, but: tuple[str, ...] = ()) -> bool:
    return all(one.config[name] == other.config[name] for name in (*PROTOCOL, "pretrain") if name not in but)


def of_method(rows: list[Row], method: str) -> list[Row]:
    """The rows of one method with its controls: the dense network, and the narrow one from scratch at the same ratios.

    Args:
        rows: the rows of one table.
        method: name of the method.

    Returns:
        Some of the rows, in their order.
    """
    ratios = {row.ratio for row in rows if row.method == method}
    return [row for row in rows if row.method in ("dense", method) or (row.method == "scratch" and row.ratio in ratios)]


def size_of(row: Row) -> tuple[Any, ...]:
    """What decides how large a pruned network is.

    Args:
        row: the row.

    Returns:
        Values to compare with those of another row.
    """
    free = row.config["sparsity"] if row.method == "oed" else None
    rounded = row.config["round_to"] or 1
    return row.ratio, row.config["scope"] or "inner", rounded, row.config["target"], row.config["budget"], free
