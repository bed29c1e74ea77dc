"""The book: where ``self.log`` writes.

A book has a page for each hook (and, in evaluation over several loaders, for each loader); on a page each name has one
entry. Logging appends to an entry and never synchronises with the device: values stay the tensors they are, are folded
together in blocks, and become Python numbers only when a logger or the progress bar is due, all in one copy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fulmen.errors import MisconfigurationException
from fulmen.hooks import LOG_RULES, LogRule
from fulmen.ranks import WarningCache, rank_zero_warn
from fulmen.tree import batch_size_of

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


class Entry:
    """One logged name on one page: its last value, and what it takes to reduce the epoch's values."""

    __slots__ = (
        "epoch_key",
        "key",
        "loader",
        "logger",
        "number",
        "on_epoch",
        "on_step",
        "options",
        "pending",
        "prog_bar",
        "published",
        "reduction",
        "result",
        "stamp",
        "step_key",
        "tensor",
        "value",
        "weight",
        "weights",
    )

    def __init__(self, name: str, options: Options, on_step: bool, on_epoch: bool, loader: int | None) -> None:
        suffix = f"/dataloader_idx_{loader}" if loader is not None and options.add_dataloader_idx else ""
        forked = on_step and on_epoch
        self.key = name + suffix
        self.step_key = f"{name}_step{suffix}" if forked else self.key
        self.epoch_key = f"{name}_epoch{suffix}" if forked else self.key
        self.options = options
        self.on_step, self.on_epoch = on_step, on_epoch
        self.prog_bar = options.prog_bar
        self.logger = options.logger is not False
        self.loader = loader
        self.reduction = reduction_of(options.reduce_fx)
        self.stamp = self.published = -1
        self.value: Any = None
        self.result: Any = None
        self.clear()

    def clear(self) -> None:
        """Forgets the epoch's values."""
        self.pending: list[Tensor] = []
        self.weights: list[float] = []
        self.tensor: Tensor | None = None
        self.number: float | None = None
        self.weight: float = 0

    @property
    def empty(self) -> bool:
        """Whether nothing was logged since the last ``clear``."""
        return self.number is None and self.tensor is None and not self.pending

    def add(self, value: Any, weight: float) -> None:
        """Takes one value into the epoch's reduction."""
        if isinstance(value, Tensor):
            self.pending.append(value)
            self.weights.append(weight)
            if len(self.pending) >= BLOCK:
                self.fold()
            return
        if self.reduction == "mean":
            self.number = (self.number or 0) + value * weight
            self.weight += weight
        else:
            self.number = value if self.number is None else combine(self.reduction, self.number, value)

    def fold(self) -> None:
        """Reduces the pending values to one, without reading them."""
        if not self.pending:
            return
        values, weights = self.pending, self.weights
        self.pending, self.weights = [], []
        if self.reduction == "mean":
            self.weight += sum(weights)
            if any(weight != weights[0] for weight in weights):
                values = list(torch._foreach_mul([wide(value) for value in values], weights))
                weights = [1.0]
        stacked = wide(torch.stack([value.to(values[0].device) for value in values]))
        if self.reduction == "mean":
            folded = stacked.sum() * weights[0]
        else:
            folded = getattr(stacked, self.reduction)()
        self.tensor = folded if self.tensor is None else combine(self.reduction, self.tensor, folded)

    def compute(self) -> Any:
        """The epoch's value: a tensor, or a number if only numbers were logged."""
        self.fold()
        both = [part for part in (self.tensor, self.number) if part is not None]
        total = both[0] if len(both) == 1 else combine(self.reduction, *both)
        return total / self.weight if self.reduction == "mean" else total


class MetricEntry(Entry):
    """An entry for a torchmetrics object, which keeps its own state: computed at the epoch's end, then reset."""

    __slots__ = ("metric",)

    def __init__(self, metric: Any, *arguments: Any) -> None:
        self.metric = metric
        super().__init__(*arguments)
        self.reduction = "metric"

    def add(self, value: Any, weight: float) -> None:
        """The metric has counted the value already; notes only that there is one."""
        self.number = 0

    def compute(self) -> Any:
        """The metric's value over the epoch."""
        value = self.metric.compute()
        if not isinstance(value, Tensor):
            raise ValueError(
                f"`self.log({self.key!r}, ...)`: the metric's `compute()` returned {type(value).__name__}, expected a"
                " tensor. Log its parts one by one, or use `self.log_dict`."
            )
        return value.detach()

    def clear(self) -> None:
        """Resets the metric if it holds anything."""
        if getattr(self, "number", None) is not None:
            self.metric.reset()
        super().clear()


