"""Figures and tables made from rows: names that can be read, one colour a role, what a difference is taken from."""

import itertools
import re
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.figure import Figure
from support import made_up_record

from bpl import report
from bpl.config import RunConfig
from bpl.report import figures
from bpl.report.style import COLOURS, MAIN_ROLES, MARKERS, SERIES, spread_out
from bpl.report.tables import numbered_table

OTHERS = ("compact_kd", "oed", "fcs_mlft", "ddsl", "kd", "self_kd", "sfp", "fpgm", "l1", "hrank", "random")
ROLES = {
    "Dense": {"method": "dense"},
    "Narrow, from scratch": {"method": "scratch"},
    "BPL, no loss": {"method": "bpl", "diversity_weight": 0.0},
    "BPL, weight 1": {"method": "bpl", "diversity_weight": 1.0},
    "BPL, weight 1, orthogonal": {"method": "bpl", "diversity_weight": 1.0, "diversity_form": "stage-squared"},
}


def record(test: float, seed: int = 0, **fields):
    config = RunConfig("ucm", seed=seed, **fields)
    removed = config.ratio if config.method != "dense" else 0
    cost = {
        "macs": round(1000 * (1 - removed)), "dense_macs": 1000, "params": 10, "dense_params": 40,
        "training_macs": 1000 + 10 * len(config.method),
    }  # fmt: skip
    courses = {name: [test - 2, test - 1, test] for name in ("validation", "partner_cosine", "test")}
    return made_up_record(config, accuracy={"test": test, "best_test": test}, curves=courses, cost=cost)


def crowd(ratio: float = 0.78) -> list:
    """Sixteen arms of nearly the same accuracy, and two far below them."""
    arms = [fields for fields in ROLES.values() if fields["method"] != "dense"]
    arms += [{"method": method} for method in OTHERS]
    arms += [{"method": "bpl", "diversity_weight": 0.0, "partner": partner} for partner in ("acnet", "dbb")]
    arms += [{"method": "scratch", "epochs": 120}]
    values = {"sfp": 60.0, "fpgm": 60.2}
    records = [record(89.0, method="dense")]
    for place, fields in enumerate(arms):
        records.append(record(values.get(fields["method"], 88 + 0.02 * (place % 5)), ratio=ratio, **fields))
    return report.group(records)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Figure]:
    """Draw, and hand the figure itself out, laid out."""
    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: kept.append(figure))

    def draw(make: Callable, *arguments) -> Figure:
        make(*arguments)
        kept[-1].draw_without_rendering()
        return kept[-1]

    return draw


def names(figure: Figure) -> dict[str, str]:
    """The names at the right edge, with their colours."""
    return {text.get_text(): text.get_color() for axes in figure.axes for text in axes.texts}


# -- names ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("draw", [report.tradeoff, lambda rows: report.price(rows, 0.78)], ids=["tradeoff", "price"])
def test_no_two_names_overlap_however_many_and_however_close(drawn, draw) -> None:
    figure = drawn(draw, crowd())
    boxes = [text.get_window_extent() for axes in figure.axes for text in axes.texts]
    assert len(boxes) >= 17
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    page = figure.bbox
    assert all(page.y0 <= box.y0 and box.y1 <= page.y1 and box.x1 <= page.x1 + 1 for box in boxes)


def test_leaders_do_not_cross(drawn) -> None:
    axes = drawn(report.tradeoff, crowd()).axes[0]
    beside = axes.get_yaxis_transform()
    slanted = sorted(
        tuple(line.get_ydata())
        for line in axes.lines
        if line.get_transform() == beside and list(line.get_xdata()) == [1, 1.04]
    )
    assert len(slanted) >= 15
    ends = [end for _, end in slanted]
    assert ends == sorted(ends)


def test_names_between_edges_keep_their_order_and_their_distance() -> None:
    placed = spread_out([0.1, 0.0, 0.2, 9.9], 1.0, (0.0, 10.0))
    assert placed == pytest.approx([1.5, 0.5, 2.5, 9.5])
    assert spread_out([9.8, 9.9, 5.0], 1.0, (0.0, 10.0)) == pytest.approx([8.5, 9.5, 5.0])
    assert np.diff(spread_out([1.0, 1.1, 1.2], 1.0, (0.0, 2.0))) == pytest.approx([1, 1])  # too low: apart all the same


