"""One entry of the book: what ``self.log`` was told about a name, and the values under it on their way to the epoch's.

Values on a device stay there. They are kept, and folded together in blocks; nothing here reads one. Values on the CPU
are read at once.
"""

from __future__ import annotations

import math
import sys
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fulmen.errors import MisconfigurationException
from fulmen.loss import Loss

#: So many values are kept before they are folded into one.
BLOCK = 64

_REDUCTIONS = {"mean": "mean", "avg": "mean", "min": "min", "max": "max", "sum": "sum"}
_FUNCTIONS: dict[Any, str] = {
    torch.mean: "mean",
    torch.min: "min",
    torch.max: "max",
    torch.sum: "sum",
    min: "min",
    max: "max",
    sum: "sum",
}


#: Values of these types are kept as they are; half precision would lose too much in a sum.
_WIDE = (torch.float32, torch.float64)


class Options(NamedTuple):
    """What a call of ``self.log`` was given besides name, value and batch size."""

    prog_bar: bool = False
    logger: bool | None = None
    on_step: bool | None = None
    on_epoch: bool | None = None
    reduce_fx: Any = "mean"
    enable_graph: bool = False
    sync_dist: bool = False
    sync_dist_group: Any = None
    add_dataloader_idx: bool = True
    metric_attribute: str | None = None
    rank_zero_only: bool = False


class Resolved(NamedTuple):
    """What ``Options`` come to in one hook. Two calls that differ only in how they say it are the same."""

    prog_bar: bool
    logger: bool
    on_step: bool
    on_epoch: bool
    reduction: str
    enable_graph: bool
    sync_dist: bool
    sync_dist_group: Any
    add_dataloader_idx: bool
    metric_attribute: str | None
    rank_zero_only: bool


class Entry:
    """One logged name on one page: its last value, and what it takes to reduce the epoch's values.

    Attributes:
        stamp: Number of the batch in which it was last written; -1 if nothing was since ``clear``.
        published: The stamp of the value that the dictionaries have.
        value: What was written last: a tensor or a float; None for a metric without a value of its own for the batch.
        dtype: The dtype under which a float is published.
        result: The epoch's value as it was published last.
        closed: Whether ``result`` is final, because its loader is through.
    """

    __slots__ = (
        "closed",
        "dtype",
        "epoch_key",
        "key",
        "loader",
        "logger",
        "on_epoch",
        "on_step",
        "options",
        "pending",
        "prog_bar",
        "published",
        "reduction",
        "resolved",
        "result",
        "stamp",
        "step_key",
        "total",
        "value",
        "weight",
        "weighted",
    )

    def __init__(self, name: str, options: Options, resolved: Resolved, loader: int | None) -> None:
        suffix = f"/dataloader_idx_{loader}" if loader is not None and options.add_dataloader_idx else ""
        forked = resolved.on_step and resolved.on_epoch
        self.key = name + suffix
        self.step_key = f"{name}_step{suffix}" if forked else self.key
        self.epoch_key = f"{name}_epoch{suffix}" if forked else self.key
        self.options, self.resolved = options, resolved
        self.on_step, self.on_epoch = resolved.on_step, resolved.on_epoch
        self.prog_bar, self.logger = resolved.prog_bar, resolved.logger
        self.loader = loader
        self.dtype = torch.float32
        self.weighted = resolved.reduction == "mean"
        self.reduction = "sum" if self.weighted else resolved.reduction
        self.value: Any = None
        self.result: Any = None
        self.stamp = -1
        self.clear()

    def clear(self) -> None:
        """Forgets the epoch's values."""
        self.pending: list[tuple[Any, float]] = []
        self.total: Any = None
        self.weight: float = 0
        self.stamp = self.published = -1
        self.closed = False

    @property
    def empty(self) -> bool:
        """Whether nothing was logged since the last ``clear``."""
        return self.stamp < 0

    def add(self, value: Any, weight: float) -> None:
        """Takes one value into the epoch's reduction."""
        self.pending.append((value, weight))
        if len(self.pending) >= BLOCK:
            self.fold()

    def fold(self) -> None:
        """Reduces the pending values to one, without reading them."""
        pending, self.pending = self.pending, []
        if self.weighted:
            self.weight += sum([weight for _, weight in pending])
        tensors = [pair for pair in pending if isinstance(pair[0], Tensor)]
        if tensors:
            self._take(reduce_tensors(tensors, self.reduction))
        if len(tensors) < len(pending):
            self._take(reduce_numbers([pair for pair in pending if not isinstance(pair[0], Tensor)], self.reduction))

    def _take(self, folded: Any) -> None:
        self.total = folded if self.total is None else combine(self.reduction, self.total, folded)

    def compute(self) -> Any:
        """The epoch's value: a tensor, or a number if only numbers were logged."""
        self.fold()
        if not self.weighted:
            return self.total
        # a weight on a device is not asked whether it is zero: the division gives nan for it
        if isinstance(self.weight, Tensor) or self.weight:
            return self.total / self.weight
        return self.total * math.nan

    def close(self) -> None:
        """Makes ``result`` final."""
        self.closed = True