class Page(dict[str, Entry]):
    """The entries of one hook (and one loader): name -> entry."""

    __slots__ = ("hook", "loader", "phase", "rule")

    def __init__(self, hook: str, rule: LogRule, phase: str, loader: int | None = None) -> None:
        super().__init__()
        self.hook, self.rule, self.phase, self.loader = hook, rule, phase, loader


class Book:
    """All pages of a run, and the three dictionaries users read.

    Attributes:
        page: Where ``self.log`` writes now; the loops and the hook table turn the pages.
        stamp: Number of the batch under way; tells which entries were written in it.
        batch: The batch under way, from which a batch size is taken when one is needed.
        dataloader_idx: Which of several evaluation loaders is running, None if there is one.
    """

    def __init__(self) -> None:
        self.outside = Page("", "never", "none")
        self.page = self.outside
        self.stamp = 0
        self.batch: Any = None
        self.batch_size: int | None = None
        self.dataloader_idx: int | None = None
        self.device = torch.device("cpu")
        self.has_loggers = True
        self.module: torch.nn.Module | None = None
        self._ending: str | None = None
        self._pages: dict[tuple[str, int | None], Page] = {}
        self._phases: dict[str, list[Entry]] = {"train": [], "validate": [], "test": []}
        self._callback: dict[str, Tensor] = {}
        self._logged: dict[str, Any] = {}
        self._progress_bar: dict[str, Any] = {}
        self._cache = WarningCache()

    # ---------------------------------------------------------------------------------------------- writing

    def log(self, name: str, value: Any, options: tuple[Any, ...], batch_size: int | None = None) -> None:
        """Writes one value under ``name`` on the page that is open; ``options`` are the fields of ``Options``."""
        entry = self.page.get(name)
        if entry is None or entry.options != options:
            entry = self._open_entry(name, value, Options(*options))
        if isinstance(value, Tensor):
            value = value.detach()
            if value.dim():
                value = one_element(name, value)
            value = value.clone()
        elif not isinstance(value, (int, float)):
            value = self._other_value(name, value)
        entry.value = value
        entry.stamp = self.stamp
        if entry.on_epoch:
            entry.add(value, (batch_size or self._batch_size(name)) if entry.reduction == "mean" else 1)

    def _batch_size(self, name: str) -> int:
        if self.batch_size is None:
            if self.page.rule == "epoch":
                return 1
            self.batch_size = batch_size_of(self.batch)
            if self.batch_size is None:
                raise MisconfigurationException(
                    f"`self.log({name!r}, ..., on_epoch=True)` weights each value by the batch size, but the batch"
                    f" ({type(self.batch).__name__}) holds no tensor to read it from."
                    f" Give it: `self.log({name!r}, ..., batch_size=...)`."
                )
        return self.batch_size

    def _other_value(self, name: str, value: Any) -> Any:
        """A torchmetrics object's step value; anything else is refused."""
        if is_metric(value):
            return getattr(value, "_forward_cache", None)
        raise ValueError(
            f"`self.log({name!r}, ...)` was given {type(value).__name__}; expected a number, a tensor with one"
            " element, or"
            " a torchmetrics metric." + (" Use `self.log_dict` for a dictionary." if isinstance(value, dict) else "")
        )

    def _open_entry(self, name: str, value: Any, options: Options) -> Entry:
        page = self.page
        if page.rule == "never":
            where = f"in `{page.hook}`" if page.hook else "outside of the hooks of a run"
            raise MisconfigurationException(
                f"`self.log({name!r}, ...)` {where}: there is no loop that could log it. Log from a step or from one of"
                " the hooks of the loop, e.g. `on_train_epoch_end`."
            )
        if name in page:
            raise MisconfigurationException(
                f"`self.log({name!r}, ...)` was called before in `{page.hook}` with other arguments:"
                f" {differences(page[name].options, options)}. Use the same arguments, or another name."
            )
        if "/dataloader_idx_" in name and options.add_dataloader_idx:
            raise MisconfigurationException(
                f"`self.log({name!r}, ...)`: '/dataloader_idx_' is appended by itself."
                " Leave it out, or pass `add_dataloader_idx=False`."
            )
        self._check_other_loaders(name, options)
        on_step, on_epoch = resolve_when(name, page, options)
        if options.logger and not self.has_loggers:
            self._cache.warn(
                f"`self.log({name!r}, ..., logger=True)`, but the Trainer has no logger (`Trainer(logger=...)`)."
            )
        if isinstance(value, Tensor) and not value.is_floating_point():
            self._cache.warn(
                f"`self.log({name!r}, ...)` was given a tensor of {value.dtype}; it is averaged as a float."
                " Pass `value.float()` to say so."
            )
        entry = self._new_entry(name, value, options, on_step, on_epoch)
        page[name] = entry
        self._phases[page.phase].append(entry)
        return entry

    def _new_entry(self, name: str, value: Any, options: Options, on_step: bool, on_epoch: bool) -> Entry:
        if not is_metric(value):
            return Entry(name, options, on_step, on_epoch, self.page.loader)
        known = self.module is not None and any(part is value for part in self.module.modules())
        if not known and options.metric_attribute is None:
            raise MisconfigurationException(
                f"`self.log({name!r}, {type(value).__name__}(...))`: this metric is not an attribute of the module,"
                " so its"
                " state would not be kept. Assign it in `__init__` (`self.accuracy = ...`) and log that one."
            )
        return MetricEntry(value, name, options, on_step, on_epoch, self.page.loader)

    def _check_other_loaders(self, name: str, options: Options) -> None:
        page = self.page
        if options.add_dataloader_idx or page.loader is None:
            return
        for other in self._pages.values():
            if other.hook == page.hook and other.loader != page.loader and name in other:
                raise MisconfigurationException(
                    f"`self.log({name!r}, ..., add_dataloader_idx=False)` was called for several loaders; their values"
                    " would mix. Use a different name for each loader, or leave `add_dataloader_idx` True."
                )

    # ---------------------------------------------------------------------------------------------- pages

    def page_of(self, hook: str, loader: int | None = None) -> Page:
        """The page of ``hook`` (for one loader of several)."""
        key = (hook, loader)
        page = self._pages.get(key)
        if page is None:
            page = self._pages[key] = Page(hook, LOG_RULES.get(hook, "never"), phase_of(hook), loader)
        return page

    def opener(self, hook: str) -> Callable[..., None]:
        """A function that turns to the page of ``hook``, whatever its arguments."""
        pages: dict[int | None, Page] = {}

        def turn(*_: Any) -> None:
            page = pages.get(self.dataloader_idx)
            if page is None:
                page = pages[self.dataloader_idx] = self.page_of(hook, self.dataloader_idx)
            self.page = page

        return turn

    def close(self) -> None:
        """No page is open: logging is refused until a hook runs."""
        self.page = self.outside

    # ---------------------------------------------------------------------------------------------- reading

    def step_metrics(self, phase: str) -> dict[str, Any]:
        """What the batch under way logged by step for the loggers: key -> tensor or number."""
        stamp = self.stamp
        metrics = {}
        for entry in self._phases[phase]:
            if entry.stamp == stamp and entry.on_step and entry.logger and entry.value is not None:
                metrics[entry.step_key] = entry.value
        return metrics

    def settle(self, phase: str) -> None:
        """Brings the step values of ``phase`` into the three dictionaries."""
        for entry in self._phases[phase]:
            if not entry.on_step or entry.stamp == entry.published or entry.value is None:
                continue
            entry.published = entry.stamp
            if phase == "train":
                self._callback[entry.step_key] = self._callback[entry.key] = self._tensor(entry.value)
            if entry.logger:
                self._logged[entry.step_key] = entry.value
            if entry.prog_bar:
                self._progress_bar[entry.step_key] = entry.value

    def publish(self, phase: str) -> list[Entry]:
        """Reduces the epoch's values of ``phase`` into the three dictionaries.

        Returns:
            The entries that have a value, each with it as ``result``.
        """
        self.settle(phase)
        due = [entry for entry in self._phases[phase] if entry.on_epoch and not entry.empty]
        for entry in due:
            entry.result = value = entry.compute()
            self._callback[entry.key] = self._callback[entry.epoch_key] = self._tensor(value)
            if entry.logger:
                self._logged[entry.epoch_key] = value
            if entry.prog_bar:
                self._progress_bar[entry.epoch_key] = value
        return due

    def end(self, phase: str) -> list[Entry]:
        """The batches of ``phase`` are over: from here until ``clear`` its reduced values are what is read."""
        self._ending = phase
        return self.publish(phase)

    def clear(self, phase: str) -> None:
        """Starts a new epoch of ``phase``: what was published stays, the entries begin again."""
        if self._ending == phase:
            self._ending = None
        for entry in self._phases[phase]:
            entry.clear()

    def _settle_all(self) -> None:
        for phase in self._phases:
            self.settle(phase)
        if self._ending is not None:
            self.publish(self._ending)

    def drop(self, phase: str) -> None:
        """Forgets the entries of ``phase`` altogether, so that they may be logged with other arguments."""
        self.clear(phase)
        self._phases[phase].clear()
        for page in self._pages.values():
            if page.phase == phase:
                page.clear()

    def forget(self) -> None:
        """Empties entries and dictionaries: a run starts."""
        self._ending = None
        for phase in self._phases:
            self.drop(phase)
        self._callback.clear()
        self._logged.clear()
        self._progress_bar.clear()

    def to_cpu(self) -> None:
        """Moves what can still be read to the CPU: a run has ended."""
        self._settle_all()
        for metrics in (self._callback, self._logged):
            for key, value in metrics.items():
                metrics[key] = value.cpu() if isinstance(value, Tensor) else value

    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        """What callbacks may monitor, up to this moment."""
        self._settle_all()
        return self._callback

    @property
    def logged_metrics(self) -> dict[str, Any]:
        """What goes to the loggers, up to this moment."""
        self._settle_all()
        for key, value in self._logged.items():
            if not isinstance(value, Tensor):
                self._logged[key] = self._tensor(value)
        return self._logged

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """What the progress bar shows, as Python numbers: this copies from the device."""
        from fulmen.tree import to_scalars

        self._settle_all()
        self._progress_bar = dict(to_scalars(self._progress_bar))
        return self._progress_bar

    def _tensor(self, value: Any) -> Tensor:
        return value if isinstance(value, Tensor) else torch.tensor(float(value), device=self.device)


