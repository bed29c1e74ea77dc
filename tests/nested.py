"""What tests of checkpoints need for nested containers."""

from typing import Any

import torch

__all__ = ["same"]


def same(first: Any, second: Any) -> bool:
    """Whether two nested containers have equal keys, in the same order, and equal values."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)
