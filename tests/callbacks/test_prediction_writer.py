from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    Sampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

import fulmen
from fulmen import LightningModule
from fulmen.callbacks import BasePredictionWriter
from fulmen.callbacks.prediction_writer import WriteInterval
from fulmen.errors import MisconfigurationException


class Rows(LightningModule):
    """Predicts the numbers in the batch."""

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> list[int]:
        return torch.as_tensor(batch[0] if isinstance(batch, list) else batch).reshape(-1).tolist()


class Writes(BasePredictionWriter):
    """Notes what it gets."""

    def __init__(self, interval: Any = "batch") -> None:
        super().__init__(interval)
        self.batches: list[Any] = []
        self.epochs: list[Any] = []

    def write_on_batch_end(
        self, trainer: Any, module: Any, prediction: Any, batch_indices: Any, batch: Any, batch_idx: int, loader: int
    ) -> None:
        self.batches.append((prediction, batch_indices, batch_idx, loader))

    def write_on_epoch_end(self, trainer: Any, module: Any, predictions: Any, batch_indices: Any) -> None:
        self.epochs.append((predictions, batch_indices))


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.arange(4))


class Reversed(Sampler[int]):
    """From the last sample to the first; its length is not known."""

    def __iter__(self) -> Iterator[int]:
        return iter([4, 3, 2, 1, 0])


def table(count: int = 5) -> TensorDataset:
    return TensorDataset(torch.arange(count))


@pytest.fixture
def predict() -> Any:
    """Predicts with a writer; returns the trainer and what it returned."""

    def run(writer: Any, loaders: Any, limit: Any = 1.0, module: Any = None, **arguments: Any) -> tuple[Any, Any]:
        off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = fulmen.Trainer(accelerator="cpu", callbacks=writer, limit_predict_batches=limit, **off)
        return trainer, trainer.predict(module or Rows(), loaders, **arguments)

    return run


def test_intervals() -> None:
    assert [(interval.on_batch, interval.on_epoch) for interval in WriteInterval] == [
        (True, False), (False, True), (True, True),
    ]  # fmt: skip
    assert BasePredictionWriter().interval is WriteInterval.BATCH
    assert BasePredictionWriter("batch_and_epoch").interval == "batch_and_epoch"
    assert BasePredictionWriter(WriteInterval.EPOCH).interval.on_epoch


@pytest.mark.parametrize("interval", ["batches", "", None, 1])
def test_a_bad_interval(interval: Any) -> None:
    with pytest.raises(MisconfigurationException, match="expected 'batch', 'epoch' or 'batch_and_epoch'"):
        BasePredictionWriter(interval)


def test_batch_by_batch(predict) -> None:
    writer = Writes("batch")
    trainer, returned = predict(writer, DataLoader(table(), 2), return_predictions=False)
    assert writer.batches == [([0, 1], [0, 1], 0, 0), ([2, 3], [2, 3], 1, 0), ([4], [4], 2, 0)]
    assert writer.epochs == []
    assert returned is None
    assert trainer.predict_loop.predictions == []
    assert trainer.predict_loop.current_batch_indices == [4]


@pytest.mark.parametrize("returned", [True, False])
def test_all_at_the_end(predict, returned: bool) -> None:
    writer = Writes("epoch")
    trainer, predictions = predict(writer, DataLoader(table(), 2), return_predictions=returned)
    assert writer.batches == []
    assert writer.epochs == [([[0, 1], [2, 3], [4]], [[[0, 1], [2, 3], [4]]])]
    assert predictions == ([[0, 1], [2, 3], [4]] if returned else None)
    assert trainer.predict_loop.epoch_batch_indices == []


def test_several_loaders(predict) -> None:
    writer = Writes("batch_and_epoch")
    predict(writer, [DataLoader(table(3), 2), DataLoader(table(2), 1, shuffle=False)])
    assert [batch[1:] for batch in writer.batches] == [([0, 1], 0, 0), ([2], 1, 0), ([0], 0, 1), ([1], 1, 1)]
    assert writer.epochs == [([[[0, 1], [2]], [[0], [1]]], [[[0, 1], [2]], [[0], [1]]])]


def test_a_limit(predict) -> None:
    writer = Writes("batch_and_epoch")
    predict(writer, DataLoader(table(9), 2, num_workers=1), limit=2)
    assert writer.epochs == [([[0, 1], [2, 3]], [[[0, 1], [2, 3]]])]


