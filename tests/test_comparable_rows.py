"""What may stand beside what: controls trained alike and of one size, tables of one kind, numbers of one precision."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
from test_report import make_record

from bpl import report
from bpl.config import RunConfig
from bpl.records import Record, load_records, record_path, save_record
from bpl.report.masked import masked_table
from bpl.report.statistics import paired_difference


def row_of(method: str, tests: tuple[float, ...], **fields: Any) -> report.Row:
    knobs = {"ratio": 0.7} | fields
    configs = [RunConfig(dataset="ucm", method=method, seed=seed, **knobs) for seed in range(len(tests))]
    return report.group(map(make_record, configs, tests))[0]


def test_the_interval_for_new_images_takes_the_share_of_test_images_from_the_records() -> None:
    ours, theirs = row_of("bpl", (75.0, 76.0, 78.0)), row_of("scratch", (74.0, 74.5, 75.0))
    expected = paired_difference(ours.by_seed(), theirs.by_seed(), 420 / 1470)
    assert ours.difference(theirs, new_images=True) == expected != ours.difference(theirs)


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 61},
        {"stored_size": 64},
        {"batch_size": 16},
        {"schedule": "released"},
        {"learning_rate": 0.1},
        {"momentum": 0.8},
        {"weight_decay": 1e-4},
        {"label_smoothing": 0.0},
        {"augmentation": "flip"},
        {"precision": "float32"},
    ],
    ids=str,
)
def test_a_network_that_was_trained_otherwise_is_no_control(change: dict[str, Any]) -> None:
    rows = [row_of("scratch", (70.0,)), row_of("bpl", (70.0,), **change)]
    assert report.control(rows, rows[1], "scratch") is None


@pytest.mark.parametrize(
    "change", [{"split": "paper"}, {"arch": "resnet56"}, {"width": 16}, {"image_size": 96}], ids=str
)
def test_one_table_is_of_one_network_and_one_split(change: dict[str, Any]) -> None:
    configs = [RunConfig(dataset="ucm", method="dense", **({"width": 32} | fields)) for fields in ({}, change)]
    with pytest.raises(report.ReportError, match=f"cannot mix {next(iter(change))}"):
        report.group(make_record(config, 70.0) for config in configs)


@pytest.mark.parametrize(
    ("method", "size"), [("compact_kd", {"budget": "params:0.3"}), ("sfp", {"target": "params:0.3"})]
)
def test_a_network_of_another_size_is_no_control(method: str, size: dict[str, Any]) -> None:
    rows = [row_of("scratch", (70.0,)), row_of(method, (70.0,), **size)]
    assert rows[1].ratio == 0.7 and report.control(rows, rows[1], "scratch") is None


def test_a_method_stands_with_the_controls_of_its_ratios() -> None:
    rows = [
        row_of("dense", (70.0,)),
        row_of("scratch", (70.0,), ratio=0.5),
        row_of("scratch", (70.0,)),
        row_of("bpl", (70.0,)),
    ]
    assert report.of_method(rows, "bpl") == [rows[0], rows[2], rows[3]]


def test_what_the_best_epoch_adds_is_measured_on_the_curves_alone() -> None:
    """The shipped network's accuracy is of another precision than the curves."""

    def lower(record: Record) -> Record:
        return dataclasses.replace(record, accuracy=record.accuracy | {"test": record.accuracy["test"] - 0.5})

    records = [make_record(RunConfig(dataset="ucm", method="dense", seed=seed), 70.0) for seed in range(2)]
    (row,) = report.group(map(lower, records))
    assert row.best_epoch_gain.mean == 2.0 and row.last_epoch.mean == 70.0 and row.accuracy.mean == 69.5


@pytest.mark.parametrize(
    ("tests", "said"), [((69.7, 69.9, 69.6), "contains"), ((70.3, 70.1, 70.4), "does not contain")]
)
def test_a_loss_that_is_claimed_lies_below_the_dense_network(tests: tuple[float, ...], said: str) -> None:
    claim = dataclasses.replace(report.claim("bpl", "ucm"), accuracy_loss=0.24)
    rows = [row_of("dense", (70.0, 70.0, 70.0)), row_of("bpl", tests)]
    rows = report.group(itertools.chain.from_iterable(row.records for row in rows))
    assert f"wide and {said} −0.24" in repr(report.beside_claim(rows, claim, 0.7))


