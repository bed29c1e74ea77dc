from __future__ import annotations

import errno
import os
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.checkpoint import store
from fulmen.checkpoint.store import CheckpointIO, TorchCheckpointIO, atomic_write, is_url, read
from fulmen.errors import CheckpointError

OLD = {"epoch": 1, "state_dict": {"w": torch.arange(300.0)}}
NEW = {"epoch": 2, "state_dict": {"w": torch.ones(300), "b": torch.zeros(7)}}


class Custom:
    """A class of the user's, which a weights-only load refuses."""


def names(folder) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def same(first, second) -> bool:
    return first["epoch"] == second["epoch"] and all(
        torch.equal(value, second["state_dict"][key]) for key, value in first["state_dict"].items()
    )


def test_round_trip_makes_parent_directories(tmp_path):
    io = TorchCheckpointIO()
    path = tmp_path / "a" / "b" / "last.ckpt"
    io.save_checkpoint(OLD, path)
    io.save_checkpoint(NEW, str(path))
    assert same(io.load_checkpoint(path), NEW)
    assert names(path.parent) == ["last.ckpt"]
    assert isinstance(io, CheckpointIO)
    io.teardown()


def test_the_file_is_plain_torch(tmp_path):
    TorchCheckpointIO().save_checkpoint(NEW, tmp_path / "a.ckpt")
    assert same(torch.load(tmp_path / "a.ckpt", weights_only=True), NEW)


def test_permissions_follow_the_umask(tmp_path):
    previous = os.umask(0o027)
    try:
        TorchCheckpointIO().save_checkpoint(NEW, tmp_path / "a.ckpt")
    finally:
        os.umask(previous)
    assert (tmp_path / "a.ckpt").stat().st_mode & 0o777 == 0o640


def test_a_link_is_replaced_and_its_target_kept(tmp_path):
    io = TorchCheckpointIO()
    io.save_checkpoint(OLD, tmp_path / "best.ckpt")
    (tmp_path / "last.ckpt").symlink_to(tmp_path / "best.ckpt")
    io.save_checkpoint(NEW, tmp_path / "last.ckpt")
    assert same(io.load_checkpoint(tmp_path / "best.ckpt"), OLD)
    assert same(io.load_checkpoint(tmp_path / "last.ckpt"), NEW)


class FailingDisk:
    """An open file whose disk is full after a number of writes."""

    def __init__(self, file, num_writes):
        self.file, self.left = file, num_writes

    def write(self, data):
        if self.left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.left -= 1
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


