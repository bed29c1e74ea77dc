"""The book of a run of several processes: values logged with ``sync_dist=True`` become one for all of them.

| logged | reduced over the ranks |
|---|---|
| by step | when it is logged, by ``reduce_fx`` |
| by epoch, in a hook of a batch | all together in one exchange, when the batches are over |
| by epoch, in a hook that runs once an epoch | when it is logged |

By epoch it is sums and weights that are added up, so the result is that of one process over all batches, whoever had
how many of them. A rank that did not log a name, because it had no batch or no reason to, has its value as the others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from fulmen.book import Book
from fulmen.entry import Entry, MetricEntry, Options, Resolved, combine, is_metric
from fulmen.errors import PossibleUserWarning
from fulmen.fabric import distributed
from fulmen.tree import to_scalars

_SYNC_DIST = Options._fields.index("sync_dist")
_RANK_ZERO_ONLY = Options._fields.index("rank_zero_only")

#: Hook, loader and name: what is logged under the same three is one metric.
Identity = tuple[str, int | None, str]


class Part(NamedTuple):
    """What one rank adds to a metric of all.

    Args:
        resolved: The arguments it was logged with, without the group.
        dtype: In which a number is published.
        total: Its reduced values; None for a torchmetrics object, which brings its own together.
        weight: Their weights, added up.
        path: Where in the module the torchmetrics object is.
    """

    resolved: Resolved
    dtype: torch.dtype
    total: Any = None
    weight: float = 0
    path: str | None = None


class PromptEntry(Entry):
    """An entry whose values are reduced over the ranks as they come."""

    __slots__ = ("device",)

    device: torch.device

    def add(self, value: Any, weight: float) -> None:
        """Takes the values of all ranks into the epoch's reduction."""
        group = self.resolved.sync_dist_group
        if self.weighted:
            weighted = _as_tensor(value * weight, self.device)
            pair = torch.stack([weighted, _as_tensor(weight, self.device).to(weighted.dtype)])
            weights: Any
            total, weights = distributed.reduce(pair, group, "sum", self.key).unbind()
            self.weight += weights if isinstance(value, Tensor) else weights.item()
        else:
            total = distributed.reduce(_as_tensor(value, self.device), group, self.reduction, self.key)
        self._take(total if isinstance(value, Tensor) else total.item())