class Positions:
    """A map-style dataset that is no table."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> int:
        return index


@pytest.mark.filterwarnings("ignore:.*shuffles:UserWarning")
@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(table(), 2, shuffle=True),
        DataLoader(Positions(), 2, shuffle=True),
        DataLoader(Positions(), 2, shuffle=True, num_workers=2),
        DataLoader(Positions(), 2, num_workers=1, persistent_workers=True),
        DataLoader(Positions(), 2, sampler=Reversed()),
        DataLoader(table(), 2, sampler=Reversed()),
        DataLoader(Positions(), batch_sampler=[[4, 2], [0]]),
        DataLoader(Positions(), batch_sampler=[[4, 2], [0]], num_workers=2),
    ],
    ids=["table", "map", "workers", "persistent workers", "unknown length", "table, unknown length", "batches", "both"],
)
def test_the_indices_are_those_of_the_samples(predict, loader: Any) -> None:
    writer = Writes("batch_and_epoch")
    _, returned = predict(writer, loader)
    assert [indices for _, indices, *_ in writer.batches] == returned
    assert writer.epochs == [(returned, [returned])]


def test_the_indices_of_a_subset_are_its_own(predict) -> None:
    writer = Writes()
    predict(writer, DataLoader(Subset(table(), [4, 1, 3]), 2))
    assert writer.batches == [([4, 1], [0, 1], 0, 0), ([3], [2], 1, 0)]


@pytest.mark.parametrize(
    "loader",
    [DataLoader(Stream(), 2), DataLoader(Positions(), batch_size=None), torch.arange(4).view(2, 2)],
    ids=["stream", "no batches", "no loader"],
)
def test_indices_that_are_not_known(predict, loader: Any) -> None:
    writer = Writes("batch_and_epoch")
    with pytest.warns(UserWarning, match="is not known for the predict loader") as warned:
        _, returned = predict(writer, loader)
    assert sum("is not known" in str(warning.message) for warning in warned) == 1
    assert [batch[:2] for batch in writer.batches] == [(prediction, []) for prediction in returned]
    assert writer.epochs == [(returned, [[]])]


def test_nothing_is_recorded_without_a_writer(predict) -> None:
    seen = []

    class Looks(fulmen.Callback):
        def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
            loop = trainer.predict_loop
            seen.append((loop.current_batch_indices, loop.epoch_batch_indices))

    predict(Looks(), DataLoader(table(), 5))
    assert seen == [([], [[]])]


def test_the_hooks_see_the_indices(predict) -> None:
    seen = []

    class Looks(Writes):
        def on_predict_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            loop = trainer.predict_loop
            seen.append((loop.current_batch_indices, [list(loader) for loader in loop.epoch_batch_indices]))

    predict(Looks("epoch"), DataLoader(table(3), 2))
    assert seen == [([0, 1], [[[0, 1]]]), ([2], [[[0, 1], [2]]])]


@pytest.mark.parametrize("dataset", [table(), Positions()], ids=["table", "map"])
def test_every_sample_is_predicted(predict, dataset: Any) -> None:
    loader = DataLoader(dataset, 2, drop_last=True)
    trainer, returned = predict(Writes(), loader)
    assert returned == [[0, 1], [2, 3], [4]]
    assert trainer.num_predict_batches == [3]
    assert len(loader) == 2


def test_a_batch_sampler_of_the_users_own_leaves_nothing_out(predict) -> None:
    class Own(BatchSampler):
        pass

    loader = DataLoader(table(), batch_sampler=Own(SequentialSampler(table()), 2, drop_last=True))
    _, returned = predict(Writes(), loader)
    assert returned == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("interval", ["batch", "epoch"])
def test_what_is_due_must_be_written(predict, interval: Any) -> None:
    method = f"write_on_{interval}_end"
    with pytest.raises(NotImplementedError, match=f"write_interval='{interval}'.*needs `{method}`"):
        predict(BasePredictionWriter(interval), DataLoader(table(), 2))


@pytest.mark.filterwarnings("ignore:.*dataloader_iter")
def test_a_step_that_draws_its_batches(predict) -> None:
    class Draws(LightningModule):
        def predict_step(self, dataloader_iter: Any) -> Any: ...

    with pytest.raises(NotImplementedError, match=r"Draws\.predict_step` takes `dataloader_iter`"):
        predict(Writes(), DataLoader(table(), 2), module=Draws())


def test_predictions_are_written_where_they_are_and_kept_on_the_cpu(predict) -> None:
    class Tensors(LightningModule):
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx else batch[0]

    writer = Writes("batch_and_epoch")
    with pytest.warns(UserWarning, match="returned None"):
        _, returned = predict(writer, DataLoader(table(4), 2), module=Tensors())
    assert writer.batches[1][0] is returned[1] is None
    assert writer.batches[0][0].tolist() == returned[0].tolist() == [0, 1]
