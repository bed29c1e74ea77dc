"""Facts about single loaders, and changed copies of them; a user's loader is never written to."""

from __future__ import annotations

import copy
import functools
import multiprocessing
import os
from collections.abc import Callable, Mapping
from math import inf
from typing import Any

from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from fulmen.errors import PossibleUserWarning
from fulmen.ranks import rank_zero_only, rank_zero_warn

__all__ = [
    "copy_with",
    "hint_shuffle",
    "hint_workers",
    "is_random",
    "is_stateful",
    "length_of",
    "samples_in",
    "seeded_workers",
    "sequential_copy",
    "set_epoch",
    "shuffles",
    "shut_down",
]

_RANDOM_SAMPLERS = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


def length_of(loader: Any) -> int | float:
    """Number of batches `loader` says it has; inf if it does not know."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return inf


def is_stateful(loader: Any) -> bool:
    """Whether the loader keeps its own position: it has `state_dict` and `load_state_dict`."""
    return callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None))


def is_random(sampler: Any) -> bool:
    """Whether the order of a sampler is a random one, as far as its class tells."""
    return isinstance(sampler, _RANDOM_SAMPLERS) or (isinstance(sampler, DistributedSampler) and sampler.shuffle)


def shuffles(loader: Any) -> bool:
    """Whether the order of the loader is a random one, as far as its sampler tells."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    return is_random(getattr(loader, "sampler", None)) or is_random(getattr(batch_sampler, "sampler", None))


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell the epoch to the loader's sampler and batch sampler, each once, where they want to know it."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    samplers = (getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    for sampler in {id(sampler): sampler for sampler in samplers}.values():
        if callable(tell := getattr(sampler, "set_epoch", None)):
            tell(epoch)


def samples_in(batch: Any) -> int | None:
    """Size of the first dimension of the first tensor in `batch`, depth first; None without a tensor."""
    if isinstance(batch, Tensor):
        return batch.size(0) if batch.ndim else 1
    if isinstance(batch, (list, tuple)):
        first = batch[0] if batch else None
        if isinstance(first, Tensor) and first.ndim:  # by far the most frequent batch
            return first.size(0)
    elif isinstance(batch, Mapping):
        batch = batch.values()
    else:
        return None
    return next((size for size in map(samples_in, batch) if size is not None), None)


def copy_with(loader: DataLoader[Any], **attributes: Any) -> DataLoader[Any]:
    """A shallow copy of `loader` with other attributes and without its running workers.

    The attributes go past `DataLoader.__setattr__`, which refuses to change samplers after the construction.
    """
    twin = copy.copy(loader)
    vars(twin).update(attributes, _iterator=None)
    return twin


def seeded_workers(loader: DataLoader[Any]) -> dict[str, Callable[[int], None]]:
    """The `worker_init_fn` that the loader's workers need after `seed_everything(workers=True)`, if any."""
    if os.environ.get("PL_SEED_WORKERS") != "1" or not loader.num_workers or loader.worker_init_fn is not None:
        return {}
    from fulmen.fabric.seed import pl_worker_init_function

    return {"worker_init_fn": functools.partial(pl_worker_init_function, rank=rank_zero_only.rank)}