# -- what is far below ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("lows", "cut"),
    [
        ([70, 71, 86, 87, 88, 88, 88, 89], 86),
        ([70, 86, 86, 86, 88, 88, 88, 89], 86),
        ([70, 71, 72, 86, 88, 88, 88, 89], None),  # more than a quarter is not few
        ([84, 85, 86, 86, 87, 88, 88, 89], None),  # nothing is squeezed
        ([70, 89, 89], None),
        ([80] * 8, None),
    ],
)
def test_an_axis_is_parted_only_where_few_points_squeeze_all_others(lows: list, cut: float | None) -> None:
    assert figures.far_below([(low, low + 0.5) for low in lows]) == cut


def test_methods_far_below_stand_in_a_strip_that_says_so(drawn) -> None:
    above, below = drawn(report.tradeoff, crowd()).axes
    assert above.get_ylim()[0] > 80 and below.get_ylim()[1] < 80
    assert "own" in below.get_title(loc="left")
    assert {text.get_text() for text in below.texts} == {"SFP", "FPGM"}
    (alone,) = drawn(report.tradeoff, [row for row in crowd() if row.method not in ("sfp", "fpgm")]).axes
    assert alone.get_ylim()[0] > 80


def test_the_line_of_no_difference_and_the_claim_are_inside_the_axis(drawn) -> None:
    rows = report.group([record(80.0, method="dense"), record(70.0, ratio=0.78, method="bpl")])
    low, high = drawn(report.difference_to_dense, rows, report.claim("bpl", "ucm")).axes[0].get_ylim()
    assert low < -10 and high > 0


