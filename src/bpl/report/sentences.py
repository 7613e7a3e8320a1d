"""Sentences whose numbers come from records, so that no result is typed into prose."""

from bpl.report.claims import Claim
from bpl.report.controls import control, find, size_of, trained_longer
from bpl.report.display import Markdown
from bpl.report.numbers import NBSP, p_value, percent_change, points, spread, with_interval
from bpl.report.rows import Row
from bpl.report.statistics import Difference, Summary, left_together

_AIM_SEEDS = 5  # that the mean of an aim is over
NO_RECORDS = "No run is recorded yet for this: `bpl sweep` on the grid of this page makes the records."


def seeds(n: int) -> str:
    """How many seeds: "over n = 3 seeds", or "in one run"."""
    return "in one run" if n == 1 else f"over n = {n} seeds"


def accuracy(summary: Summary) -> str:
    """An accuracy with its standard deviation over seeds, such as "74.29 ± 0.5 %"."""
    return f"{spread(summary)}{NBSP}%"


def difference(value: Difference) -> str:
    """A difference in points with interval and p, such as "−0.24 points [−1.2, +0.7], p = 0.41"."""
    text = with_interval(value, "points")
    return text if value.p is None else f"{text}, p {p_value(value.p, '= ')}"


def verdict(value: Difference | None, other: str) -> str:
    """What a difference lets one say against a control, as the end of a sentence.

    Args:
        value: the difference, or None where it could not be taken.
        other: the control's name in the sentence.
    """
    if value is None:
        return f"there is nothing to compare it with: {other} is not recorded at the same seeds"
    if value.why_undecided:
        return f"{difference(value)} against {other}: {value.why_undecided}"
    return (
        f"{difference(value)} against {other}: as a single test, {'better' if value.mean > 0 else 'worse'} than {other}"
    )


def answer(rows: list[Row], method: str = "bpl") -> Markdown:
    """The page's result: what was run, then one item a ratio, that of the most seeds first, then the strongest.

    Args:
        rows: the recorded rows of the page's table.
        method: the method the page is about; it is judged with its default settings where they are recorded.

    Returns:
        Markdown; one sentence where nothing is recorded.
    """
    of_ratio = {row.ratio: find(rows, method, row.ratio) for row in rows if row.method == method}
    if not of_ratio:
        return Markdown(NO_RECORDS)
    sentences = [_network(rows)]
    dense = find(rows, "dense")
    if dense is not None:
        sentences.append(f"The dense network reaches {accuracy(dense.accuracy)} {seeds(dense.accuracy.n)}.")
    items = []
    for ratio, row in sorted(of_ratio.items(), key=lambda item: (item[1].accuracy.n, item[0]), reverse=True):
        controls = {
            "the narrow network trained from scratch": control(rows, row, "scratch"),
            "the dense network": control(rows, row, "dense"),
        }
        where = f"**{percent_change(-row.macs_reduction)} % MACs** (pruning ratio {ratio:g})"
        items.append(f"- {where}: {_reached(row, row.label, controls)}")
    return Markdown(" ".join(sentences) + "\n\n" + "\n".join(items))


def _reached(row: Row, name: str, controls: dict[str, Row | None]) -> str:
    """A sentence: how far a row comes, and what that is against its controls, each by its name in the sentence."""
    against = [verdict(row.difference(other), said) for said, other in controls.items()]
    return f"{name} reaches {accuracy(row.accuracy)} {seeds(row.accuracy.n)}; that is {'; and '.join(against)}."


def reached(row: Row | None, name: str, controls: dict[str, Row | None]) -> Markdown:
    """How far a row comes, and what that is against its controls, in one sentence.

    Args:
        row: the row; None where it is not recorded.
        name: what the row is, at the beginning of the sentence.
        controls: the rows it is held against, by their names in the sentence; None for one that is not recorded.

    Returns:
        Markdown.
    """
    return Markdown(NO_RECORDS if row is None else _reached(row, name, controls))


def aim_met(row: Row | None, aim: float, others: list[Row | None]) -> Markdown:
    """Whether a row's mean accuracy is what was aimed at, and how far other trainings of the network come.

    Args:
        row: the row that the aim was set for; None where it is not recorded.
        aim: top-1 in percent.
        others: the other trainings, None for one that is not recorded.

    Returns:
        Markdown, one item a recorded row.
    """
    if row is None:
        return Markdown(f"Our goal was {aim:g} %. {NO_RECORDS}")
    met = "met" if row.accuracy.mean >= aim else "not met"
    if row.accuracy.n < _AIM_SEEDS:
        met = "open until so many are recorded"
    items = [
        f"- {found.label} ({_network_name(found)}, {found.config['epochs']} epochs, split `{found.config['split']}`): "
        f"{accuracy(found.accuracy)} {seeds(found.accuracy.n)}."
        for found in (row, *others)
        if found is not None
    ]
    return Markdown(
        f"Our goal for the first network of this list, a mean of {aim:g} % over {_AIM_SEEDS} seeds, is {met}:\n\n"
        + "\n".join(items)
    )


