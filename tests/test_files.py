"""Files that appear whole: of one writer, of several at once, and after one was killed."""

import os
import signal
import threading

import pytest
from test_training import child, kill

from coursekit import files
from coursekit.workbook.notebooks import write_if_changed


def in_a_thread(call):
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


@pytest.mark.parametrize("elsewhere", [child, in_a_thread])
def test_two_writers_of_one_file_do_not_tear_it(tmp_path, monkeypatch, elsewhere):
    """One writes its own from beginning to end while another is about to rename what it has written."""
    path, fsync = tmp_path / "x", os.fsync

    def meanwhile(file):
        monkeypatch.setattr(os, "fsync", fsync)
        elsewhere(lambda: files.write_whole(path, b"the other's, and longer"))
        assert path.read_bytes() == b"the other's, and longer"
        fsync(file)

    monkeypatch.setattr(os, "fsync", meanwhile)
    files.write_whole(path, b"mine")
    assert path.read_bytes() == b"mine" and list(tmp_path.iterdir()) == [path]


def test_the_rest_of_a_killed_write_is_removed_by_the_next(tmp_path, monkeypatch):
    path = tmp_path / "x[1].csv"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: kill())
        assert child(lambda: files.write_whole(path, b"a")) == -signal.SIGKILL
    (rest,) = tmp_path.iterdir()
    files.write_whole(tmp_path / "x", b"b")
    (tmp_path / f".{path.name}.zip.part").touch()   # somebody's download
    assert rest.exists()
    files.write_whole(path, b"b")
    assert sorted(each.name for each in tmp_path.iterdir()) == [".x[1].csv.zip.part", "x", "x[1].csv"]


def test_a_name_that_only_looks_like_a_rest_stops_nothing(tmp_path):
    (tmp_path / f".x.{10**30}-1.part").touch()
    files.write_whole(tmp_path / "x", b"a")
    assert (tmp_path / "x").read_bytes() == b"a"


def test_a_notebook_behind_a_link_is_written_there(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "01_tiny.ipynb"
    link.symlink_to(tmp_path / "there" / "01_tiny.ipynb")
    assert write_if_changed(link, "new") and link.is_symlink() and (tmp_path / "there" / "01_tiny.ipynb").read_text() == "new"


@pytest.mark.parametrize("name", ["x" * 255, "𝄞" * 63])
def test_names_may_be_as_long_as_names_can_be(tmp_path, name):
    files.write_whole(tmp_path / name, b"a")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_notebook_that_cannot_be_written_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "01_tiny.ipynb"
    assert write_if_changed(path, "old") and not write_if_changed(path, "old")

    def interrupted(file):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_if_changed(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
