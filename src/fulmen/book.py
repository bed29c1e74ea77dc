"""The book: where ``self.log`` writes.

A book has a page for each hook (and, in evaluation over several loaders, for each loader); on a page each name has one
entry. Logging appends to an entry and never synchronises with the device: values on a device stay there, are folded
together in blocks, and become Python numbers only when a logger or the progress bar is due, all in one copy. Values on
the CPU, where reading waits for nothing, become numbers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from fulmen.entry import (
    Entry,
    MetricEntry,
    Options,
    Resolved,
    is_metric,
    own_scalar,
    reduction_of,
    weighted_scalar,
)
from fulmen.errors import MisconfigurationException
from fulmen.hooks import LOG_RULES, LogRule
from fulmen.loss import Loss
from fulmen.ranks import WarningCache, rank_zero_warn
from fulmen.tree import batch_size_of


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
        self._logged: dict[str, Tensor] = {}
        self._progress_bar: dict[str, Any] = {}
        self._cache = WarningCache()

    # ---------------------------------------------------------------------------------------------- writing

    def log(self, name: str, value: Any, options: tuple[Any, ...], batch_size: int | None = None) -> None:
        """Writes one value under ``name`` on the page that is open; ``options`` are the fields of ``Options``."""
        entry = self.page.get(name)
        if entry is None or entry.options != options:
            entry = self._open_entry(name, value, Options(*options))
        if isinstance(value, Tensor):
            value = own_scalar(name, value)
        elif isinstance(value, Loss):
            value, batch_size = weighted_scalar(name, value)
        elif type(value) is not float:
            value = self._other_value(name, value, entry)
        if entry.on_epoch:
            if not entry.weighted:
                batch_size = 1
            elif batch_size is None:
                batch_size = self.batch_size or self._infer_batch_size(name)
            entry.add(value, batch_size)
        entry.value = value
        entry.stamp = self.stamp

    def _infer_batch_size(self, name: str) -> int:
        if self.page.rule == "epoch" or self.batch is None:
            return 1
        self.batch_size = batch_size_of(self.batch)
        if self.batch_size is None:
            raise MisconfigurationException(
                f"`self.log({name!r}, ..., on_epoch=True)` weights each value by the batch size, but the batch"
                f" ({type(self.batch).__name__}) holds no tensor to read it from. Give it: `self.log({name!r}, ...,"
                " batch_size=...)`."
            )
        return self.batch_size

    def _other_value(self, name: str, value: Any, entry: Entry) -> Any:
        """A number as a float, a torchmetrics object's value for this batch; anything else is refused."""
        if isinstance(value, Real):
            return float(value)
        if is_metric(value):
            if isinstance(entry, MetricEntry):
                entry.metric = value
            value = value._forward_cache
            return own_scalar(name, value) if isinstance(value, Tensor) else value
        hint = " Use `self.log_dict` for several values." if hasattr(value, "items") else ""
        raise ValueError(
            f"`self.log({name!r}, ...)` was given {type(value).__name__}; expected a number, a tensor with one"
            f" element, or a torchmetrics metric.{hint}"
        )

    def _open_entry(self, name: str, value: Any, options: Options) -> Entry:
        page = self.page
        if page.rule == "never":
            where = f"in `{page.hook}`" if page.hook else "outside of the hooks of a run"
            raise MisconfigurationException(
                f"`self.log({name!r}, ...)` {where}: there is no loop that could log it. Log from a step or from one of"
                " the hooks of the loop, e.g. `on_train_epoch_end`."
            )
        resolved = resolve(name, page, options)
        known = page.get(name)
        if known is not None and known.resolved == resolved:
            known.options = options
            return known
        if known is not None:
            raise MisconfigurationException(
                f"`self.log({name!r}, ...)` was called before in `{page.hook}` with other arguments:"
                f" {differences(known.resolved, resolved)}. Use the same arguments, or another name."
            )
        if "/dataloader_idx_" in name and options.add_dataloader_idx:
            raise MisconfigurationException(
                f"`self.log({name!r}, ...)`: '/dataloader_idx_' is appended by itself. Leave it out, or pass"
                " `add_dataloader_idx=False`."
            )
        self._check_other_loaders(name, options)
        if options.logger and not self.has_loggers:
            self._cache.warn(
                f"`self.log({name!r}, ..., logger=True)`, but the Trainer has no logger (`Trainer(logger=...)`)."
            )
        if isinstance(value, Tensor) and not value.is_floating_point():
            self._cache.warn(
                f"`self.log({name!r}, ...)` was given a tensor of {value.dtype}; it is averaged as a float."
                " Pass `value.float()` to say so."
            )
        entry = self._new_entry(name, value, options, resolved)
        if isinstance(value, Tensor) and value.dtype is torch.float64:
            entry.dtype = torch.float64
        page[name] = entry
        self._phases[page.phase].append(entry)
        return entry

    def _new_entry(self, name: str, value: Any, options: Options, resolved: Resolved) -> Entry:
        if not is_metric(value):
            return Entry(name, options, resolved, self.page.loader)
        known = self.module is not None and any(part is value for part in self.module.modules())
        if not known and options.metric_attribute is None:
            raise MisconfigurationException(
                f"`self.log({name!r}, {type(value).__name__}(...))`: this metric is not an attribute of the module, so"
                " its state would not be kept. Assign it in `__init__` (`self.accuracy = ...`) and log that one."
            )
        return MetricEntry(value, name, options, resolved, self.page.loader)

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

    def pages(self, phase: str) -> list[Page]:
        """The pages of ``phase``."""
        return [page for page in self._pages.values() if page.phase == phase]

    def opener(self, hook: str) -> Callable[..., None]:
        """A function that turns to the page of ``hook``, whatever its arguments."""
        pages: dict[int | None, Page] = {}

        def turn(*_: Any) -> None:
            page = pages.get(self.dataloader_idx)
            if page is None:
                page = pages[self.dataloader_idx] = self.page_of(hook, self.dataloader_idx)
            self.page = page

        def turn_away_from_batch(*_: Any) -> None:
            turn()
            self.batch_size = None  # of the last batch, with which what is logged once an epoch has nothing to do

        return turn_away_from_batch if LOG_RULES.get(hook) == "epoch" else turn

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

    def settle(self) -> None:
        """Brings the step values into the three dictionaries, in the order of their batches."""
        due = [
            (phase, entry)
            for phase, entries in self._phases.items()
            for entry in entries
            if entry.on_step and entry.stamp != entry.published and entry.value is not None
        ]
        due.sort(key=lambda pair: pair[1].stamp)
        for phase, entry in due:
            entry.published = entry.stamp
            value = self._tensor(entry.value, entry.dtype)
            if phase == "train":
                self._callback[entry.key] = self._callback[entry.step_key] = value
            if entry.logger:
                self._logged[entry.step_key] = value
            if entry.prog_bar:
                self._progress_bar[entry.step_key] = entry.value

    def publish(self, phase: str) -> list[Entry]:
        """Reduces the epoch's values of ``phase`` into the three dictionaries.

        Returns:
            The entries that have a value, each with it as ``result``.
        """
        self.settle()
        due = [entry for entry in self._phases[phase] if entry.on_epoch and not entry.empty]
        for entry in due:
            if not entry.closed:
                entry.result = entry.compute()
            value = self._tensor(entry.result, entry.dtype)
            self._callback[entry.key] = self._callback[entry.epoch_key] = value
            if entry.logger:
                self._logged[entry.epoch_key] = value
            if entry.prog_bar:
                self._progress_bar[entry.epoch_key] = entry.result
        return due

    def end_loader(self, phase: str) -> None:
        """One of several loaders is through: its reduced values are final, and can be read."""
        for entry in self.publish(phase):
            if entry.loader == self.dataloader_idx and not entry.closed:
                entry.close()

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

    def _catch_up(self) -> None:
        self.settle()
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
        self._ending = self.dataloader_idx = self.batch = None
        for phase in self._phases:
            self.drop(phase)
        self._callback.clear()
        self._logged.clear()
        self._progress_bar.clear()

    def to_cpu(self) -> None:
        """Moves what can still be read to the CPU: a run has ended."""
        self._catch_up()
        for metrics in (self._callback, self._logged, self._progress_bar):
            for key, value in metrics.items():
                metrics[key] = value.cpu() if isinstance(value, Tensor) else value

    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        """What callbacks may monitor, up to this moment."""
        self._catch_up()
        return self._callback

    @property
    def logged_metrics(self) -> dict[str, Tensor]:
        """What goes to the loggers, up to this moment."""
        self._catch_up()
        return self._logged

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """What the progress bar shows, as Python numbers: this copies from the device."""
        from fulmen.tree import to_scalars

        self._catch_up()
        self._progress_bar = dict(to_scalars(self._progress_bar))
        return self._progress_bar

    def _tensor(self, value: Any, dtype: torch.dtype) -> Tensor:
        # filled on the device, since a copy to it would wait for it
        return value if isinstance(value, Tensor) else torch.full((), float(value), dtype=dtype, device=self.device)


