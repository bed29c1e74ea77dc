"""The same things can be done with a path and with a URL."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from fulmen import paths

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(params=["local", "file://", "memory://"])
def folder(request, tmp_path):
    """A folder that does not exist yet, by path and by URLs."""
    place = str(tmp_path / "runs")
    return {"local": place, "file://": f"file://{place}", "memory://": f"memory://{place.strip('/')}"}[request.param]


def write(path, content):
    with fsspec.open(path, "wb", auto_mkdir=True) as file:
        file.write(content)


def test_what_is_a_url():
    assert paths.is_url("s3://bucket/a.ckpt")
    assert not paths.is_url("file:///a.ckpt")
    assert not paths.is_url(Path("a.ckpt"))


def test_the_scheme_of_local_files_is_left_out(tmp_path):
    assert paths.local("file:///a/b") == "/a/b"
    assert paths.local("memory://a") == "memory://a"
    assert paths.absolute(f"file://{tmp_path}") == paths.absolute(tmp_path) == os.path.realpath(tmp_path)
    assert paths.absolute("memory://a/../b") == "memory://a/../b"
    assert paths.absolute("~") == os.path.realpath(Path.home())


def test_join():
    assert paths.join("memory://a/", "b", "c.ckpt") == "memory://a/b/c.ckpt"
    assert paths.join("a", "b", "c.ckpt") == os.path.join("a", "b", "c.ckpt")
    assert paths.join("file:///a", "b") == os.path.join("/a", "b")


def test_a_file_and_its_folder(folder):
    file = paths.join(folder, "a.ckpt")
    assert not paths.exists(file)
    assert paths.names_in(folder) == []
    write(file, b"content")
    write(paths.join(folder, "below", "b.ckpt"), b"")
    assert paths.exists(file)
    assert paths.exists(folder)
    assert sorted(paths.names_in(folder)) == ["a.ckpt", "below"]
    assert paths.names_in(file) == []
    assert paths.read_bytes(file) == b"content"
    assert paths.modified(file) > 1_700_000_000
    paths.remove(file)
    paths.remove(file)
    paths.remove(paths.join(folder, "below"))
    assert paths.names_in(folder) == []


def test_links_count_themselves(tmp_path):
    link = tmp_path / "last.ckpt"
    link.symlink_to("gone.ckpt")
    assert paths.exists(link)
    assert paths.modified(link) > 0
    paths.remove(link)
    assert not link.is_symlink()


def test_a_place_to_write_to(folder):
    assert paths.write_problem(folder) is None
    assert paths.names_in(folder) == []  # nothing is left of the attempt


def test_a_place_that_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    assert "file" in paths.write_problem(tmp_path / "file" / "runs")


def test_a_remote_place_that_cannot_be_written_to():
    from fsspec.implementations.memory import MemoryFileSystem

    class Closed(MemoryFileSystem):
        protocol = "closed"

        def pipe_file(self, *args, **kwargs):
            raise PermissionError("read only bucket")

    fsspec.register_implementation("closed", Closed, clobber=True)
    assert paths.write_problem("closed://runs") == "PermissionError: read only bucket"


def test_a_filesystem_that_tells_no_time():
    from fsspec.implementations.memory import MemoryFileSystem

    class Timeless(MemoryFileSystem):
        protocol = "timeless"

        def modified(self, path):
            raise NotImplementedError

    fsspec.register_implementation("timeless", Timeless, clobber=True)
    assert paths.modified("timeless://a") == 0.0


def test_fsspec_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "fulmen\[remote\]"'):
        paths.exists("s3://bucket/a.ckpt")
    assert not paths.exists("a.ckpt")
