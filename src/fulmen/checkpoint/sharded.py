"""Checkpoints of which each process writes its part: a directory with shards and, for the rest, `meta.pt`.

The shards are those of `torch.distributed.checkpoint`: any number of processes reads what any other number wrote, and a
single process needs no process group. A directory has its name only when it is complete.

| in the directory | holds |
|---|---|
| `__<rank>_<n>.distcp` | the parts of the tensors |
| `.metadata` | which part is where |
| `meta.pt` | all that is not spread over processes, written by `torch.save` |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fulmen.checkpoint.format import (
    CALLBACKS,
    EPOCH,
    GLOBAL_STEP,
    LOOPS,
    LR_SCHEDULERS,
    OPTIMIZER_STATES,
    STATE_DICT,
    VERSION,
)
from fulmen.paths import exists, join

__all__ = [
    "is_sharded",
    "load_sharded",
    "numbered",
    "prepare_sharded",
    "read_meta",
    "read_sharded",
    "save_sharded",
    "split",
]

META = "meta.pt"
METADATA = ".metadata"
_OPTIMIZER = "optimizer_"
_MODEL = "model"  # what Lightning's FSDP calls the state dict
_ORDER = (EPOCH, GLOBAL_STEP, VERSION, STATE_DICT, LOOPS, CALLBACKS, OPTIMIZER_STATES, LR_SCHEDULERS)


def is_sharded(path: str | Path) -> bool:
    """Whether there is a complete sharded checkpoint at a path or URL."""
    return exists(join(path, META)) and exists(join(path, METADATA))


# ------------------------------------------------------------------------------------------------ writing


def save_sharded(path: str | Path, state: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Saves a checkpoint of which each process has a part; called by all processes.

    What fails on one process is raised on all. The parts go to a temporary directory beside, which gets its name after
    everything is on the disk; a checkpoint that was at `path` is as it was until then.

    Args:
        path: The directory; all processes have to see the same one. An earlier checkpoint there is replaced.
        state: Nested dicts whose tensors are written by those who have them: DTensors, or tensors that are the same
            on all processes.
        meta: Everything else, as rank 0 has it.

    Raises:
        IsADirectoryError: At `path` is a directory with something else in it.
        OSError: The place cannot be written to.
        CheckpointError: An entry of `meta` cannot be pickled.
    """
    prepare_sharded(path, state, meta, copy=False)()


def prepare_sharded(
    path: str | Path, state: Mapping[str, Any], meta: Mapping[str, Any], copy: bool = True
) -> Callable[[], None]:
    """As `save_sharded`, without the writing: that is done by the function that is returned, in a thread if you like.

    Args:
        path: The directory.
        state: Nested dicts of tensors.
        meta: Everything else.
        copy: Whether this process copies what it will write to the host, so that the tensors may be changed now.

    Returns:
        Writes the checkpoint; called by all processes, on all in the same order if there are several.
    """
    from fulmen.checkpoint.shards import Writing

    return Writing.prepare(path, state, meta, copy).run


