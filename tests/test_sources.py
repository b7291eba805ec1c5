"""Downloads that go wrong in every way we could think of, tried against small archives on this machine."""

import dataclasses
import errno
import hashlib
import http.server
import importlib.util
import io
import multiprocessing
import os
import re
import signal
import stat
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from coursekit.data import CREDITS, DataError, data_root, fetch, photograph, registry, results, sources

if not hasattr(os, "fork"):
    pytest.skip("interrupts downloads in forked processes, which Windows lacks", allow_module_level=True)
FORK = multiprocessing.get_context("fork")  # a child that need not import torch again
REPOSITORY = Path(__file__).resolve().parents[1]


def jpeg(seed, side=96):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


CONTENT = {f"{folder}/{number}.jpg": jpeg(10 * number + (folder == "masks")) for folder in ("images", "masks") for number in range(4)}
DIGEST = hashlib.sha256("".join(f"{name}\0{hashlib.sha256(CONTENT[name]).hexdigest()}\n" for name in sorted(CONTENT)).encode()).hexdigest()


def packed(content=CONTENT, top="Tiny/", extra=()):
    """The bytes of a zip archive with ``content`` below ``top`` and, as they are, ``extra`` (name or ZipInfo, bytes)."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in content.items():
            archive.writestr(top + name, value)
        for name, value in extra:
            archive.writestr(name, value)
    return stream.getvalue()


GOOD = packed(extra=[("Tiny/", b""), ("Tiny/boxes.json", b"{}"), ("__MACOSX/Tiny/._0.jpg", b"fork"), ("Tiny/images/.DS_Store", b"finder")])
RENAMED = {name.replace("masks/3.jpg", "masks/x.txt"): value for name, value in CONTENT.items()}
TAMPERED = packed(CONTENT | {"masks/2.jpg": CONTENT["masks/2.jpg"][:-9] + b"\0" + CONTENT["masks/2.jpg"][-8:]})
ENTRY = {
    "file": "sources.toml", "name": "tiny", "title": "Tiny set", "urls": ["file:///nowhere/tiny.zip"], "archive": "tiny.zip",
    "folder": "Tiny", "max_bytes": 10**6, "size_mb": 1, "licence": "none", "citation": "none",
}  # fmt: skip
TINY = sources.Source(**ENTRY, digest_folders=["images", "masks"], sha256=DIGEST, files=8)
COUNTED = sources.Source(**ENTRY, counts={"images": 4, "masks": 4}, digest_note="unknown")


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


@pytest.fixture
def mirror(tmp_path):
    """``mirror(data)``: a file:// URL of these bytes."""

    def url(data, name="mirror.zip"):
        (tmp_path / name).write_bytes(data)
        return (tmp_path / name).as_uri()

    return url


