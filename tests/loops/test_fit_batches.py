"""What a fit does with the batches it draws: those that are skipped, the last one, and those of several loaders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

import fulmen
from fulmen.data import CombinedLoader


class Stream(IterableDataset[Tensor]):
    """Rows whose number is not known before they end."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.ones(self.rows, 2))


def stream(rows: int) -> DataLoader[Tensor]:
    return DataLoader(Stream(rows), batch_size=1)


def test_minus_one_skips_the_rest_of_the_epoch(fit: Any, ValNet: Any, data: Any, diary: Any) -> None:
    module = ValNet()
    module.on_train_batch_start = lambda batch, batch_idx: -1 if batch_idx == 2 else None
    trainer = fit(module, data(4), data(1), max_epochs=2, callbacks=[diary])
    assert diary.text == "0.0 0.1 end 1.0 1.1 end"
    assert (trainer.global_step, trainer.fit_loop.total_batch_idx) == (4, 5)


def test_a_batch_that_is_none_is_passed_over(fit: Any, Net: Any, data: Any) -> None:
    calls = []

    class Watches(Net):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            calls.append("transfer")
            return batch

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            calls.append("start")

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            calls.append(f"end {outputs is None}")

    loader = data(3, collate_fn=lambda rows: None if rows[0][0] == 1 else rows[0])
    with pytest.warns(UserWarning, match="gave None for batch 1"):
        trainer = fit(Watches(), loader)
    assert calls == ["transfer", "start", "end False", "transfer", "end True", "transfer", "start", "end False"]
    assert (trainer.global_step, trainer.fit_loop.total_batch_idx) == (2, 2)


def test_last_batch_of_a_stream_is_known_when_it_comes(fit: Any, Net: Any) -> None:
    class Asks(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            self.last = [*getattr(self, "last", []), self.trainer.is_last_batch]
            return super().training_step(batch, batch_idx)

    module = Asks()
    trainer = fit(module, stream(3), max_epochs=2, accumulate_grad_batches=2)
    assert module.last == [False, False, True] * 2
    assert (trainer.global_step, trainer.num_training_batches) == (4, float("inf"))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (None, [(0, 0), (1, 1), (2, 0)]),
        ("max_size_cycle", [(0, 0), (1, 1), (2, 0)]),
        ("min_size", [(0, 0), (1, 1)]),
        ("max_size", [(0, 0), (1, 1), (2, None)]),
    ],
)
@pytest.mark.parametrize("kind", [list, dict])
def test_several_training_loaders(fit: Any, Net: Any, data: Any, kind: type, mode: Any, expected: Any) -> None:
    class Notes(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            assert type(batch) is kind
            both = list(batch.values()) if kind is dict else batch
            self.seen = [*getattr(self, "seen", []), tuple(None if b is None else int(b.mean()) for b in both)]
            return self.loss(both[0])

    loaders = [data(3), data(2)]
    collection: Any = {"a": loaders[0], "b": loaders[1]} if kind is dict else loaders
    module = Notes()
    trainer = fit(module, collection if mode is None else CombinedLoader(collection, mode))
    assert module.seen == expected
    assert trainer.num_training_batches == len(expected)


def test_training_loaders_one_after_the_other_are_refused(fit: Any, Net: Any, data: Any) -> None:
    with pytest.raises(ValueError, match="sequential"):
        fit(Net(), CombinedLoader([data(1), data(1)], "sequential"))


@pytest.mark.parametrize(("every", "requests"), [(0, (1, 1)), (1, (4, 4)), (2, (2, 2)), (3, (2, 2))])
def test_reloading_data(quiet: Any, ValNet: Any, data: Any, every: int, requests: tuple[int, int]) -> None:
    class Counts(ValNet):
        trains = vals = 0

        def train_dataloader(self) -> Any:
            self.trains += 1
            return data(1)

        def val_dataloader(self) -> Any:
            self.vals += 1
            return data(1)

    module = Counts()
    quiet(max_epochs=4, reload_dataloaders_every_n_epochs=every).fit(module)
    assert (module.trains, module.vals) == requests


def test_only_the_module_can_skip_an_epoch(quiet: Any, data: Any, Net: Any) -> None:
    class SaysMinusOne(fulmen.Callback):
        def on_train_batch_start(self, *_: Any) -> int:
            return -1

    class Skips(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 2 else None

    for module, steps in ((Net(), 4), (Skips(), 2)):
        trainer = quiet(callbacks=[SaysMinusOne(), SaysMinusOne()])
        trainer.fit(module, data(4))
        assert trainer.global_step == steps


def test_a_watched_run_can_skip_too(quiet: Any, data: Any, Net: Any) -> None:
    module = Net()
    module.on_train_batch_start = lambda batch, batch_idx: -1
    trainer = quiet()
    trainer.measure_timings()
    trainer.fit(module, data(4))
    assert trainer.global_step == 0
