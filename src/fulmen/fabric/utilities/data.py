"""What is known about a loader."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from torch.utils.data import IterableDataset

from fulmen.checkpoint.hyperparameters import AttributeDict
from fulmen.data.loaders import suggested_max_num_workers
from fulmen.ranks import rank_zero_warn

__all__ = ["AttributeDict", "has_iterable_dataset", "has_len", "sized_len", "suggested_max_num_workers"]


def has_iterable_dataset(dataloader: object) -> bool:
    """Whether a loader reads an `IterableDataset`."""
    return isinstance(getattr(dataloader, "dataset", None), IterableDataset)


def sized_len(dataloader: object) -> int | None:
    """The length of a loader, None if it has none."""
    try:
        return len(dataloader)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None


def has_len(dataloader: Any) -> bool:
    """Whether a loader has a length.

    Args:
        dataloader: Any iterable.

    Warns:
        UserWarning: The length is 0, or comes from an iterable dataset, whose workers may each give so much.
    """
    length = sized_len(dataloader)
    if length == 0:
        rank_zero_warn(f"`{type(dataloader).__name__}` has the length 0. If that is not meant, look at its dataset.")
    if length is not None and has_iterable_dataset(dataloader) and isinstance(dataloader.dataset, Sized):
        rank_zero_warn(
            "An `IterableDataset` has `__len__`. With several workers that is only right if each of them gives its own"
            " share (see `torch.utils.data.get_worker_info`)."
        )
    return length is not None
