"""Shards on the disk: plans, parts and metadata of `torch.distributed.checkpoint`.

Saving is two rounds in which rank 0 hears of all and answers each: who writes what, and is everything written. Reading
is a matter of each process alone.

To be imported where it is needed: `torch.distributed.checkpoint` takes seconds.
"""

from __future__ import annotations

import io
import os
import pickle
import posixpath
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.storage import WriteResult

from fulmen.checkpoint.format import paragraph
from fulmen.checkpoint.sharded import META, METADATA, is_sharded
from fulmen.checkpoint.store import failure_of, make_way, sync_directory, temporary_name, unpickled, writer
from fulmen.errors import CheckpointError
from fulmen.fabric import distributed
from fulmen.paths import exists, filesystem, is_url, join, local, names_in, read_bytes, remove

__all__ = ["Writing", "load", "read"]

T = TypeVar("T")

KeyPath = tuple[str | int, ...]

# what metadata consist of: nothing else is made of them unless they are trusted
_CLASSES = {
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
    "torch": {"Size"} | {name for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.serialization": {"_get_layout"},
}


# ------------------------------------------------------------------------------------------------ writing


@dataclass(frozen=True)
class _Failure:
    """What a process sends instead of a result."""

    rank: int
    error: Exception


class Writing:
    """A sharded checkpoint on its way to the disk.

    Args:
        path: The directory it will be.
        meta: What is not sharded.
        group: The processes that write it; None for this one alone.
    """

    def __init__(self, path: str | Path, meta: Mapping[str, Any], group: Any) -> None:
        self.path = str(path) if is_url(path) else local(path)
        self.meta = dict(meta)
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.planner: Any = DefaultSavePlanner()
        self.folder = ""
        self.plan = SavePlan([])
        self.metadata = Metadata({})

    @classmethod
    def prepare(cls, path: str | Path, state: Mapping[str, Any], meta: Mapping[str, Any], copy: bool) -> Writing:
        """Agrees with the other processes who writes what; arguments as of `prepare_sharded`."""
        writing = cls(path, meta, distributed.host_group())
        writing._agree(dict(state))
        if copy:
            writing.planner = _Copies(writing.planner, writing.plan)
        return writing

    def run(self) -> None:
        """Writes the part of this process, and with the others makes the checkpoint of all parts."""
        try:
            self._round(self._write, self._complete)
        finally:
            if self.rank == 0:
                remove(self.folder)  # after the rename there is none

    def _agree(self, state: dict[str, Any]) -> None:
        def plan_of_this() -> SavePlan:
            self.planner.set_up_planner(state, is_coordinator=self.rank == 0)
            plan: SavePlan = self.planner.create_local_plan()
            return plan

        def plan_of_all(plans: list[SavePlan]) -> list[tuple[str, SavePlan]]:
            _check_place(self.path)
            folder = join(_parent(self.path), temporary_name())
            plans, self.metadata = self.planner.create_global_plan(plans)
            return [(folder, plan) for plan in _writer(folder).prepare_global_plan(plans)]

        self.folder, plan = self._round(plan_of_this, plan_of_all)
        self.plan = self.planner.finish_plan(plan)

    def _write(self) -> list[WriteResult]:
        try:
            if not is_url(self.path):
                os.makedirs(self.folder, exist_ok=True)
            written: list[WriteResult] = _writer(self.folder).write_data(self.plan, self.planner).wait()
            return written
        except Exception as error:
            raise self._explained(error) from error

    def _complete(self, results: list[list[WriteResult]]) -> list[None]:
        """Rank 0 adds what it has for all, and gives the directory its name."""
        try:
            _writer(self.folder).finish(self.metadata, results)
            self._check_parts()
            if is_url(self.path):
                self._publish()
            else:
                self._rename()
        except CheckpointError:
            raise
        except Exception as error:
            raise self._explained(error) from error
        return [None] * len(results)

    def _check_parts(self) -> None:
        there = names_in(self.folder)
        parts = {info.relative_path for info in self.metadata.storage_data.values()}
        if missing := sorted(parts.difference(there)):
            raise CheckpointError(
                f"The checkpoint {self.path!r} was not written: of its {len(parts)} parts rank 0 does not see "
                f"{', '.join(missing[:5])}. All processes have to write to one place; choose a directory that all "
                f"machines share.",
                path=self.path,
            )

    def _rename(self) -> None:
        with writer(join(self.folder, META)) as stream:
            torch.save(self.meta, stream)
        sync_directory(Path(self.folder))
        with make_way(self.path):
            os.rename(self.folder, self.path)
        sync_directory(Path(self.path).parent)

    def _publish(self) -> None:
        """Nothing can be renamed in an object store: the file that says that all is there comes last."""
        remote, location = filesystem(self.path)
        _, folder = filesystem(self.folder)
        remove(self.path)
        remote.mv(folder, location, recursive=True)
        with writer(join(self.path, META)) as stream:
            torch.save(self.meta, stream)

    def _explained(self, error: Exception) -> Exception:
        return failure_of(error, self.meta, self.path) or error

    def _round(self, local: Callable[[], Any], of_all: Callable[[list[Any]], list[Any]]) -> Any:
        """Does what each process does, and on rank 0 what follows from all; gives each its answer.

        What fails on one process is raised on all of them, so that none waits for it.
        """
        mine = self._attempt(local)
        given = distributed.gather_object(_portable(mine), self.group, name="checkpoint")
        answers: Any = None
        if given is not None:
            failed = next((each for each in given if isinstance(each, _Failure)), None)
            answers = failed or self._attempt(lambda: of_all(given))
            if isinstance(answers, _Failure):
                answers = [_portable(answers)] * len(given)
        answer = distributed.scatter_object(answers, self.group, name="checkpoint")
        for outcome in (mine, answer):
            if isinstance(outcome, _Failure):
                if outcome.rank != self.rank:
                    outcome.error.add_note(f"This happened on rank {outcome.rank}.")
                raise outcome.error
        return answer

    def _attempt(self, work: Callable[[], T]) -> T | _Failure:
        try:
            return work()
        except Exception as error:
            return _Failure(self.rank, error)


class _Copies:
    """Stands for a planner when the tensors it would give may have changed: has copies, of what is written here."""

    def __init__(self, planner: DefaultSavePlanner, plan: SavePlan) -> None:
        self._data = {item.index: _to_host(planner.resolve_data(item)) for item in plan.items}

    def resolve_data(self, write_item: Any) -> Tensor | io.BytesIO:
        """What a planner would resolve."""
        return self._data[write_item.index]


def _to_host(data: Tensor | io.BytesIO) -> Tensor | io.BytesIO:
    return data.detach().to("cpu", copy=True) if isinstance(data, Tensor) else data


def _portable(outcome: Any) -> Any:
    """A failure that another process can read: an exception of the user's may be made of anything."""
    if not isinstance(outcome, _Failure):
        return outcome
    try:
        pickle.loads(pickle.dumps(outcome.error))
    except Exception:
        return _Failure(outcome.rank, RuntimeError(f"{type(outcome.error).__name__}: {outcome.error}"))
    return outcome


def _writer(folder: str) -> Any:
    if not is_url(folder):
        return FileSystemWriter(folder)
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter  # the only one for URLs

    return FsspecWriter(folder)


def _parent(path: str) -> str:
    return posixpath.dirname(path.rstrip("/")) if is_url(path) else os.path.dirname(os.path.abspath(path))


def _check_place(path: str) -> None:
    """A directory that is no checkpoint is not replaced."""
    if names_in(path) and not is_sharded(path):
        raise IsADirectoryError(
            f"The checkpoint {path!r} was not written: there is a directory of that name with something else in it. "
            f"Save under another name, or move the directory away."
        )


# ------------------------------------------------------------------------------------------------ reading


def load(path: str | Path, state: Mapping[str, Any], strict: bool, weights_only: bool | None) -> None:
    """Fills `state` in place; arguments as of `load_sharded`."""
    metadata = _read_metadata(path, weights_only)
    wanted, places = _flatten(state)
    _check_fit(path, wanted, {*state}, metadata, strict)
    found = {name: value for name, value in wanted.items() if name in metadata.state_dict_metadata}
    _fill(path, found, metadata, weights_only)
    for name, value in found.items():
        if not isinstance(value, Tensor):
            _put(state, places[name], value)


def read(path: str | Path, like: Mapping[str, Tensor], weights_only: bool | None) -> dict[str, Any]:
    """All that is in the shards, nested as it was saved; arguments as of `read_sharded`."""
    metadata = _read_metadata(path, weights_only)
    places = metadata.planner_data or {name: (name,) for name in metadata.state_dict_metadata}
    content = {name: _new(places[name], metadata.state_dict_metadata[name], like) for name in places}
    _fill(path, content, metadata, weights_only)
    nested: dict[Any, Any] = {}
    for name, value in content.items():
        *outer, last = places[name]
        node = nested
        for key in outer:
            node = node.setdefault(key, {})
        node[last] = value
    return cast(dict[str, Any], _with_lists(nested))


class _LoadPlanner(DefaultLoadPlanner):
    """Plans for a flat dict; what is no tensor is unpickled as `weights_only` says."""

    def __init__(self, path: str, weights_only: bool | None) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.path, self.weights_only = path, weights_only

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        """Takes over something that is no tensor."""
        self.state_dict[read_item.dest_index.fqn] = unpickled(value, self.path, None, self.weights_only)


def _fill(path: str | Path, content: dict[str, Any], metadata: Metadata, weights_only: bool | None) -> None:
    """Reads tensors into those of `content`, and puts other things in."""
    with _explaining(path):
        planner = _LoadPlanner(str(path), weights_only)
        planner.set_up_planner(content, metadata, is_coordinator=True)
        reader = _reader(path)
        reader.set_up_storage_reader(metadata, is_coordinator=True)
        plan = reader.prepare_local_plan(planner.create_local_plan())
        reader.read_data(planner.finish_plan(plan), planner).wait()


def _reader(path: str | Path) -> Any:
    if not is_url(path):
        return FileSystemReader(local(path))
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader  # the only one for URLs

    return FsspecReader(str(path))


@contextmanager
def _explaining(path: str | Path) -> Iterator[None]:
    try:
        yield
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # bytes of another kind make the unpickler fail in any way whatsoever
        raise CheckpointError(
            f"The sharded checkpoint {str(path)!r} is not complete any more ({type(error).__name__}: {error}). Take an "
            f"earlier one.",
            path=path,
        ) from error


class _MetadataUnpickler(pickle.Unpickler):
    """Makes nothing but what metadata consist of."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """The class of that name, if it is one of those."""
        if global_name in _CLASSES.get(module_name, ()):
            return super().find_class(module_name, global_name)
        raise CheckpointError(
            f"The metadata of the checkpoint hold an object of {module_name}.{global_name}, which `weights_only` "
            f"refuses, as unpickling it can run any code. If you trust the checkpoint, pass `weights_only=False`."
        )


def _read_metadata(path: str | Path, weights_only: bool | None) -> Metadata:
    if not is_sharded(path):
        raise _not_sharded(path)
    unpickler = pickle.Unpickler if weights_only is False else _MetadataUnpickler
    with _explaining(path):
        metadata: Metadata = unpickler(io.BytesIO(read_bytes(join(path, METADATA)))).load()
    return metadata


def _not_sharded(path: str | Path) -> Exception:
    if not exists(path):
        return FileNotFoundError(f"There is no checkpoint {str(path)!r}.")
    missing = [name for name in (META, METADATA) if not exists(join(path, name))]
    return CheckpointError(
        f"{str(path)!r} is no sharded checkpoint: there is no {' and no '.join(missing)} in it. Give the directory "
        f"that was saved.",
        path=path,
    )


def _flatten(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, KeyPath]]:
    """Values by their names in the shards, and their places in the nested dicts."""
    planner = DefaultSavePlanner()
    planner.set_up_planner(dict(state))
    return planner.state_dict, planner.mappings


def _put(state: Any, place: KeyPath, value: Any) -> None:
    *outer, last = place
    for key in outer:
        state = state[_own_key(state, key)]
    state[_own_key(state, last)] = value


def _own_key(node: Any, key: str | int) -> Any:
    """The key of a dict that was made a string for the shards."""
    return next(own for own in node if str(own) == key) if isinstance(node, Mapping) else key


def _new(place: KeyPath, saved: Any, like: Mapping[str, Tensor]) -> Tensor | None:
    """A tensor to be filled; None for what is no tensor."""
    if not isinstance(saved, TensorStorageMetadata):
        return None
    dtype = saved.properties.dtype
    model = next((like[key] for key in reversed(place) if key in like), None)  # type: ignore[index]
    if model is not None and model.shape == saved.size and model.device.type != "meta":
        return torch.empty_like(model, dtype=dtype, requires_grad=False)
    return torch.empty(saved.size, dtype=dtype)


def _with_lists(node: Any) -> Any:
    """Nested dicts, with lists in the place of those whose keys are positions."""
    if not isinstance(node, dict):
        return node
    if node and all(isinstance(key, int) for key in node):
        return [_with_lists(node[position]) for position in sorted(node)]
    return {key: _with_lists(child) for key, child in node.items()}


def _check_fit(
    path: str | Path, wanted: Mapping[str, Any], entries: set[str], metadata: Metadata, strict: bool
) -> None:
    saved = {
        name: tuple(each.size)
        for name, each in metadata.state_dict_metadata.items()
        if isinstance(each, TensorStorageMetadata)
    }
    tensors = {name: tuple(value.shape) for name, value in wanted.items() if isinstance(value, Tensor)}
    places = metadata.planner_data or {}
    asked = [name for name in saved if str(places.get(name, name.split("."))[0]) in entries]
    missing = [f"{name} {shape}" for name, shape in tensors.items() if name not in saved]
    unknown = [f"{name} {saved[name]}" for name in asked if name not in tensors]
    differing = [
        f"{name} ({saved[name]} in the checkpoint, {shape} wanted)"
        for name, shape in tensors.items()
        if saved.get(name, shape) != shape
    ]
    if not differing and not (strict and (missing or unknown)):
        return
    lines = [f"The sharded checkpoint {str(path)!r} does not fit:"]
    if strict:
        lines += paragraph("missing in the checkpoint", missing) + paragraph("not wanted", unknown)
    lines += paragraph("of another shape", differing)
    lines.append("Build the model with the arguments it was saved with; strict=False goes on without what is missing.")
    raise CheckpointError("\n".join(lines), path=path)
