"""Downloads: resumed, checked before they are opened, unpacked safely, nothing left behind."""

import dataclasses
import hashlib
import io
import os
import re
import stat
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bpl
from bpl.cli import main
from bpl.data import CARDS, Archive, DataError, catalog, download, load_images
from bpl.data.catalog import _ALL_CARDS
from bpl.data.download import NotNow
from bpl.machine.exit_codes import TRY_AGAIN

module = sys.modules["bpl.data.download"]  # the package's attribute of that name is the function


class Server:
    """One file over http on the loopback, with ranges, and with faults on request."""

    def __init__(self):
        self.content = b""
        self.cut_after = None  # close the connection after that many bytes
        self.ranges = True
        self.redirect = None
        self.requests = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                outer.requests.append(self.headers.get("Range"))
                if outer.redirect:
                    self.send_response(302)
                    self.send_header("Location", outer.redirect)
                    self.end_headers()
                    return
                start, total = 0, len(outer.content)
                match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
                if match and outer.ranges:
                    start = int(match[1])
                    if start >= total:
                        self.send_error(416)
                        return
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(total - start))
                self.end_headers()
                self.wfile.write(outer.content[start : outer.cut_after])

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/UCMerced_LandUse.zip"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def make_zip(names=None, extra=()):
    """A small archive in UC Merced's layout, with one noise image per class."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    image = io.BytesIO()
    Image.fromarray(pixels).save(image, "png")
    if names is None:
        names = [f"UCMerced_LandUse/Images/{c}/{c}{i:02d}.png" for c in CARDS["ucm"].classes for i in range(2)]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, image.getvalue())
        for member, content in extra:
            archive.writestr(member, content, compress_type=zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


@pytest.fixture
def server(monkeypatch, tmp_path):
    server = Server()
    monkeypatch.setenv("BPL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield server
    server.close()


@pytest.fixture
def offer(server, monkeypatch):
    """Serve bytes as the archive of `ucm`, with right checksums unless told otherwise."""

    def put(content, **facts):
        server.content = content
        facts = {"md5": hashlib.md5(content).hexdigest(), "sha256": hashlib.sha256(content).hexdigest()} | facts
        card = dataclasses.replace(CARDS["ucm"], images_total=42, archives=(Archive(url=server.url, **facts),))
        monkeypatch.setitem(catalog.CARDS, "ucm", card)

    return put


def fetch(root):
    return download("ucm", root, progress=False, allow_loopback=True)


def test_a_set_is_fetched_unpacked_and_loadable(tmp_path, server, offer):
    offer(make_zip())
    folder = fetch(tmp_path / "root")
    assert folder == tmp_path / "root" / "UCMerced_LandUse" / "Images"
    assert os.listdir(tmp_path / "root") == ["UCMerced_LandUse"]
    assert (
        stat.S_IMODE(folder.parent.stat().st_mode) & 0o055
        == stat.S_IMODE(tmp_path.joinpath("root").stat().st_mode) & 0o055
    )
    assert len(load_images("ucm", 16, data=str(tmp_path / "root"), progress=False).files) == 42
    assert fetch(tmp_path / "root") == folder and len(server.requests) == 1  # nothing is fetched twice


@pytest.mark.parametrize("above", ["", "UCMerced_LandUse/", "ucmerced/UCMerced_LandUse/Images/"])
def test_other_layouts_inside_the_archive(tmp_path, offer, monkeypatch, above):
    offer(make_zip([f"{above}{c}/{c}0.png" for c in CARDS["ucm"].classes]))
    monkeypatch.setitem(catalog.CARDS, "ucm", dataclasses.replace(CARDS["ucm"], images_total=21))
    assert fetch(tmp_path).is_dir()


def test_a_broken_connection_keeps_what_arrived_and_the_next_call_goes_on(tmp_path, server, offer):
    offer(make_zip())
    server.cut_after = 3000
    with pytest.raises(NotNow, match=r"broke off .* call again to go on from 'UCMerced_LandUse.zip.part'") as error:
        fetch(tmp_path)
    assert error.value.exit_code == TRY_AGAIN
    assert os.listdir(tmp_path) == ["UCMerced_LandUse.zip.part"]
    assert (tmp_path / "UCMerced_LandUse.zip.part").stat().st_size == 3000
    server.cut_after = None
    fetch(tmp_path)
    assert server.requests == [None, "bytes=3000-"]
    assert os.listdir(tmp_path) == ["UCMerced_LandUse"]


def test_a_server_without_ranges_starts_again(tmp_path, server, offer):
    offer(make_zip())
    server.ranges = False
    (tmp_path / "UCMerced_LandUse.zip.part").write_bytes(b"x" * 100)
    fetch(tmp_path)
    assert os.listdir(tmp_path) == ["UCMerced_LandUse"]


@pytest.mark.parametrize("size_known", [True, False])
def test_a_complete_part_is_only_checked_and_unpacked(tmp_path, server, offer, size_known):
    content = make_zip()
    offer(content, size=len(content) if size_known else None)
    (tmp_path / "UCMerced_LandUse.zip.part").write_bytes(content)
    fetch(tmp_path)
    assert len(server.requests) == (0 if size_known else 1)


@pytest.mark.parametrize("which", ["md5", "sha256"])
def test_a_wrong_checksum_deletes_the_file_before_it_is_opened(tmp_path, offer, monkeypatch, which):
    offer(make_zip(), **{which: "0" * 32})
    monkeypatch.setattr(module, "_unpack", lambda *_: pytest.fail("opened in spite of its checksum"))
    with pytest.raises(DataError, match=f"has the {which} [0-9a-f]+, 0+ is expected"):
        fetch(tmp_path)
    assert os.listdir(tmp_path) == []


def link(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        ("../evil.txt", b"x", "leads outside"),
        ("UCMerced_LandUse/../../evil.txt", b"x", "leads outside"),
        ("/tmp/evil.txt", b"x", "leads outside"),
        ("..\\evil.txt", b"x", "leads outside"),
        ("C:/evil.txt", b"x", "leads outside"),
        (link("UCMerced_LandUse/link"), b"/etc", "a link"),
        ("UCMerced_LandUse/bomb.bin", bytes(20_000_000), "would unpack to"),
    ],
)
def test_unsafe_archives_are_refused_and_leave_nothing(tmp_path, offer, member, content, message):
    offer(make_zip(extra=[(member, content)]))
    with pytest.raises(DataError, match=message):
        fetch(tmp_path / "root")
    assert os.listdir(tmp_path / "root") == [] and os.listdir(tmp_path) == ["root"]


@pytest.mark.parametrize("content", [b"no zip at all" * 100, make_zip()[:-300], make_zip(["other/a.png"])])
def test_archives_that_do_not_hold_the_set_leave_nothing(tmp_path, offer, content):
    offer(content)
    with pytest.raises(DataError, match="cannot be unpacked|holds no class folders"):
        fetch(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_while_unpacking_keeps_only_the_part(tmp_path, offer, monkeypatch):
    offer(make_zip())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extract", full)
    with pytest.raises(OSError, match="No space left"):
        fetch(tmp_path)
    assert os.listdir(tmp_path) == ["UCMerced_LandUse.zip.part"]


def test_two_processes_do_not_fetch_into_one_root(tmp_path, server, offer):
    """Both would append to one file: the second says so, and what a killed one left is removed by the next."""
    offer(make_zip())
    (tmp_path / ".unpack-of-a-kill").mkdir()
    with module._only_one(tmp_path), pytest.raises(NotNow, match="another process is fetching into"):
        fetch(tmp_path)
    assert server.requests == []
    fetch(tmp_path)
    assert os.listdir(tmp_path) == ["UCMerced_LandUse"]


def test_images_are_fetched_to_where_they_are_looked_for_first(tmp_path, monkeypatch, capsys):
    """Whatever folder the command is typed in."""
    monkeypatch.chdir(tmp_path)
    fetched = []
    monkeypatch.setattr(bpl.data, "download", lambda name, root: fetched.append((name, Path(root))))
    for root, words in ((str(tmp_path / "images"), []), (None, []), (None, ["--root", "here"])):
        monkeypatch.setenv("BPL_DATA", root or "")
        with pytest.raises(SystemExit) as ended:
            main(["data", "--download", "ucm", *words])
        assert not ended.value.code
    own = Path(bpl.__file__).parents[2] / "data"
    assert fetched == [("ucm", tmp_path / "images"), ("ucm", own), ("ucm", Path("here"))]


def test_a_file_of_another_length_is_deleted_before_it_is_opened(tmp_path, offer, monkeypatch):
    content = make_zip()
    offer(content, size=len(content) + 1)
    monkeypatch.setattr(module, "_unpack", lambda *_: pytest.fail("opened in spite of its length"))
    with pytest.raises(DataError, match=f"has {len(content):,} bytes, {len(content) + 1:,} are expected"):
        fetch(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_while_fetching_is_named_and_the_next_call_goes_on(tmp_path, offer, monkeypatch):
    offer(make_zip())
    open_ = type(tmp_path).open

    def full(path, mode="r", *rest, **named):
        return open("/dev/full", mode) if path.suffix == ".part" and mode == "wb" else open_(path, mode, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "open", full)
        with pytest.raises(OSError, match=r"No space left on device: .*UCMerced_LandUse\.zip\.part"):
            fetch(tmp_path)
    fetch(tmp_path)
    assert os.listdir(tmp_path) == ["UCMerced_LandUse"]


def test_only_https_is_spoken(tmp_path, server, offer):
    offer(make_zip())
    with pytest.raises(DataError, match="only https"):
        download("ucm", tmp_path, progress=False)
    assert server.requests == []
    for target in ("http://example.org/x.zip", "file:///etc/passwd", "ftp://127.0.0.1/x.zip"):
        server.redirect = target
        with pytest.raises(DataError, match=f"'{target}' is (refused; only https|not allowed)"):
            fetch(tmp_path)
    assert os.listdir(tmp_path) == []


def test_an_archive_that_is_too_long_is_refused(tmp_path, offer):
    offer(make_zip(), size=1000)
    with pytest.raises(DataError, match="at most 1,000 are allowed"):
        fetch(tmp_path)
    assert os.listdir(tmp_path) == []


def test_server_errors_and_no_server(tmp_path, server, offer, monkeypatch):
    offer(make_zip())
    server.content = b""
    (tmp_path / "UCMerced_LandUse.zip.part").write_bytes(b"x")
    with pytest.raises(DataError, match="has the md5"):  # 416: what is there is checked
        fetch(tmp_path)
    nowhere = Archive(url="http://127.0.0.1:9/UCMerced_LandUse.zip", md5="0" * 32)
    monkeypatch.setitem(catalog.CARDS, "ucm", dataclasses.replace(CARDS["ucm"], archives=(nowhere,)))
    with pytest.raises(NotNow, match="broke off .* nothing has come yet; call again"):
        fetch(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_folder_in_the_way_is_left_alone(tmp_path, server, offer):
    offer(make_zip())
    (tmp_path / "UCMerced_LandUse").mkdir()
    with pytest.raises(DataError, match="exists already but is not the whole of 'ucm'"):
        fetch(tmp_path)
    assert server.requests == [] and os.listdir(tmp_path) == ["UCMerced_LandUse"]


@pytest.mark.parametrize("dataset", ["rsd46", "aid"])
def test_sets_without_an_archive_say_whom_to_ask(tmp_path, dataset):
    with pytest.raises(DataError, match=f"no official direct archive; ask its authors at {CARDS[dataset].home}"):
        download(dataset, tmp_path)


def test_unknown_names_are_refused(tmp_path):
    for name in ("ucmm", "synthetic"):
        with pytest.raises(DataError, match=f"nothing to download for '{name}'; allowed are ucm, nwpu"):
            download(name, tmp_path)


def test_cards_are_complete():
    for card in _ALL_CARDS:
        assert card.licence and card.citation and card.home and CARDS[card.name] is card
        assert card.classes is None or list(card.classes) == sorted(set(card.classes))
        for archive in card.archives:
            assert archive.url.startswith("https://") and re.fullmatch("[0-9a-f]{32}", archive.md5)
            assert archive.sha256 is None or re.fullmatch("[0-9a-f]{64}", archive.sha256)
    assert [len(CARDS[name].classes) for name in ("ucm", "nwpu", "nwpu-21", "nwpu-45", "aid")] == [21, 45, 21, 45, 30]