@pytest.fixture
def server():
    """A local web server. ``.body``; ``.ranges``: whether it honours Range; ``.cut``: hang up after so many bytes; ``.log``: per GET its
    Range header and the length that it promised."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked = self.headers.get("Range")
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and web.ranges else 0
            body = web.body[start:]
            web.log.append((asked, len(body)))
            self.send_response(web.status or (416 if start and not body else 206 if start else 200))
            self.send_header("Content-Length", str(len(body)))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(web.body) - 1}/{len(web.body)}")
            self.end_headers()
            time.sleep(web.delay)
            self.wfile.write(body[: web.cut])
            time.sleep(0.1 if web.cut else 0)  # a client that sees the end at once drops what it has not read

        def log_message(self, *_):
            pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.body, web.ranges, web.cut, web.status, web.delay, web.log = GOOD, True, None, None, 0, []
    web.url = f"http://127.0.0.1:{web.server_port}/tiny.zip"
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield web
    web.shutdown()
    web.server_close()
    thread.join()


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_whole(folder, root):
    """The data set is there, and nothing else but the lock."""
    assert folder == root / "Tiny" and contents(folder) == CONTENT | {"boxes.json": b"{}"}
    assert {path.name for path in root.iterdir()} <= {"Tiny", "tiny.zip", ".tiny.zip.lock"}


def assert_nothing_made(root):
    assert not (root / "Tiny").exists() and not list(root.glob(".tiny.zip.aside-*"))


def put_part(root, data):
    root.mkdir(parents=True)
    (root / ".tiny.zip.part").write_bytes(data)


# --- what arrives is right, or refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [TINY, COUNTED])
def test_good_archive(source, root, mirror):
    url = mirror(GOOD)
    assert_whole(fetch(source, root, urls=[url]), root)
    assert fetch(source, root, urls=[]) == root / "Tiny", "the second time, the folder is there"


def test_the_registered_urls_are_the_default(root, mirror):
    assert_whole(fetch(dataclasses.replace(TINY, urls=[mirror(GOOD)]), root), root)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GOOD[:-2000], r"begin with b'PK.*cut short"),
        (b"<!DOCTYPE html><title>Gone</title>", r"begin with b'<!DOCTYPE html.*link may have moved"),
        (b"", r"0 bytes begin with b''"),
        (packed(top="Other/"), r"'Other/images/0.jpg' lies outside of Tiny/"),
        (packed({}), r"images/ has 0 files, not 4; masks/ has 0 files, not 4"),
        (packed(extra=[("Tiny/../../evil", b"")]), r"'Tiny/../../evil' could be written outside"),
        (packed(extra=[("/tmp/evil", b"")]), r"'/tmp/evil' could be written outside"),
        (packed(extra=[("Tiny\\..\\evil", b"")]), r"could be written outside"),
        (packed(extra=[("C:/evil", b"")]), r"'C:/evil' could be written outside"),
        (packed(extra=[("__MACOSX/../evil", b"")]), r"could be written outside"),
        (packed(extra=[("Tiny/images", b"")]), r"cannot be unpacked"),
        (packed(extra=[("Tiny/images/0.jpg/x", b"")]), r"cannot be unpacked"),
        (packed(extra=[("Tiny/" + 190 * "\N{CAT}", b"")]), r"cannot be unpacked"),
        (packed(extra=[("Tiny/a\x1b[2J", b"")]), r"a name that no data set needs"),
        (packed(extra=[("Tiny/" + 250 * "a", b"")]), r"a name that no data set needs"),
        (packed(extra=[("Tiny/bomb", bytes(2 * 10**6))]), r"more than 1000000; the largest member is 'Tiny/bomb'"),
        (packed({name: CONTENT[name] for name in list(CONTENT)[:-1]}), r"masks/ has 3 files, not 4; images/3.jpg has no partner"),
        (packed(RENAMED), r"images/3.jpg has no partner of that name; masks/x.txt has no"),
        (packed(CONTENT | {"masks/3.jpg": CONTENT["masks/3.jpg"][:999]}), r"masks/3.jpg does not decode: .*truncated"),
        (TAMPERED, r"every file decodes, but some content differs: digest \w{64}, not \w{64}"),
    ],
)  # fmt: skip
def test_bad_download_is_refused_and_removed(data, message, root, mirror):
    url = mirror(data)
    with pytest.raises(DataError, match=message) as caught:
        fetch(TINY, root, urls=[url])
    assert url in str(caught.value) and str(root / "tiny.zip") in str(caught.value) and "1 MB" in str(caught.value)
    assert_nothing_made(root)
    assert not (root / ".tiny.zip.part").exists() and not list(root.parent.glob("**/evil"))
    assert_whole(fetch(TINY, root, urls=[url, mirror(GOOD, "second.zip")]), root)  # and the next URL is tried


def test_symlink_and_encrypted_members_are_refused(root, mirror):
    link = zipfile.ZipInfo("Tiny/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    encrypted = bytearray(packed({"images/0.jpg": b"x"}))
    encrypted[encrypted.index(b"PK\1\2") + 8] |= 1  # the flag in the central directory
    for data, message in ((packed(extra=[(link, b"/etc")]), "'Tiny/link' is a link"), (bytes(encrypted), "0.jpg' is encrypted")):
        with pytest.raises(DataError, match=message):
            fetch(TINY, root, urls=[mirror(data)])
        assert_nothing_made(root)


def test_damaged_member_fails_its_checksum(root, mirror):
    data = bytearray(packed())
    data[data.index(b"masks/0.jpg") + 500] ^= 1
    with pytest.raises(DataError, match=r"cannot be unpacked: (BadZipFile|error)"):
        fetch(COUNTED, root, urls=[mirror(bytes(data))])
    assert_nothing_made(root)


def test_without_a_digest_names_and_decoding_are_checked(root, mirror):
    page = CONTENT | {"images/1.jpg": b"<html>"}
    for content, message in ((RENAMED, r"masks/x.txt is not named"), (page, r"images/1.jpg does not decode")):
        with pytest.raises(DataError, match=message):
            fetch(COUNTED, root, urls=[mirror(packed(content))])
        assert_nothing_made(root)


# --- interruptions --------------------------------------------------------------------------------------------------------------------


def test_first_url_dead(root, mirror, server):
    server.status = 404
    assert_whole(fetch(TINY, root, urls=["file:///nowhere/x.zip", server.url, mirror(GOOD)]), root)


def test_all_urls_dead_lists_each_with_its_reason(root, server):
    server.status = 503
    dead = ["file:///nowhere/x.zip", "http://127.0.0.1:1/x.zip", "odd://x", server.url]
    with pytest.raises(DataError) as caught:
        fetch(TINY, root, urls=dead)
    lines = str(caught.value).splitlines()
    reasons = ("No such file", "Cannot connect", "not known", "503")
    assert all(any(url in line and reason in line for line in lines) for url, reason in zip(dead, reasons, strict=True))
    assert all(text in lines[-1] for text in (str(root / "tiny.zip"), str(root / "Tiny"), "1 MB"))


@pytest.mark.parametrize("scheme", ["file", "http"])
def test_interrupted_then_resumed_reads_only_what_is_missing(scheme, root, mirror, server, monkeypatch):
    url, copy, read = (mirror(GOOD) if scheme == "file" else server.url), sources._copy, []

    class Limited:
        def __init__(self, stream, limit):
            self.stream, self.limit = stream, limit

        def read(self, count):
            chunk = self.stream.read(min(count, 10_000))
            read.append(len(chunk))
            if sum(read) > self.limit:
                raise KeyboardInterrupt
            return chunk

    monkeypatch.setattr(sources, "_copy", lambda stream, target, bar: copy(Limited(stream, 25_000), target, bar))
    with pytest.raises(KeyboardInterrupt):
        fetch(TINY, root, urls=[url])
    have = (root / ".tiny.zip.part").stat().st_size
    assert 0 < have < len(GOOD)
    assert_nothing_made(root)
    read.clear()
    downloads = []

    def counted(stream, target, bar):
        copy(stream if "aside" in target.name else Limited(stream, float("inf")), target, bar)
        downloads.append(target.name)

    monkeypatch.setattr(sources, "_copy", counted)
    assert_whole(fetch(TINY, root, urls=[url]), root)
    assert sum(read) == len(GOOD) - have and sum(name.endswith(".part") for name in downloads) == 1
    assert scheme == "file" or server.log == [(None, len(GOOD)), (f"bytes={have}-", len(GOOD) - have)]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_is_resumed_or_begun_again(ranges, root, server, monkeypatch):
    server.ranges, server.cut = ranges, 30_000
    with pytest.raises(DataError, match="not completed"):
        fetch(TINY, root, urls=[server.url])
    have = (root / ".tiny.zip.part").stat().st_size
    assert 0 < have <= 30_000
    server.cut, unpack, unpacked = None, sources._unpack, []
    monkeypatch.setattr(sources, "_unpack", lambda archive, *rest: unpacked.append(archive.read_bytes()) or unpack(archive, *rest))
    assert_whole(fetch(TINY, root, urls=[server.url]), root)
    assert unpacked == [GOOD], "zipfile would forgive what stands before the archive"
    assert server.log[1:] == [(f"bytes={have}-", len(GOOD) - have if ranges else len(GOOD))]


def test_a_good_server_without_ranges(root, server):
    server.ranges = False
    assert_whole(fetch(TINY, root, urls=[server.url]), root)


@pytest.mark.parametrize("length", [3000, len(GOOD), len(GOOD) + 5000])
def test_a_bad_part_is_thrown_away_for_one_fresh_download(length, root, server):
    put_part(root, bytes(length))
    assert_whole(fetch(TINY, root, urls=[server.url]), root)
    assert server.log[0][0] == f"bytes={length}-" and server.log[1:] == [(None, len(GOOD))]


def test_a_bad_url_is_tried_afresh_only_once(root, server):
    server.body = TAMPERED
    put_part(root, TAMPERED[:3000])
    with pytest.raises(DataError, match="some content differs"):
        fetch(TINY, root, urls=[server.url])
    assert [asked for asked, _ in server.log] == ["bytes=3000-", None] and not (root / ".tiny.zip.part").exists()


def test_a_whole_part_needs_no_network(root):
    put_part(root, GOOD)
    assert_whole(fetch(TINY, root, urls=["http://127.0.0.1:1/x.zip"]), root)


@pytest.mark.parametrize("stage", ["download", "extraction"])
def test_killed_then_started_again(stage, root, mirror):
    url, copy = mirror(GOOD), sources._copy

    def die(stream, target, bar):
        if stage == "download" or "images/2.jpg" in target.name:
            target.write(stream.read(5000))
            target.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        copy(stream, target, bar)

    def child():
        sources._copy = die
        fetch(TINY, root, urls=[url])

    process = FORK.Process(target=child)
    process.start()
    process.join(20)
    assert process.exitcode == -signal.SIGKILL and not (root / "Tiny").exists()
    assert (root / ".tiny.zip.part").stat().st_size == (5000 if stage == "download" else len(GOOD))
    assert len(list(root.glob(".tiny.zip.aside-*"))) == (stage == "extraction")
    assert_whole(fetch(TINY, root, urls=[url]), root)


@pytest.mark.parametrize("stage", ["download", "extraction"])
def test_disk_full(stage, root, mirror, monkeypatch):
    url, copy = mirror(GOOD), sources._copy

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            self.file.write(data[:5000])
            raise OSError(errno.ENOSPC, "No space left on device")

    def fill(stream, target, bar):
        full = target.name.endswith(".part") if stage == "download" else target.name.endswith("images/2.jpg")
        copy(stream, Full(target) if full else target, bar)

    monkeypatch.setattr(sources, "_copy", fill)
    doing = "downloading" if stage == "download" else "unpacking"
    with pytest.raises(DataError, match=rf"{root} is full while {doing} .* MB are needed in all, .* MB are free"):
        fetch(TINY, root, urls=[url, url])
    assert_nothing_made(root)
    assert (root / ".tiny.zip.part").stat().st_size == (5000 if stage == "download" else len(GOOD)), "the next start goes on from here"
    monkeypatch.setattr(sources, "_copy", copy)
    assert_whole(fetch(TINY, root, urls=[url]), root)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EROFS])
def test_a_fault_of_this_machine_keeps_the_download(number, root, mirror, monkeypatch):
    def refuse(stream, target, bar):
        if "aside" in target.name:
            raise OSError(number, "not here")
        copy(stream, target, bar)

    copy, url = sources._copy, mirror(GOOD)
    monkeypatch.setattr(sources, "_copy", refuse)
    told = rf"^{root}/\.tiny\.zip\.part could not be unpacked into {root}: \[Errno {number}\] not here\. What has arrived is kept$"
    with pytest.raises(DataError, match=told):
        fetch(TINY, root, urls=[url, url])
    assert_nothing_made(root)
    assert (root / ".tiny.zip.part").read_bytes() == GOOD
    monkeypatch.setattr(sources, "_copy", copy)
    assert_whole(fetch(TINY, root, urls=["http://127.0.0.1:1/x.zip"]), root)


def test_a_fault_of_this_machine_while_verifying_is_not_the_archives(root, mirror, monkeypatch):
    def refuse(path):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(DataError, match=r"could not be unpacked into .*Too many open files\. What has arrived is kept$"):
        fetch(TINY, root, urls=[mirror(TAMPERED)])
    assert_nothing_made(root)
    assert (root / ".tiny.zip.part").read_bytes() == TAMPERED


def test_two_processes_at_once_download_once(root, server):
    server.delay = 0.2
    processes = [FORK.Process(target=fetch, args=(TINY, root), kwargs={"urls": [server.url]}) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0, 0] and len(server.log) == 1
    assert_whole(root / "Tiny", root)


# --- what the user put there ----------------------------------------------------------------------------------------------------------


def test_the_users_archive_is_used_and_kept(root):
    root.mkdir()
    (root / "tiny.zip").write_bytes(GOOD)
    assert_whole(fetch(TINY, root, urls=[]), root)
    assert (root / "tiny.zip").read_bytes() == GOOD


def test_the_users_bad_archive_is_named_and_kept(root, mirror):
    root.mkdir()
    (root / "tiny.zip").write_bytes(TAMPERED)
    with pytest.raises(DataError, match=rf"{root / 'tiny.zip'} cannot be used: .*left as it is"):
        fetch(TINY, root, urls=[mirror(GOOD)])
    assert (root / "tiny.zip").read_bytes() == TAMPERED
    assert_nothing_made(root)


def put_folder(root, content):
    for name, value in content.items():
        (root / "Tiny" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "Tiny" / name).write_bytes(value)


@pytest.mark.parametrize("source", [TINY, COUNTED])
def test_the_users_folder_is_used_and_nothing_written(source, root):
    put_folder(root, CONTENT | {"images/Thumbs.db": b"left by a file manager"})
    assert fetch(source, root, urls=[]) == root / "Tiny"
    assert [path.name for path in root.iterdir()] == ["Tiny"], "neither lock nor temporary files"


def test_the_users_bad_folder_is_named_and_untouched(root, mirror):
    bad = {"images/0.jpg": CONTENT["images/0.jpg"], "notes.txt": b"mine"}
    put_folder(root, bad)
    with pytest.raises(DataError, match=rf"{root / 'Tiny'} is not Tiny set: images/ has 1 files, not 4; .*left as it is"):
        fetch(TINY, root, urls=[mirror(GOOD)])
    assert contents(root) == {f"Tiny/{name}": value for name, value in bad.items()}


def test_a_root_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/root cannot be written.*COURSEKIT_DATA"):
        fetch(TINY, tmp_path / "file" / "root")


# --- roots and the registry -----------------------------------------------------------------------------------------------------------


def test_root_is_argument_then_variable_then_checkout(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSEKIT_DATA", "~/courses")
    assert data_root(tmp_path) == tmp_path and data_root("~/x") == Path.home() / "x"
    assert data_root() == Path.home() / "courses"
    for value in ("", None):
        monkeypatch.setenv("COURSEKIT_DATA", value) if value is not None else monkeypatch.delenv("COURSEKIT_DATA")
        for folder in (tmp_path, "/"):
            monkeypatch.chdir(folder)
            assert data_root() == REPOSITORY / "data"


def test_a_wheel_carries_the_registry_and_uses_the_cache(tmp_path, monkeypatch):
    beside = tmp_path / "site-packages" / "coursekit" / "data"
    beside.mkdir(parents=True)
    (beside.parents[1] / "data").mkdir()  # some other package's folder: without a pyproject.toml this is no checkout
    (beside / "sources.py").write_text(Path(sources.__file__).read_text(encoding="utf-8"))
    (beside / "sources.toml").write_text((REPOSITORY / "data" / "sources.toml").read_text(encoding="utf-8"))
    specification = importlib.util.spec_from_file_location("installed_sources", beside / "sources.py")
    installed = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(importlib.sys.modules, "installed_sources", installed)  # dataclasses look their module up
    specification.loader.exec_module(installed)
    monkeypatch.delenv("COURSEKIT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert installed.data_root() == installed.platformdirs.user_cache_path("coursekit") and installed.data_root().is_absolute()
    assert installed.registry()["afhq"].file == str(beside / "sources.toml")


def test_the_registry_is_complete():
    known = registry()
    assert list(known) == ["kvasir-seg", "afhq"]
    assert (known["kvasir-seg"].folder, known["kvasir-seg"].files, sum(known["afhq"].counts.values())) == ("Kvasir-SEG", 2000, 16130)


@pytest.mark.parametrize(
    ("key", "value"),
    [("title", ""), ("title", 3), ("urls", []), ("urls", "http://x"), ("urls", ["x"]), ("archive", "../x.zip"), ("folder", "a/b"),
     ("folder", ".."), ("max_bytes", 0), ("max_bytes", True), ("size_mb", 1.5), ("sha256", "abc"), ("digest_folders", []), ("files", 0),
     ("counts", {}), ("counts", {"images": -1})],
)  # fmt: skip
def test_a_malformed_entry_names_file_entry_and_key(key, value):
    with pytest.raises(ValueError, match=rf"sources.toml: \[tiny\] {key} must be"):
        dataclasses.replace(TINY, **{key: value})


@pytest.mark.parametrize(("line", "key"), [("titel = 'x'", "titel"), ("title = 'x'", "urls")])
def test_an_unknown_or_missing_key_is_named(line, key, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sources.toml").write_text(f"[tiny]\n{line}\n", encoding="utf-8")
    monkeypatch.setattr(sources, "_PACKAGE", tmp_path / "coursekit")
    with pytest.raises(ValueError, match=rf"sources.toml: \[tiny\] .*'{key}'"):
        registry()


def test_too_many_members_are_refused(root, mirror, monkeypatch):
    monkeypatch.setattr(sources, "_MOST_MEMBERS", 3)
    with pytest.raises(DataError, match="members, more than 3"):
        fetch(TINY, root, urls=[mirror(GOOD)])
    assert_nothing_made(root)


def test_every_key_is_explained():
    assert not [key.name for key in dataclasses.fields(sources.Source) if f"``{key.name}``" not in sources.Source.__doc__]


def test_what_is_no_data_set_is_refused():
    with pytest.raises(TypeError, match="one of kvasir-seg, afhq"):
        fetch(None)


def test_one_url_must_stand_in_a_list(root):
    with pytest.raises(TypeError, match="must be a list of URLs"):
        fetch(TINY, root, urls="file:///x.zip")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(DataError, match="'kvasir'; there are kvasir-seg, afhq"):
        fetch("kvasir")


def test_the_registered_digest_is_that_of_the_real_data():
    copy = Path(os.environ.get("COURSEKIT_REAL_DATA", "nowhere")) / "Kvasir-SEG"
    if not copy.is_dir():
        pytest.skip("set COURSEKIT_REAL_DATA to the folder that holds Kvasir-SEG")
    before = sorted(os.listdir(copy.parent))
    assert fetch("kvasir-seg", copy.parent, urls=[]) == copy
    assert sorted(os.listdir(copy.parent)) == before


# --- photographs ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CREDITS)
def test_photograph(name):
    whole, small, wide = photograph(name), photograph(name, 64), photograph(name, (32, 64))
    assert whole.shape == (3, 427, 640) and small.shape == (3, 64, 64) and wide.shape == (3, 32, 64)
    for image in (whole, small, wide):
        assert image.dtype == torch.float32 and 0 <= image.min() < 0.1 and 0.8 < image.max() <= 1
    middle = whole[:, :, 106:533]  # the square that was scaled: averages survive an antialiased resize
    assert torch.allclose(small.mean((1, 2)), middle.mean((1, 2)), atol=0.01)
    assert "CC BY 2.0" in CREDITS[name]


@pytest.mark.parametrize("size", [0, 0.5, (3,), (0, 4), "big", (2.0, 3)])
def test_an_impossible_size_is_refused(size):
    with pytest.raises(ValueError, match="at least 1 pixel"):
        photograph("china", size)


def test_an_unknown_photograph_lists_the_right_ones():
    with pytest.raises(ValueError, match="'cat'; there are china, flower"):
        photograph("cat")


def test_results_are_read_by_name(monkeypatch, tmp_path):
    assert "01_patchwise_mlp" in results("run_times")
    with pytest.raises(DataError, match=r"no record 'nothing'.*run_times"):
        results("nothing")
    monkeypatch.setattr("coursekit.data.sources._IN_CHECKOUT", False)   # an installed package looks beside itself
    with pytest.raises(DataError, match=re.escape(str(Path("coursekit") / "data" / "results"))):
        results("nothing")
