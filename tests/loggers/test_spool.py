from __future__ import annotations

import gc
import os

import pytest

from fulmen.loggers.spool import Spool
from fulmen.paths import exists, read_bytes

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def url(tmp_path):
    return f"memory://{tmp_path.name}/rows.csv"


def append(spool, text):
    with open(spool.path, "a") as file:
        file.write(text)
    spool.changed()


def test_a_change_is_copied_unless_that_was_done_a_moment_ago(url):
    spool = Spool(url, seconds=3600)
    append(spool, "a")
    append(spool, "b")
    assert read_bytes(url) == b"a"
    spool.copy()
    assert read_bytes(url) == b"ab"


def test_each_change_is_copied_if_there_is_no_time_to_wait(url):
    spool = Spool(url, seconds=0)
    append(spool, "a")
    append(spool, "b")
    assert read_bytes(url) == b"ab"


def test_nothing_is_copied_twice(url):
    spool = Spool(url, seconds=0)
    spool.copy()
    assert not exists(url)
    append(spool, "a")
    fsspec.open(url, "wb").open().write(b"by hand")
    spool.copy()
    assert read_bytes(url) == b"by hand"


def test_it_can_begin_with_what_is_there(url):
    append(Spool(url, seconds=0), "a")
    second = Spool(url, seconds=0)
    second.fetch()
    append(second, "b")
    assert read_bytes(url) == b"ab"


def test_the_local_file_goes_with_the_spool(url):
    spool = Spool(url, seconds=0)
    folder = os.path.dirname(spool.path)
    append(spool, "a")
    del spool
    gc.collect()
    assert not os.path.exists(folder)


def test_a_copy_that_fails_is_a_warning_and_loses_nothing(url, monkeypatch):
    def fail(*args, **kwargs):
        raise TimeoutError("no network")

    spool = Spool(url, seconds=0)
    append(spool, "a")
    with monkeypatch.context() as broken:
        broken.setattr("fsspec.implementations.memory.MemoryFileSystem.open", fail)
        with pytest.warns(UserWarning, match=r"TimeoutError: no network.*everything is in"):
            append(spool, "b")
        append(spool, "c")  # said once
    assert read_bytes(url) == b"a"
    path = spool.path
    spool.copy()
    assert read_bytes(url) == b"abc"
    del spool
    gc.collect()
    assert os.path.exists(path)