def _count_writes() -> int:
    class Counting:
        writes = 0

        def write(self, data):
            self.writes += 1
            return len(data)

        def flush(self):
            pass

    counting = Counting()
    torch.save(NEW, counting)
    return counting.writes


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_failure_at_any_write_leaves_the_old_file(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("disk")
    checkpoint_io, path = TorchCheckpointIO(), folder / "last.ckpt"
    checkpoint_io.save_checkpoint(OLD, path)
    before = path.read_bytes()
    num_writes = data.draw(st.integers(0, _count_writes() - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "open", lambda *args: FailingDisk(open(*args), num_writes), raising=False)  # noqa: SIM115
        with pytest.raises(OSError, match="could not be written: No space left on device") as caught:
            checkpoint_io.save_checkpoint(NEW, path)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before
    assert names(folder) == ["last.ckpt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_a_failure_after_the_last_write_leaves_the_old_file(tmp_path, monkeypatch, step, error):
    io, path = TorchCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint(OLD, path)

    def fail(*args):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(type(error)):
            io.save_checkpoint(NEW, path)
    assert same(io.load_checkpoint(path), OLD)
    assert names(tmp_path) == ["last.ckpt"]


def test_the_temporary_file_is_hidden_and_no_checkpoint_by_name(tmp_path):
    seen = []
    with atomic_write(tmp_path / "last.ckpt") as stream:
        stream.write(b"bytes")
        seen = names(tmp_path)
    (temporary,) = seen
    assert temporary.startswith(".")
    assert temporary.endswith(".partial")
    assert "ckpt" not in temporary
    assert (tmp_path / "last.ckpt").read_bytes() == b"bytes"


def test_an_exception_of_the_caller_leaves_nothing(tmp_path):
    def fail_while_writing():
        with atomic_write(tmp_path / "file") as stream:
            stream.write(b"bytes")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_while_writing()
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"could not be written: .*ModelCheckpoint\(dirpath") as caught:
        TorchCheckpointIO().save_checkpoint(NEW, tmp_path / "file" / "last.ckpt")
    assert str(tmp_path / "file" / "last.ckpt") in str(caught.value)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="could not be written: Permission denied"):
        TorchCheckpointIO().save_checkpoint(NEW, tmp_path / "last.ckpt")


def test_a_directory_is_not_overwritten(tmp_path):
    (tmp_path / "last.ckpt" / "shard").mkdir(parents=True)
    with pytest.raises(OSError, match="could not be written"):
        TorchCheckpointIO().save_checkpoint(NEW, tmp_path / "last.ckpt")
    assert names(tmp_path / "last.ckpt") == ["shard"]


@pytest.mark.parametrize("value", [lambda: None, threading.Lock(), (each for each in ())])
def test_what_cannot_be_pickled_is_named(tmp_path, value):
    with pytest.raises(CheckpointError, match=r"its entry 'callbacks' cannot be pickled") as caught:
        TorchCheckpointIO().save_checkpoint({**NEW, "callbacks": {"a": value}}, tmp_path / "last.ckpt")
    assert caught.value.path == tmp_path / "last.ckpt"
    assert names(tmp_path) == []


def test_storage_options_are_refused(tmp_path):
    with pytest.raises(TypeError, match="takes no `storage_options`"):
        TorchCheckpointIO().save_checkpoint(NEW, tmp_path / "last.ckpt", storage_options={"a": 1})


def test_a_missing_file_says_what_there_is(tmp_path):
    io = TorchCheckpointIO()
    for epoch in range(12):
        io.save_checkpoint(NEW, tmp_path / f"epoch={epoch}.ckpt")
        os.utime(tmp_path / f"epoch={epoch}.ckpt", (epoch, epoch))
    (tmp_path / ".fulmen-1.partial").touch()
    with pytest.raises(
        FileNotFoundError, match=r"newest first\): epoch=11.ckpt, epoch=10.ckpt, .* and 2 more\."
    ) as caught:
        io.load_checkpoint(tmp_path / "last.ckpt")
    assert "partial" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="does not exist either"):
        io.load_checkpoint(tmp_path / "no" / "last.ckpt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="is empty"):
        io.load_checkpoint(tmp_path / "empty" / "last.ckpt")
    (tmp_path / "empty" / "train.py").touch()
    with pytest.raises(FileNotFoundError, match="there is none") as caught:
        io.load_checkpoint(tmp_path / "empty" / "last.ckpt")
    assert "train.py" not in str(caught.value)


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(CheckpointError, match="is a directory"):
        TorchCheckpointIO().load_checkpoint(tmp_path)


@pytest.mark.parametrize("weights_only", [None, True, False])
@pytest.mark.parametrize("content", [b"", b"hello world" * 10, b"PK\x03\x04" + b"0" * 50, b"\0" * 100])
def test_foreign_bytes(tmp_path, content, weights_only):
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last.ckpt' is no complete checkpoint") as caught:
        TorchCheckpointIO().load_checkpoint(path, weights_only=weights_only)
    assert caught.value.path == str(path)


@settings(max_examples=30, deadline=None)
@given(fraction=st.floats(0, 0.999))
def test_a_torn_file_is_never_taken_for_a_checkpoint(tmp_path_factory, fraction):
    path = tmp_path_factory.mktemp("torn") / "last.ckpt"
    TorchCheckpointIO().save_checkpoint(NEW, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        TorchCheckpointIO().load_checkpoint(path)


def test_another_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        archive.writestr("x", "y")
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        TorchCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("new_format", [True, False])
def test_weights_only_names_what_it_refuses(tmp_path, new_format):
    path = tmp_path / "last.ckpt"
    torch.save({"custom": Custom()}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(
        CheckpointError, match=r"objects of .*Custom.*weights_only=False.*add_safe_globals\(\[Custom\]\)"
    ):
        TorchCheckpointIO().load_checkpoint(path)
    assert isinstance(TorchCheckpointIO().load_checkpoint(path, weights_only=False)["custom"], Custom)


def test_a_class_that_is_gone_is_named(tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({"custom": Custom()}, path)
    path.write_bytes(path.read_bytes().replace(b"Custom", b"Cussom"))
    with pytest.raises(CheckpointError, match=r"whose class is not there any more: .*Cussom"):
        TorchCheckpointIO().load_checkpoint(path, weights_only=False)


def test_an_open_file_can_be_read(tmp_path):
    TorchCheckpointIO().save_checkpoint(NEW, tmp_path / "a.ckpt")
    with open(tmp_path / "a.ckpt", "rb") as stream:
        assert same(read(stream), NEW)


def test_remove(tmp_path):
    io = TorchCheckpointIO()
    io.save_checkpoint(NEW, tmp_path / "a.ckpt")
    (tmp_path / "sharded" / "part").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a.ckpt")
    io.remove_checkpoint(tmp_path / "link")
    assert names(tmp_path) == ["a.ckpt", "sharded"]
    for name in ("a.ckpt", "sharded", "missing"):
        io.remove_checkpoint(tmp_path / name)
    assert names(tmp_path) == []


def test_urls():
    fsspec = pytest.importorskip("fsspec")
    io, url = TorchCheckpointIO(), "memory://fulmen-store/run/last.ckpt"
    io.save_checkpoint(OLD, url)
    with pytest.raises(CheckpointError, match="'callbacks' cannot be pickled"):
        io.save_checkpoint({**NEW, "callbacks": threading.Lock()}, url)
    assert same(io.load_checkpoint(url), OLD)
    io.remove_checkpoint(url)
    io.remove_checkpoint(url)
    assert not fsspec.filesystem("memory").exists("/fulmen-store/run/last.ckpt")
    with pytest.raises(FileNotFoundError, match="fulmen-store"):
        io.load_checkpoint(url)


def test_the_url_of_a_local_file_is_that_file(tmp_path):
    assert not is_url(f"file://{tmp_path}/a.ckpt")
    assert is_url("s3://bucket/a.ckpt")
    TorchCheckpointIO().save_checkpoint(NEW, f"file://{tmp_path}/a.ckpt")
    assert names(tmp_path) == ["a.ckpt"]
    assert same(TorchCheckpointIO().load_checkpoint(f"file://{tmp_path}/a.ckpt"), NEW)
