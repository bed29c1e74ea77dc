"""Where checkpoints live, and how their bytes get there: completely, or not at all."""

from __future__ import annotations

import os
import pickle
import re
import secrets
import shutil
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

from fulmen.checkpoint.unpickler import REDIRECTING
from fulmen.errors import CheckpointError
from fulmen.extras import need

__all__ = ["CheckpointIO", "TorchCheckpointIO", "atomic_write", "is_url", "read"]

_TEMPORARY_SUFFIX = ".partial"
_SHOWN_NAMES = 10
_SHOWN_SUFFIXES = (".ckpt", ".pt", ".pth")
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")  # how torch names what a weights-only load refuses

MapLocation = Any  # whatever torch.load takes


class CheckpointIO(ABC):
    """Saves, loads and removes checkpoints.

    Derive from it to keep checkpoints in another format or place, and give an instance to the Trainer's `plugins`.
    """

    @abstractmethod
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Saves a checkpoint.

        Args:
            checkpoint: What to save.
            path: Where.
            storage_options: Whatever the storage of the subclass understands.
        """

    @abstractmethod
    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Loads the checkpoint at `path`.

        Args:
            path: Where it is.
            map_location: Where its tensors go, as for `torch.load`.
            weights_only: As for `torch.load`; False unpickles anything, so only for files you trust.
        """

    @abstractmethod
    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes the checkpoint at `path`."""

    def teardown(self) -> None:  # noqa: B027 - most have nothing to end
        """Called at the end of a run."""


def to_cpu(storage: Any, location: str) -> Any:
    """A `map_location` that leaves every tensor on the CPU."""
    return storage


class TorchCheckpointIO(CheckpointIO):
    """Checkpoints as files of `torch.save`, on a local disk or, with fsspec, under any URL.

    A local file appears under its name only after all its bytes are on the disk. A process killed while it saves leaves
    at most a hidden file ending in `.partial`, and an earlier checkpoint of that name is untouched.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Saves a checkpoint; the parent directories are made.

        Raises:
            TypeError: `storage_options` are given.
            OSError: The place cannot be written to. The class is that of the cause, as for instance `PermissionError`.
            CheckpointError: An entry cannot be pickled.
        """
        if storage_options is not None:
            raise TypeError(
                f"`TorchCheckpointIO` takes no `storage_options`, and was given {storage_options!r}. "
                f"Derive a class from `CheckpointIO` that uses them and type `Trainer(plugins=[YourCheckpointIO()])`."
            )
        try:
            with writer(path) as stream:
                torch.save(checkpoint, stream)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            if not (culprits := [key for key, value in checkpoint.items() if not _can_be_pickled(value)]):
                raise
            raise _unpicklable(culprits, path, error) from error
        except (OSError, RuntimeError) as error:
            # torch closes its archive over a failed write, and reports the damage instead of the reason
            if (reason := _os_error_behind(error)) is None:
                raise
            raise _unwritable(path, reason) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = to_cpu, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Loads a checkpoint, by default with all tensors on the CPU; see `read` for what is raised."""
        return cast(dict[str, Any], read(path, map_location, weights_only))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes the file or the directory at `path`; one that is not there is fine."""
        if is_url(path):
            filesystem, location = _remote(path)
            if filesystem.exists(location):
                filesystem.rm(location, recursive=True)
            return
        local = _local(path)
        if local.is_dir() and not local.is_symlink():
            shutil.rmtree(local)
        else:
            local.unlink(missing_ok=True)


def is_url(path: Any) -> bool:
    """Whether `path` is for fsspec: it has a scheme, and that is not the one of local files."""
    return "://" in str(path) and not str(path).startswith("file://")


def _local(path: str | Path) -> Path:
    return Path(str(path).removeprefix("file://"))


def _remote(path: str | Path) -> tuple[Any, str]:
    """The fsspec filesystem of a URL, and the location in it."""
    filesystem, location = need("fsspec.core").url_to_fs(str(path))
    return filesystem, location


# ------------------------------------------------------------------------------------------------ writing


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """A binary stream whose bytes replace the local file `path` when the block ends without an exception.

    They go to a temporary file in the same directory, are forced to the disk, and are renamed. If anything fails,
    the temporary file is removed and whatever was at `path` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".fulmen-{secrets.token_hex(8)}{_TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # after the rename there is none
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """Force the rename to the disk; Windows has no such call for directories."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _remote_write(path: str | Path) -> Iterator[IO[bytes]]:
    filesystem, location = _remote(path)
    filesystem.makedirs(filesystem._parent(location), exist_ok=True)
    with filesystem.transaction, filesystem.open(location, "wb") as stream:
        yield stream


def writer(path: str | Path) -> Any:
    return _remote_write(path) if is_url(path) else atomic_write(_local(path))


def _os_error_behind(error: BaseException | None) -> OSError | None:
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _unwritable(path: str | Path, reason: OSError) -> OSError:
    """`reason` again, of the same class, with a message that says what to do."""
    message = (
        f"The checkpoint {str(path)!r} could not be written: {reason.strerror or reason}. An earlier file of that name "
        f"is unchanged. Free space or permit writing there, or save elsewhere: `Trainer(default_root_dir=...)`, "
        f"`ModelCheckpoint(dirpath=...)` or `trainer.save_checkpoint(...)`"
    )
    if reason.errno is None:
        return type(reason)(message)
    return OSError(reason.errno, message, str(path))


def _unpicklable(culprits: list[str], path: str | Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint {str(path)!r} was not written, because its entry {', '.join(map(repr, culprits))} cannot "
        f"be pickled: {error}. Leave it out (for hyperparameters: `save_hyperparameters(ignore=[...])`), or put "
        f"something picklable in its place.",
        path=path,
    )


def _can_be_pickled(value: Any) -> bool:
    try:
        torch.save(value, cast(IO[bytes], _Nowhere()))
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True


class _Nowhere:
    """A stream that swallows what is written."""

    def write(self, data: bytes) -> int:
        return len(data)

    def flush(self) -> None:
        """There is nothing to flush."""


# ------------------------------------------------------------------------------------------------ reading


def read(source: str | Path | IO[bytes], map_location: MapLocation = None, weights_only: bool | None = None) -> Any:
    """Reads what `torch.save` wrote.

    Args:
        source: Path, URL, or an open binary file.
        map_location: Where tensors go, as for `torch.load`.
        weights_only: As for `torch.load`; None is torch's default, which is to refuse everything but tensors and plain
            containers, from URLs as well. False unpickles anything, so only for files you trust.

    Raises:
        FileNotFoundError: There is no such file; the message lists what there is.
        CheckpointError: It is torn or of another kind, or holds what `weights_only` refuses.
    """
    if not isinstance(source, (str, os.PathLike)):
        return _load(source, getattr(source, "name", repr(source)), map_location, weights_only)
    if is_url(source):
        filesystem, location = _remote(source)
        if not filesystem.exists(location):
            raise FileNotFoundError(f"There is no checkpoint {str(source)!r}.")
        with filesystem.open(location, "rb") as stream:
            return _load(stream, str(source), map_location, weights_only)
    path = _local(source)
    if path.is_dir():
        raise CheckpointError(
            f"{str(path)!r} is a directory, and a checkpoint file was expected. {_contents(path)}", path=path
        )
    if not path.exists():
        raise FileNotFoundError(f"There is no checkpoint {str(path)!r}. {_contents(path.parent)}")
    with open(path, "rb") as stream:
        return _load(stream, str(path), map_location, weights_only)


def _load(stream: IO[bytes], name: str, map_location: MapLocation, weights_only: bool | None) -> Any:
    try:
        if weights_only is False:
            return torch.load(stream, map_location, REDIRECTING, weights_only=False)
        return torch.load(stream, map_location, weights_only=weights_only)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # bytes of another kind make the unpickler fail in any way whatsoever
        raise _unreadable(stream, name, error) from error


def _unreadable(stream: IO[bytes], name: str, error: Exception) -> CheckpointError:
    if _is_refusal(stream, error):
        refused = _refused_names(stream, error)
        return CheckpointError(
            f"The checkpoint {name!r} holds objects of {', '.join(refused) or 'unknown types'}, which `weights_only` "
            f"refuses, as unpickling them can run any code. If you trust the file, pass `weights_only=False`; to allow "
            f"just these, type `torch.serialization.add_safe_globals([{', '.join(map(_class_name, refused))}])`.",
            path=name,
        )
    if isinstance(error, (ImportError, AttributeError)):
        return CheckpointError(
            f"The checkpoint {name!r} holds an object whose class is not there any more: {error}. Make the class "
            f"importable under that name, or load with `weights_only=True` what needs no classes.",
            path=name,
        )
    return CheckpointError(
        f"{name!r} is no complete checkpoint: it is torn, or something else than `torch.save` wrote it "
        f"({type(error).__name__}: {_first_line(error)}). Take an earlier checkpoint.",
        path=name,
    )


def _is_refusal(stream: IO[bytes], error: Exception) -> bool:
    """Whether a weights-only load met a type it does not allow, in an otherwise whole file."""
    if not isinstance(error, pickle.UnpicklingError):
        return False
    stream.seek(0)
    return _GLOBAL.search(str(error)) is not None or zipfile.is_zipfile(stream)


def _refused_names(stream: IO[bytes], error: Exception) -> list[str]:
    """The full names of the types for which a weights-only load was refused."""
    stream.seek(0)
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(cast(Any, stream)))
    except ValueError:  # the file format before torch 1.6, where only the first one is known
        return _GLOBAL.findall(str(error))


def _class_name(full_name: str) -> str:
    return full_name.rpartition(".")[2]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _contents(directory: Path) -> str:
    """One sentence on what `directory` holds, newest first."""
    if not directory.is_dir():
        return f"The directory {str(directory)!r} does not exist either."
    entries = [entry for entry in directory.iterdir() if not entry.name.endswith(_TEMPORARY_SUFFIX)]
    if not entries:
        return f"The directory {str(directory)!r} is empty."
    checkpoints = [entry for entry in entries if entry.suffix in _SHOWN_SUFFIXES]
    if not checkpoints:
        return f"In the directory {str(directory)!r} there is none."
    newest_first = sorted(checkpoints, key=lambda entry: entry.lstat().st_mtime, reverse=True)
    names = [entry.name for entry in newest_first]
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return f"In {str(directory)!r} there are (newest first): {', '.join(names[:_SHOWN_NAMES])}{more}."
