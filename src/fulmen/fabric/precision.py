"""Precisions: in which floating point type a module computes, and what that asks of the loss and the optimizer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import LBFGS, Optimizer

from fulmen.errors import MisconfigurationException
from fulmen.fabric.errors import PlanError
from fulmen.tree import map_tensors

__all__ = ["DoublePrecision", "HalfPrecision", "MixedPrecision", "Precision"]

F = TypeVar("F", bound=Callable[..., Any])

_NOTHING: AbstractContextManager[None] = nullcontext()


class Precision:
    """32-bit training: nothing is changed. Also the base of all others.

    Attributes:
        precision: Name of the precision, as users type it.
    """

    precision: str = "32-true"

    @property
    def scaler(self) -> GradScaler | None:
        """What scales the loss against underflow of float16 gradients; None without scaling."""
        return None

    def convert_module(self, module: nn.Module) -> nn.Module:
        """The module with its parameters in this precision."""
        return module

    def convert_input(self, data: Any) -> Any:
        """The batch with its floating point tensors in the type the module expects."""
        return data

    def convert_output(self, data: Any) -> Any:
        """What a module gave, with its floating point tensors in torch's default type."""
        return data

    def convert_forward_input(self, data: Any) -> Any:
        """The arguments of a module that is called from a loop of the user's own."""
        return self.convert_input(data)

    def module_init_context(self) -> AbstractContextManager[Any]:
        """Context in which new modules get this precision."""
        return _NOTHING

    def tensor_init_context(self) -> AbstractContextManager[Any]:
        """Context in which new tensors get this precision."""
        return _NOTHING

    def forward_context(self) -> AbstractContextManager[Any]:
        """Context in which a forward pass runs."""
        return _NOTHING

    def wrap_forward(self, fn: F) -> F:
        """`fn` under `forward_context`; `fn` itself where that context does nothing."""
        if type(self).forward_context is Precision.forward_context:
            return fn

        @functools.wraps(fn)
        def forward(*args: Any, **kwargs: Any) -> Any:
            with self.forward_context():
                return fn(*args, **kwargs)

        return forward  # type: ignore[return-value]

    def scale_loss(self, loss: Tensor) -> Tensor:
        """The loss to call `backward` on."""
        return loss

    def unscale_gradients(self, optimizer: Optimizer) -> None:
        """Bring scaled gradients back to their true size; a second call before the step does nothing."""

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters.

        Args:
            optimizer: The optimizer.
            closure: Computes the loss and the gradients; None if they are there already.

        Returns:
            What the optimizer, or the closure, returned.
        """
        return optimizer.step() if closure is None else optimizer.step(closure)

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Refuse an optimizer that cannot work in this precision.

        Raises:
            MisconfigurationException: It cannot.
        """

    def check_clipping(self, optimizer: Optimizer) -> None:
        """Refuse to clip where the true gradients are not at hand.

        Raises:
            RuntimeError: The gradients are scaled and it is this optimizer that unscales them, inside its step.
        """
        if self.scaler is not None and _unscales_itself(optimizer):
            raise RuntimeError(
                f"Gradients cannot be clipped with precision={self.precision!r} and {type(optimizer).__name__}("
                "fused=True): the optimizer unscales them inside its step. Type: fused=False, or do not clip."
            )

    def clip_gradients(
        self, optimizer: Optimizer, clip_val: float | None = 0.0, gradient_clip_algorithm: str = "norm"
    ) -> None:
        """Clip the gradients of all parameters of the optimizer, in place.

        Args:
            optimizer: Whose parameters.
            clip_val: The largest norm, or absolute value, that is let through; None or <= 0: all is.
            gradient_clip_algorithm: "norm" or "value".

        Raises:
            RuntimeError: The gradients are scaled and it is this optimizer that unscales them, inside its step.
        """
        if clip_val is None or clip_val <= 0:
            return
        self.check_clipping(optimizer)
        if gradient_clip_algorithm == "value":
            self.clip_grad_by_value(optimizer, clip_val)
        else:
            self.clip_grad_by_norm(optimizer, clip_val)

    def clip_grad_by_value(self, optimizer: Optimizer, clip_val: float) -> None:
        """Clip each element of the gradients to [-clip_val, clip_val]."""
        nn.utils.clip_grad_value_(self.main_params(optimizer), clip_val)

    def clip_grad_by_norm(self, optimizer: Optimizer, clip_val: float) -> None:
        """Scale the gradients down to a total norm of `clip_val`, if it is larger."""
        nn.utils.clip_grad_norm_(self.main_params(optimizer), clip_val)

    def main_params(self, optimizer: Optimizer) -> Iterator[nn.Parameter]:
        """The parameters of the optimizer, group by group."""
        for group in optimizer.param_groups:
            yield from group["params"]

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint, under the name of the class; empty if there is none."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave."""

    def teardown(self) -> None:
        """Undo what was set up."""


