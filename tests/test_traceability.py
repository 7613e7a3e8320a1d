"""No result without a record: in prose, in the rows of the committed tables, in the list of all tables and figures."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from bpl import report
from bpl.paths import project_root
from bpl.records import load_record
from bpl.report.evidence_list import MADE_BY
from bpl.sweep import load_grid

ROOT = project_root()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# An accuracy or a difference of accuracies: 88.81 %, 88.81 ± 0.7 %, +0.4 points, accuracy of 91 %.
RESULT = re.compile(
    r"(?<![\w.])(?:(\d{2}\.\d{1,2})(?:\s*±\s*\d+(?:\.\d+)?)?\s*%"
    r"|(\d+(?:\.\d+)?)\s+points?\b"
    r"|(?:accuracy|top-1)[^.|\n]{0,40}?(\d{2}(?:\.\d+)?)\s*%)"
)
STATED = yaml.safe_load(Path(__file__).with_name("stated_numbers.yaml").read_text())


def prose() -> Iterator[tuple[str, str]]:
    """Every page's name and what is written on it by hand."""
    for path in [*sorted((ROOT / "book").glob("*.md")), ROOT / "README.md"]:
        yield path.name, path.read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "markdown":
                yield path.name, "".join(cell["source"])


def results_in(text: str) -> list[str]:
    """The numbers in a text that look like results."""
    return [next(group for group in found.groups() if group) for found in RESULT.finditer(text)]