class SilentBook(Book):
    """The book of a trainer that logs nothing (``Trainer(barebones=True)``)."""

    def log(self, name: str, value: Any, options: tuple[Any, ...], batch_size: int | None = None) -> None:
        """Ignores the value, and says so once."""
        self._cache.warn("`self.log(...)` is ignored under `Trainer(barebones=True)`.")


def new_book(barebones: bool, world_size: int) -> Book:
    """The book of a trainer of so many processes; under ``barebones`` one in which nothing is written."""
    if barebones:
        return SilentBook()
    if world_size == 1:
        return Book()
    from fulmen.shared_book import SharedBook

    return SharedBook()


def resolve(name: str, page: Page, options: Options) -> Resolved:
    """What the arguments of a call come to under the rule of the hook."""
    by_step, by_epoch = {"step": (True, False), "evaluation": (False, True), "epoch": (False, True)}[page.rule]
    on_step = by_step if options.on_step is None else options.on_step
    on_epoch = by_epoch if options.on_epoch is None else options.on_epoch
    if not on_step and not on_epoch:
        raise MisconfigurationException(
            f"`self.log({name!r}, ..., on_step=False, on_epoch=False)` logs nothing. Set one of them to True."
        )
    if page.rule == "epoch" and (on_step or not on_epoch):
        raise MisconfigurationException(
            f"`self.log({name!r}, ..., on_step={options.on_step}, on_epoch={options.on_epoch})` in `{page.hook}`:"
            " this hook runs once an epoch, so only `on_epoch=True` is possible here. Leave both out."
        )
    reduction = reduction_of(options.reduce_fx)
    return Resolved(options.prog_bar, options.logger is not False, on_step, on_epoch, reduction, *options[5:])


