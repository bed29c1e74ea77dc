"""Where checkpoints live, and how their bytes get there: completely, or not at all."""

from __future__ import annotations

import os
import pickle
import re
import secrets
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from torch import Tensor

from fulmen.checkpoint.sharded import is_sharded, read_sharded, save_sharded
from fulmen.checkpoint.unpickler import REDIRECTING
from fulmen.errors import CheckpointError
from fulmen.paths import filesystem, is_url, local, names_in, remove
from fulmen.tree import map_tensors

__all__ = ["CheckpointIO", "TorchCheckpointIO", "atomic_write", "is_url", "read"]

_TEMPORARY_SUFFIX = ".partial"
_SHOWN_NAMES = 10
_SHOWN_SUFFIXES = (".ckpt", ".pt", ".pth")
_PICKLING_ERRORS = (pickle.PicklingError, AttributeError, TypeError)
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

    def save_sharded(self, path: str | Path, state: dict[str, Any], meta: dict[str, Any]) -> None:
        """Saves a checkpoint of which each process has a part, as a directory; called by all processes.

        Args:
            path: The directory.
            state: Nested dicts of tensors: DTensors, or such that are the same on all processes.
            meta: Everything else.
        """
        save_sharded(path, state, meta)

    def read_sharded(
        self, path: str | Path, like: Mapping[str, Tensor] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads the whole of a sharded checkpoint; arguments as of `fulmen.checkpoint.sharded.read_sharded`."""
        return read_sharded(path, like, weights_only)

    def teardown(self) -> None:  # noqa: B027 - most have nothing to end
        """Called at the end of a run."""


def to_cpu(storage: Any, location: str) -> Any:
    """A `map_location` that leaves every tensor on the CPU."""
    return storage


class TorchCheckpointIO(CheckpointIO):
    """Checkpoints as files of `torch.save`, on a local disk or, with fsspec, under any URL.

    A local file appears under its name only after all its bytes are on the disk. A process killed while it saves leaves
    at most a hidden file ending in `.partial`, and an earlier checkpoint of that name is untouched. A remote one is
    written in a transaction of its filesystem, to the same effect.
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
        except Exception as error:  # a remote filesystem may raise anything
            if (explained := failure_of(error, checkpoint, path)) is None:
                raise
            raise explained from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = to_cpu, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Loads a checkpoint, by default with all tensors on the CPU; see `read` for what is raised."""
        return cast(dict[str, Any], read(path, map_location, weights_only))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes the file or the directory at `path`; one that is not there is fine."""
        remove(path)


def _local(path: str | Path) -> Path:
    return Path(local(path))


# ------------------------------------------------------------------------------------------------ writing


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """A binary stream whose bytes replace the local file `path` when the block ends without an exception.

    They go to a temporary file in the same directory, are forced to the disk, and are renamed. If anything fails,
    the temporary file is removed and whatever was at `path` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name())
    try:
        with open(temporary, "xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        with make_way(path) if is_sharded(path) else nullcontext():
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # after the rename there is none
    sync_directory(path.parent)


@contextmanager
def make_way(path: str | Path) -> Iterator[None]:
    """Context in which something else can take the name of whatever is at a local path; if that fails, it is back."""
    path = Path(path)
    if not os.path.lexists(path):
        yield
        return
    aside = path.with_name(temporary_name())
    os.rename(path, aside)
    try:
        yield
    except BaseException:
        os.rename(aside, path)
        raise
    remove(aside)


def temporary_name() -> str:
    """A name, used by nobody, for what is not complete yet."""
    return f".fulmen-{secrets.token_hex(8)}{_TEMPORARY_SUFFIX}"


def sync_directory(directory: Path) -> None:
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
    remote, location = filesystem(path)
    remote.makedirs(remote._parent(location), exist_ok=True)
    with remote.transaction, remote.open(location, "wb") as stream:
        yield stream


def writer(path: str | Path) -> Any:
    """A binary stream whose bytes replace the file at a path or URL when the block ends without an exception."""
    return _remote_write(path) if is_url(path) else atomic_write(_local(path))


def failure_of(error: Exception, checkpoint: dict[str, Any], path: str | Path) -> Exception | None:
    """What to raise instead of an exception of a save; None if that says it all."""
    if isinstance(error, _PICKLING_ERRORS):
        culprits = [key for key, value in checkpoint.items() if not _can_be_pickled(value)]
        if culprits:
            return _unpicklable(culprits, path, error)
    # torch closes its archive over a failed write, and reports the damage instead of the reason
    reason = _os_error_behind(error) if isinstance(error, (OSError, RuntimeError)) else None
    if reason is None and is_url(path) and not isinstance(error, ImportError):
        reason = OSError(f"{type(error).__name__}: {error}")
    return None if reason is None else unwritable(path, reason)


def _os_error_behind(error: BaseException | None) -> OSError | None:
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def unwritable(path: str | Path, reason: OSError) -> OSError:
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
    except _PICKLING_ERRORS:
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
        return unpickled(source, getattr(source, "name", repr(source)), map_location, weights_only)
    if is_url(source):
        remote, location = filesystem(source)
        if not remote.exists(location):
            raise FileNotFoundError(f"There is no checkpoint {str(source)!r}. {_remote_contents(str(source))}")
        if remote.isdir(location):
            return _whole(source, map_location, weights_only)
        with remote.open(location, "rb") as stream:
            return unpickled(stream, str(source), map_location, weights_only)
    path = _local(source)
    if path.is_dir():
        return _whole(path, map_location, weights_only)
    if not path.exists():
        raise FileNotFoundError(f"There is no checkpoint {str(path)!r}. {_contents(path.parent)}")
    with open(path, "rb") as stream:
        return unpickled(stream, str(path), map_location, weights_only)


def _whole(directory: str | Path, map_location: MapLocation, weights_only: bool | None) -> dict[str, Any]:
    """All of a sharded checkpoint, on the CPU or where `map_location` says."""
    if not is_sharded(directory):
        contents = _remote_contents(f"{directory}/") if is_url(directory) else _contents(Path(directory))
        raise CheckpointError(
            f"{str(directory)!r} is a directory without a complete sharded checkpoint in it. {contents}", path=directory
        )
    checkpoint = read_sharded(directory, weights_only=weights_only)
    if isinstance(map_location, (str, torch.device)):
        return cast(dict[str, Any], map_tensors(lambda tensor: tensor.to(map_location), checkpoint))
    return checkpoint


def unpickled(stream: IO[bytes], name: str, map_location: MapLocation, weights_only: bool | None) -> Any:
    """What `torch.save` wrote into a stream; `name` is for messages, the rest as for `read`."""
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


def _remote_contents(url: str) -> str:
    """One sentence on what is where `url` was looked for."""
    folder = url.rpartition("/")[0]
    names = sorted(name for name in names_in(folder) if name.endswith(_SHOWN_SUFFIXES))
    return _listed(folder, names, "by name") if names else f"In {folder!r} there is none."


def _listed(folder: str, names: list[str], order: str) -> str:
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return f"In {folder!r} there are ({order}): {', '.join(names[:_SHOWN_NAMES])}{more}."


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
    return _listed(str(directory), [entry.name for entry in newest_first], "newest first")
