"""What is known about a batch, and about the loaders of all processes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from fulmen.data.feed import check_length
from fulmen.errors import MisconfigurationException
from fulmen.fabric.utilities.data import sized_len
from fulmen.tree import batch_size_of

if TYPE_CHECKING:
    from fulmen.fabric.strategies.base import Strategy

__all__ = ["BType", "extract_batch_size", "has_len_all_ranks"]

BType: TypeAlias = Tensor | str | Mapping[Any, "BType"] | Iterable["BType"]
"""A batch: tensors in any nesting."""


def extract_batch_size(batch: BType) -> int:
    """The number of samples in a batch: the first dimension of its first tensor.

    Args:
        batch: Tensors in any nesting.

    Raises:
        MisconfigurationException: There is no tensor.
    """
    size = batch_size_of(batch)
    if size is None:
        raise MisconfigurationException(
            f"The batch ({type(batch).__name__}) holds no tensor to read its size from. Give it:"
            " `self.log(..., batch_size=batch_size)`.",
            subject=batch,
        )
    return size


def has_len_all_ranks(
    dataloader: object, strategy: Strategy, allow_zero_length_dataloader_with_multiple_devices: bool = False
) -> bool:
    """Whether a loader has a length, and no process would wait for batches of others. All of them have to ask.

    Args:
        dataloader: The loader of this process.
        strategy: Through it the processes talk.
        allow_zero_length_dataloader_with_multiple_devices: Whether it may be empty when those of others are not.

    Raises:
        RuntimeError: It is empty, those of others are not, and that is not allowed.

    Warns:
        UserWarning: All loaders are empty; or this one, and that is allowed; or its dataset is an `IterableDataset`
            with a length.
    """

    def sum_over_ranks(number: int) -> int:
        return int(strategy.reduce(torch.tensor(number, device=strategy.root_device), reduce_op="sum"))

    length = sized_len(dataloader)
    check_length(
        dataloader,
        math.inf if length is None else length,
        f"`{type(dataloader).__name__}`",
        sum_over_ranks,
        allow_zero_length_dataloader_with_multiple_devices,
    )
    return length is not None
