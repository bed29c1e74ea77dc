"""64-bit training, and a wrapper that computes in 64 bit whoever calls it."""

from __future__ import annotations

from typing import Any

from torch import nn

from fulmen.fabric.precision import DoublePrecision

__all__ = ["DoublePrecision", "LightningDoublePrecisionModule"]


class LightningDoublePrecisionModule(nn.Module):
    """A module whose forward and steps take and compute in 64 bit, as `DoublePrecision` lets a Trainer do.

    Args:
        pl_module: The module; its parameters have to be in 64 bit.
    """

    def __init__(self, pl_module: nn.Module) -> None:
        super().__init__()
        self.module = pl_module

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The module's `training_step` in 64 bit."""
        return self._call("training_step", args, kwargs)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """The module's `validation_step` in 64 bit."""
        return self._call("validation_step", args, kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """The module's `test_step` in 64 bit."""
        return self._call("test_step", args, kwargs)

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """The module's `predict_step` in 64 bit."""
        return self._call("predict_step", args, kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward in 64 bit."""
        return self._call("__call__", args, kwargs)

    def _call(self, name: str, args: Any, kwargs: Any) -> Any:
        precision = DoublePrecision()
        args, kwargs = precision.convert_input((args, kwargs))
        with precision.forward_context():
            return getattr(self.module, name)(*args, **kwargs)
