"""Logging never waits for the device: nothing reads a tensor's value until a logger or the bar is due."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fulmen.book import Book
from fulmen.entry import BLOCK, Options

BOTH = {"on_step": True, "on_epoch": True}


class Reads(TorchDispatchMode):
    """Counts, by the batch under way, how often a tensor is turned into a Python number (`item`, `float`, `bool`)."""

    def __init__(self, book: Book) -> None:
        super().__init__()
        self.book = book
        self.count: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.count[self.book.stamp] += 1
        return func(*args, **(kwargs or {}))


class Ready:
    """Batches that are there already; a DataLoader reads the number from which it seeds its workers."""

    def __init__(self, batches: int) -> None:
        self.batches = [torch.ones(1, 2)] * batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.batches)


@pytest.fixture
def reads_of(ValNet, quiet):
    """Fits for 30 batches with so many logged values; returns how many were read in which batch."""

    class Logs(ValNet):
        def __init__(self, values: int) -> None:
            super().__init__()
            self.values = values

        def log_all(self, value: Tensor) -> Tensor:
            for index in range(self.values):
                self.log(f"x{index}", value, prog_bar=True, **BOTH)
            return value

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.log_all(super().training_step(batch, batch_idx))

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("v", batch.mean(), on_epoch=True)

    def run(values: int, *loaders: int, **arguments: Any) -> Counter[int]:
        trainer = quiet(log_every_n_steps=10, **arguments)
        with Reads(trainer.book) as reads:
            trainer.fit(Logs(values), Ready(30), *map(Ready, loaders))
        return reads.count

    return run


def test_the_counter_counts():
    book = Book()
    with Reads(book) as reads:
        for read in (Tensor.item, float, bool, int):
            read(torch.ones(()))
    assert reads.count == {0: 4}


@pytest.mark.filterwarnings("ignore:There is a `validation_step` but no val dataloader")
@pytest.mark.parametrize("values", [1, 5])
def test_values_are_read_when_a_logger_is_due_and_not_before(reads_of, values):
    by_epoch = values  # after the last batch, in addition to what is due by step
    assert reads_of(values) == {10: values, 20: values, 30: values + by_epoch}


@pytest.mark.filterwarnings("ignore:There is a `validation_step` but no val dataloader")
def test_without_loggers_nothing_is_read(reads_of):
    assert reads_of(5, logger=False) == {}


def test_validation_is_read_at_its_end(reads_of):
    after_validation = 30 + 4
    assert reads_of(1, 4) == {10: 1, 20: 1, 30: 1, after_validation: 2}


@pytest.mark.parametrize("reduce_fx", ["mean", "sum", "min", "max"])
@pytest.mark.parametrize("sizes", [[4], [4, 3]])
def test_an_epoch_of_tensors_that_cannot_be_read(reduce_fx, sizes):
    """On the device "meta" there are no values at all, so that every attempt to read one raises."""
    book = Book()
    options = tuple(Options(reduce_fx=reduce_fx, prog_bar=True, **BOTH))
    book.page = book.page_of("training_step")
    for index in range(3 * BLOCK):
        book.stamp += 1
        book.batch, book.batch_size = (torch.ones(sizes[index % len(sizes)]),), None
        book.log("x", torch.ones((), device="meta"), options)
        assert book.step_metrics("train").keys() == {"x_step"}
    book.end("train")
    assert {value.device.type for value in book.callback_metrics.values()} == {"meta"}
    assert set(book.logged_metrics) == {"x_step", "x_epoch"}
    book.clear("train")
    with pytest.raises(RuntimeError, match="meta"):
        _ = book.progress_bar_metrics
