"""What the book says of the long trials is what they came to, and it is what was promised."""

import re
from pathlib import Path

import trials

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "book" / "scale.md").read_text(encoding="utf-8")
KEPT = trials.kept()


def test_the_table_of_the_book_is_what_the_trials_came_to():
    assert trials.rows(KEPT) in PAGE, "put in what `python tests/trials.py` prints"


def test_what_was_promised_holds():
    runs, campaign = KEPT["kills of runs"], KEPT["kills of a campaign"]
    assert runs["kills"] >= 50 and runs["while_writing"] >= 5
    assert runs["different"] == runs["left"] == 0
    assert campaign["runs"] >= 200 and campaign["kills"] >= 20
    assert campaign["records"] == campaign["in_bundle"] == campaign["runs"]
    assert campaign["lost"] == campaign["changed"] == campaign["written_twice"] == 0
    assert KEPT["two processes"]["loss"] < 1e-4
    assert KEPT["memory"]["many"] >= 117_000


def test_every_kind_of_hostile_input_was_tried_ten_thousand_times():
    files = (ROOT / "tests" / "faults").glob("test_hostile*.py")
    called = re.compile(r'fuzz\((?:tmp_path, count, )?"([^"]+)"')
    targets = {name for file in files for name in called.findall(file.read_text(encoding="utf-8"))}
    start = "hostile inputs, "
    tried = {name.removeprefix(start): figures for name, figures in KEPT.items() if name.startswith(start)}
    assert len(targets) >= 12
    assert tried.keys() == targets
    assert all(figures["inputs"] >= 10_000 and figures["crashes"] == 0 for figures in tried.values())


def test_a_trial_is_kept_only_where_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "ROOT", tmp_path)
    monkeypatch.delenv("BPL_TRIALS", raising=False)
    trials.keep("one", kills=1)
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("BPL_TRIALS", "trials.json")
    for kills in (1, 2):
        trials.keep("one", kills=kills, runs=4)
    trials.keep("one more", kills=3, runs=5, share=0.5)
    monkeypatch.setattr(trials, "FILE", tmp_path / "trials.json")
    kept = trials.kept()
    assert kept["one"]["kills"] == 2 and kept["one"]["made"].keys() == {"date", "python", "torch"}
    assert trials.together(kept, "one") == {"kills": 5, "runs": 9, "trials": 2}
