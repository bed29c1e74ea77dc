"""The vectorised fetch: a batch of a `TensorDataset` by one indexing operation per tensor.

A raw `DataLoader` asks the dataset for one sample after the other and stacks them. Where dataset, collate function and
samplers are torch's own, the outcome is known beforehand: rows of the tensors. They are taken in one go, in the same
order and from the same random numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)
from torch.utils.data._utils.collate import collate_tensor_fn, default_collate_fn_map

from fulmen.data.position import IndexBatches
from fulmen.data.shard import ShardSampler

__all__ = ["Table", "table_of", "vectorised"]


class Table(NamedTuple):
    """The tensors of a dataset.

    Args:
        columns: Contiguous tensors with the samples along the first dimension.
        rows: Which rows of the columns the samples of the dataset are; None: all of them, in order.
        pin: Whether batches go to pinned memory.
        dataset: The dataset itself, for indices that are not plain numbers.
    """

    columns: list[Tensor]
    rows: Tensor | None
    pin: bool
    dataset: Any

    def num_samples(self) -> int:
        """Number of samples in the dataset."""
        return len(self.columns[0]) if self.rows is None else len(self.rows)

    def take(self, rows: Tensor) -> list[Tensor]:
        """The batch with these rows of the columns."""
        return [column.index_select(0, rows) for column in self.columns]

    def cut(self, rows: slice) -> list[Tensor]:
        """The batch with these rows; a copy, as a change of the batch must not reach the dataset."""
        return [column[rows].clone(memory_format=torch.contiguous_format) for column in self.columns]

    def gather(self, indices: Any) -> list[Tensor]:
        """The batch with these samples of the dataset."""
        rows = _as_rows(indices)
        if rows is None:
            batch: list[Tensor] = default_collate([self.dataset[index] for index in indices])
            return batch
        rows = rows if self.rows is None else self.rows[rows]
        return self.take(rows.to(self.columns[0].device))


def table_of(loader: DataLoader[Any]) -> Table | None:
    """The tensors behind a loader whose batches are plainly rows of them; None for any other loader."""
    collates_as_torch = loader.collate_fn is default_collate and default_collate_fn_map.get(Tensor) is collate_tensor_fn
    if loader.num_workers or loader.batch_sampler is None or not collates_as_torch:
        return None
    rows: Tensor | None = None
    dataset: Any = loader.dataset
    while _is_plain(dataset, Subset):
        indices = _as_rows(dataset.indices)
        if indices is None or (rows is not None and rows.max() >= len(indices)):
            return None
        rows = indices if rows is None else indices[rows]
        dataset = dataset.dataset
    if not _is_plain(dataset, TensorDataset) or not _are_columns(dataset.tensors):
        return None
    columns = list(dataset.tensors)
    if rows is not None and rows.max() >= len(columns[0]):
        return None
    return Table(columns, rows, loader.pin_memory and _can_pin(columns[0]), loader.dataset)


def _can_pin(tensor: Tensor) -> bool:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator is not None and accelerator.type != "mps" and tensor.device.type == "cpu"


def _is_plain(dataset: Any, kind: type) -> bool:
    """Whether the dataset gets its samples as `kind` does."""
    return isinstance(dataset, kind) and all(
        getattr(type(dataset), name, None) is getattr(kind, name, None) and name not in vars(dataset)
        for name in ("__getitem__", "__getitems__")
    )


def _are_columns(tensors: Any) -> bool:
    """Whether taking rows of the tensors gives what stacking their samples gives, down to the memory layout."""
    return len({tensor.device for tensor in tensors}) == 1 and all(
        type(tensor) is Tensor and tensor.layout is torch.strided and tensor.is_contiguous()
        and not (tensor.is_quantized or tensor.is_nested or tensor.is_conj() or tensor.is_neg())
        for tensor in tensors
    )  # fmt: skip


def _as_rows(indices: Any) -> Tensor | None:
    """Non-negative integers as a tensor; None if `indices` is anything else."""
    try:
        rows = torch.as_tensor(indices, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        return None
    if rows.ndim != 1 or not len(rows) or rows.dtype not in (torch.int64, torch.int32) or rows.min() < 0:
        return None
    return rows.long()


def vectorised(loader: DataLoader[Any], indices: IndexBatches) -> Iterator[list[Tensor]] | None:
    """One pass over the loader, continued where `indices` starts; None where its batches are not plainly rows.

    The order is drawn before this returns, by the same draws from the same generators as in torch's own iterator.
    """
    table = table_of(loader)
    if table is None:
        return None
    in_order = indices.kept is None and _has_known_order(loader, table)
    batches = _ordered(loader, table, indices) if in_order else _gathered(loader, table, indices)
    return map(_pin, batches) if table.pin else batches


def _pin(batch: list[Tensor]) -> list[Tensor]:
    return [tensor.pin_memory() for tensor in batch]


def _draw_base_seed(loader: DataLoader[Any]) -> None:
    """Draw what torch's iterator draws for seeding workers, also where there are none."""
    torch.empty((), dtype=torch.int64).random_(generator=loader.generator)


