"""The command line as a user types it: what it does, what it says, how it ends."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from support import (  # noqa: F401
    SMALL,
    files_below,
    no_stopwatch_fixture,
    places_fixture,
    run_module,
    small,
    tree_fixture,
)

from bpl.cli import main
from bpl.config import RunConfig
from bpl.defaults import METHODS, ONLY_FOR
from bpl.export import save_model
from bpl.models import NAMES, build_model
from bpl.records import load_records, record_path
from bpl.runlog import read_log

pytestmark = pytest.mark.usefixtures("places", "no_stopwatch")

WORDS = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture
def bpl(capsys):
    """Runs the command line in this process; returns exit code, standard output and standard error."""

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        return ended.value.code or 0, *capsys.readouterr()

    return run


def program(*words, **options) -> subprocess.CompletedProcess:
    """The installed program, in a process of its own."""
    path = Path(sys.executable).with_name("bpl")
    return subprocess.run([path, *map(str, words)], capture_output=True, text=True, timeout=300, **options)


def is_one_sentence(text: str) -> bool:
    return text.startswith("bpl: ") and text.count("\n") == 1 and text.endswith("\n")


# -- bpl run ------------------------------------------------------------------------------------------------------
def test_the_program_runs_a_config_to_its_record_and_then_only_shows_it(tree, places):
    words = ["run", "--dataset", tree, "--method", "bpl", "--quiet", *WORDS, "--epochs", 1]
    first = program(*words)
    assert (first.returncode, first.stderr) == (0, "")
    config = small(tree, "bpl", epochs=1)
    path = record_path(config, "real")
    assert first.stdout.startswith(f"{path.stem} on tiny (real images)\n")  # the same name in another process
    assert files_below(places / "results") == [f"tiny/{path.name}"]
    written = path.read_bytes()
    again = program(*words)
    assert (again.returncode, again.stdout, again.stderr) == (0, first.stdout, "")
    assert path.read_bytes() == written


def test_run_says_what_the_row_of_the_table_says(bpl, tree):
    code, out, _ = bpl("run", "--dataset", tree, "--method", "bpl", "--quiet", *WORDS, "--epochs", 1)
    row = load_records().iloc[0]
    assert code == 0
    assert f"top-1 test {row.test:.2f} %" in out
    assert f"({-row.macs_reduction:+.2f} %)" in out
    assert f"({-row.params_reduction:+.2f} %)" in out


def test_run_says_the_mean_over_classes_where_they_have_unequally_many_images(bpl, tree, tmp_path):
    unequal = shutil.copytree(tree, tmp_path / "unequal")
    first, *_ = sorted(unequal.iterdir())
    for file in sorted(first.iterdir())[10:]:
        file.unlink()
    out = bpl("run", "--dataset", unequal, "--method", "dense", "--quiet", *WORDS)[1]
    (row,) = load_records().itertuples()
    assert row.test != row.mean_per_class and f"mean over classes {row.mean_per_class:.2f} %" in out
    assert "mean over classes" not in bpl("run", "--dataset", tree, "--method", "dense", "--quiet", *WORDS)[1]


def test_run_takes_folders_and_repeats_when_asked(bpl, tree, tmp_path):
    words = ["run", "--dataset", tree, "--method", "dense", "--quiet", *WORDS, "--epochs", 1, "--out", tmp_path / "own"]
    bpl(*words)
    (path,) = (tmp_path / "own" / "tiny").iterdir()
    written = path.stat().st_mtime_ns
    assert bpl(*words)[0] == 0
    assert path.stat().st_mtime_ns == written
    assert bpl(*words, "--repeat")[0] == 0
    assert path.stat().st_mtime_ns > written


def test_quiet_writes_nothing_on_standard_error_and_loud_shows_progress(bpl, tree):
    words = ["run", "--dataset", tree, "--method", "dense", *WORDS, "--epochs", 1]
    assert "1/1" in bpl(*words)[2]
    assert bpl(*words, "--repeat", "--quiet")[2] == ""


BAD = [
    (["--ratio", "1.5"], ["1.5", "at least 0 and less than 1"]),
    (["--ratio", "-0.1"], ["-0.1", "at least 0 and less than 1"]),
    (["--ratio", "nan"], ["nan", "at least 0 and less than 1"]),
    (["--method", "magic"], ["magic", *METHODS]),
    (["--arch", "resnet19"], ["resnet19", *NAMES]),
    (["--dataset", "no-such-set"], ["no-such-set", "ucm", "aid", "synthetic", "folder"]),
    (["--split", "80/20"], ["80/20", "protocol", "paper", "aitlas"]),
    (["--tier", "huge"], ["huge", "quick", "cpu", "paper"]),
    (["--epochs", "0"], ["0", "at least 1"]),
    (["--batch-size", "1"], ["1", "at least 2"]),
    (["--image-size", "16"], ["16", "at least 32"]),
    (["--seed", "-1"], ["-1", "at least 0"]),
    (["--freeze-at", "2"], ["2", "at most 1"]),
    (["--learning-rate", "-1"], ["-1", "at least 0"]),
    (["--diversity-form", "euclid"], ["euclid", "stage-cosine", "layer-squared"]),
    (["--data", "no/such/folder"], ["no/such/folder", "auto", "real", "synthetic", "folder"]),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=lambda value: " ".join(value[:2]))
def test_a_bad_value_gives_one_sentence_with_the_value_and_what_is_allowed(bpl, tree, places, words, said):
    code, out, err = bpl("run", "--dataset", tree, "--method", "bpl", *WORDS, *words)
    assert (code, out) == (2, "")
    assert is_one_sentence(err), err
    assert all(word in err for word in said), err
    assert not (places / "results").exists()
    assert not (places / "work").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ratio", "seventy"], ["ratio", "seventy"]),
        (["--epochs", "1.5"], ["epochs", "1.5"]),
        (["--mask-every", "perhaps"], ["mask-every", "perhaps"]),
        (["--ration", "0.5"], ["--ration"]),
    ],
    ids=lambda value: " ".join(value[:2]),
)
def test_a_word_of_the_wrong_kind_is_named_with_exit_code_2(bpl, tree, places, words, said):
    code, out, err = bpl("run", "--dataset", tree, "--method", "bpl", *words)
    assert (code, out) == (2, "")
    assert all(word in err for word in said), err
    assert "Traceback" not in err
    assert not (places / "work").exists()


def test_the_program_shows_no_traceback_for_bad_input(places):
    done = program("run", "--dataset", "ucm", "--method", "bpl", "--ratio", "1.5")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "bpl: ratio is 1.5: it must be at least 0 and less than 1\n"
    assert files_below(places) == []


def test_a_run_that_fails_gives_one_sentence_and_exit_code_1(bpl, tree, places):
    code, _, err = bpl(
        "run", "--dataset", tree, "--method", "dense", "--quiet", *WORDS, "--epochs", 4, "--learning-rate", 1e30
    )
    assert code == 1
    assert is_one_sentence(err), err
    assert "epoch" in err
    assert files_below(places / "results") == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_said_so(bpl, tree, places):
    code, _, err = bpl("run", "--dataset", tree, "--method", "dense", "--quiet", *WORDS, "--device", "cuda")
    assert code == 2
    assert is_one_sentence(err), err
    assert "'cuda'" in err
    assert "auto and cpu" in err
    assert files_below(places / "results") == []


def test_a_run_under_way_elsewhere_is_said_so(bpl, tree, places):
    config = small(tree, "dense")
    with run_module.only_here(places / "work" / config.run_name("real")):
        code, _, err = bpl("run", "--dataset", tree, "--method", "dense", "--quiet", *WORDS)
    assert code == 75  # nothing is wrong: try again
    assert is_one_sentence(err), err
    assert "under way in another process" in err


def test_a_run_whose_time_is_over_keeps_what_it_has_and_asks_to_be_started_again(bpl, tree, places):
    words = ["run", "--dataset", tree, "--method", "dense", "--quiet", *WORDS]
    code, out, err = bpl(*words, "--time-budget", "0s")
    assert (code, out) == (75, "")
    assert is_one_sentence(err), err
    assert "stopped after epoch 1 of 3" in err
    assert files_below(places / "results") == []
    assert bpl(*words)[0] == 0
    (record,) = (places / "results" / "tiny").iterdir()
    events = [event["event"] for event in read_log(places / "work" / record.stem)]
    assert events == ["started", "epoch", "checkpoint", "stopped", "started", "epoch", "epoch", "finished"]


@pytest.mark.parametrize("words", [["--beside", "0"], ["--time-budget", "soon"]])
def test_what_bpl_run_itself_takes_is_checked_before_anything_runs(bpl, tree, places, words):
    code, _, err = bpl("run", "--dataset", tree, "--method", "dense", "--quiet", *WORDS, *words)
    assert code == 2
    assert is_one_sentence(err), err
    assert repr(words[1]).strip("'") in err
    assert not (places / "work").exists()


SIGNALS = [
    (signal.SIGINT, 130, "interrupted; start the same command again"),
    (signal.SIGTERM, 143, "start the same command again"),
]


@pytest.mark.parametrize(("sent", "code", "said"), SIGNALS, ids=["ctrl-c", "sigterm"])
def test_a_signal_ends_the_program_with_its_own_code_and_the_next_start_goes_on(tree, places, sent, code, said):
    """Sent once the first checkpoint is there; the run would take minutes."""
    starter = (
        "import bpl.train as t, sys; t.CHECKPOINT_SECONDS = -1.0; from bpl.cli import main; main(sys.argv[1:])",
        "run", "--dataset", str(tree), "--method", "dense", "--quiet", *WORDS, "--epochs", "5000",
    )  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", *starter], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    place = places / "work" / small(tree, "dense", epochs=5000).run_name("real")
    try:
        end = time.monotonic() + 240
        while not (place / "checkpoint.pt").exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(sent)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == code
    assert is_one_sentence(err), err
    assert said in err
    assert read_log(place)[-1]["event"] == "stopped"
    assert out == ""
    assert {"checkpoint.pt", "lock"} <= set(files_below(place))
    assert not [name for name in files_below(places) if name.endswith(".tmp")]
    assert files_below(places / "results") == []


# -- bpl sweep ----------------------------------------------------------------------------------------------------
@pytest.fixture
def grid(tmp_path, tree):
    """Writes a grid of small dense runs."""

    def write(**changes):
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump([{"dataset": str(tree), "method": "dense", **SMALL, "epochs": 1, **changes}]))
        return path

    return write


def test_sweep_runs_a_grid_and_then_finds_it_done(bpl, grid, tmp_path):
    words = ["sweep", grid(seed=[0, 1]), "--out", tmp_path / "o", "--work", tmp_path / "w", "--quiet"]
    code, out, err = bpl(*words)
    assert (code, err) == (0, "")
    assert out.endswith("2 runs: 0 recorded before, 2 run now, 0 failed, 0 under way elsewhere, 0 left\n")
    assert len(load_records(tmp_path / "o")) == 2
    code, out, _ = bpl(*words)
    assert code == 0
    assert out == "2 runs: 2 recorded before, 0 run now, 0 failed, 0 under way elsewhere, 0 left\n"


def test_sweep_keeps_to_its_budget_and_says_how_long_the_rest_may_take(bpl, grid):
    bpl("sweep", grid(seed=[0]), "--quiet")
    path = record_path(RunConfig(**yaml.safe_load(grid(seed=0).read_text())[0]), "real")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 600.0}))
    code, out, _ = bpl("sweep", grid(seed=[0, 1, 2]), "--time-budget", "1m", "--quiet")
    assert code == 75
    assert re.search(r"3 runs: 1 recorded before, 0 run now, .* 2 left, about 20 min\n$", out)


def test_sweep_reports_failures_with_exit_code_1_and_runs_the_rest(bpl, grid):
    code, out, _ = bpl("sweep", grid(learning_rate=[1e30, 0.05], epochs=4), "--quiet")
    assert code == 1
    assert re.search(r"^failed dense-resnet18-r0.00-s0-\w+: the loss became \w+ in epoch", out, re.M)
    assert "1 run now, 1 failed" in out
    assert len(load_records()) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- {dataset: ucm, method: bpl, ratio: 1.5}", ["entry 1", "1.5", "less than 1"]),
        ("- {dataset: ucm, methd: bpl}", ["methd", "method"]),
        ("dataset: ucm", ["not a list"]),
        ("- [", ["cannot be read"]),
        ("- !!python/object/apply:os.system ['touch hacked']", ["cannot be read", "python/object"]),
        (None, ["grid.yaml", "No such file"]),
    ],
    ids=["value", "key", "no list", "syntax", "hostile", "missing"],
)
def test_a_bad_grid_gives_one_sentence_and_exit_code_2(bpl, tmp_path, monkeypatch, content, said):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("grid.yaml").write_text(content)
    code, out, err = bpl("sweep", "grid.yaml")
    assert (code, out) == (2, "")
    assert is_one_sentence(err), err
    assert all(word in err for word in said), err
    assert not Path("hacked").exists()


def test_a_bad_time_budget_is_refused_before_anything_runs(bpl, grid, places):
    code, _, err = bpl("sweep", grid(), "--time-budget", "soon")
    assert code == 2
    assert is_one_sentence(err), err
    assert "'soon'" in err
    assert not (places / "results").exists()


# -- bpl data, bpl export -----------------------------------------------------------------------------------------
def test_data_lists_every_data_set_and_where_its_images_are(bpl, tmp_path, monkeypatch):
    from PIL import Image

    from bpl.data import CARDS

    place = tmp_path / "root" / "UCMerced_LandUse" / "Images" / "forest"
    place.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(place / "forest00.png")
    monkeypatch.setenv("BPL_DATA", str(tmp_path / "root"))
    code, out, err = bpl("data")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert (code, err) == (0, "")
    assert lines.keys() == CARDS.keys()
    assert str(place.parent) in lines["ucm"]
    assert "not found" in lines["rsd46"]
    assert "drawn" in lines["synthetic"]
    monkeypatch.setenv("BPL_DATA", str(tmp_path / "elsewhere"))
    assert f"{place.parent}\n" in bpl("data", "--root", tmp_path / "root")[1]


def test_data_does_one_thing_at_a_time(bpl, tmp_path):
    code, _, err = bpl("data", "--download", "ucm", "--pack", "aid", "--to", tmp_path / "aid.zip")
    assert (code, is_one_sentence(err)) == (2, True) and "--download ucm and --pack aid: one at a time" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--jobs", "0"), "jobs is 0: it must be a whole number of at least 1"),
        (("--time-budget", "xyz"), "time budget is 'xyz'"),
        (("--compile", "zzz"), "'zzz'"),
    ],
)
def test_an_estimate_does_not_pass_over_other_bad_words(bpl, tmp_path, words, said):
    (tmp_path / "grid.yaml").write_text("- {dataset: synthetic, method: dense}\n")
    code, out, err = bpl("sweep", tmp_path / "grid.yaml", "--estimate", *words)
    assert (code, out, is_one_sentence(err)) == (2, "", True) and said in err


def test_data_refuses_a_download_that_does_not_exist(bpl, tmp_path):
    code, _, err = bpl("data", "--download", "imagenet", "--root", tmp_path / "new")
    assert code == 2
    assert is_one_sentence(err), err
    assert "'imagenet'" in err
    assert "ucm" in err
    assert not (tmp_path / "new").exists()


def test_export_writes_onnx_beside_the_network(bpl, tmp_path):
    model = build_model("resnet18", 4, 32, 8).eval()
    save_model(model, tmp_path / "model.safetensors")
    code, out, err = bpl("export", tmp_path / "model.safetensors")
    assert (code, err) == (0, "")
    assert str(tmp_path / "model.onnx") in out
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32), dtype=np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    assert np.allclose(session.run(None, {"images": images})[0], expected, atol=1e-4)


@pytest.mark.parametrize("content", [None, "{", '{"format": "other"}', '{"format": "bpl-model", "version": 99}'])
def test_export_refuses_what_is_no_network_of_this_library(bpl, tmp_path, content):
    if content is not None:
        (tmp_path / "model.json").write_text(content)
    code, _, err = bpl("export", tmp_path / "model.safetensors")
    assert code == 2
    assert is_one_sentence(err), err
    assert "model" in err
    assert not (tmp_path / "model.onnx").exists()


def test_bench_finds_out_that_it_cannot_write_before_it_measures(bpl, tmp_path, monkeypatch):
    monkeypatch.setattr("bpl.deployment.bench.survey", lambda *_, **__: pytest.fail("measured first"))
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    for out in (tmp_path / "file" / "below" / "out.json", tmp_path / "pipe"):
        code, said, err = bpl("bench", out)
        assert (code, said) == (1, "")
        assert is_one_sentence(err), err
        assert str(tmp_path / out.relative_to(tmp_path).parts[0]) in err


# -- in general ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "words", [["--help"], ["run", "--help"], ["sweep", "--help"], ["status", "-h"], ["data", "-h"], ["export", "-h"]]
)
def test_help_is_given(bpl, words):
    code, out, err = bpl(*words)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) > 5


def test_help_says_what_the_exit_codes_mean(bpl):
    from bpl.machine import exit_codes

    said = " ".join(bpl("--help")[1].split())
    codes = [value for name, value in vars(exit_codes).items() if name.isupper() and isinstance(value, int)]
    assert sorted(codes) == [0, 1, 2, 75, 130, 143]
    assert all(f"{code} " in said.partition("Exit codes:")[2] for code in codes)


def test_run_help_says_which_methods_read_a_knob(bpl):
    said = " ".join(bpl("run", "--help")[1].split())
    assert "Read by bpl. (default: same)" in said
    for name, methods in ONLY_FOR.items():
        text = said.partition(f" --{name.replace('_', '-')} ")[2].partition(" --")[0]
        listed = text.partition("Read by ")[2].partition(".")[0]
        but = listed.removeprefix("all but ")
        given = set(but.split(", "))
        assert (set(METHODS) - given if but != listed else given) == set(methods), name


def test_a_knob_of_another_method_is_said_to_be_left_out(bpl, tree):
    words = ["run", "--dataset", tree, "--method", "scratch", *WORDS, "--quiet"]
    code, out, said = bpl(*words, "--partner", "dbb", "--diversity-weight", 0.5)
    assert (code, said) == (0, "bpl: scratch does not read --diversity-weight, --partner: left out\n")
    assert bpl(*words) == (0, out, "")
    _, _, said = bpl("run", "--dataset", tree, "--method", "dense", *WORDS, "--quiet", "--ratio", 0.5)
    assert said == "bpl: dense does not read --ratio: left out\n"
    _, _, said = bpl(*words, "--target", "macs:0.5", "--ratio", 0.2)
    assert said == "bpl: scratch does not read --ratio (with --target macs:0.5): left out\n"


def test_a_knob_that_another_leaves_without_effect_is_said_to_be_left_out(bpl, tree):
    words = ["run", "--dataset", tree, "--method", "bpl", *WORDS, "--quiet", "--diversity-weight", 0]
    code, out, said = bpl(*words, "--diversity-form", "layer-squared", "--mask-every", 3)
    assert (code, said) == (
        0,
        "bpl: bpl does not read --mask-every (with --mask hard), --diversity-form (with --diversity-weight 0.0): left "
        "out\n",
    )
    assert bpl(*words) == (0, out, "")


def test_run_help_names_every_field_of_a_config(bpl):
    import dataclasses

    out = bpl("run", "--help")[1]
    assert all(f"--{field.name.replace('_', '-')}" in out for field in dataclasses.fields(RunConfig))


@pytest.mark.parametrize("words", [[], ["fly"], ["run"], ["sweep"], ["export"]])
def test_a_command_that_is_not_whole_ends_with_exit_code_2(bpl, words):
    code, out, err = bpl(*words)
    assert (code, out) == (2, "")
    assert err
    assert "Traceback" not in err
