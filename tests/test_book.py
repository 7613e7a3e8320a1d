"""The book: what its pages need is there, it builds without a warning, and it reads without a network."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What a browser fetches by itself when it opens a page. A plain <a href> is fetched only when a reader clicks it.
FETCHED = {
    **dict.fromkeys(("script", "iframe", "audio", "embed", "track", "input"), ("src",)),
    **dict.fromkeys(("img", "source"), ("src", "srcset")),
    **dict.fromkeys(("image", "use"), ("href", "xlink:href")),
    "video": ("src", "poster"),
    "object": ("data",),
}
NOT_FETCHED_LINKS = {"next", "prev", "index", "search", "author", "copyright", "canonical", "license", "help"}
CSS_ADDRESS = re.compile(r"""@import\s+["']([^"']+)|url\(\s*["']?([^"')]+)""")
MACHINE_PATH = r"(?<![\w.])/(?:home|Users|root|work|tmp|private|var/folders|mnt)/\w|file:///|\b[A-Z]:\\+Users"


def _load_stage():
    spec = importlib.util.spec_from_file_location("stage", ROOT / "book" / "stage.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


stage = _load_stage()


def _toc_entries() -> list[str]:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]


def _css_addresses(css: str) -> list[str]:
    return [first or second for first, second in CSS_ADDRESS.findall(css)]


class _Page(HTMLParser):
    """Collects of one page: what a browser fetches, the links a reader may follow, anchors, and texts of pictures."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.pictures: list[tuple[str, str]] = []
        self._in_style = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        for name in FETCHED.get(tag, ()):
            if name == "srcset":
                self.fetched += [part.split()[0] for part in given.get(name, "").split(",") if part.strip()]
            elif name in given:
                self.fetched.append(given[name])
        if tag == "link" and not NOT_FETCHED_LINKS & set(given.get("rel", "").split()):
            self.fetched.append(given.get("href", ""))
        if tag == "img":
            self.pictures.append((given.get("src", ""), given.get("alt", "")))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        self.fetched += _css_addresses(given.get("style", ""))
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.fetched += _css_addresses(data)


def _is_external(address: str) -> bool:
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme not in ("", "data")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages, from the committed sources, warnings being errors."""
    pytest.importorskip("jupyter_book")
    folder = tmp_path_factory.mktemp("book")
    stage.stage(folder / "source")
    command = "from jupyter_book.cli.main import main; main()"
    options = ["build", str(folder / "source"), "--path-output", str(folder), "-q", "-W", "-n", "--keep-going"]
    # The sources are given by a full path: the build may not lean on the folder it is started in.
    environment = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-c", command, *options], cwd=folder, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, f"the book does not build without warnings:\n{done.stderr}\n{done.stdout[-2000:]}"
    return folder / "_build" / "html"


@pytest.fixture(scope="module")
def pages(built: Path) -> dict[Path, _Page]:
    """Every built page, parsed."""
    paths = [path for path in sorted(built.rglob("*.html")) if "_static" not in path.parts]
    return {path: _Page(path.read_text(encoding="utf-8")) for path in paths}


@pytest.mark.parametrize("entry", _toc_entries())
def test_every_entry_of_the_table_of_contents_exists(entry: str) -> None:
    assert any((ROOT / f"{entry}{suffix}").exists() for suffix in (".md", ".ipynb")), "_toc.yml names what is not there"


def test_every_page_is_in_the_table_of_contents() -> None:
    entries = set(_toc_entries())
    on_disk = {str(p.relative_to(ROOT).with_suffix("")) for p in [*NOTEBOOKS, *(ROOT / "book").glob("*.md")]}
    assert on_disk <= entries, f"not in _toc.yml: {sorted(on_disk - entries)}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_committed_whole(path: Path) -> None:
    assert path.stat().st_size < 1_000_000, "a page this heavy is slow to read and to review"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
    counts = [cell["execution_count"] for cell in code]
    assert None not in counts, "a cell that was never run passes nbval silently"
    assert counts == list(range(1, len(code) + 1)), f"not run from top to bottom in a fresh kernel: {counts}"
    for cell in code:
        errors = [output["evalue"] for output in cell["outputs"] if output["output_type"] == "error"]
        assert not errors, f"committed with an error: {errors}"
        for output in cell["outputs"]:
            output.get("data", {}).pop("image/png", None)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    found = [m.group(0) for m in re.finditer(f".{{0,40}}(?:{MACHINE_PATH}).{{0,40}}", json.dumps(notebook))]
    assert not found, "names a path of somebody's machine"


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ('<script src="https://cdn.example/x.js"></script>', True),
        ('<link rel="stylesheet" href="//cdn.example/x.css">', True),
        ('<link rel="preconnect" href="https://fonts.example">', True),
        ("<style>@import 'https://fonts.example/css';</style>", True),
        ('<div style="background: url(https://x.example/y.png)"></div>', True),
        ('<img srcset="a.png 1x, https://x.example/b.png 2x" alt="b">', True),
        ('<a href="https://example.org">a link</a><link rel="next" href="b.html">', False),
        ('<img src="data:image/png;base64,aa" alt="a"><script src="../_static/x.js"></script>', False),
    ],
)
def test_what_a_browser_would_fetch_is_seen(html: str, expected: bool) -> None:
    assert any(map(_is_external, _Page(html).fetched)) == expected