class MetricEntry(Entry):
    """An entry for a torchmetrics object, which keeps its own state: computed at the epoch's end, then reset."""

    __slots__ = ("metric",)

    def __init__(self, metric: Any, *arguments: Any) -> None:
        self.metric = metric
        super().__init__(*arguments)
        self.weighted = False

    def add(self, value: Any, weight: float) -> None:
        """Nothing: the metric has counted the value already."""

    def compute(self) -> Any:
        """The metric's value over the epoch."""
        value = self.metric.compute()
        if not isinstance(value, Tensor):
            raise ValueError(
                f"`self.log({self.key!r}, ...)`: the metric's `compute()` returned {type(value).__name__}, expected a"
                " tensor. Log its parts one by one, or use `self.log_dict`."
            )
        return value.detach()

    def close(self) -> None:
        """Makes ``result`` final; the metric begins again, for the next loader may use the same one."""
        super().close()
        self.metric.reset()

    def clear(self) -> None:
        """Resets the metric if it holds anything."""
        if not self.empty and not self.closed:
            self.metric.reset()
        super().clear()


def reduction_of(reduce_fx: Any) -> str:
    """The name of the reduction that ``reduce_fx`` stands for."""
    if isinstance(reduce_fx, str):
        found = _REDUCTIONS.get(reduce_fx.lower())
    else:
        found = next((name for function, name in _FUNCTIONS.items() if function is reduce_fx), None)
    if found is None:
        raise MisconfigurationException(
            f"`self.log(..., reduce_fx={reduce_fx!r})` is not one of 'mean', 'min', 'max', 'sum'. For anything else"
            " log a torchmetrics metric, or collect the values yourself and log the result in `on_train_epoch_end`."
        )
    return found


def reduce_tensors(pairs: list[tuple[Tensor, float]], reduction: str) -> Tensor:
    """One tensor from values and their weights; weights count in sums only."""
    values, weights = zip(*pairs, strict=True)
    common: Any = weights[0]
    if any(isinstance(weight, Tensor) for weight in weights):
        values, common = tuple(value * weight for value, weight in pairs), 1
    elif weights.count(common) < len(weights):
        # as scalar arguments, since a tensor of weights would have to be copied to the device
        values, common = torch._foreach_mul(values, weights), 1
    try:
        together = torch.stack(values)
    except RuntimeError:  # rare, and asking each value for its device beforehand costs half as much as the stack
        together = torch.stack([value.to(values[-1].device) for value in values])
    folded: Tensor = getattr(together, reduction)()
    return folded if common == 1 else folded * common


def reduce_numbers(pairs: list[tuple[float, float]], reduction: str) -> float:
    """One number from numbers and their weights; weights count in sums only."""
    return reduce(partial(combine, reduction), [value * weight for value, weight in pairs])


def combine(reduction: str, first: Any, second: Any) -> Any:
    """Two partial results made one; not a number stays that."""
    if reduction == "sum":
        return first + second
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        choose = torch.maximum if reduction == "max" else torch.minimum
        return choose(torch.as_tensor(first), torch.as_tensor(second))
    if first != first:
        return first
    return second if second != second else max(first, second) if reduction == "max" else min(first, second)


def own_scalar(name: str, value: Tensor) -> Tensor | float:
    """The value of a tensor of one element, which no longer depends on that tensor.

    On the CPU it is read: a number costs less than a copy. Elsewhere reading would wait for the device.
    """
    if value.numel() != 1:
        raise ValueError(
            f"`self.log({name!r}, ...)` was given a tensor of shape {tuple(value.shape)}; expected one element."
            f" Reduce it: `self.log({name!r}, value.mean())`."
        )
    return float(value.item()) if value.is_cpu else scalar_copy(value)


def weighted_scalar(name: str, loss: Loss) -> tuple[Tensor | float, Any]:
    """The mean of a loss, and the weight it has in the mean of an epoch."""
    weight = own_scalar(name, loss.weight) if isinstance(loss.weight, Tensor) else loss.weight
    return own_scalar(name, loss.mean), weight


def scalar_copy(value: Tensor) -> Tensor:
    """A copy of a tensor of one element: without graph and dimensions, in float32 unless it is wider."""
    value = value.detach().squeeze()
    if value.dtype in _WIDE:
        return value.clone()
    return value.to(torch.promote_types(value.dtype, torch.float32))


def is_metric(value: Any) -> bool:
    """Whether ``value`` is a torchmetrics metric; torchmetrics is not imported for the question."""
    torchmetrics = sys.modules.get("torchmetrics")
    return torchmetrics is not None and isinstance(value, torchmetrics.Metric)
