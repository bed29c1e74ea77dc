"""Batches: to a device, from Python values to tensors and back."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fulmen.extras import available
from fulmen.tree import map_kind, map_tensors, move

__all__ = ["CONVERSION_DTYPES", "convert_tensors_to_scalars", "convert_to_tensors", "move_data_to_device"]

CONVERSION_DTYPES: list[tuple[type, Any]] = [
    (bool, partial(torch.tensor, dtype=torch.uint8)),
    (int, partial(torch.tensor, dtype=torch.int32)),
    (float, partial(torch.tensor, dtype=torch.float32)),
]
"""Which tensor becomes of a Python value, by its type."""


def move_data_to_device(batch: Any, device: torch.device | str | int) -> Any:
    """Moves every tensor in any nesting, and every other object with a `to` method, to a device.

    Args:
        batch: What to move.
        device: Where to.
    """
    return move(batch, device)


def convert_to_tensors(data: Any, device: torch.device | str | int) -> Any:
    """Turns the numbers and NumPy arrays of a nesting into tensors on a device; tensors are moved there.

    Args:
        data: Any nesting; what is neither of these is kept.
        device: Where the tensors go.
    """
    if available("numpy"):
        import numpy

        data = map_kind(numpy.ndarray, torch.from_numpy, data)
    return move(map_kind((bool, int, float), _as_tensor, data), device)


def _as_tensor(value: Any) -> Tensor:
    convert = next(convert for kind, convert in CONVERSION_DTYPES if isinstance(value, kind))
    tensor: Tensor = convert(value)
    return tensor


def convert_tensors_to_scalars(data: Any) -> Any:
    """Turns the tensors of a nesting into Python numbers.

    Args:
        data: Any nesting; what is no tensor is kept.

    Raises:
        ValueError: A tensor has more than one element, or none.
    """
    return map_tensors(_as_scalar, data)


def _as_scalar(value: Tensor) -> float | int | bool:
    if value.numel() != 1:
        raise ValueError(
            f"A tensor of shape {tuple(value.shape)} is no scalar; only one element can become a number. Reduce it"
            " first, for instance with `.mean()`."
        )
    return value.item()
