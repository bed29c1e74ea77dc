"""What a precision is: hooks around the parts of a step, each of them empty in 32 bit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from fulmen.fabric.overriding import overrides, plain
from fulmen.tree import map_tensors
from fulmen.types import GradClipAlgorithmType

__all__ = ["Precision", "convert_floats", "default_dtype"]

F = TypeVar("F", bound=Callable[..., Any])

_NOTHING: AbstractContextManager[None] = nullcontext()


class Precision:
    """32-bit training: nothing is changed. Also the base of all others.

    A method that a subclass overrides is called by the Trainer and by `Fabric` at its place in the step:
    `train_step_context` around the user's step, then `pre_backward`, `scale_loss`, `backward`, `post_backward`,
    `unscale_gradients`, `clip_gradients`, `optimizer_step`. What is not overridden is passed by.

    Attributes:
        precision: Name of the precision, as users type it.
        clip_norm: Clips gradients by their norm; a strategy whose parameters are shards puts its own here.
        clip_value: Clips gradients by value, likewise.
    """

    precision: str = "32-true"
    clip_norm: Callable[..., Tensor] = staticmethod(nn.utils.clip_grad_norm_)
    clip_value: Callable[..., None] = staticmethod(nn.utils.clip_grad_value_)

    @property
    def scaler(self) -> GradScaler | None:
        """What scales the loss against underflow of float16 gradients; None without scaling."""
        return None

    @property
    def scales_loss(self) -> bool:
        """Whether gradients are those of a scaled loss until `unscale_gradients` is called."""
        return self.scaler is not None or overrides(self, "scale_loss") or overrides(self, "unscale_gradients")

    @property
    def changes_backward(self) -> bool:
        """Whether a plain `loss.backward()` would leave something out."""
        return self.scales_loss or _has_own_backward(type(self))  # type: ignore[arg-type]

    # Modules and data

    def convert_module(self, module: nn.Module) -> nn.Module:
        """The module with its parameters in this precision."""
        return module

    @plain
    def convert_input(self, data: Any) -> Any:
        """The batch with its floating point tensors in the type the module expects."""
        return data

    def convert_output(self, data: Any) -> Any:
        """What a module gave, with its floating point tensors in torch's default type; only `Fabric` asks for it."""
        return data

    def convert_forward_input(self, data: Any) -> Any:
        """The arguments of a module that is called from a loop of the user's own."""
        return self.convert_input(data)

    def connect(
        self, model: nn.Module, optimizers: list[Optimizer], lr_schedulers: list[Any]
    ) -> tuple[nn.Module, list[Optimizer], list[Any]]:
        """Called by the Trainer when all three are there; returns them, or what takes their place."""
        return model, optimizers, lr_schedulers

    # Contexts

    def module_init_context(self) -> AbstractContextManager[Any]:
        """Context in which new modules get this precision."""
        return _NOTHING

    def tensor_init_context(self) -> AbstractContextManager[Any]:
        """Context in which new tensors get this precision."""
        return _NOTHING

    @plain
    def forward_context(self) -> AbstractContextManager[Any]:
        """Context in which a forward pass runs."""
        return _NOTHING

    @plain
    def train_step_context(self) -> AbstractContextManager[Any]:
        """Context in which `training_step` runs."""
        return self.forward_context()

    @plain
    def val_step_context(self) -> AbstractContextManager[Any]:
        """Context in which `validation_step` runs."""
        return self.forward_context()

    @plain
    def test_step_context(self) -> AbstractContextManager[Any]:
        """Context in which `test_step` runs."""
        return self.forward_context()

    @plain
    def predict_step_context(self) -> AbstractContextManager[Any]:
        """Context in which `predict_step` runs."""
        return self.forward_context()

    def wrap_forward(self, fn: F, context: str = "forward_context") -> F:
        """`fn` under one of the contexts; `fn` itself where that does nothing.

        Args:
            fn: Any callable.
            context: Name of the method that makes the context: "train_step_context", ...
        """
        if not overrides(self, context) and not overrides(self, "forward_context"):
            return fn
        enter: Callable[[], AbstractContextManager[Any]] = getattr(self, context)

        @functools.wraps(fn)
        def forward(*args: Any, **kwargs: Any) -> Any:
            with enter():
                return fn(*args, **kwargs)

        return forward  # type: ignore[return-value]

    # Gradients

    @plain
    def pre_backward(self, tensor: Tensor, module: nn.Module | None) -> Any:
        """Called with the loss before it is scaled and its gradients are computed.

        Args:
            tensor: The loss.
            module: The module; None in a loop of the user's own that does not give it.

        Returns:
            The loss to go on with; None for the same.
        """
        return tensor

    @plain
    def scale_loss(self, loss: Tensor) -> Tensor:
        """The loss to call `backward` on; done by the loop, also where `backward` is overridden."""
        return loss

    @plain
    def backward(
        self,
        tensor: Tensor,
        model: nn.Module | None,
        optimizer: Optimizer | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Compute the gradients.

        Args:
            tensor: The loss, scaled where this precision scales it.
            model: The module; where it has a `backward` of its own, as a `LightningModule` has, that is called. None
                in a loop of the user's own that does not give it.
            optimizer: The optimizer they are for; None in manual optimisation and in a loop of the user's own.
            *args: Positional arguments of `Tensor.backward`.
            **kwargs: Keyword arguments of `Tensor.backward`.
        """
        compute: Any = getattr(model, "backward", None) or Tensor.backward
        compute(tensor, *args, **kwargs)

    @plain
    def post_backward(self, tensor: Tensor, module: nn.Module | None) -> Any:
        """Called after the gradients were computed; arguments as `pre_backward`, the loss as it was scaled."""
        return tensor

    def run_backward(
        self, loss: Tensor, model: nn.Module | None, optimizer: Optimizer | None, *args: Any, **kwargs: Any
    ) -> None:
        """All of the above in their order, for a loop that has no hooks in between; arguments as `backward`."""
        if not _has_own_backward(type(self)):  # type: ignore[arg-type]
            self.scale_loss(loss).backward(*args, **kwargs)  # type: ignore[no-untyped-call]
            return
        changed = self.pre_backward(loss, model)
        loss = self.scale_loss(loss if changed is None else changed)
        self.backward(loss, model, optimizer, *args, **kwargs)
        self.post_backward(loss, model)

    # The update

    @plain
    def unscale_gradients(self, optimizer: Optimizer) -> None:
        """Bring scaled gradients back to their true size; a second call before the step does nothing."""

    @plain
    def optimizer_step(
        self,
        optimizer: Optimizer,
        model: nn.Module | None = None,
        closure: Callable[[], Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Update the parameters.

        Args:
            optimizer: The optimizer.
            model: The module; None in a loop of the user's own.
            closure: Computes the loss and the gradients; None if they are there already.
            **kwargs: Passed on to the optimizer.

        Returns:
            What the optimizer, or the closure, returned.
        """
        return optimizer.step(**kwargs) if closure is None else optimizer.step(closure, **kwargs)

    def check_device(self, device: torch.device) -> None:
        """Refuse a device on which this precision cannot work.

        Raises:
            UnavailableError: It cannot.
        """

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
        if self.scaler is not None and unscales_itself(optimizer):
            raise RuntimeError(
                f"Gradients cannot be clipped with precision={self.precision!r} and {type(optimizer).__name__}("
                "fused=True): the optimizer unscales them inside its step. Type: fused=False, or do not clip."
            )

    @plain
    def clip_gradients(
        self,
        optimizer: Optimizer,
        clip_val: float | None = 0.0,
        gradient_clip_algorithm: GradClipAlgorithmType | str = GradClipAlgorithmType.NORM,
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
        if gradient_clip_algorithm == GradClipAlgorithmType.VALUE:
            self.clip_grad_by_value(optimizer, clip_val)
        else:
            self.clip_grad_by_norm(optimizer, clip_val)

    def clip_grad_by_value(self, optimizer: Optimizer, clip_val: float) -> None:
        """Clip each element of the gradients to [-clip_val, clip_val]."""
        self.clip_value(self.main_params(optimizer), clip_val)

    def clip_grad_by_norm(self, optimizer: Optimizer, clip_val: float) -> None:
        """Scale the gradients down to a total norm of `clip_val`, if it is larger."""
        self.clip_norm(self.main_params(optimizer), clip_val)

    def main_params(self, optimizer: Optimizer) -> Iterator[nn.Parameter]:
        """The parameters of the optimizer, group by group."""
        for group in optimizer.param_groups:
            yield from group["params"]

    # State

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint, under the name of the class; empty if there is none."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state that `state_dict` gave."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Called by the Trainer with a checkpoint that will be written and may be changed."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Called by the Trainer with the checkpoint from which training is resumed, before `load_state_dict`."""

    def teardown(self) -> None:
        """Undo what was set up."""


@functools.cache
def _has_own_backward(kind: type[Precision]) -> bool:
    methods = (getattr(kind, name) for name in ("pre_backward", "backward", "post_backward"))
    return any(getattr(method, "_plain", None) is not method for method in methods)


def unscales_itself(optimizer: Optimizer) -> bool:
    """Whether the optimizer takes scaled gradients, as the fused ones of torch do."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def convert_floats(data: Any, dtype: torch.dtype) -> Any:
    """A nested batch with its floating point tensors in `dtype`."""
    if isinstance(data, Tensor):
        return data.to(dtype) if data.is_floating_point() else data
    return map_tensors(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, data)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Context in which `dtype` is torch's default type."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)