def ranking(rows: list[Row]) -> Markdown:
    """What each method is worth against the narrow network from scratch: what is left of all, then ratio by ratio.

    Where that network is recorded for more epochs too, the methods that cost as much training or more are held against
    that as well: those that start from a trained network have been trained for longer than the others.

    Args:
        rows: the recorded rows of the page's tables.

    Returns:
        Markdown, one item a ratio; one sentence where no ratio has a control.
    """
    items = []
    left: dict[str, list[_Left]] = {"the narrow network from scratch": [], "that network trained for longer": []}
    usual, patient = left.values()
    for ratio in sorted({row.ratio for row in rows if row.method != "dense"}, reverse=True):
        scratch = find(rows, "scratch", ratio)
        if scratch is None:
            continue
        reduction = percent_change(-scratch.macs_reduction)
        methods = [row for row in rows if row.ratio == ratio and row.method not in ("dense", "scratch")]
        # a row that was trained otherwise, for longer say, has another control or none, and no place below this one
        held = [row for row in methods if control(rows, row, "scratch") is scratch]
        values = [(row, row.difference(scratch)) for row in held]
        usual += _left(values, reduction)
        items.append(
            f"**{reduction} % MACs** (ratio {ratio:g}), against the narrow network "
            f"from scratch at {accuracy(scratch.accuracy)}, {seeds(scratch.accuracy.n)}:"
        )
        items.append(_ranked(values))
        for longer in trained_longer(rows, scratch):
            as_small = [row for row in methods if size_of(row) == size_of(longer)]
            dear = [row for row in as_small if row.training_macs >= longer.training_macs]
            values = [(row, row.difference(longer)) for row in dear]
            patient += _left(values, reduction)
            items.append(
                f"Those that cost as much training or more, against that network trained for "
                f"{longer.config['epochs']} epochs, at {accuracy(longer.accuracy)}, {seeds(longer.accuracy.n)}:"
            )
            items.append(_ranked(values))
    if not items:
        return Markdown(NO_RECORDS)
    parts = [f"{_named(found, 1)} ahead of {other}, {_named(found, -1)} behind it" for other, found in left.items()]
    lead = "; ".join(parts if patient else parts[:1])
    return Markdown("\n\n".join([f"When all methods of one reduction are tested at once: {lead}.", *items]))


_Left = tuple[str, str, float]  # a method, the reduction at which it was tested, its mean difference


def _left(values: list[tuple[Row, Difference | None]], reduction: str) -> list[_Left]:
    """Of rows with their differences to one control, those that are beyond chance when all are tested at once."""
    tested = [(row.label, value) for row, value in values if value is not None and value.testable]
    are_left = left_together([value.p for _, value in tested])
    return [(label, reduction, value.mean) for (label, value), is_left in zip(tested, are_left, strict=True) if is_left]


def _named(found: list[_Left], sign: int) -> str:
    """Those of one sign with their reductions; "none shown" where there is no such row."""
    where: dict[str, list[str]] = {}
    for label, reduction, mean in found:
        if mean * sign > 0:
            where.setdefault(label, []).append(f"{reduction} %")
    return ", ".join(f"{label} ({', '.join(reductions)})" for label, reductions in where.items()) or "none shown"


def _ranked(values: list[tuple[Row, Difference | None]]) -> str:
    """Rows by what can be said of their differences to one control, each group from the largest difference down.

    What is beyond chance by itself is tested once more together with all the others that are held against the control.

    Returns:
        Markdown, one item a group.
    """
    alone = [row.label for row, value in values if value is None or not value.testable]
    tested = [(row.label, value) for row, value in values if value is not None and value.testable]
    better, worse, alike = [], [], []
    for label, value in tested:
        group = alike if not value.beyond_chance else better if value.mean > 0 else worse
        group.append((value.mean, label))
    groups = (("better", better), ("worse", worse), ("undecided, the interval includes 0", alike))
    parts = [
        f"- {name}: {'; '.join(f'{label} ({points(mean)})' for mean, label in sorted(members, reverse=True))}"
        for name, members in groups
        if members
    ]
    if (better or worse) and len(tested) > 1:
        left = "; ".join(label for label, *_ in _left(values, ""))
        said = f"of the better and worse ones, left after Holm's correction for {len(tested)} tests"
        parts.append(f"- {said}: {left or 'none'}")
    if alone:
        parts.append(f"- too few seeds to say: {'; '.join(alone)}")
    return "\n".join(parts) or "- nothing else is recorded"


