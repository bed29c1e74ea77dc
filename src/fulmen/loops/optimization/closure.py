"""The closure of an optimizer's step, and what it leaves behind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

from torch import Tensor

from fulmen.errors import MisconfigurationException

__all__ = ["AbstractClosure", "OutputResult"]


class OutputResult:
    """What came out of a training step."""

    def asdict(self) -> dict[str, Any]:
        """It as the `outputs` that `on_train_batch_end` gets."""
        raise NotImplementedError


R = TypeVar("R", bound=OutputResult)


class AbstractClosure(ABC, Generic[R]):
    """A function without arguments that computes loss and gradients, and remembers what came out.

    An optimizer may call it any number of times; the last result counts.
    """

    _result: R | None = None

    def consume_result(self) -> R:
        """What the last call left; it is forgotten here, so that nobody takes it for that of another batch.

        Raises:
            MisconfigurationException: There was no call since the last one.
        """
        if self._result is None:
            raise MisconfigurationException(
                "`optimizer_step` did not call the closure, so nothing was computed."
                " Call `optimizer.step(closure=optimizer_closure)`, or `optimizer_closure()` yourself."
            )
        result, self._result = self._result, None
        return result

    @abstractmethod
    def closure(self, *args: Any, **kwargs: Any) -> R:
        """Computes the result."""

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """Computes and keeps the result; returns its loss."""