def sequential_copy(loader: Any) -> Any:
    """The loader in the order of its dataset; the very same object if it has that order or no order to change."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader
    batch_sampler: Any = loader.batch_sampler
    chosen_by = loader.sampler if batch_sampler is None else getattr(batch_sampler, "sampler", batch_sampler)
    if isinstance(chosen_by, (SequentialSampler, list, tuple)):
        return loader
    sampler = SequentialSampler(loader.dataset)  # type: ignore[arg-type]
    if batch_sampler is None:
        return copy_with(loader, sampler=sampler)
    batch_size = getattr(batch_sampler, "batch_size", None)
    if not isinstance(batch_size, int):
        rank_zero_warn(
            f"The batch sampler {type(batch_sampler).__name__} has no `batch_size`, so it is not known how to put its "
            "samples in sequential order; it is kept as it is."
        )
        return loader
    batches = BatchSampler(sampler, batch_size, bool(getattr(batch_sampler, "drop_last", False)))
    return copy_with(loader, sampler=sampler, batch_sampler=batches)


def complete_copy(loader: Any) -> Any:
    """The loader with its last batch, also if that is smaller; the very same object if it leaves nothing out.

    Warns:
        PossibleUserWarning: A batch sampler that is not torch's own may leave something out.
    """
    batch_sampler: Any = getattr(loader, "batch_sampler", None)
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader
    if not getattr(batch_sampler, "drop_last", False):
        return loader
    if isinstance(batch_sampler, BatchSampler):
        complete = copy.copy(batch_sampler)
        complete.drop_last = False
        return copy_with(loader, batch_sampler=complete, drop_last=False)
    rank_zero_warn(
        f"The batch sampler {type(batch_sampler).__name__} of the predict loader has `drop_last=True`: samples may be "
        "left without a prediction. Make it with `drop_last=False`.",
        category=PossibleUserWarning,
        stacklevel=5,
    )
    return loader


def shut_down(loader: Any) -> None:
    """End the persistent workers of a loader, if it has any."""
    iterator = getattr(loader, "_iterator", None)
    end_workers = getattr(iterator, "_shutdown_workers", None)
    if end_workers is not None:
        end_workers()
        loader._iterator = None


def hint_workers(loader: Any, name: str, *, reloading: bool = False) -> None:
    """Say what the settings of a loader's workers cost.

    Args:
        loader: Any loader; only a `DataLoader` has workers.
        name: Which one it is for the user, for instance "train".
        reloading: Whether the loader is replaced every few epochs.

    Warns:
        PossibleUserWarning: The loader might gain from more workers, or its workers do not fit the other settings.
        UserWarning: Workers are spawned anew in each epoch.
    """
    if not isinstance(loader, DataLoader):
        return
    if loader.num_workers > 0 and not loader.persistent_workers and _start_method(loader) == "spawn":
        rank_zero_warn(
            f"The {name} loader starts {loader.num_workers} workers by 'spawn' at every epoch, which is slow. Keep "
            "them: `DataLoader(..., persistent_workers=True)`.",
            stacklevel=5,
        )
    useful = suggested_max_num_workers(max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    if loader.num_workers < 2 and useful > 1:
        rank_zero_warn(
            f"The {name} loader has {loader.num_workers} workers, which may be a bottleneck. This process could use "
            f"up to {useful}: `DataLoader(..., num_workers={useful})`.",
            category=PossibleUserWarning,
            stacklevel=5,
        )
    if reloading and loader.pin_memory and loader.persistent_workers:
        rank_zero_warn(
            f"The {name} loader has `pin_memory=True` and persistent workers and is replaced every few epochs; the "
            "threads and memory of the old ones may stay. Set one of the two to False.",
            category=PossibleUserWarning,
            stacklevel=5,
        )


def _start_method(loader: DataLoader[Any]) -> str | None:
    context = loader.multiprocessing_context
    return multiprocessing.get_start_method() if context is None else str(context.get_start_method())


def suggested_max_num_workers(local_world_size: int) -> int:
    """The most workers a loader should have: every process of this machine gets the same share of its CPUs.

    Args:
        local_world_size: Number of processes on this machine.

    Raises:
        ValueError: It is less than 1.
    """
    if local_world_size < 1:
        raise ValueError(f"`suggested_max_num_workers({local_world_size})`: there is at least 1 process on a machine.")
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, num_cpus // local_world_size - 1)


def hint_shuffle(loader: Any, name: str) -> None:
    """Say that a loader for evaluation shuffles.

    Warns:
        PossibleUserWarning: It does.
    """
    if shuffles(loader):
        rank_zero_warn(
            f"The {name} loader shuffles, which makes results hard to compare. Leave it out: "
            "`DataLoader(..., shuffle=False)`.",
            category=PossibleUserWarning,
            stacklevel=5,
        )
