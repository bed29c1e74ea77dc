"""What is known about a batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from torch import Tensor

from fulmen.errors import MisconfigurationException
from fulmen.tree import batch_size_of

__all__ = ["BType", "extract_batch_size"]

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