def diversity(rows: list[Row]) -> Markdown:
    """What the diversity loss adds to BPL, by ratio.

    Args:
        rows: the recorded rows of the page's table.

    Returns:
        Markdown, one item a comparison; one sentence where there is none.
    """
    items = []
    trained = [row for row in rows if row.method == "bpl"]
    several = len({row.config["diversity_form"] for row in trained if row.config["diversity_weight"]}) > 1
    for row in trained:
        alike = row.config | {"diversity_weight": 0.0}
        without = [o for o in trained if o.config == alike | {"diversity_form": o.config["diversity_form"]}]
        if row.config["diversity_weight"] and without:
            form = f", form {row.config['diversity_form']}" if several else ""
            items.append(
                f"- Ratio {row.ratio:g}, diversity weight {row.config['diversity_weight']:g}{form}: "
                f"{verdict(row.difference(without[0]), 'BPL without the diversity loss')}."
            )
    return Markdown("\n".join(items) or "BPL with and without the diversity loss is not recorded yet.")


def beside_claim(rows: list[Row], claim: Claim, ratio: float = 0.7, method: str = "bpl") -> Markdown:
    """The paper's claim beside what our runs can say about it.

    Args:
        rows: the recorded rows of the page's table.
        claim: the paper's claim.
        ratio: the pruning ratio that the claim belongs to.
        method: the paper's method; it is judged with its default settings where they are recorded.

    Returns:
        Markdown.
    """
    stated = (
        f"The paper states, in its {claim.source}, for {claim.network}: {percent_change(-claim.flops_reduction)} % "
        f"FLOPs at a loss of {claim.accuracy_loss:g} points of accuracy."
    )
    row = find(rows, method, ratio)
    if row is None:
        return Markdown(f"{stated} {NO_RECORDS}")
    images = row.records[0].data["test"]
    one = 100 / images
    parts = [stated, f"One of the {images} test images is {one:.2f} points."]
    value = row.difference(control(rows, row, "dense"))
    if value is None:
        parts.append("The dense network is not recorded at the same seeds, so there is no loss of ours beside it.")
    elif value.low is None:
        parts.append(
            f"Ours ({_network_name(row)}, ratio {ratio:g}) differs by {points(value.mean)} points, "
            f"{value.why_undecided}; that has no interval, so it can neither confirm nor refute a claim of this size."
        )
    else:
        inside = value.low <= -claim.accuracy_loss <= value.high
        width = (value.high - value.low) / one
        parts.append(
            f"On our own network ({_network_name(row)}, ratio {ratio:g}, "
            f"{percent_change(-row.macs_reduction)} % MACs) {row.label} differs from its dense network by "
            f"{difference(value)}, {seeds(value.n)}. That interval is {width:.0f} test images wide and "
            f"{'contains' if inside else 'does not contain'} {points(-claim.accuracy_loss)}"
            + ("; it is too wide to tell the claim from no loss at all." if inside and not value.beyond_chance else ".")
        )
        parts.append(
            "It says what holds for this small network trained this way; the claim itself, on "
            f"{claim.network}, is neither confirmed nor refuted by it."
        )
    return Markdown(" ".join(parts))


def _network_name(row: Row) -> str:
    width = "" if row.config["width"] is None else f" of width {row.config['width']}"
    return f"{row.config['arch']}{width} at {row.config['image_size']} × {row.config['image_size']} pixels"


def _network(rows: list[Row]) -> str:
    row = next((row for row in rows if row.method == "dense"), rows[0])
    data = row.records[0].data
    images = "real images" if row.source == "real" else "drawn scenes"
    return (
        f"{len(rows)} rows of recorded runs: {_network_name(row)}, {row.config['epochs']} epochs, {images}, "
        f"{data['train']} for training, {data['validation']} for validation, {data['test']} for the test."
    )


def complete(missing: int, total: int) -> Markdown:
    """Whether a campaign is recorded whole.

    Args:
        missing: runs without a record.
        total: runs of the campaign.
    """
    if missing:
        verb = "is" if missing == 1 else "are"
        return Markdown(
            f"{missing} of the {total} runs that this page uses {verb} not recorded yet; rows of fewer seeds say so,"
            " and rows without a run are left out."
        )
    return Markdown(f"All {total} runs that this page uses are recorded.")