class _TruePrecision(Precision):
    """Module, inputs and new tensors all in one type."""

    def __init__(self, precision: str, dtype: torch.dtype) -> None:
        self.precision = precision
        self._dtype = dtype

    def convert_module(self, module: nn.Module) -> nn.Module:
        """The module with its floating point parameters and buffers in this type."""
        return module.to(dtype=self._dtype)

    def convert_input(self, data: Any) -> Any:
        """The batch with its floating point tensors in this type."""
        return _convert_floats(data, self._dtype)

    def convert_output(self, data: Any) -> Any:
        """What a module gave, with its floating point tensors in torch's default type."""
        return _convert_floats(data, torch.get_default_dtype())

    def module_init_context(self) -> AbstractContextManager[Any]:
        """This type is the default for new tensors."""
        return _default_dtype(self._dtype)

    def tensor_init_context(self) -> AbstractContextManager[Any]:
        """This type is the default for new tensors."""
        return _default_dtype(self._dtype)

    def forward_context(self) -> AbstractContextManager[Any]:
        """This type is the default for new tensors."""
        return _default_dtype(self._dtype)


class DoublePrecision(_TruePrecision):
    """64-bit training ("64-true")."""

    precision = "64-true"

    def __init__(self) -> None:
        super().__init__("64-true", torch.float64)


class HalfPrecision(_TruePrecision):
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


class MixedPrecision(Precision):
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
        self.precision = precision
        self.device = device
        self._scaler = scaler
        self._kind = torch.device(device).type
        self._dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
        self._num_scaled = 0
        # optimizers between unscaling and step -> how many losses had been scaled at their unscaling
        self._unscaled: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()

    @property
    def scaler(self) -> GradScaler | None:
        """Scales the loss of "16-mixed"; None with "bf16-mixed"."""
        if self._scaler is None and self._dtype is torch.float16:
            self._scaler = GradScaler(self._kind)  # not before: it asks the device whether it is there
        return self._scaler

    @scaler.setter
    def scaler(self, scaler: GradScaler | None) -> None:
        self._scaler = scaler

    def convert_forward_input(self, data: Any) -> Any:
        """The arguments in float32, the type of the parameters."""
        return _convert_floats(data, torch.float32)

    def convert_output(self, data: Any) -> Any:
        """What a module gave, with its floating point tensors in torch's default type."""
        return _convert_floats(data, torch.get_default_dtype())

    def forward_context(self) -> AbstractContextManager[Any]:
        """Autocast to the 16-bit type."""
        return torch.autocast(self._kind, dtype=self._dtype)

    def scale_loss(self, loss: Tensor) -> Tensor:
        """The loss times the scale; the loss itself without scaling."""
        if self.scaler is None:
            return loss
        self._num_scaled += 1
        return self.scaler.scale(loss)

    def unscale_gradients(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the scale; left to optimizers that do so themselves.

        A second call does nothing.

        Raises:
            RuntimeError: The last unscaled gradients were not applied by a step, and newer ones were added.
        """
        if self.scaler is None or _unscales_itself(optimizer) or self._unscaled.get(optimizer) == self._num_scaled:
            return
        self.scaler.unscale_(optimizer)
        self._unscaled[optimizer] = self._num_scaled

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters, unless a gradient overflowed; then adapt the scale.

        The closure, if there is one, runs first, as the gradients it makes have to be looked at before the step.
        """
        if self.scaler is None:
            return super().optimizer_step(optimizer, closure)
        result = None if closure is None else closure()
        stepped = self.scaler.step(optimizer)
        self._unscaled.pop(optimizer, None)
        # The scale must not change while another optimizer holds gradients that are unscaled and not yet applied:
        # `update` would forget that they are, and its step would unscale them again.
        if not self._unscaled:
            self.scaler.update()
        return stepped if closure is None else result

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Refuse LBFGS with a scaled loss: it evaluates the closure within its step.

        Raises:
            MisconfigurationException: It is LBFGS and the precision "16-mixed".
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


def _unscales_itself(optimizer: Optimizer) -> bool:
    """Whether the optimizer takes scaled gradients, as the fused ones of torch do."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def _convert_floats(data: Any, dtype: torch.dtype) -> Any:
    if isinstance(data, Tensor):
        return data.to(dtype) if data.is_floating_point() else data
    return map_tensors(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, data)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)
