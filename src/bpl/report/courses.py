"""What the trainings that decide the structure did on their way, from the curves of the records."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from statistics import fmean

from bpl.budget import Budget
from bpl.records import Record
from bpl.report.display import Markdown
from bpl.report.numbers import points
from bpl.report.rows import Row, named_among
from bpl.report.sentences import NO_RECORDS

_COSTS = {"macs": "MACs", "params": "parameters"}


def landing(rows: list[Row]) -> Markdown:
    """How near compact KD was to its budget by the penalty alone, and where the exact cut at the freeze brought it.

    Until the freeze the cost counts the channels at work (the curve `cost_share`); the cut leaves whole channels.

    Args:
        rows: rows; those that are not of compact KD are left out. Where a row has no `budget`, the share that was
            wanted is that of the narrow network from scratch at the same ratio, if that is among them.

    Returns:
        Markdown, one item a row with each seed; one sentence where no row is left.
    """
    return _items(
        f"- {_named(row)}{'' if row.config['sparsity'] is None else ', not steered'}, {_landing_of(row, rows)}."
        for row in rows
        if row.method == "compact_kd"
    )


def _landing_of(row: Row, rows: list[Row]) -> str:
    cost, wanted = "macs", _wanted(row, rows)
    if row.config["budget"] is not None:
        cost = Budget.parse(row.config["budget"]).cost

    def of_seed(record: Record) -> str:
        freeze = _freeze(record)
        share, left = record.curves["cost_share"][freeze], record.cost[cost] / record.cost[f"dense_{cost}"]
        off = "" if wanted is None else f", {_off(share / wanted)} what was wanted"
        return f"{100 * share:.1f} % at the freeze{off}, and {100 * (1 - left):.2f} % removed in the end"

    what = f"what was wanted of the {_COSTS[cost]} is not recorded"
    if wanted is not None:
        what = f"{100 * wanted:.2f} % of the {_COSTS[cost]} wanted"
    return f"{what}: {_by_seed(row, of_seed)}"


def _off(times: float) -> str:
    """How far a number is from another one, of which it is so many times."""
    return f"{100 * abs(times - 1):.1f} % {'above' if times >= 1 else 'below'}"


def _wanted(row: Row, rows: list[Row]) -> float | None:
    """The share of the dense network's cost that the budget allows; None where no row has it."""
    if row.config["budget"] is not None:
        return Budget.parse(row.config["budget"]).share
    alike = ("ratio", "scope", "round_to")
    for other in rows:
        if other.method == "scratch" and all(other.config[name] == row.config[name] for name in (*alike, "target")):
            return 1 - other.macs_reduction / 100
    return None


def departures(rows: list[Row]) -> Markdown:
    """After which epochs OED removed how many blocks.

    Args:
        rows: rows; those that are not of OED are left out.

    Returns:
        Markdown, one item a row with each seed; one sentence where no row is left.
    """

    def of_seed(record: Record) -> str:
        freeze = _freeze(record)
        left = [_blocks(record), *record.curves["blocks"][: freeze + 1]]
        gone = [before - after for before, after in pairwise(left)]
        steps = [f"{count:.0f} after epoch {epoch}" for epoch, count in enumerate(gone, start=1) if count]
        return f"{', '.join(steps) or 'none'}, in a search of {freeze + 1} epochs"

    return _items(
        f"- {_named(row)}, removed of {_blocks(row.records[0])} blocks: {_by_seed(row, of_seed)}."
        for row in rows
        if row.method == "oed"
    )


def _blocks(record: Record) -> int:
    """Residual blocks of the dense network."""
    return sum(name.startswith("mask ") for name in record.curves)


def selection_changes(rows: list[Row]) -> Markdown:
    """How many channels DDSL's projections chose anew after the first, summed over all of them.

    Args:
        rows: rows; those that are not of DDSL are left out.

    Returns:
        Markdown, one item a row; one sentence where no row is left.
    """

    def of_row(row: Row) -> str:
        sums = [sum(record.curves["mask_changes"]) for record in row.records]  # the first projection has nothing before
        later = sorted({_later_projections(record) for record in row.records})
        after = f"the {' or '.join(map(str, later))} projections after the first"
        if not any(sums):
            return f"no channel that was kept before is pruned in {after}, at {_seeds(row)}"
        new = _by_seed(row, lambda record: f"{100 * sum(record.curves['mask_changes']):.2f} %")
        return f"of the pruned channels, those that were kept before, summed over {after}: {new}"

    return _items(f"- {_named(row)}: {of_row(row)}." for row in rows if row.method == "ddsl")


def _later_projections(record: Record) -> int:
    """Projections after the first: one an epoch, up to the freeze."""
    first = next((e for e, residual in enumerate(record.curves["primal_residual"]) if residual), _freeze(record))
    return _freeze(record) - first


def at_the_bound(rows: list[Row], bound: float) -> Markdown:
    """How near the strength of distillation that DDSL's dean ends with is to the largest that it can set.

    Args:
        rows: rows; those that are not of DDSL with a dean are left out, and those that distil nothing.
        bound: the largest factor of a strength (`bpl.methods.dean.BOUND`).

    Returns:
        Markdown, one item a row with each seed; one sentence where no row is left.
    """

    def of_seed(record: Record) -> str:
        largest = bound * record.config["distill_weight"]
        return f"{100 * record.curves['distill_strength'][-1] / largest:.0f} %"

    return _items(
        f"- {_named(row)}, the last strength of distillation, over its bound of {bound:g} times the strength without a "
        f"dean: {_by_seed(row, of_seed)}."
        for row in rows
        if row.method == "ddsl" and row.config["strengths"] == "dean" and row.config["distill_weight"]
    )


def last_values(rows: list[Row], curve: str, what: str) -> Markdown:
    """Where a curve ends, so that a figure of it can be read without guessing.

    Args:
        rows: rows; those whose runs lack the curve are left out.
        curve: a curve of the records, such as "partner_cosine".
        what: its name in the sentence.

    Returns:
        Markdown, one sentence with the mean over seeds of every row; another one where no row is left.
    """
    ends = []
    for row in named_among([row for row in rows if all(curve in record.curves for record in row.records)]):
        mean = fmean(record.curves[curve][-1] for record in row.records)
        ends.append(f"{points(mean)} for {row.label} (n = {len(row.records)})")
    return Markdown(f"{what} in the last epoch: {'; '.join(ends)}." if ends else NO_RECORDS)


def _items(lines: Iterable[str]) -> Markdown:
    return Markdown("\n".join(lines) or NO_RECORDS)


def _named(row: Row) -> str:
    budget = row.config["budget"]
    size = f"ratio {row.ratio:g}" if budget is None else f"budget {budget}"
    return f"**{row.label if size in row.label else f'{row.label}, {size}'}**"


def _by_seed(row: Row, text: Callable[[Record], str]) -> str:
    return "; ".join(f"seed {record.config['seed']}: {text(record)}" for record in row.records)


def _seeds(row: Row) -> str:
    *first, last = map(str, row.seeds)
    return f"seeds {', '.join(first)} and {last}" if first else f"seed {last}"


def _freeze(record: Record) -> int:
    """Index of the epoch after which the network has its final size."""
    return record.curves["at_size"].index(1.0)