def test_no_page_loads_anything_from_the_network(built: Path, pages: dict[Path, _Page]) -> None:
    external = {(path.name, a) for path, page in pages.items() for a in page.fetched if _is_external(a)}
    for sheet in [*built.rglob("*.css"), *built.rglob("*.svg")]:
        addresses = _css_addresses(sheet.read_text(encoding="utf-8"))
        external |= {(sheet.name, a) for a in addresses if _is_external(a) and not a.startswith("#")}
    assert not external


def test_everything_a_page_loads_or_links_to_is_there(built: Path, pages: dict[Path, _Page]) -> None:
    missing = set()
    for path, page in pages.items():
        for address in {*page.fetched, *page.links}:
            parts = urlsplit(address)
            if _is_external(address) or parts.scheme == "data" or address in ("", "#"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = pages[target].anchors if target in pages else {unquote(parts.fragment)}
            if not target.exists() or (parts.fragment and unquote(parts.fragment) not in anchors):
                missing.add((path.name, address))
    assert not missing


def test_every_picture_says_what_it_shows(pages: dict[Path, _Page]) -> None:
    pictures = {(path.name, src, alt.strip()) for path, page in pages.items() for src, alt in page.pictures}
    bare = {(name, src) for name, src, alt in pictures if not alt or "_images/" in alt}
    assert not bare, "pictures without a text of their own; in a notebook, set mystnb.image.alt in the cell's metadata"


def test_formulas_are_drawn_by_the_local_script(built: Path, pages: dict[Path, _Page]) -> None:
    fetched = pages[built / "book" / "how_it_works.html"].fetched
    local = {address.split("?")[0].rsplit("_static/", 1)[-1] for address in fetched}
    assert {"katex/katex.min.js", "katex/katex.min.css", "math.js"} <= local


def _write_notebook(path: Path, text: str, *, broken: bool = False) -> None:
    output = (
        {"output_type": "error", "ename": "ValueError", "evalue": text, "traceback": []}
        if broken
        else {"output_type": "stream", "name": "stdout", "text": text}
    )
    cell = {"cell_type": "code", "source": "print(1)", "execution_count": 1, "metadata": {}, "outputs": [output]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")


def test_staging_lays_finished_runs_over_committed_pages(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("ucm", "fusion"):
        _write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", "committed")
    _write_notebook(tmp_path / "_build" / "ucm.ipynb", "my own run")
    _write_notebook(tmp_path / "_build" / "fusion.ipynb", "stopped", broken=True)
    _write_notebook(tmp_path / "_build" / "scratchpad.ipynb", "not a page")
    before = {p: p.read_bytes() for p in (tmp_path / "notebooks").iterdir()}

    target = tmp_path / "_build" / "book-source"
    assert stage.stage(target, tmp_path / "_build", root=tmp_path) == ["ucm.ipynb"]
    staged = {p.name: p.read_text(encoding="utf-8") for p in (target / "notebooks").iterdir()}
    assert staged.keys() == {"ucm.ipynb", "fusion.ipynb"}
    assert "my own run" in staged["ucm.ipynb"] and "committed" in staged["fusion.ipynb"]
    assert "fusion.ipynb: its last run did not finish" in capsys.readouterr().out
    assert before == {p: p.read_bytes() for p in (tmp_path / "notebooks").iterdir()}

    assert stage.stage(target, root=tmp_path) == []
    assert "committed" in (target / "notebooks" / "ucm.ipynb").read_text(encoding="utf-8")


def test_a_page_shows_what_a_cell_shows(tmp_path: Path) -> None:
    cell = {"cell_type": "code", "id": "answer", "outputs": [{"data": {"text/markdown": ["74.29 %:\n\n", "- so far"]}}]}
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "ucm.ipynb").write_text(json.dumps({"cells": [cell]}), encoding="utf-8")
    page = tmp_path / "book" / "index.md"
    page.parent.mkdir()
    marker = "<!-- output of notebooks/ucm.ipynb, cell answer -->"
    page.write_text(f"Open\n: As written by `{marker}`:\n\n  {marker}\n", encoding="utf-8")
    stage.stage(tmp_path / "staged", root=tmp_path)
    text = (tmp_path / "staged" / "book" / "index.md").read_text(encoding="utf-8")
    assert text == f"Open\n: As written by `{marker}`:\n\n  74.29 %:\n\n  - so far\n"
    page.write_text("<!-- output of notebooks/ucm.ipynb, cell gone -->", encoding="utf-8")
    with pytest.raises(ValueError, match="has no cell 'gone'"):
        stage.stage(tmp_path / "staged", root=tmp_path)


def test_a_page_shows_what_a_cell_draws(tmp_path: Path) -> None:
    shown = {"figure": {"caption": "Two curves.", "name": "fig-two"}, "image": {"alt": "Chart of two curves."}}
    cell = {"cell_type": "code", "id": "draw", "outputs": [{"data": {"image/svg+xml": ["<svg>", "</svg>"]}}]}
    (tmp_path / "notebooks").mkdir()
    notebook = tmp_path / "notebooks" / "m.ipynb"
    notebook.write_text(json.dumps({"cells": [cell | {"metadata": {"mystnb": shown}}]}), encoding="utf-8")
    page = tmp_path / "book" / "ddsl.md"
    page.parent.mkdir()
    page.write_text("<!-- output of notebooks/m.ipynb, cell draw -->\n", encoding="utf-8")
    stage.stage(tmp_path / "staged", root=tmp_path)
    text = (tmp_path / "staged" / "book" / "ddsl.md").read_text(encoding="utf-8")
    assert text == ":::{figure} drawn/draw.svg\n:name: fig-two\n:alt: Chart of two curves.\n\nTwo curves.\n:::\n"
    assert (tmp_path / "staged" / "book" / "drawn" / "draw.svg").read_text(encoding="utf-8") == "<svg></svg>"
    notebook.write_text(json.dumps({"cells": [cell | {"metadata": {}}]}), encoding="utf-8")
    with pytest.raises(ValueError, match="a drawing with a caption"):  # a picture without words is no figure
        stage.stage(tmp_path / "staged", root=tmp_path)


def test_readme_leads_with_the_two_commands_and_its_links_lead_somewhere() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```bash\n(.*?)```", readme, re.DOTALL).group(1)
    assert [line.split("#")[0].strip() for line in code.splitlines()] == ["make reproduce", "make test"]
    links = [a for a in re.findall(r"\]\(([^)]+)\)", readme) if not _is_external(a)]
    assert links and not [a for a in links if not (ROOT / a.partition("#")[0]).exists()]
