"""The loss protocol: a sum and its weight, so that a mean over several batches is one over their samples or tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Loss", "WeightedWindow"]


@dataclass(frozen=True, eq=False)
class Loss:
    """A loss as a sum over items, and how many items (or how much weight) it is the sum over.

    Returned by ``training_step``, the step's gradient is that of the exact mean over all items of all micro-batches of
    the window, whatever their sizes; with a plain tensor it is the mean of the micro-batches' means.

    Args:
        sum: The summed loss, a tensor of one element.
        weight: Number of items (samples, tokens), or their summed weight. A tensor stays on its device.

    Example:
        >>> loss = Loss(cross_entropy(logits, labels, reduction="sum"), (labels != -100).sum())
    """

    sum: Tensor
    weight: Tensor | int | float

    @property
    def mean(self) -> Tensor:
        """The mean over this batch alone."""
        return self.sum / self.weight


class WeightedWindow:
    """The weights of one window of micro-batches, and the gradients' correction at its end.

    Each micro-batch's sum is divided by the weight of the first, so that gradients have their usual size; at the end
    the gradients are multiplied by the first weight over the total. For a window of one batch nothing is left to do.
    No value is read from the device.

    Of several processes, whose gradients are averaged, both weights are the mean over all of them; so all divide by the
    same, and the mean of the gradients is that of all their items.

    Args:
        mean_over_ranks: The mean of a tensor over all processes; None where there is one.
    """

    def __init__(self, mean_over_ranks: Callable[[Tensor], Tensor] | None = None) -> None:
        self._mean_over_ranks = mean_over_ranks
        self.first: Any = None
        self.total: Any = None
        self.several = False

    def __bool__(self) -> bool:
        """Whether gradients are left to be corrected."""
        return self.several

    def _shared(self, weight: Any, device: torch.device | None) -> Any:
        if self._mean_over_ranks is None:
            return weight
        return self._mean_over_ranks(torch.as_tensor(weight, dtype=torch.float32, device=device))

    def clear(self) -> None:
        """A new window begins."""
        self.first = self.total = None
        self.several = False

    def take(self, loss: Loss) -> Tensor:
        """The tensor to call backward on for one micro-batch."""
        weight = loss.weight.detach() if isinstance(loss.weight, Tensor) else loss.weight
        if self.first is None:
            self.first, self.total = self._shared(weight, loss.sum.device), weight
        else:
            self.total = self.total + weight
            self.several = True
        mean: Tensor = loss.sum / self.first
        return mean

    def correct(self, parameters: Any) -> None:
        """Multiplies the gradients by what makes them those of the mean over the whole window.

        Args:
            parameters: Those of the optimizer.
        """
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        factor = self.first / self._shared(self.total, getattr(self.first, "device", None))
        if isinstance(factor, Tensor):
            for gradient in gradients:
                gradient.mul_(factor.to(gradient.device))
        elif gradients:
            torch._foreach_mul_(gradients, factor)