def split(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divides a checkpoint into `state` and `meta` of `save_sharded`.

    Of the checkpoint of a run, "state_dict", "optimizer_states" (as "optimizer_0", "optimizer_1", ...) and whatever
    else holds DTensors are state; of any other dict, the entries that hold tensors.
    """
    state: dict[str, Any] = {}
    meta: dict[str, Any] = {}
    is_run = VERSION in checkpoint
    for key, value in checkpoint.items():
        if is_run and key == OPTIMIZER_STATES:
            state |= {f"{_OPTIMIZER}{number}": each for number, each in enumerate(value)}
        elif (is_run and key == STATE_DICT) or (isinstance(value, Mapping) and _holds(value, spread=is_run)):
            state[key] = value
        else:
            meta[key] = value
    return state, meta


def _holds(tree: Any, spread: bool) -> bool:
    """Whether there are tensors in nested containers; with `spread`, such of which each process has a part."""
    if isinstance(tree, Tensor):
        return not spread or hasattr(tree, "device_mesh")
    if isinstance(tree, Mapping):
        return any(_holds(child, spread) for child in tree.values())
    return isinstance(tree, (list, tuple)) and any(_holds(child, spread) for child in tree)


# ------------------------------------------------------------------------------------------------ reading


def read_meta(path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
    """What of a sharded checkpoint is not spread over processes.

    Args:
        path: The directory.
        weights_only: As for `torch.load`; False unpickles anything, so only for files you trust.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It cannot be read, or holds what `weights_only` refuses.
    """
    from fulmen.checkpoint.store import read, to_cpu

    meta: dict[str, Any] = read(join(path, META), to_cpu, weights_only)
    return meta


def load_sharded(
    path: str | Path, state: Mapping[str, Any], *, strict: bool = True, weights_only: bool | None = None
) -> dict[str, Any]:
    """Reads a sharded checkpoint into given tensors, in place; each process for itself.

    Args:
        path: The directory.
        state: Nested dicts. Tensors are filled, each process reading only the part it has of a DTensor; what is no
            tensor is replaced if it was saved.
        strict: Whether tensors may neither be missing in the checkpoint nor be left over in the entries of `state`.
        weights_only: As for `torch.load`; False unpickles anything, so only for files you trust.

    Returns:
        As `read_meta`.

    Raises:
        FileNotFoundError: There is no sharded checkpoint.
        CheckpointError: It cannot be read, or does not fit: with names and shapes.
    """
    from fulmen.checkpoint import shards

    shards.load(path, state, strict, weights_only)
    return read_meta(path, weights_only)


def read_sharded(
    path: str | Path, like: Mapping[str, Tensor] | None = None, weights_only: bool | None = None
) -> dict[str, Any]:
    """The whole of a sharded checkpoint, as the dict that was saved; each process for itself.

    Args:
        path: The directory.
        like: Names to tensors. What was saved under such a name (weights, states of an optimizer, averages) and has its
            shape becomes a tensor of that kind: a DTensor, of which this process reads its part, or one on that device.
            Everything else is read completely, to the CPU.
        weights_only: As for `torch.load`; False unpickles anything, so only for files you trust.

    Returns:
        The checkpoint, in the layout of single files: the states of optimizers go by number.

    Raises:
        FileNotFoundError: There is no sharded checkpoint.
        CheckpointError: It cannot be read, or holds what `weights_only` refuses.
    """
    from fulmen.checkpoint import shards

    state = shards.read(path, like or {}, weights_only)
    return _joined(state, read_meta(path, weights_only))


def _joined(state: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
    """The opposite of `split`, with the keys in the order of `format`."""
    whole = {key: numbered(each) if _is_optimizer_state(each) else each for key, each in (meta | state).items()}
    if VERSION not in meta:
        return whole
    if STATE_DICT not in whole:
        whole[STATE_DICT] = whole.pop(_MODEL, {})
    optimizers = sorted(filter(_is_optimizer, state), key=lambda key: int(key[len(_OPTIMIZER) :]))
    if optimizers or LR_SCHEDULERS in meta:  # an empty list leaves no trace in the shards
        whole[OPTIMIZER_STATES] = [whole.pop(key) for key in optimizers]
    return {key: whole[key] for key in _ORDER if key in whole} | whole


def _is_optimizer(key: str) -> bool:
    return key.startswith(_OPTIMIZER) and key[len(_OPTIMIZER) :].isdecimal()


# ------------------------------------------------------------------------------------------------ optimizers


def numbered(optimizer_state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of an optimizer by the numbers of its parameters, as `optimizer.load_state_dict` takes it.

    Args:
        optimizer_state: By names, as in shards; one by numbers stays as it is.
    """
    groups = optimizer_state["param_groups"]
    order = [str(name) for group in groups for name in group["params"]]
    number_of = {name: number for number, name in enumerate(order)}
    by_name = {str(name): value for name, value in optimizer_state.get("state", {}).items()}
    state = {number_of[name]: by_name[name] for name in order if name in by_name}
    numbers = iter(range(len(order)))
    return {
        "state": state,
        "param_groups": [{**group, "params": [next(numbers) for _ in group["params"]]} for group in groups],
    }


def _is_optimizer_state(value: Any) -> bool:
    return isinstance(value, Mapping) and "param_groups" in value and {*value} <= {"state", "param_groups"}
