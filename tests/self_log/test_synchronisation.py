"""Logging never waits for the device: nothing reads a tensor's value until a logger or the bar is due."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fulmen.book import Book
from fulmen.entry import BLOCK, Options

BOTH = {"on_step": True, "on_epoch": True}


class FarTensor(Tensor):
    """A tensor that says it is on a GPU and computes on the CPU; counts how often its value is asked for.

    A read is what a GPU would have to be waited for: turning an element into a number, or a copy to the CPU.
    """

    reads: ClassVar[Counter[Any]] = Counter()
    #: tells what is under way, by which reads are counted
    now: ClassVar[Any] = None

    @staticmethod
    def __new__(cls, inner: Tensor) -> FarTensor:
        far: FarTensor = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device="cuda")
        far.inner = inner
        return far

    def tolist(self) -> Any:
        """A copy to the CPU, then numbers; of a subclass PyTorch makes no list."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(FarTensor, lambda far: far.inner, (args, kwargs or {}))
        to_cpu = kwargs.get("device") == torch.device("cpu")
        if to_cpu or func is torch.ops.aten._local_scalar_dense.default:
            FarTensor.reads[FarTensor.now()] += 1
        result = func(*args, **kwargs)
        return result if to_cpu else tree_map_only(Tensor, FarTensor, result)


class Ready:
    """Batches that are there already."""

    def __init__(self, batches: int) -> None:
        self.batches = [torch.ones(1 + index % 2, 2) for index in range(batches)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.batches)


@pytest.fixture
def far(monkeypatch) -> type[FarTensor]:
    """The class of far tensors, nothing read so far."""
    monkeypatch.setattr(FarTensor, "reads", Counter())
    monkeypatch.setattr(FarTensor, "now", staticmethod(lambda: "outside"))
    return FarTensor


@pytest.fixture
def reads_of(ValNet, quiet, far, monkeypatch):
    """Fits for 30 batches with so many logged values; returns how often one was read in which batch."""

    class Logs(ValNet):
        def __init__(self, values: int) -> None:
            super().__init__()
            self.values = values

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss, prog_bar=True, **BOTH)
            for index in range(self.values):
                self.log(f"x{index}", far(torch.tensor(float(batch_idx))), prog_bar=True, **BOTH)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("v", far(torch.tensor(float(batch_idx))), on_epoch=True)

        def on_train_end(self) -> None:
            monkeypatch.setattr(far, "now", staticmethod(lambda: "after training"))

    def run(values: int, *loaders: int, **arguments: Any) -> Counter[Any]:
        trainer = quiet(log_every_n_steps=10, **arguments)
        monkeypatch.setattr(far, "now", staticmethod(lambda: trainer.book.stamp))
        trainer.fit(Logs(values), Ready(30), *map(Ready, loaders))
        assert not any(isinstance(value, far) for value in trainer.callback_metrics.values())
        assert trainer.callback_metrics["x0_step"] == 29
        del far.reads["after training"]  # when what is left is moved to the CPU
        return far.reads

    return run


@pytest.mark.parametrize(
    "read",
    [Tensor.item, bool, FarTensor.tolist, Tensor.cpu, lambda value: value.to("cpu")],
    ids=["item", "bool", "tolist", "cpu", "to"],
)
def test_a_far_tensor_counts_its_reads(far, read):
    value = far(torch.tensor([1.0, 2.0]))
    total = (torch.stack([value.clone(), value.detach()]).sum() * 2).to(torch.float64) / 12
    assert isinstance(total, far)
    assert not total.is_cpu
    assert far.reads == {}
    assert read(total) == 1
    assert far.reads == {"outside": 1}


@pytest.mark.filterwarnings("ignore:There is a `validation_step` but no val dataloader")
@pytest.mark.parametrize("values", [1, 5])
def test_values_are_read_together_when_a_logger_is_due_and_not_before(reads_of, values):
    assert reads_of(values) == {10: 1, 20: 1, 30: 1 + 1}  # the last by step, and by epoch


@pytest.mark.filterwarnings("ignore:There is a `validation_step` but no val dataloader")
def test_what_is_read_is_what_was_logged(reads_of, recorder):
    reads_of(2)
    assert recorder.having("x1_step") == [(9, 9), (19, 19), (29, 29)]
    weights = [1 + index % 2 for index in range(30)]
    mean = math.fsum(index * weight for index, weight in enumerate(weights)) / sum(weights)
    assert recorder.having("x1_epoch") == [(pytest.approx(mean), 29)]


@pytest.mark.filterwarnings("ignore:There is a `validation_step` but no val dataloader")
def test_without_loggers_nothing_is_read(reads_of):
    assert reads_of(5, logger=False) == {}


def test_validation_is_read_at_its_end(reads_of, recorder):
    after_validation = 30 + 4
    assert reads_of(1, 4) == {10: 1, 20: 1, 30: 1, after_validation: 2}
    assert recorder.having("v") == [(pytest.approx((0 + 2 * 1 + 2 + 2 * 3) / 6), 29)]


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
