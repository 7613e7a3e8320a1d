"""The latency page: what a survey holds, how it is read, and the tables, figures and sentences made from it."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch

import bpl
from bpl import hardware, layer_times
from bpl.deployment import bench
from bpl.measure import count_macs, count_params
from bpl.report import ReportError, latency
from bpl.report.survey import Survey, load_survey

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = sorted((ROOT / "data" / "latency").glob("resnet*.json"))


@pytest.fixture(scope="module")
def made() -> dict:
    """A survey of a tiny network, made by the real code on a stopwatch and a table of layers that count MACs."""
    ran = []

    def forward_pass(model, image_size, backend):
        macs = count_macs(model, image_size)

        def make(batch_size):
            def run():
                ran.append((backend, batch_size, macs))
                clock.now += 1e-8 * batch_size * (macs + 1e5)

            return run

        return make

    class clock:  # stands in for the module `time`
        now = 0.0

        @classmethod
        def perf_counter(cls):
            return cls.now

        process_time = perf_counter

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "forward_pass", forward_pass)
        patch.setattr(hardware, "forward_pass", forward_pass)
        patch.setattr("bpl.measure.time", clock)
        patch.setattr(layer_times, "time_layer", lambda layer, *_: layer.macs / 1.2e5)
        patch.setattr(bench, "peak_rates", lambda **_: {"macs_per_second": 2e8, "bytes_per_second": 1e8})
        result = bench.survey("resnet18", 32, width=16, ratios=(0.5, 0.7), target=0.4, rounds=3, progress=False)
    result["ran"] = ran
    return result


@pytest.fixture
def survey(made, tmp_path) -> Survey:
    result = {key: value for key, value in made.items() if key != "ran"}
    return load_survey(bench.save_survey(result, tmp_path / "new" / "survey.json"))


def changed(survey: Survey, **parts) -> Survey:
    values = {name: copy.deepcopy(getattr(survey, name)) for name in survey.__dataclass_fields__}
    return Survey(**values | parts)


# -- the survey -----------------------------------------------------------------------------------------------------
def test_a_survey_counts_what_it_times(survey):
    dense = bpl.build_model("resnet18", 21, 32, 16)
    pruned = bpl.slim(dense, bpl.prune_masks(dense, 0.7, round_to=8))
    entry = survey.find(0.7, 8)
    assert (entry["macs"], entry["params"]) == (count_macs(pruned, 32), count_params(pruned))
    assert survey.dense["macs"] == count_macs(dense, 32)
    assert entry["memory"] < survey.dense["memory"] and entry["memory"] > 4 * entry["params"]
    assert entry["widths"]["layer4.0.conv1"] == 40  # of 128 at ratio 0.7, 39 as they fall
    assert [e["round_to"] for e in survey.networks if e["name"].startswith("ratio")] == [1, 1, 8, 8, 16, 16]
    assert survey.prunable == list(bpl.prune_masks(dense, 0.7))


def test_networks_take_turns_and_are_compared_round_by_round(made, survey):
    eager_1 = [macs for backend, batch, macs in made["ran"] if (backend, batch) == ("eager", 1)]
    order = [macs for i, macs in enumerate(eager_1) if i == 0 or macs != eager_1[i - 1]]
    count = len(made["networks"])
    assert order[:count] == [entry["macs"] for entry in made["networks"]]
    assert order.count(made["networks"][0]["macs"]) == 3 + 1 + 2  # rounds, warm-up, and to see how long a pass takes
    entry = survey.find(0.7, 1)
    time = survey.time(entry["name"], "onnxruntime", 16)
    assert time["median_ms"] == pytest.approx(1e3 * 1e-8 * 16 * (entry["macs"] + 1e5), rel=1e-3)
    assert time["speed_up"] == pytest.approx([(survey.dense["macs"] + 1e5) / (entry["macs"] + 1e5)] * 3, rel=1e-3)


def test_the_target_is_met_and_its_uniform_neighbour_takes_no_longer(survey):
    aware, uniform = (e for e in survey.networks if not e["name"].startswith(("ratio", "dense")))
    assert aware["target"] == "latency:0.4" and uniform["target"] is None
    assert survey.time(aware["name"], "onnxruntime", 1)["speed_up"][1] >= 1 / 0.4
    assert uniform["macs"] <= aware["macs"] < 1.3 * uniform["macs"]
    assert all(width % 8 == 0 for width in aware["widths"].values())


def test_layers_are_those_of_the_networks(survey):
    assert list(survey.layers) == ["dense", "ratio 0.7, rounded to 1", "ratio 0.7, rounded to 16"]
    fc = {"dense": 128 * 21, "ratio 0.7, rounded to 16": 128 * 21}
    for name, rest in fc.items():
        (entry,) = [e for e in survey.networks if e["name"] == name]
        assert sum(layer["macs"] for layer in survey.layers[name]) + rest == entry["macs"]


def test_the_rates_of_this_machine_are_rates():
    rates = bench.peak_rates(size=64, megabytes=1)
    assert rates["macs_per_second"] > 1e6 and rates["bytes_per_second"] > 1e6


BROKEN = {
    "not there": None,
    "no JSON": "{",
    "a list": "[]",
    "another version": '{"schema": 2}',
    "a part is lacking": '{"schema": 1, "network": {}}',
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_survey_that_cannot_be_read_is_named(tmp_path, text):
    path = tmp_path / "survey.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ReportError, match=r"survey\.json"):
        load_survey(path)


def test_a_survey_without_the_dense_network_in_front_is_refused(survey, tmp_path, made):
    result = {k: v for k, v in made.items() if k != "ran"} | {"networks": made["networks"][1:]}
    with pytest.raises(ReportError, match="does not begin with the dense network"):
        load_survey(bench.save_survey(result, tmp_path / "survey.json"))


def test_what_was_not_measured_is_named(survey):
    with pytest.raises(ReportError, match="no network of ratio 0.9 rounded to 1"):
        survey.find(0.9, 1)
    with pytest.raises(ReportError, match="no time of 'dense' under compile at batch 1"):
        survey.time("dense", "compile", 1)


# -- tables and sentences -------------------------------------------------------------------------------------------
def cells(table: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines() if line.startswith("|")
    ]


def test_the_table_has_a_line_for_every_ratio_and_rounding(survey):
    table = cells(repr(latency.cost_and_time(survey, [], "Caption.", "tab-x")))
    assert [line[:2] for line in table[2:]] == [["–", "–"], *([r, n] for n in ("–", "8", "16") for r in ("0.5", "0.7"))]
    assert table[2][2] == "16, 32, 64, 128" and table[4][2] == "5, 10, 20, 39" and table[6][2] == "8, 8, 16, 40"
    assert {len(line) for line in table} == {10} and "Top-1, %" not in table[0]  # no records, no accuracy
    time = survey.time("ratio 0.7, rounded to 16", "onnxruntime", 1)
    assert table[-1][6] == f"{time['median_ms']:.2f}" and table[-1][7].startswith(f"{time['speed_up'][1]:.2f}")


def test_accuracy_is_that_of_the_recorded_row_of_the_same_size(survey, tmp_path, monkeypatch):
    from test_report import make_record

    from bpl import report
    from bpl.config import RunConfig
    from bpl.records import record_path, save_record

    for changes, top1 in (
        ({"ratio": 0.7}, 70.0),
        ({"ratio": 0.7, "diversity_weight": 0.0}, 60.0),  # a variant: not what the table shows
        ({"ratio": 0.7, "round_to": 8}, 71.0),
        ({"target": "latency:0.4", "round_to": 8}, 72.0),
    ):
        config = RunConfig("ucm", "bpl", **changes)
        save_record(make_record(config, top1), record_path(config, "real", tmp_path / "results"))
    rows = report.collect(tmp_path / "results")
    assert len(rows) == 4
    shown = {tuple(line[:2]): line[-1] for line in cells(repr(latency.cost_and_time(survey, rows, "C.", "tab-x")))}
    assert (shown["0.7", "–"], shown["0.7", "8"], shown["0.7", "16"], shown["0.5", "–"]) == ("70.00", "71.00", "–", "–")
    assert cells(repr(latency.target(survey, rows, "C.", "tab-y")))[2][-1] == "72.00"


def test_the_fraction_that_becomes_time(survey):
    entry = survey.find(0.7, 1)
    dense, macs = survey.dense["macs"], entry["macs"]
    expected = (1 - (macs + 1e5) / (dense + 1e5)) / (1 - macs / dense)
    assert survey.becomes_time(entry, "eager", 1) == pytest.approx(expected, rel=1e-3)
    table = cells(repr(latency.fractions(survey, 0.7, "C.", "tab-x")))
    assert table[3][1] == f"{100 * expected:.0f}\N{NO-BREAK SPACE}%"
    assert [line[0] for line in table[2:]] == [
        "MACs removed", "PyTorch (eager), batch 1", "PyTorch (eager), batch 16",
        "ONNX Runtime, batch 1", "ONNX Runtime, batch 16",
    ]  # fmt: skip


def test_no_convolution_is_faster_than_the_best(survey):
    fastest = max(layer["macs"] / layer["ms"] * 1e3 for layers in survey.layers.values() for layer in layers)
    for peak in (0.5 * fastest, 2 * fastest):
        known = changed(survey, peak=survey.peak | {"macs_per_second": peak})
        assert known.best_rate == max(peak, fastest)
        shares = [line[3] for line in cells(repr(latency.kernels(known, "C.", "tab-x")))[2:]]
        assert shares and all(float(share.split()[0]) <= 100 for share in shares)


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [
        (3.4, "2 threads; here, on 1 thread, the medians are not below it."),
        (3.2, "on 1 thread, the medians are below it."),
    ],
)
def test_whether_the_aim_is_met_is_read_from_the_times(survey, factor, verdict):
    times = [row | {"speed_up": [factor - 0.1, factor, factor + 0.1]} for row in survey.times]
    text = repr(latency.aim(changed(survey, times=times)))
    assert text.endswith(verdict)
    assert f"{factor:.2f} times" in text and "at batch 1 and" in text and "at batch 16" in text


def test_the_noise_is_what_equal_networks_differ_by(survey):
    assert "by up to 0.0\N{NO-BREAK SPACE}% at batch 1 and" in repr(latency.cost_and_time(survey, [], "C.", "tab-x"))
    times = copy.deepcopy(survey.times)
    for row in times:  # ratio 0.5 has one set of widths at roundings 1 and 8
        if (row["network"], row["batch_size"]) == ("ratio 0.5, rounded to 8", 16):
            row["speed_up"] = [1.1 * value for value in row["speed_up"]]
    noisy = changed(survey, times=times)
    text = repr(latency.cost_and_time(noisy, [], "C.", "tab-x"))
    assert "same widths (ratio 0.5)" in text and "10.0\N{NO-BREAK SPACE}% at batch 16." in text
    aware, uniform = (e for e in survey.networks if not e["name"].startswith(("ratio", "dense")))
    slow, fast = sorted(noisy.time(e["name"], "onnxruntime", 1)["speed_up"][1] for e in (aware, uniform))
    text = repr(latency.target(noisy, [], "C.", "tab-x"))
    assert f"differ by {100 * (fast / slow - 1):.1f}\N{NO-BREAK SPACE}% at batch 1 and" in text
    assert text.endswith("more than that noise at batch 1.")
    assert "no more than that noise" in repr(latency.target(calm(noisy), [], "C.", "tab-x"))


def calm(survey: Survey) -> Survey:
    """The same with all networks equally fast, but for the noise at batch 1."""
    times = [row | {"speed_up": [2.0 + 0.1 * ("rounded to 8" in row["network"])] * 3} for row in survey.times]
    return changed(survey, times=times)


def test_the_target_stands_beside_the_uniform_ratio(survey):
    aware, uniform = cells(repr(latency.target(survey, [], "C.", "tab-x")))[2:]
    assert aware[0] == "`--target latency:0.4`" and re.match(r"uniform, ratio 0\.\d+$", uniform[0])
    assert float(aware[2]) > float(uniform[2])  # more is kept in the same time


def test_the_convolutions_alone(survey):
    table = cells(repr(latency.kernels(survey, "C.", "tab-x")))
    layers = survey.layers["dense"]
    assert table[2][1] == f"{sum(layer['ms'] for layer in layers):.2f}"
    assert [line[0] for line in table[2:]] == ["dense", "ratio 0.7, not rounded", "ratio 0.7, rounded to 16"]
    assert table[2][3] == "60\N{NO-BREAK SPACE}%"  # 1.2e8 of 2e8 multiply-accumulates a second
    assert table[2][4].startswith("0\N{NO-BREAK SPACE}%")


def test_the_machine_is_named(survey):
    text = repr(latency.machine(survey))
    assert survey.machine["processor"] in text and "resnet18, width 16" in text and "32 × 32" in text


# -- figures ---------------------------------------------------------------------------------------------------------
DRAWN = {
    "speed-up": lambda survey: latency.speed_up(survey, "onnxruntime", 1),
    "roofline": latency.roofline,
}


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_a_figure_is_the_same_again_and_another_one_for_another_number(survey, draw):
    assert draw(survey).svg == draw(survey).svg
    times, layers = copy.deepcopy(survey.times), copy.deepcopy(survey.layers)
    for row in times:
        if row["network"] == "ratio 0.7, rounded to 8":
            row["speed_up"][1] *= 1.1
    layers["dense"][3]["ms"] *= 1.5
    assert draw(changed(survey, times=times, layers=layers)).svg != draw(survey).svg


# -- what is committed ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: p.stem)
def test_the_committed_survey_counts_as_this_code_does(path):
    survey = load_survey(path)
    n = survey.network
    dense = bpl.build_model(n["arch"], n["classes"], n["image_size"], n["width"])
    assert survey.dense["macs"] == count_macs(dense, n["image_size"])
    entry = survey.find(0.7, 16)
    pruned = bpl.slim(dense, bpl.prune_masks(dense, 0.7, round_to=16))
    assert (entry["macs"], entry["params"]) == (count_macs(pruned, n["image_size"]), count_params(pruned))
    assert {(row["backend"], row["batch_size"]) for row in survey.times} >= {
        (backend, batch) for backend in ("eager", "onnxruntime") for batch in (1, 16)
    }
    assert "/" not in json.dumps(survey.machine)  # no path of the machine


def test_the_command_line_writes_a_survey(tmp_path, monkeypatch, capsys, made):
    from bpl.cli import main

    asked, threads = [], []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    result = {key: value for key, value in made.items() if key != "ran"}
    monkeypatch.setattr(bench, "survey", lambda *words, **options: asked.append((words, options)) or result)
    with pytest.raises(SystemExit) as end:
        main(
            [
                "bench",
                str(tmp_path / "out.json"),
                "--arch",
                "resnet18",
                "--image-size",
                "32",
                "--width",
                "16",
                "--threads",
                "1",
                "--clock",
                "processor",
                "--quiet",
            ]
        )
    assert end.value.code == 0 and threads == [1]
    options = {"width": 16, "ratios": bench.RATIOS, "target": 0.3, "rounds": 7, "clock": "processor", "progress": False}
    assert asked == [(("resnet18", 32), options)]
    assert load_survey(tmp_path / "out.json").network["arch"] == "resnet18"
    assert "ratio 0.7, rounded to 16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--ratios", "0.5", "0.8"],
            "--ratios are (0.5, 0.8): they must be more than 0 and less than 1, 0.7 among them",
        ),
        (["--ratios", "0.7", "1"], "--ratios are (0.7, 1.0)"),
        (["--rounds", "0"], "--rounds is 0: it must be at least 1"),
        (["--threads", "100000"], "--threads is 100000: it must be 1 to "),
        (["--arch", "resnet1000"], "unknown network 'resnet1000'"),
        (["--target", "1.5"], "target is 'latency:1.5'"),
    ],
)
def test_a_bad_survey_is_refused_before_anything_is_measured(tmp_path, monkeypatch, capsys, words, said):
    from bpl.cli import main

    monkeypatch.setattr(bench, "forward_pass", lambda *_: pytest.fail("measured"))
    with pytest.raises(SystemExit) as end:
        main(["bench", str(tmp_path / "out.json"), "--width", "8", "--image-size", "32", "--quiet", *words])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("bpl: ") and said in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())
