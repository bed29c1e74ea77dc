"""The precision of a module that runs in a DeepSpeed engine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from fulmen.errors import MisconfigurationException
from fulmen.fabric.errors import PlanError
from fulmen.fabric.precision.base import Precision, convert_floats, default_dtype
from fulmen.types import GradClipAlgorithmType

__all__ = ["DeepSpeedPrecision"]

_DTYPES = {
    "32-true": torch.float32,
    "16-true": torch.float16,
    "bf16-true": torch.bfloat16,
    "16-mixed": torch.float16,
    "bf16-mixed": torch.bfloat16,
}


class DeepSpeedPrecision(Precision):
    """Leaves scaling, backward pass, clipping and step to the DeepSpeed engine.

    Args:
        precision: "32-true", "16-true", "bf16-true", "16-mixed" or "bf16-mixed".

    Raises:
        PlanError: Another precision.
    """

    def __init__(self, precision: str) -> None:
        if precision not in _DTYPES:
            raise PlanError(
                f"DeepSpeedPrecision(precision={precision!r}) is not known. Type one of: {', '.join(_DTYPES)}",
                subject=precision,
            )
        self.precision = precision
        self._dtype = _DTYPES[precision]
        self._is_true = precision.endswith("-true")

    @property
    def engine_config(self) -> dict[str, Any]:
        """The part of DeepSpeed's configuration that is about the type of floating point numbers."""
        if self._dtype is torch.float32:
            return {}
        return {"fp16" if self._dtype is torch.float16 else "bf16": {"enabled": True}}

    def convert_module(self, module: nn.Module) -> nn.Module:
        """The module in the 16-bit type of a "true" precision; in a mixed one the engine converts it."""
        return module.to(dtype=self._dtype) if self._is_true else module

    def convert_input(self, data: Any) -> Any:
        """The batch in the type in which the engine computes."""
        return convert_floats(data, self._dtype)

    def convert_output(self, data: Any) -> Any:
        """What a module gave, with its floating point tensors in torch's default type."""
        return convert_floats(data, torch.get_default_dtype())

    def module_init_context(self) -> AbstractContextManager[Any]:
        """The type of the parameters is the default for new tensors."""
        return self.tensor_init_context()

    def tensor_init_context(self) -> AbstractContextManager[Any]:
        """The type of the parameters is the default for new tensors."""
        return default_dtype(self._dtype) if self._is_true else nullcontext()

    def backward(
        self,
        tensor: Tensor,
        model: nn.Module | None,
        optimizer: Optimizer | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Compute the gradients with the engine.

        Args:
            tensor: The loss.
            model: The engine, or the `LightningModule` whose trainer holds it.
            optimizer: Not used: the engine has it.
            *args: Positional arguments of the engine's `backward`.
            **kwargs: Keyword arguments of the engine's `backward`.
        """
        _engine_of(model).backward(tensor, *args, **kwargs)

    def optimizer_step(
        self,
        optimizer: Optimizer,
        model: nn.Module | None = None,
        closure: Callable[[], Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Update the parameters with the engine.

        Args:
            optimizer: Only looked at: the engine has it.
            model: The engine, or the `LightningModule` whose trainer holds it.
            closure: Computes the loss and the gradients; None if they are there already.
            **kwargs: Passed on to the engine's `step`.

        Returns:
            The loss, if there is a closure; else what the engine returned.

        Raises:
            MisconfigurationException: The optimizer is LBFGS, or the closure gave no loss in automatic optimisation.
        """
        self.check_optimizer(optimizer)
        loss = None if closure is None else closure()
        if closure is not None and loss is None and getattr(model, "automatic_optimization", False):
            raise MisconfigurationException(
                "`training_step` returned None, which would skip the batch; DeepSpeed cannot skip one. Return the "
                "loss, for instance `loss * 0`."
            )
        stepped = _engine_of(model).step(**kwargs)
        return stepped if closure is None else loss

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Refuse LBFGS: the engine evaluates the loss once in a step.

        Raises:
            MisconfigurationException: It is LBFGS.
        """
        if isinstance(optimizer, LBFGS):
            raise MisconfigurationException(
                "LBFGS does not work with DeepSpeed: it evaluates the loss several times within one step.",
                subject=optimizer,
            )

    def clip_gradients(
        self,
        optimizer: Optimizer,
        clip_val: float | None = 0.0,
        gradient_clip_algorithm: GradClipAlgorithmType | str = GradClipAlgorithmType.NORM,
    ) -> None:
        """Nothing: the engine clips, by its own configuration."""


def _engine_of(model: Any) -> Any:
    """The engine: the model itself, or what the trainer of a `LightningModule` runs."""
    if model is None:
        raise RuntimeError(
            "DeepSpeed computes gradients and steps with its engine, and none was given. Type: "
            "fabric.backward(loss, model=model)"
        )
    return model.trainer.model if hasattr(model, "automatic_optimization") else model