class SilentBook(Book):
    """The book of a trainer that logs nothing (``Trainer(barebones=True)``)."""

    def log(self, name: str, value: Any, options: tuple[Any, ...], batch_size: int | None = None) -> None:
        """Ignores the value, and says so once."""
        self._cache.warn("`self.log(...)` is ignored under `Trainer(barebones=True)`.")


def resolve_when(name: str, page: Page, options: Options) -> tuple[bool, bool]:
    """Whether a value is logged by step and by epoch, from the arguments and the rule of the hook."""
    defaults = {"step": (True, False), "evaluation": (False, True), "epoch": (False, True)}[page.rule]
    on_step = defaults[0] if options.on_step is None else options.on_step
    on_epoch = defaults[1] if options.on_epoch is None else options.on_epoch
    if not on_step and not on_epoch:
        raise MisconfigurationException(
            f"`self.log({name!r}, ..., on_step=False, on_epoch=False)` logs nothing. Set one of them to True."
        )
    if page.rule == "epoch" and (on_step or not on_epoch):
        raise MisconfigurationException(
            f"`self.log({name!r}, ..., on_step={options.on_step}, on_epoch={options.on_epoch})` in `{page.hook}`:"
            " this hook"
            " runs once an epoch, so only `on_epoch=True` is possible here. Leave both out."
        )
    return on_step, on_epoch


