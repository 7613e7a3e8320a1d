"""What the released code reports beside what could be shipped: the masked network's accuracy and the small one's."""

from collections.abc import Sequence

from bpl.report.display import Markdown
from bpl.report.numbers import spread, with_interval
from bpl.report.rows import Row
from bpl.report.sentences import NO_RECORDS, seeds
from bpl.report.tables import numbered_table


def masked_table(arms: Sequence[tuple[str, Row | None]], caption: str, name: str) -> Markdown:
    """Accuracy of the network as trained, by two ways of choosing the epoch, and of the small network that is left.

    Where pruned channels emit nothing the last two agree but for rounding; where they leak, cutting them out changes
    the function.

    Args:
        arms: name and row; arms that are not recorded are left out.
        caption: what the table shows.
        name: label for cross-references, unique in the book.

    Returns:
        The table; one sentence where no arm is recorded.
    """
    lines = [
        [
            label,
            spread(row.summary("best_test")),
            spread(row.last_epoch),
            spread(row.accuracy),
            f"{max(record.equivalence['relative_error'] for record in row.records):.1e}",
            f"{100 * min(record.equivalence['same_top1'] for record in row.records):.1f} %",
        ]
        for label, row in arms
        if row is not None
    ]
    if not lines:
        return Markdown("No run of this table is recorded yet.")
    header = [
        "Arm", "Trained, best test epoch", "Trained, last epoch", "Small network", "Logits apart", "Same answer",
    ]  # fmt: skip
    return Markdown(numbered_table(header, lines, caption, name))


def best_epoch_gains(arms: Sequence[tuple[str, Row | None]]) -> Markdown:
    """What choosing the best test epoch adds to the last epoch of the same network, one item an arm.

    Args:
        arms: name and row; arms that are not recorded are left out.

    Returns:
        Markdown; one sentence where no arm is recorded.
    """
    items = []
    for label, row in arms:
        if row is not None:
            gain = row.best_epoch_gain
            items.append(f"- {label}: {with_interval(gain, 'points')} {seeds(gain.n)}")
    return Markdown("\n".join(items) or NO_RECORDS)
