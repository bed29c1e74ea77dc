"""The precision of TPUs and other devices of torch_xla."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from fulmen.extras import need
from fulmen.fabric.errors import PlanError
from fulmen.fabric.precision.base import Precision

__all__ = ["XLABf16Precision", "XLAPrecision"]

_VARIABLES = {"32-true": None, "16-true": "XLA_USE_F16", "bf16-true": "XLA_USE_BF16"}


class XLAPrecision(Precision):
    """The type in which torch_xla computes, set by its environment variables until `teardown`.

    Args:
        precision: "32-true", "16-true" or "bf16-true".

    Raises:
        PlanError: Another precision.
        ModuleNotFoundError: The package torch_xla is not installed.
    """

    def __init__(self, precision: str = "32-true") -> None:
        need("torch_xla")
        if precision not in _VARIABLES:
            raise PlanError(
                f"XLAPrecision(precision={precision!r}) is not known. Type one of: {', '.join(_VARIABLES)}",
                subject=precision,
            )
        self.precision = precision
        self._variable = _VARIABLES[precision]
        if self._variable is not None:
            os.environ[self._variable] = "1"

    def optimizer_step(
        self,
        optimizer: Optimizer,
        model: nn.Module | None = None,
        closure: Callable[[], Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Update the parameters through torch_xla, which first reduces the gradients over the devices.

        Args:
            optimizer: The optimizer.
            model: Not needed.
            closure: Computes the loss and the gradients, and runs first; None if they are there already.
            **kwargs: Passed on to the optimizer.

        Returns:
            What the closure, or without one the optimizer, returned.
        """
        result = None if closure is None else closure()
        skips = closure is not None and result is None and getattr(model, "automatic_optimization", False)
        stepped = None if skips else need("torch_xla.core.xla_model").optimizer_step(optimizer, optimizer_args=kwargs)
        return stepped if closure is None else result

    def teardown(self) -> None:
        """Take the environment variable back."""
        if self._variable is not None:
            os.environ.pop(self._variable, None)


class XLABf16Precision(XLAPrecision):
    """`XLAPrecision("bf16-true")`."""

    def __init__(self) -> None:
        super().__init__("bf16-true")