class SharedBook(Book):
    """A book in which the ranks share what is logged with ``sync_dist=True``."""

    def __init__(self) -> None:
        super().__init__()
        self._exchanged: set[Entry] = set()

    def log(self, name: str, value: Any, options: tuple[Any, ...], batch_size: int | None = None) -> None:
        """Writes one value; one by step is reduced over the ranks at once."""
        super().log(name, value, options, batch_size)
        if options[_SYNC_DIST] and not options[_RANK_ZERO_ONLY]:
            entry = self.page[name]
            if entry.on_step and not isinstance(entry, MetricEntry):
                entry.value = self._over_ranks(entry)

    def _over_ranks(self, entry: Entry) -> Any:
        value, resolved = entry.value, entry.resolved
        reduced = distributed.reduce(
            _as_tensor(value, self.device), resolved.sync_dist_group, resolved.reduction, entry.step_key
        )
        return reduced if isinstance(value, Tensor) else reduced.item()

    def _new_entry(self, name: str, value: Any, options: Options, resolved: Resolved) -> Entry:
        syncs = resolved.sync_dist and not resolved.rank_zero_only
        if syncs and self.page.rule == "epoch" and not is_metric(value):
            entry = PromptEntry(name, options, resolved, self.page.loader)
            entry.device = self.device
            return entry
        if resolved.on_epoch and not (resolved.sync_dist or resolved.rank_zero_only or is_metric(value)):
            self._cache.warn(
                f"`self.log({name!r}, ...)` is reduced over the epoch on each rank for itself. For the value over all"
                f" ranks type `self.log({name!r}, ..., sync_dist=True)`.",
                category=PossibleUserWarning,
            )
        return super()._new_entry(name, value, options, resolved)

    # ---------------------------------------------------------------------------------------------- the exchange

    def end_loader(self, phase: str) -> None:
        """One of several loaders is through, on all ranks."""
        self._exchange(phase, self.dataloader_idx)
        super().end_loader(phase)

    def end(self, phase: str) -> list[Entry]:
        """The batches of ``phase`` are over on all ranks: what they logged is brought together."""
        self._exchange(phase, None)
        return super().end(phase)

    def clear(self, phase: str) -> None:
        """Starts a new epoch of ``phase``."""
        super().clear(phase)
        self._exchanged.difference_update(self._phases[phase])

    def _exchange(self, phase: str, loader: int | None) -> None:
        """Brings together what the hooks of batches have logged, in one exchange whatever it is."""
        mine = {
            (page.hook, page.loader, name): entry
            for page in self.pages(phase)
            if page.rule != "epoch" and page.loader == loader
            for name, entry in page.items()
            if _is_shared(entry) and entry not in self._exchanged
        }
        logged = {identity: entry for identity, entry in mine.items() if not entry.empty}
        parts = distributed.all_gather_object(self._parts_of(logged), name=f"metrics of {phase}")
        known: dict[Identity, Part] = {}
        for each in parts:
            known |= {identity: part for identity, part in each.items() if identity not in known}
        place: dict[Entry, int] = {}
        for identity, part in known.items():
            entry = mine.get(identity) or self._adopt(phase, identity, part)
            if entry is not None:
                self._take_all(entry, [each.get(identity) for each in parts])
                place[entry] = len(place)
        # metrics that bring their states together by themselves have to do so in the same order everywhere
        self._phases[phase].sort(key=lambda entry: place.get(entry, len(place)))
        self._exchanged.update(place)

    def _parts_of(self, logged: dict[Identity, Entry]) -> dict[Identity, Part]:
        """What this rank has, as numbers, read from the device in one copy."""
        totals, weights = {}, {}
        for place, entry in enumerate(logged.values()):
            if not isinstance(entry, MetricEntry):
                entry.fold()
                totals[f"total {place}"], weights[f"weight {place}"] = entry.total, entry.weight
        numbers = to_scalars(totals | weights)
        return {
            identity: Part(
                entry.resolved._replace(sync_dist_group=None),
                entry.dtype,
                numbers.get(f"total {place}"),
                numbers.get(f"weight {place}", 0),
                self._path_of(entry),
            )
            for place, (identity, entry) in enumerate(logged.items())
        }

    def _path_of(self, entry: Entry) -> str | None:
        if not isinstance(entry, MetricEntry) or self.module is None:
            return None
        return next((path for path, part in self.module.named_modules() if part is entry.metric), None)

    def _adopt(self, phase: str, identity: Identity, part: Part) -> Entry | None:
        """An entry for what only other ranks have logged."""
        hook, loader, name = identity
        options = Options(add_dataloader_idx=part.resolved.add_dataloader_idx)
        page = self.page_of(hook, loader)
        if part.path is not None and self.module is not None:
            metric = self.module.get_submodule(part.path)
            page[name] = MetricEntry(metric, name, options, part.resolved, loader)
        elif part.total is not None:
            page[name] = Entry(name, options, part.resolved, loader)
        else:
            return None
        page[name].dtype = part.dtype
        self._phases[phase].append(page[name])
        return page[name]

    def _take_all(self, entry: Entry, parts: list[Part | None]) -> None:
        """Makes the values of all ranks the entry's own."""
        if entry.empty:
            entry.stamp = entry.published = self.stamp
        if isinstance(entry, MetricEntry):
            return
        group = entry.resolved.sync_dist_group
        members = range(len(parts)) if group is None else dist.get_process_group_ranks(group)
        taken = [part for rank in members if (part := parts[rank]) is not None]
        entry.total, entry.weight = taken[0].total, taken[0].weight
        for part in taken[1:]:
            entry.total = combine(entry.reduction, entry.total, part.total)
            entry.weight += part.weight


def _is_shared(entry: Entry) -> bool:
    resolved = entry.resolved
    shared = resolved.sync_dist or isinstance(entry, MetricEntry)
    return shared and entry.on_epoch and not entry.closed and not resolved.rank_zero_only


def _as_tensor(value: Any, device: torch.device) -> Tensor:
    """A value as it is exchanged; a number with all its digits, where the device knows them."""
    if isinstance(value, Tensor):
        return value
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.full((), float(value), dtype=dtype, device=device)