def _gathered(loader: DataLoader[Any], table: Table, indices: IndexBatches) -> Iterator[list[Tensor]]:
    stream = iter(indices)
    _draw_base_seed(loader)
    next(stream)
    return map(table.gather, stream)


def _has_known_order(loader: DataLoader[Any], table: Table) -> bool:
    """Whether the order is each sample once, in sequence or permuted by a torch that needs no lists for it."""
    batch_sampler: Any = loader.batch_sampler
    if type(batch_sampler) is not BatchSampler:
        return False
    sampler: Any = _of_all_ranks(batch_sampler.sampler)
    if type(sampler) is RandomSampler and (sampler.replacement or len(sampler) != len(sampler.data_source)):
        return False
    return type(sampler) in (RandomSampler, SequentialSampler) and len(sampler.data_source) == table.num_samples()


def _of_all_ranks(sampler: Any) -> Any:
    return sampler.sampler if isinstance(sampler, ShardSampler) else sampler


def _ordered(loader: DataLoader[Any], table: Table, indices: IndexBatches) -> Iterator[list[Tensor]]:
    batch_sampler: Any = loader.batch_sampler
    sampler, batch_size = batch_sampler.sampler, batch_sampler.batch_size
    _draw_base_seed(loader)
    rows = table.rows
    first, stop = indices.position.samples, table.num_samples()
    if type(sampler) is not SequentialSampler:
        if isinstance(sampler, ShardSampler):
            permutation = sampler.permutation_after(first)
            first, stop = 0, len(permutation)
        else:
            permutation = _permutation(sampler)
        rows = permutation if rows is None else rows[permutation]
    if batch_sampler.drop_last:
        stop -= (stop - first) % batch_size
    slices = map(slice, range(first, stop, batch_size), range(first + batch_size, stop + batch_size, batch_size))
    if rows is None:
        return map(table.cut, slices)
    rows = rows.to(table.columns[0].device)
    return itertools.chain(map(table.take, map(rows.__getitem__, slices)), _leave(_of_all_ranks(sampler)))


def _permutation(sampler: RandomSampler) -> Tensor:
    generator = sampler.generator
    if generator is None:
        generator = torch.Generator()
        generator.manual_seed(int(torch.empty((), dtype=torch.int64).random_().item()))
    return torch.randperm(len(sampler.data_source), generator=generator)


def _leave(sampler: Any) -> Iterator[list[Tensor]]:
    """Give nothing, but draw as `RandomSampler` does when it ends: a permutation of which it takes the remainder."""
    if isinstance(sampler, RandomSampler) and sampler.generator is not None:
        torch.randperm(len(sampler.data_source), generator=sampler.generator)
    yield from ()
