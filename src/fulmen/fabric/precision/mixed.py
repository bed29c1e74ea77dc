"""Mixed precisions: 32-bit parameters, 16-bit computation, and a scaled loss where float16 needs it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import LBFGS, Optimizer

from fulmen.errors import MisconfigurationException
from fulmen.fabric.errors import PlanError
from fulmen.fabric.overriding import plain
from fulmen.fabric.precision.base import Precision, convert_floats, unscales_itself

__all__ = ["MixedPrecision", "ScalingPrecision"]


class ScalingPrecision(Precision):
    """A precision that may scale the loss, against underflow of float16 gradients.

    Args:
        scaler: Scales the loss; None leaves that to `make_scaler`.
    """

    def __init__(self, scaler: GradScaler | None = None) -> None:
        self._scaler = scaler
        self._num_scaled = 0
        # optimizers between unscaling and step -> how many losses had been scaled at their unscaling
        self._unscaled: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_unscaled": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_unscaled": WeakKeyDictionary(state["_unscaled"])})

    @property
    def scaler(self) -> GradScaler | None:
        """Scales the loss; None without scaling."""
        if self._scaler is None:
            self._scaler = self.make_scaler()  # not before it is used: it asks the device whether it is there
        return self._scaler

    @scaler.setter
    def scaler(self, scaler: GradScaler | None) -> None:
        self._scaler = scaler

    def make_scaler(self) -> GradScaler | None:
        """The scaler of this precision where none was given; None without scaling."""
        return None

    @plain  # where there is a scaler, a loop calls this anyway; the same holds for `unscale_gradients`
    def scale_loss(self, loss: Tensor) -> Tensor:
        """The loss times the scale; the loss itself without scaling."""
        if self.scaler is None:
            return loss
        self._num_scaled += 1
        return self.scaler.scale(loss)

    @plain
    def unscale_gradients(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the scale; left to optimizers that do so themselves.

        A second call does nothing.

        Raises:
            RuntimeError: The last unscaled gradients were not applied by a step, and newer ones were added.
        """
        if self.scaler is None or unscales_itself(optimizer) or self._unscaled.get(optimizer) == self._num_scaled:
            return
        self.scaler.unscale_(optimizer)
        self._unscaled[optimizer] = self._num_scaled

    @plain
    def optimizer_step(
        self,
        optimizer: Optimizer,
        model: nn.Module | None = None,
        closure: Callable[[], Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Update the parameters, unless a gradient overflowed; then adapt the scale.

        The closure, if there is one, runs first, as the gradients it makes have to be looked at before the step. If it
        returns no loss in automatic optimisation, nothing is updated.
        """
        if self.scaler is None:
            return super().optimizer_step(optimizer, model, closure, **kwargs)
        result = None if closure is None else closure()
        if closure is not None and result is None and getattr(model, "automatic_optimization", False):
            return None
        stepped = self.scaler.step(optimizer, **kwargs)
        self._unscaled.pop(optimizer, None)
        # The scale must not change while another optimizer holds gradients that are unscaled and not yet applied:
        # `update` would forget that they are, and its step would unscale them again.
        if not self._unscaled:
            self.scaler.update()
        return stepped if closure is None else result

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Refuse LBFGS with a scaled loss: it evaluates the closure within its step.

        Raises:
            MisconfigurationException: It is LBFGS, and the loss is scaled.
        """
        if self.scaler is not None and isinstance(optimizer, LBFGS):
            raise MisconfigurationException(
                f"LBFGS does not work with precision={self.precision!r}: it evaluates the loss several times within "
                "one step, and a scaled loss allows for one. Type: precision='bf16-mixed' or '32-true'",
                subject=optimizer,
            )

    def state_dict(self) -> dict[str, Any]:
        """The scaler's state; empty without a scaler."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put the scaler back; nothing without a scaler."""
        if self.scaler is not None:
            self.scaler.load_state_dict(state_dict)


class MixedPrecision(ScalingPrecision):
    """32-bit parameters, with 16-bit computation where autocast finds it safe.

    Args:
        precision: "16-mixed" (float16, with a scaled loss) or "bf16-mixed" (bfloat16).
        device: Type of the device: "cuda", "cpu", ...
        scaler: Scales the loss of "16-mixed"; None for `torch.amp.GradScaler` with its defaults.

    Raises:
        PlanError: Another precision, or a scaler with "bf16-mixed", whose range needs none.
    """

    def __init__(self, precision: str, device: str, scaler: GradScaler | None = None) -> None:
        if precision not in ("16-mixed", "bf16-mixed"):
            raise PlanError(
                f"MixedPrecision(precision={precision!r}) is not known. Type: '16-mixed' or 'bf16-mixed'",
                subject=precision,
            )
        if precision == "bf16-mixed" and scaler is not None:
            raise PlanError(
                f"'bf16-mixed' scales no loss, got scaler={scaler}. Leave it out, or type precision='16-mixed'",
                subject=scaler,
            )
        super().__init__(scaler)
        self.precision = precision
        self.device = device
        self._kind = torch.device(device).type
        self._dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16

    def make_scaler(self) -> GradScaler | None:
        """A `GradScaler` with its defaults for "16-mixed"; None for "bf16-mixed"."""
        return GradScaler(self._kind) if self._dtype is torch.float16 else None

    def convert_forward_input(self, data: Any) -> Any:
        """The arguments in float32, the type of the parameters."""
        return convert_floats(self.convert_input(data), torch.float32)

    def convert_output(self, data: Any) -> Any:
        """What a module gave, with its floating point tensors in torch's default type."""
        return convert_floats(data, torch.get_default_dtype())

    def autocast_context_manager(self) -> torch.autocast:
        """Autocast to the 16-bit type."""
        return torch.autocast(self._kind, dtype=self._dtype)

    def forward_context(self) -> AbstractContextManager[Any]:
        """Autocast to the 16-bit type."""
        return self.autocast_context_manager()
