"""Grids from whoever wrote them: plain values, not too many of them, and one sentence where they cannot be used."""

import json
import string

import pytest
import yaml
from fuzzing import LONG, SHORT, fuzz, hostile_text, mutated_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpl.cli import main
from bpl.config import RunConfig
from bpl.sweep import GridError, load_stages

long = pytest.mark.parametrize("count", [SHORT, pytest.param(LONG, marks=pytest.mark.slow)])
ENTRIES = [
    {"dataset": "synthetic", "method": ["bpl", "scratch"], "ratio": [0.5, 0.7], "seed": [0, 1], "tier": "quick"},
    {"dataset": "ucm", "method": "compact_kd", "budget": "macs:0.3", "width": 8, "slim_at": "freeze", "rho": 0.01},
]


@long
def test_hostile_grids_in_json_are_refused_or_read(tmp_path, count):
    def use(text: str) -> None:
        (tmp_path / "grid.json").write_text(text, errors="surrogateescape")
        load_stages(tmp_path / "grid.json")

    tally = fuzz("grid JSON", count, lambda chance: hostile_text(ENTRIES, chance), use, (GridError,))
    assert tally.refused["GridError"] > count / 4


@long
def test_hostile_grids_in_yaml_are_refused_or_read(tmp_path, count):
    texts = [
        yaml.safe_dump_all([ENTRIES, ENTRIES[1:]]).encode(),
        b"- &a {dataset: ucm, method: bpl}\n- {<<: *a, seed: 1}\n",
    ]

    def use(content: bytes) -> None:
        (tmp_path / "grid.yaml").write_bytes(content)
        load_stages(tmp_path / "grid.yaml")

    fuzz("grid YAML", count, lambda chance: mutated_bytes(chance.choice(texts), chance), use, (GridError,))


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30)
)
MERGES = "m0: &m0 {a: 1}\n" + "".join(f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 10)}]}}\n" for n in range(1, 30))
NINETY_NINE = list(range(1, 100))
BOMBS = {
    "billion laughs": (LAUGHS, "stands for .* values"),
    "billion laughs in an entry": (f"- {{dataset: ucm, method: [bpl], x: [*a29]}}\n{LAUGHS}", "cannot be read"),
    "merge keys": (MERGES, "stands for .* values"),
    "itself": ("- &a {dataset: ucm, method: bpl, ratio: *a}\n", "stands for .* values"),
    "product": (f"- {{dataset: ucm, method: bpl, seed: {NINETY_NINE}, width: {NINETY_NINE}, epochs: {NINETY_NINE}}}",
                "stands for 970,299 runs: at most 20,000"),
    "long": ("# " + "x" * (1 << 20), "more than 1,048,576 characters"),
    "deep": ("[" * 500, "cannot be read"),
    "object": ("- !!python/object/apply:os.system [touch executed]\n", "could not determine a constructor"),
    "name of Python": ("- !!python/name:os.system\n", "could not determine a constructor"),
    "digits": (f"- {{dataset: ucm, method: bpl, seed: {'9' * 5000}}}", "cannot be read"),
    "hexadecimal digits": (f"- {{dataset: ucm, method: bpl, seed: 0x{'f' * 5000}}}", "seed is a int too long"),
    "seed": ("- {dataset: ucm, method: bpl, seed: 4294967296}", "at most 4294967295"),
    "long name": (f"- {{dataset: {'x' * 5000}, method: bpl}}", "unknown data set 'xxx.*xxx': allowed"),
    "not a number": ("- {dataset: ucm, method: bpl, learning_rate: .nan}", "learning_rate is nan"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_at_once_by_name(tmp_path, monkeypatch, capsys, kind):
    """At once: written out, the first of them would be larger than any memory."""
    monkeypatch.chdir(tmp_path)
    content, said = BOMBS[kind]
    (tmp_path / "grid.yaml").write_text(content)
    with pytest.raises(GridError, match=said) as error:
        load_stages(tmp_path / "grid.yaml")
    assert len(str(error.value)) < 1500
    with pytest.raises(SystemExit) as ended:
        main(["sweep", "grid.yaml", "--out", "results"])
    assert ended.value.code == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("bpl: grid grid.yaml") and complaint.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["grid.yaml"]  # nothing was executed, nothing begun


def test_entries_that_are_too_many_together_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("bpl.sweep.local.MOST_RUNS", 100)
    entries = [{"dataset": "ucm", "method": "bpl", "seed": list(range(40)), "width": width} for width in (8, 9, 10)]
    (tmp_path / "grid.json").write_text(json.dumps(entries))
    with pytest.raises(GridError, match="entry 3: with it there are more than 100 runs"):
        load_stages(tmp_path / "grid.json")


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.printable, max_size=8)
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3)
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    entry=st.dictionaries(st.sampled_from([*RunConfig.__dataclass_fields__, "x"]), values, max_size=5),
    base=st.booleans(),
)
def test_any_mapping_is_a_grid_or_is_refused_in_one_sentence(tmp_path, entry, base):
    """Whatever a key of a config is given; half of the time on top of a sound entry."""
    (tmp_path / "grid.json").write_text(json.dumps([ENTRIES[0] | entry if base else entry]))
    try:
        stages = load_stages(tmp_path / "grid.json")
    except GridError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
    else:
        assert all(isinstance(config, RunConfig) for stage in stages for config in stage)