def test_a_paper_is_judged_at_the_weight_of_its_released_code() -> None:
    rows = [row_of("dense", (70.0, 70.0, 70.0)), row_of("bpl", (69.0, 69.0, 70.5))]
    rows += [row_of("bpl", (60.0, 61.0, 62.5), diversity_weight=weight) for weight in (0.0, 1.0)]
    rows = report.group(itertools.chain.from_iterable(row.records for row in rows))
    said = repr(report.answer(rows))
    assert "diversity weight 0.01 reaches 69.50" in said and "61.17" not in said
    assert "−0.50 points" in repr(report.beside_claim(rows, report.claim("bpl", "ucm"), 0.7))
    assert "No run is recorded" in repr(report.beside_claim(rows, report.claim("bpl", "ucm"), 0.5))


def test_one_sentence_says_how_far_a_row_comes_and_what_that_is_against_its_controls() -> None:
    dense, ours = row_of("dense", (70.0, 70.0, 70.5)), row_of("bpl", (75.5, 74.5, 75.0))
    said = repr(report.reached(ours, "Ours", {"dense": dense, "the narrow network": None}))
    assert said.startswith("Ours reaches 75.00") and "+4.83 points" in said and "better than dense" in said
    assert "the narrow network is not recorded at the same seeds" in said
    assert "No run is recorded" in repr(report.reached(None, "Ours", {"dense": dense}))


@pytest.mark.parametrize("network", [{}, {"arch": "mobilenet_v2", "width": 16}])
@pytest.mark.parametrize("epochs", [(60, 120), (20, 100)])
def test_of_several_trainings_a_method_is_shown_by_the_usual_or_the_shortest(network: dict, epochs: tuple) -> None:
    runs = [row_of("scratch", (70.0,), epochs=number, **network) for number in epochs]
    rows = report.group(itertools.chain.from_iterable(row.records for row in runs))
    assert report.find(rows, "scratch", 0.7).config["epochs"] == epochs[0]
    assert report.find(rows, "scratch", 0.5) is None


def test_a_row_that_was_trained_for_longer_has_no_place_in_a_ranking() -> None:
    runs = [row_of("scratch", (70.0, 70.5, 70.0)), row_of("kd", (72.0,) * 3), row_of("kd", (90.0,) * 3, epochs=120)]
    rows = report.group(itertools.chain.from_iterable(row.records for row in runs))
    said = repr(report.ranking(rows))
    assert "teacher epochs 60 (+1.83)" in said and "120" not in said


def test_the_mean_over_classes_stands_where_all_have_it_and_it_says_something_else() -> None:
    def table(*means: float | None) -> str:
        records = [record for row in (row_of("dense", (70.0,)), row_of("bpl", (60.0,))) for record in row.records]
        for record, mean in zip(records, means, strict=True):
            record.accuracy.update({} if mean is None else {"mean_per_class": mean})
        return repr(report.accuracy_table(report.group(records), "Accuracy.", "tab-a", sources=False))

    assert "| Mean per class, % |" in table(66.5, 60.0) and "| 66.50 |" in table(66.5, 60.0)
    assert all("per class" not in table(*means) for means in ((70.0, 60.0), (66.5, None), (None, None)))


def test_the_masked_network_is_shown_at_its_worst_seed() -> None:
    records = [make_record(RunConfig(dataset="ucm", method="bpl", ratio=0.7, seed=seed), 70.0) for seed in range(2)]
    records[1] = dataclasses.replace(records[1], equivalence={"relative_error": 0.25, "same_top1": 0.5})
    text = repr(masked_table([("Arm", report.group(records)[0])], "C.", "tab-m"))
    assert "| 2.5e-01 | 50.0 % |" in text


def test_multiply_accumulates_and_parameters_have_reductions_of_their_own(tmp_path: Path) -> None:
    config = RunConfig(dataset="ucm", method="bpl", ratio=0.7)
    record = make_record(config, 70.0)
    record.cost.update(macs=400_000, params=10_000)
    save_record(record, record_path(config, "real", tmp_path))
    (row,) = report.collect(tmp_path)
    for found in (load_records(tmp_path).iloc[0], row):
        assert (found.macs_reduction, found.params_reduction) == (pytest.approx(60), pytest.approx(90))