# -- colours --------------------------------------------------------------------------------------------------------
def channels(colour: str) -> np.ndarray:
    """Linear red, green and blue of a colour."""
    values = np.array([int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(linear: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    share = to_xyz @ np.clip(linear, 0, 1) / [0.9505, 1, 1.089]
    x, y, z = np.where(share > 0.008856, np.cbrt(share), 7.787 * share + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


# Machado, Oliveira and Fernandes 2009, the full deficiency
SEEN = {
    "all": np.eye(3),
    "no red": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "no green": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "no blue": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}


@pytest.mark.parametrize("eyes", SEEN)
def test_the_main_roles_are_told_apart(eyes: str) -> None:
    seen = [lab(SEEN[eyes] @ channels(COLOURS[role])) for role in MAIN_ROLES]
    assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2)) > 20


def test_every_role_has_its_own_colour_and_marker_and_reads_on_white() -> None:
    every = [*COLOURS.values(), *SERIES]
    assert len(set(every)) == len(every)
    assert len(set(MARKERS.values())) == len(MARKERS) and MARKERS.keys() == COLOURS.keys() - {"dense"}
    light = np.array([0.2126, 0.7152, 0.0722])
    assert all(1.05 / (light @ channels(colour) + 0.05) > 3.5 for colour in every)


def test_a_role_has_one_colour_in_every_figure(drawn) -> None:
    records = [record(88 + seed, seed, **fields) for fields in ROLES.values() for seed in range(2)]
    rows = report.group(records)
    made = [
        drawn(report.tradeoff, rows),
        drawn(report.difference_to_dense, rows),
        drawn(report.price, rows, RunConfig("ucm", "bpl").ratio),
        drawn(report.curves, rows),
        drawn(report.curves, [row for row in rows if row.method != "scratch"], "partner_cosine"),
        drawn(report.curves, [row for row in rows if row.method == "bpl"], "partner_cosine"),
    ]
    expected = dict(zip(ROLES, (COLOURS[role] for role in MAIN_ROLES), strict=True))
    for figure in made:
        shown = names(figure)
        assert len(shown) >= 3 and shown == {name: expected[name] for name in shown}
    assert names(made[3]) == expected


def test_weights_of_the_loss_are_shades_and_styles_of_one_colour(drawn) -> None:
    weights = (0.01, 0.1, 1.0, 10.0)
    rows = report.group([record(80, method="bpl", diversity_weight=weight) for weight in weights])
    axes = drawn(report.curves, rows, "partner_cosine").axes[0]
    shades = [text.get_color() for text in axes.texts]
    light = [lab(channels(shade))[0] for shade in shades]
    assert light == sorted(light, reverse=True) and len(set(shades)) == 4 and shades[2] == COLOURS["bpl"]
    styles = [line.get_linestyle() for line in axes.lines if len(line.get_xdata()) == 3]
    assert len(set(styles)) == 4 and styles[0] == "-"  # of the default weight


# -- names of arms --------------------------------------------------------------------------------------------------
def test_a_curve_of_bpl_always_says_its_weight(drawn) -> None:
    with_loss, without = (report.group([record(80, method="bpl", diversity_weight=w)])[0] for w in (1.0, 0.0))
    assert list(names(drawn(report.curves, [with_loss]))) == ["BPL, weight 1"]
    assert list(names(drawn(report.curves, [without]))) == ["BPL, no loss"]
    both = names(drawn(report.curves, report.group([*with_loss.records, *without.records])))
    assert set(both) == {"BPL, weight 1", "BPL, no loss"}


def test_a_figure_says_of_a_variant_only_what_is_not_the_default(drawn) -> None:
    shown = names(drawn(report.tradeoff, crowd()))
    assert {"BPL, no loss", "BPL, no loss, acnet partners", "Narrow, from scratch, 120 epochs"} <= shown.keys()
    assert "Narrow, from scratch" in shown


# -- tables ---------------------------------------------------------------------------------------------------------
def cells(shown: report.Markdown, start: str) -> list[str]:
    (line,) = [line for line in repr(shown).splitlines() if line.startswith(f"| {start}")]
    return [cell.strip().replace("\N{NO-BREAK SPACE}", " ") for cell in line.strip("|").split("|")]


def test_a_difference_of_fewer_pairs_than_runs_says_how_many() -> None:
    records = [record(88.0 + seed, seed, method="dense") for seed in range(4)]
    records += [record(86.0 + 2 * seed, seed, ratio=0.78, method="scratch") for seed in range(3)]
    records += [record(87.0, ratio=0.78, method="bpl"), record(89.0, 9, ratio=0.78, method="bpl")]
    records += [record(90.0 - seed, seed, ratio=0.78, method="kd") for seed in range(3)]
    table = report.accuracy_table(report.group(records), "Accuracy.", "tab-a", sources=False)
    assert cells(table, "Method")[2:4] == ["Against scratch, points", "Against dense, points"]
    assert cells(table, "BPL")[2:5] == ["+1.00 (1 pair)", "−1.00 (1 pair)", "2"]
    scratch, dense = cells(table, "Plain KD")[2:4]
    assert "pair" not in scratch and dense.endswith("] (3 pairs)")  # the dense network has a seed more


def test_a_ratio_that_all_rows_share_is_in_the_caption_and_others_in_a_column() -> None:
    records = [record(88.0, method="dense"), record(86.0, ratio=0.78, method="scratch")]
    one, said, several = (
        report.accuracy_table(report.group(made), caption, "tab-a", sources=False)
        for made, caption in (
            (records, "Accuracy."),
            (records, "Accuracy at ratio 0.78."),
            ([*records, record(87.0, ratio=0.5, method="scratch")], "Accuracy."),
        )
    )
    assert "Ratio" not in cells(one, "Method") and "Ratio" not in cells(said, "Method")
    assert repr(one).startswith(":::{table} Accuracy. Pruning ratio 0.78.\n")
    assert repr(said).startswith(":::{table} Accuracy at ratio 0.78.\n")
    assert cells(several, "Method")[1] == "Ratio" and "Pruning ratio" not in repr(several)


def test_columns_of_words_stand_at_the_left_and_those_of_numbers_at_the_right() -> None:
    lines = [
        ["ours", "3x3, stride 2", "UC Merced", "**−1.2 [−2, −1]** (2 pairs)", "✓", "16 of 20", "–", "64, 128"],
        ["theirs", "7x7", "AID, 30 classes", "–", "✗", "5", "**open**", "< 0.001"],
    ]
    rule = numbered_table(list("abcdefgh"), lines, "c", "tab-x").splitlines()[5]
    assert re.findall(r":?---:?", rule) == [":---", ":---", ":---", "---:", "---:", "---:", ":---", "---:"]
