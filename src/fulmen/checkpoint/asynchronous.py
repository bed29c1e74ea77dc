"""Checkpoints that are written while training goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fulmen.checkpoint.sharded import prepare_sharded
from fulmen.checkpoint.store import CheckpointIO, TorchCheckpointIO
from fulmen.tree import map_tensors

__all__ = ["AsyncCheckpointIO"]


class AsyncCheckpointIO(CheckpointIO):
    """Lets another checkpoint IO save in a background thread.

    The tensors are copied first, so that training may change them meanwhile. Saves and removals are done one after the
    other, in the order in which they were asked for. What fails in the thread is raised by the next call of
    `save_checkpoint`, or by `teardown`, which waits until everything is written.

    Example:
        ```python
        trainer = Trainer(plugins=[AsyncCheckpointIO()])
        ```

    Args:
        checkpoint_io: Does the work; None for the one of the strategy.
    """

    def __init__(self, checkpoint_io: CheckpointIO | None = None) -> None:
        self._checkpoint_io = checkpoint_io
        self._executor: ThreadPoolExecutor | None = None
        self._pending: list[Future[None]] = []

    @property
    def checkpoint_io(self) -> CheckpointIO | None:
        """Does the work; None until a strategy gives its own."""
        return self._checkpoint_io

    @checkpoint_io.setter
    def checkpoint_io(self, checkpoint_io: CheckpointIO) -> None:
        self._checkpoint_io = checkpoint_io

    @property
    def _inner(self) -> CheckpointIO:
        if self._checkpoint_io is None:
            self._checkpoint_io = TorchCheckpointIO()
        return self._checkpoint_io

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Starts to save a checkpoint; arguments as for the wrapped IO.

        Raises:
            Exception: Whatever failed in the thread since the last call; the new checkpoint is being saved all the
                same.
        """
        failures = self._take_failures()
        self._start(self._inner.save_checkpoint, _copy(checkpoint), path, storage_options=storage_options)
        _raise(failures)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Loads a checkpoint with the wrapped IO, after all that was asked for before is done."""
        self._wait()
        given = {} if map_location is None else {"map_location": map_location}
        return self._inner.load_checkpoint(path, **given, weights_only=weights_only)

    def save_sharded(self, path: str | Path, state: dict[str, Any], meta: dict[str, Any]) -> None:
        """Starts to save a checkpoint of which each process has a part, after the one before is written.

        What this process will write is copied to the host first; in the thread the processes talk over a group of their
        own. What fails on one of them is raised on all. The wrapped IO has no part in this.
        """
        self._wait()  # so that all processes raise at the same call, and each talks to the others about one save
        failures = self._take_failures()
        self._start(prepare_sharded(path, state, meta))
        _raise(failures)

    def read_sharded(
        self, path: str | Path, like: Mapping[str, Tensor] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a sharded checkpoint with the wrapped IO, after all that was asked for before is done."""
        self._wait()
        return self._inner.read_sharded(path, like, weights_only)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes a checkpoint in the thread, so that one still being saved is written first."""
        self._start(self._inner.remove_checkpoint, path)

    def teardown(self) -> None:
        """Waits until everything is written.

        Raises:
            Exception: Whatever failed in the thread since the last call of `save_checkpoint`.
        """
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None
        self._inner.teardown()
        _raise(self._take_failures())

    def _wait(self) -> None:
        for task in self._pending:
            task.exception()  # waits; what failed is still raised by the next save

    def _start(self, work: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending.append(self._executor.submit(work, *args, **kwargs))

    def _take_failures(self) -> list[BaseException]:
        """What failed in the thread; what is done is forgotten."""
        done = [task for task in self._pending if task.done()]
        self._pending = [task for task in self._pending if task not in done]
        return [failure for task in done if (failure := task.exception()) is not None]


def _raise(failures: list[BaseException]) -> None:
    """Raises the first of the exceptions, with notes on the others."""
    if not failures:
        return
    for other in failures[1:]:
        failures[0].add_note(f"Another checkpoint failed, too: {type(other).__name__}: {other}")
    raise failures[0]


def _copy(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint with copies of all tensors; those that share memory (tied weights) share it in the copy, too."""
    storages: dict[tuple[torch.device, int], torch.UntypedStorage] = {}

    def copy(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        is_usual = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
        if not is_usual or tensor.is_quantized or tensor.is_meta or tensor.is_conj() or tensor.is_neg():
            return tensor.clone()
        storage = tensor.untyped_storage()
        key = (tensor.device, storage.data_ptr())
        if key not in storages:
            storages[key] = storage.clone()  # type: ignore[no-untyped-call]
        place = (tensor.storage_offset(), tensor.size(), tensor.stride())
        return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(storages[key], *place)

    copied: dict[str, Any] = map_tensors(copy, checkpoint)
    return copied