def reduction_of(reduce_fx: Any) -> str:
    """The name of the reduction that ``reduce_fx`` stands for."""
    found = _REDUCTIONS.get(reduce_fx.lower()) if isinstance(reduce_fx, str) else _FUNCTIONS.get(reduce_fx)
    if found is None:
        raise MisconfigurationException(
            f"`self.log(..., reduce_fx={reduce_fx!r})` is not one of 'mean', 'min', 'max', 'sum'. For anything else"
            " log a"
            " torchmetrics metric, or collect the values yourself and log the result in `on_train_epoch_end`."
        )
    return found


def combine(reduction: str, first: Any, second: Any) -> Any:
    """Two partial results made one."""
    if reduction in ("mean", "sum"):
        return first + second
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        pair = [torch.as_tensor(part, dtype=torch.get_default_dtype()) for part in (first, second)]
        return (torch.maximum if reduction == "max" else torch.minimum)(pair[0].to(pair[1].device), pair[1])
    return max(first, second) if reduction == "max" else min(first, second)


def wide(value: Tensor) -> Tensor:
    """In float32 unless it is wider already, so that sums of half-precision values are exact enough."""
    if value.dtype in (torch.float32, torch.float64):
        return value
    return value.float()


def one_element(name: str, value: Tensor) -> Tensor:
    """The scalar in a tensor of one element; more elements are refused."""
    if value.numel() != 1:
        raise ValueError(
            f"`self.log({name!r}, ...)` was given a tensor of shape {tuple(value.shape)}; expected one element."
            f" Reduce it: `self.log({name!r}, value.mean())`."
        )
    return value.squeeze()


def is_metric(value: Any) -> bool:
    """Whether ``value`` is a torchmetrics metric; torchmetrics is not imported for the question."""
    torchmetrics = sys.modules.get("torchmetrics")
    return torchmetrics is not None and isinstance(value, torchmetrics.Metric)


def phase_of(hook: str) -> str:
    """Which results a hook's values belong to."""
    if "validation" in hook:
        return "validate"
    return "test" if hook.startswith(("on_test", "test")) else "train"


def differences(before: Options, now: Options) -> str:
    """How two sets of arguments differ, for a message."""
    pairs: Iterable[tuple[str, Any, Any]] = zip(Options._fields, before, now, strict=True)
    return ", ".join(f"{name} was {old!r}, is {new!r}" for name, old, new in pairs if old != new)


def warn_unattached(name: str) -> None:
    """``self.log`` on a module that no trainer runs."""
    rank_zero_warn(f"`self.log({name!r}, ...)` is ignored: the module is not attached to a trainer.")
