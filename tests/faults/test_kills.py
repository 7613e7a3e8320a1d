"""SIGKILL at any moment: a run that was killed and resumed ends as one that was not, and a campaign loses nothing."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from support import SMALL, places_fixture, tree_fixture  # noqa: F401
from trials import keep

pytestmark = pytest.mark.usefixtures("places")
HERE = Path(__file__).parent
FOUR = SMALL | {"epochs": 4}
KILLED = {
    "dense": {"method": "dense"},
    "scratch": {"method": "scratch"},
    "bpl": {"method": "bpl", "mask": "soft", "freeze_at": 0.5},
    "bpl-masked": {"method": "bpl", "mask": "soft", "freeze_at": 0.5, "slim_at": "none"},
    "bpl-released": {"method": "bpl", "mask": "released"},
    "bpl-features-bf16": {
        "method": "bpl", "freeze_at": 0.5, "diversity_form": "feature-squared", "precision": "bf16",
        "augmentation": "nadir",
    },
    "sfp": {"method": "sfp", "freeze_at": 0.5, "schedule": "released"},
}  # fmt: skip


def script(name: str, *words: object, given: str = "", timeout: int = 900) -> dict:
    """What a script beside this file reports: it forks, for to start Python once per kill would cost minutes."""
    done = subprocess.run(
        [sys.executable, HERE / name, *map(str, words)],
        input=given,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# -- at chosen moments --------------------------------------------------------------------------------------------
def _assert_nothing_was_lost(result: dict, kills: int) -> None:
    assert result["killed"] == kills
    epochs = [epoch for epoch, _ in result["resumed"]]
    assert epochs == sorted(epochs)
    assert epochs  # at least one attempt went on from a checkpoint
    assert result["identical"] == dict.fromkeys(["network", "small", "curves", "training_macs"], True)


@pytest.fixture(scope="module")
def killed(tree, tmp_path_factory):
    chance = random.Random(0)
    # An epoch has 3 steps and 2 events for each file of the checkpoint. The first kill falls into the second epoch, the
    # second at least an epoch later.
    jobs = {
        name: [FOUR | fields, [chance.randint(6, 9), chance.randint(8, 15)]]
        for name, fields in KILLED.items()
        if name != "bpl-features-bf16"
    }
    return script("killed_runs.py", tree, tmp_path_factory.mktemp("killed"), given=json.dumps(jobs))


@pytest.mark.parametrize("name", [name for name in KILLED if name != "bpl-features-bf16"])
def test_a_run_that_was_killed_twice_ends_as_one_that_was_not(killed, name):
    _assert_nothing_was_lost(killed[name], kills=2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_run_that_was_killed_at_many_moments_ends_as_one_that_was_not(tree, tmp_path, seed):
    chance = random.Random(seed)
    moments = {name: [chance.randint(6, 9), *(chance.randint(1, 7) for _ in range(4))] for name in KILLED}
    jobs = {name: [SMALL | {"epochs": 12} | KILLED[name], moments[name]] for name in KILLED}
    results = script("killed_runs.py", tree, tmp_path, given=json.dumps(jobs))
    for result in results.values():
        _assert_nothing_was_lost(result, kills=5)
    keep(f"kills at chosen moments, seed {seed}", runs=len(jobs), kills=5 * len(jobs), different=0)


@pytest.mark.parametrize("name", ["bpl", "bpl-masked", "sfp"])
def test_the_kills_fell_before_and_after_the_freeze(killed, name):
    assert {frozen for _, frozen in killed[name]["resumed"]} == {False, True}


# -- at random moments --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_whole_runs_killed_at_random_moments_leave_the_records_and_networks_of_runs_that_were_not(
    tree, tmp_path, kills
):
    seen = script("random_kills.py", "run", tree, tmp_path, kills, 0, timeout=3000)
    print(seen)
    assert (seen["kills"], seen["different"], seen["left"]) == (kills, [], [])
    assert seen["runs"] >= 1
    if kills >= 50:  # a run that starts anew each time would be the same as well
        assert seen["resumed"] >= kills // 5 and seen["while_writing"] >= kills // 10
        keep("kills of runs", **seen | {"different": 0, "left": 0})


@pytest.mark.parametrize(("runs", "kills"), [(5, 2), pytest.param(200, 20, marks=pytest.mark.slow)])
def test_a_campaign_killed_at_random_moments_loses_and_doubles_no_record(tree, tmp_path, runs, kills):
    """By two sweeps at once, in part: they share the campaign's runs."""
    seen = script("random_kills.py", "campaign", tree, tmp_path, runs, kills, 0, timeout=3000)
    print(seen)
    assert seen["kills"] >= kills
    assert seen["records"] == seen["in_bundle"] == runs
    assert (seen["lost"], seen["changed"], seen["written_twice"]) == (0, 0, [])
    assert seen["left"] == seen["checkpoints"] == []
    if kills >= 20:
        keep("kills of a campaign", **seen | {"written_twice": 0, "left": 0, "checkpoints": 0, "runs": runs})
