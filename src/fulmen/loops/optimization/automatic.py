"""Automatic optimisation: the loss in what `training_step` returned, and the closure around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from fulmen.errors import LossError
from fulmen.loops.optimization.closure import AbstractClosure, OutputResult
from fulmen.loss import Loss
from fulmen.ranks import WarningCache

__all__ = ["Closure", "ClosureResult", "split_output"]


def split_output(output: Any, step: str = "training_step") -> tuple[Tensor | Loss | None, dict[str, Any]]:
    """The loss in what a training step returned, and what else there is in it.

    Args:
        output: A tensor, a `Loss`, a dictionary with one of them under "loss", or None.
        step: Name of the step, for the message.

    Raises:
        LossError: It is something else.
    """
    if output is None or isinstance(output, (Tensor, Loss)):
        return output, {}
    if isinstance(output, Mapping):
        loss = output.get("loss")
        if isinstance(loss, (Tensor, Loss)):
            return loss, {name: value for name, value in output.items() if name != "loss"}
        given = f"a dictionary with keys {sorted(map(str, output))}" + ("" if loss is None else f", loss: {loss!r}")
    else:
        given = f"{type(output).__name__}"
    raise LossError(
        f"`{step}` returned {given}; in automatic optimisation it must return the loss tensor, or a dictionary with it"
        ' under "loss", or None to skip the batch.',
        subject=output,
    )


@dataclass
class ClosureResult(OutputResult):
    """What came out of an automatic training step.

    Attributes:
        closure_loss: The loss to go backward from; None for a batch that is skipped.
        extra: What else the step returned.
        loss: A copy of the loss without its graph, as it was before anything changed it in place.
    """

    closure_loss: Tensor | None
    loss: Tensor | None = field(init=False, default=None)
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.closure_loss is not None:
            self.loss = self.closure_loss.detach().clone()

    @classmethod
    def from_training_step_output(cls, training_step_output: Any, normalize: int = 1) -> ClosureResult:
        """The result for what `training_step` returned.

        Args:
            training_step_output: A tensor, a `Loss`, a dictionary with one of them under "loss", or None.
            normalize: What the loss is divided by: the number of batches that make up a step.

        Raises:
            LossError: It is something else.
        """
        loss, extra = split_output(training_step_output)
        if isinstance(loss, Loss):
            loss = loss.mean
        return cls(None if loss is None else loss / normalize, extra)

    def asdict(self) -> dict[str, Any]:
        """The loss, and what else the step returned; empty for a batch that is skipped."""
        return {} if self.loss is None else {"loss": self.loss, **self.extra}


class Closure(AbstractClosure[ClosureResult]):
    """What an optimizer, or an `optimizer_step` of your own, calls for the loss and the gradients of a batch.

    Args:
        step_fn: Does the forward pass.
        backward_fn: Does the backward pass from the loss; None if `step_fn` did it already.
        zero_grad_fn: Clears the gradients in between; None if nothing is to be cleared.
    """

    warning_cache: ClassVar[WarningCache] = WarningCache()

    def __init__(
        self,
        step_fn: Callable[[], ClosureResult],
        backward_fn: Callable[[Tensor], Any] | None = None,
        zero_grad_fn: Callable[[], Any] | None = None,
    ) -> None:
        self._step_fn = step_fn
        self._backward_fn = backward_fn
        self._zero_grad_fn = zero_grad_fn

    def closure(self, *args: Any, **kwargs: Any) -> ClosureResult:
        """Forward pass, gradients cleared, backward pass."""
        result = self._step_fn()
        if self._zero_grad_fn is not None:
            self._zero_grad_fn()
        if self._backward_fn is not None:
            if result.closure_loss is None:
                self.warning_cache.warn("There is no loss to go backward from: the batch is skipped.")
            else:
                self._backward_fn(result.closure_loss)
        return result

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """Does what `closure` does, keeps the result, and returns its loss without the graph."""
        self._result = self.closure(*args, **kwargs)
        return self._result.loss