def outputs(path: Path) -> Iterator[str]:
    """The Markdown that a notebook's cells show."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            if "text/markdown" in output.get("data", {}):
                yield "".join(output["data"]["text/markdown"])


def test_no_result_is_typed_into_prose() -> None:
    typed = {(page, number) for page, text in prose() for number in results_in(text) if number not in STATED}
    assert not typed, f"not from a record, and no source in tests/stated_numbers.yaml: {sorted(typed)}"


def test_every_stated_number_is_still_on_a_page() -> None:
    found = {number for _, text in prose() for number in results_in(text)}
    assert not STATED.keys() - found


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("reaches 88.81 % top-1", ["88.81"]),
        ("reaches 88.8 ± 0.7 %", ["88.8"]),
        ("a gain of +1.5 points", ["1.5"]),
        ("an accuracy of about 91 %", ["91"]),
        ("at ratio 0.78 the MACs fall to 26 %, 20 epochs", []),
        ("learning rate 0.05, weight 1", []),
    ],
)
def test_results_are_recognised(text: str, numbers: list[str]) -> None:
    assert results_in(text) == numbers


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_row_of_a_committed_table_has_records_and_a_command(path: Path) -> None:
    for text in outputs(path):
        if "The command and the records of each row" not in text:
            continue
        _, toggle = text.split("<summary>", 1)
        rows = [line for line in toggle.splitlines() if "[seed " in line]
        assert len(rows) == toggle.count("```bash")
        for row in rows:
            links = re.findall(r"\]\(\.\./(data/results/[^)]+\.json)\)", row)
            assert links
            for link in links:
                record = load_record(ROOT / link)
                assert record.state == "finished"
                # The numbers that the table shows are compared with the records by `pytest --nbval`.
                assert record.name == Path(link).stem


def test_every_label_of_the_book_is_listed_once_with_its_campaign() -> None:
    listed = report.items(ROOT)
    labels = [item.label for item in listed]
    assert len(labels) == len(set(labels))
    shown = {
        label for path in NOTEBOOKS for text in outputs(path) for label in re.findall(r":name: (tab-[\w-]+)", text)
    }
    assert shown <= set(labels)
    for grid in {grid for item in listed for grid in item.grids}:
        assert load_grid(ROOT / "workflow" / f"{grid}.yaml")
    assert next(item.grids for item in listed if item.label == "tab-ucm-accuracy") == ("ucm",)
    of = {item.label: (item.grids, item.files) for item in listed}
    assert of["tab-released-arms"] == (("released_code", "diversity"), ())
    assert of["tab-latency-fractions"] == ((), ("resnet50-224.json",))
    assert of["tab-latency-resnet18"] == (("ucm",), ("resnet18-64.json",))
    assert of["tab-recipe-search"] == ((), ("recipe.json",))
    assert of["tab-diversity-forms"] == (("diversity", "methods"), ())  # `campaign += ...` adds to what it was
    assert of["tab-foreign"] == ((), ("foreign_networks.json",))


def test_every_measured_file_on_a_page_has_its_command() -> None:
    files = {file for item in report.items(ROOT) for file in item.files}
    assert files == set(MADE_BY)  # none unknown, none left over
    for file, command in MADE_BY.items():
        if command and not command.startswith("bpl "):
            assert any((ROOT / word).is_file() for word in command.split()) or "make test-long" in command, command
        if command and "benchmarks/" in command:  # which only print where no file is named
            (measured,) = (ROOT / "data").glob(f"**/{file}")
            assert f"--out {measured.relative_to(ROOT)}" in command


@pytest.mark.parametrize("file", ["resnet18-64.json", "resnet50-224.json"])
def test_the_command_beside_a_measured_network_measures_that_network(file: str) -> None:
    words = MADE_BY[file].split()
    given = {word: words[place + 1] for place, word in enumerate(words) if word.startswith("--")}
    measured = json.loads((ROOT / words[2]).read_text())
    network = measured["network"]
    assert given["--arch"] == network["arch"]
    assert int(given["--image-size"]) == network["image_size"]
    assert given.get("--width") == (network["width"] and str(network["width"]))
    assert int(given["--threads"]) == measured["machine"]["threads"]
    assert given["--clock"] == measured["machine"]["clock"]


def test_the_list_says_what_is_recorded() -> None:
    item = report.items(ROOT)[0]
    text = repr(report.evidence([item], dict.fromkeys(item.grids, (3, 10))))
    assert item.label in text
    assert "7 of 10" in text
    assert f"bpl sweep workflow/{item.grids[0]}.yaml" in text


def test_the_list_gives_the_number_of_what_the_book_shows(tmp_path: Path) -> None:
    table = [{"data": {"text/markdown": [":::{table} One table.\n", ":name: tab-a\n"]}}]
    cells = [
        {
            "cell_type": "code",
            "id": name,
            "metadata": {"tags": tags},
            "source": ['t(r, "One table.", "tab-a")'],
            **outputs,
        }
        for name, tags, outputs in (
            ("shown", [], {"outputs": table}),
            ("empty", [], {"outputs": [{"data": {"text/markdown": ["No run is recorded yet."]}}]}),
            ("hidden", ["remove-cell"], {"outputs": table}),
            ("borrowed", ["remove-cell"], {"outputs": table}),
        )
    ]
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "book").mkdir()
    (tmp_path / "notebooks" / "n.ipynb").write_text(json.dumps({"cells": cells}))
    (tmp_path / "book" / "p.md").write_text("<!-- output of notebooks/n.ipynb, cell borrowed -->\n")
    listed = report.items(tmp_path)
    assert [item.numbered for item in listed] == [True, False, False, True]
    lines = repr(report.evidence(listed, {})).splitlines()[1:]
    assert lines[0] == lines[3] == "  - {numref}`tab-a`: One table"
    assert lines[1] == lines[2] == "  - `tab-a`, not shown at present: One table"


def test_tables_and_figures_are_found_wherever_they_are_made(tmp_path: Path) -> None:
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "book").mkdir()
    first = {
        "cell_type": "code",
        "metadata": {},
        "source": [
            'campaign = load_grid(paths.project_root() / "workflow" / "some.yaml")\n',
            "def arm(method):\n",
            "    return select(campaign, method)\n",
            'more = [run for g in ("two", "three") for run in load_grid(root / "workflow" / f"{g}.yaml")]\n',
            'times = load(folder / "times.json")',
        ],
    }
    cells = [
        {
            "cell_type": "code",
            "metadata": {"mystnb": {"figure": {"name": name, "caption": "A figure. More."}} if name else {}},
            "source": [source],
        }
        for name, source in (
            ("fig-a", 'rows = [arm("bpl")]\nreport.x(rows, caption="One " "caption: long.", name="tab-a")'),
            ("fig-b", "draw(more)"),
            ("fig-c", "draw(times)"),
            ("fig-d", "draw(1)"),
        )
    ]
    (tmp_path / "notebooks" / "n.ipynb").write_text(json.dumps({"cells": [first, *cells]}))
    (tmp_path / "book" / "p.md").write_text("```{table} Written.\n:name: tab-b\n")
    found = [(item.label, item.caption, item.page, item.grids, item.files) for item in report.items(tmp_path)]
    assert found == [
        ("tab-a", "One caption: long.", "notebooks/n.ipynb", ("some",), ()),
        ("fig-a", "A figure. More.", "notebooks/n.ipynb", ("some",), ()),
        ("fig-b", "A figure. More.", "notebooks/n.ipynb", ("two", "three"), ()),
        ("fig-c", "A figure. More.", "notebooks/n.ipynb", (), ("times.json",)),
        ("fig-d", "A figure. More.", "notebooks/n.ipynb", (), ()),
        ("tab-b", "Written.", "book/p.md", (), ()),
    ]