def items_of(dictionary: Any) -> Iterable[tuple[str, Any]]:
    """Names and values of what ``log_dict`` was given."""
    torchmetrics = sys.modules.get("torchmetrics")
    if torchmetrics is not None and isinstance(dictionary, torchmetrics.MetricCollection):
        # its metrics may share their states; by default each look at them would copy these
        items: Iterable[tuple[str, Any]] = dictionary.items(copy_state=False)
        return items
    return dictionary.items()  # type: ignore[no-any-return]


def check_plain(metrics: Mapping[str, Any]) -> None:
    """Refuses what Fabric, which reduces nothing, could not give to its loggers."""
    for name, value in metrics.items():
        if not isinstance(value, (Real, Tensor)):
            raise ValueError(
                f"`self.log({name!r}, ...)` under Fabric was given {type(value).__name__}; expected a number or a"
                " tensor with one element. Compute metrics first: `self.log(name, metric.compute())`."
            )


def phase_of(hook: str) -> str:
    """Which results a hook's values belong to."""
    if "validation" in hook:
        return "validate"
    return "test" if hook.startswith(("on_test", "test")) else "train"


def differences(before: Resolved, now: Resolved) -> str:
    """How two sets of arguments differ, for a message."""
    pairs: Iterable[tuple[str, Any, Any]] = zip(Resolved._fields, before, now, strict=True)
    return ", ".join(f"{name} was {old!r}, is {new!r}" for name, old, new in pairs if old != new)


def warn_unattached(name: str) -> None:
    """``self.log`` on a module that no trainer runs."""
    rank_zero_warn(f"`self.log({name!r}, ...)` is ignored: the module is not attached to a trainer.")
