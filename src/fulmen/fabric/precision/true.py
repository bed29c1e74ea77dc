"""Precisions in which module, inputs and new tensors all have one type."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from fulmen.fabric.errors import PlanError
from fulmen.fabric.precision.base import Precision, convert_floats, default_dtype

__all__ = ["DoublePrecision", "HalfPrecision", "TruePrecision"]


class TruePrecision(Precision):
    """Module, inputs and new tensors all in one type.

    Args:
        precision: Name of the precision.
        dtype: The type.
    """

    def __init__(self, precision: str, dtype: torch.dtype) -> None:
        self.precision = precision
        self._dtype = dtype

    def convert_module(self, module: nn.Module) -> nn.Module:
        """The module with its floating point parameters and buffers in this type."""
        return module.to(dtype=self._dtype)

    def convert_input(self, data: Any) -> Any:
        """The batch with its floating point tensors in this type."""
        return convert_floats(data, self._dtype)

    def convert_output(self, data: Any) -> Any:
        """What a module gave, with its floating point tensors in torch's default type."""
        return convert_floats(data, torch.get_default_dtype())

    def module_init_context(self) -> AbstractContextManager[Any]:
        """This type is the default for new tensors."""
        return default_dtype(self._dtype)

    def tensor_init_context(self) -> AbstractContextManager[Any]:
        """This type is the default for new tensors."""
        return default_dtype(self._dtype)

    def forward_context(self) -> AbstractContextManager[Any]:
        """This type is the default for new tensors."""
        return default_dtype(self._dtype)


class DoublePrecision(TruePrecision):
    """64-bit training ("64-true")."""

    precision = "64-true"

    def __init__(self) -> None:
        super().__init__("64-true", torch.float64)


class HalfPrecision(TruePrecision):
    """16-bit training: parameters, gradients and inputs.

    Args:
        precision: "16-true" (float16) or "bf16-true" (bfloat16).

    Raises:
        PlanError: Another precision.
    """

    precision = "16-true"

    def __init__(self, precision: str = "16-true") -> None:
        dtypes = {"16-true": torch.float16, "bf16-true": torch.bfloat16}
        if precision not in dtypes:
            raise PlanError(
                f"HalfPrecision(precision={precision!r}) is not known. Type: '16-true' or 'bf16-true'",
                subject=precision,
            )
        super().__init__(precision, dtypes[precision])
