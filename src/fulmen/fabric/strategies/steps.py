"""What a strategy does in the loop of a Trainer: nothing of its own, unless a subclass says so."""

# ruff: noqa: B027 - most hooks of a strategy are empty, and none has to be overridden

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fulmen.fabric.overriding import plain
from fulmen.fabric.precision import Precision
from fulmen.tree import move


class StrategySteps(ABC):
    """The steps and hooks of a strategy.

    A loop gives the regular work of a step to `bind`; `super().training_step(...)` in a subclass then does that work.
    What a subclass does not override is not called at all in a loop (see `overrides`).
    """

    _bound: dict[str, Callable[..., Any]]

    @property
    @abstractmethod
    def root_device(self) -> torch.device:
        """The device of this process."""

    @property
    @abstractmethod
    def precision_plugin(self) -> Precision:
        """In which precision the module computes."""

    def bind(self, name: str, function: Callable[..., Any]) -> None:
        """Give the work that the method `name` does unless a subclass does something else.

        Args:
            name: "training_step", "backward", "optimizer_step", "batch_to_device", ...
            function: Takes the arguments of that method.
        """
        self._bound[name] = function

    def _work(self, name: str) -> Callable[..., Any]:
        if name not in self._bound:
            raise RuntimeError(
                f"`{type(self).__name__}.{name}` was called outside of a run: no loop has given its work."
            )
        return self._bound[name]

    @plain
    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """Move a batch: with the work bound by a loop (the user's transfer hooks), else plainly.

        Args:
            batch: Any nesting of tensors and objects with `.to(device)`.
            device: Where to; None for the device of this process.
            dataloader_idx: Which of several loaders it came from.
        """
        device = self.root_device if device is None else device
        if (transfer := self._bound.get("batch_to_device")) is not None:
            return transfer(batch, device, dataloader_idx)
        return move(batch, device)

    @plain
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The user's `training_step`, in the precision."""
        return self._work("training_step")(*args, **kwargs)

    @plain
    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """The user's `validation_step`, in the precision."""
        return self._work("validation_step")(*args, **kwargs)

    @plain
    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """The user's `test_step`, in the precision."""
        return self._work("test_step")(*args, **kwargs)

    @plain
    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """The user's `predict_step`, in the precision."""
        return self._work("predict_step")(*args, **kwargs)

    @plain
    def pre_backward(self, closure_loss: Tensor) -> None:
        """Called before the gradients are computed."""

    @plain
    def backward(
        self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, model: Any = None, **kwargs: Any
    ) -> Any:
        """Compute the gradients: with the work bound by a loop, else plainly, of the scaled loss.

        Args:
            closure_loss: The loss.
            optimizer: The optimizer they are for; None in a loop of the user's own.
            *args: Positional arguments of `Tensor.backward`.
            model: The module the loss came from, where a loop of the user's own gives it.
            **kwargs: Keyword arguments of `Tensor.backward`.
        """
        if (work := self._bound.get("backward")) is not None:
            return work(closure_loss, optimizer, *args, **kwargs)
        self.pre_backward(closure_loss)
        self.precision_plugin.run_backward(closure_loss, model, optimizer, *args, **kwargs)
        self.post_backward(closure_loss)
        return closure_loss

    @plain
    def post_backward(self, closure_loss: Tensor) -> None:
        """Called after the gradients were computed."""

    @plain
    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any] | None = None, model: Any = None, **kwargs: Any
    ) -> Any:
        """Update the parameters: with the work bound by a loop, else as the precision does.

        Args:
            optimizer: The optimizer.
            closure: Computes the loss and the gradients; None if they are there already.
            model: The module; not needed on one device.
            **kwargs: Passed on to the work of the loop.
        """
        if (work := self._bound.get("optimizer_step")) is not None:
            return work(optimizer, closure, model, **kwargs)
        # what is not there is not passed on, for precisions that give everything to the optimizer
        kwargs |= {name: value for name, value in (("model", model), ("closure", closure)) if value is not None}
        return self.precision_plugin.optimizer_step(optimizer, **kwargs)

    @plain
    def on_train_start(self) -> None:
        """Called when training begins."""

    @plain
    def on_train_end(self) -> None:
        """Called when training ends."""

    @plain
    def on_validation_start(self) -> None:
        """Called when validation begins."""

    @plain
    def on_validation_end(self) -> None:
        """Called when validation ends."""

    @plain
    def on_test_start(self) -> None:
        """Called when the test begins."""

    @plain
    def on_test_end(self) -> None:
        """Called when the test ends."""

    @plain
    def on_predict_start(self) -> None:
        """Called when prediction begins."""

    @plain
    def on_predict_end(self) -> None:
        """Called when prediction ends."""

    @plain
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Called before each training step."""

    @plain
    def on_exception(self, exception: BaseException) -> None:
        """Called when the run ends by an exception."""
