"""When the loaders are asked for: by the number of epochs, by each call, and once more after a resume."""

from __future__ import annotations

from typing import Any

import pytest

import fulmen
from fulmen.callbacks import ModelCheckpoint


@pytest.fixture
def Source(ValNet: Any, data: Any) -> Any:
    class Source(ValNet):
        """Its own data; notes which loader was asked for, and in which epoch."""

        def __init__(self) -> None:
            super().__init__()
            self.asked: list[tuple[str, int]] = []

        def _loader(self, name: str) -> Any:
            self.asked.append((name, self.trainer.current_epoch))
            return data(2)

        def train_dataloader(self) -> Any:
            return self._loader("train")

        def val_dataloader(self) -> Any:
            return self._loader("val")

        def test_dataloader(self) -> Any:
            return self._loader("test")

        def predict_dataloader(self) -> Any:
            return self._loader("predict")

    return Source


def epochs(module: Any, name: str) -> list[int]:
    return [epoch for asked, epoch in module.asked if asked == name]


@pytest.mark.parametrize(
    ("every", "arguments", "train", "val"),
    [
        (0, {}, [0], [0]),
        (1, {}, [0, 1, 2, 3], [0, 1, 2, 3]),
        (2, {}, [0, 2], [0, 2]),
        (3, {}, [0, 3], [0, 3]),
        (1, {"check_val_every_n_epoch": 2}, [0, 1, 2, 3], [1, 3]),
        (2, {"check_val_every_n_epoch": 2}, [0, 2], [1, 3]),
        (3, {"check_val_every_n_epoch": 2}, [0, 3], [1]),
        (1, {"num_sanity_val_steps": 1}, [0, 1, 2, 3], [0, 1, 2, 3]),
        (2, {"num_sanity_val_steps": 1}, [0, 2], [0, 2]),
        (1, {"val_check_interval": 1}, [0, 1, 2, 3], [0, 1, 2, 3]),
    ],
    ids=str,
)
def test_epochs_of_a_fit(quiet: Any, Source: Any, every: int, arguments: Any, train: Any, val: Any) -> None:
    module = Source()
    quiet(max_epochs=4, reload_dataloaders_every_n_epochs=every, **arguments).fit(module)
    assert (epochs(module, "train"), epochs(module, "val")) == (train, val)


@pytest.mark.parametrize(("every", "train"), [(0, [0, 2]), (1, [0, 1, 2, 3]), (2, [0, 2])])
def test_a_second_fit_asks_again(quiet: Any, Source: Any, every: int, train: list[int]) -> None:
    module = Source()
    trainer = quiet(max_epochs=2, reload_dataloaders_every_n_epochs=every)
    trainer.fit(module)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module)
    assert epochs(module, "train") == epochs(module, "val") == train


@pytest.mark.parametrize(("every", "train"), [(0, [3]), (1, [3, 4, 5, 6]), (2, [3, 5]), (3, [3, 6])])
def test_a_resumed_fit_counts_from_its_first_epoch(
    quiet: Any, Source: Any, tmp_path: Any, every: int, train: list[int]
) -> None:
    keeper = ModelCheckpoint(tmp_path, enable_version_counter=False)
    quiet(max_epochs=3, callbacks=keeper, enable_checkpointing=True).fit(Source())
    module = Source()
    trainer = quiet(max_epochs=7, reload_dataloaders_every_n_epochs=every, callbacks=ModelCheckpoint(tmp_path),
                    enable_checkpointing=True)  # fmt: skip
    trainer.fit(module, ckpt_path=keeper.best_model_path)
    assert epochs(module, "train") == epochs(module, "val") == train


def test_evaluation_and_prediction_ask_at_each_call(quiet: Any, Source: Any) -> None:
    module = Source()
    trainer: fulmen.Trainer = quiet()
    for _ in range(2):
        trainer.validate(module, verbose=False)
        trainer.test(module, verbose=False)
        trainer.predict(module)
    assert module.asked == [("val", 0), ("test", 0), ("predict", 0)] * 2


def test_each_validation_of_a_fit_sees_what_was_asked_for_last(quiet: Any, Source: Any, data: Any) -> None:
    class Grows(Source):
        def val_dataloader(self) -> Any:
            return data(self.trainer.current_epoch + 1)

    seen = []

    class Counts(fulmen.Callback):
        def on_validation_end(self, trainer: Any, module: Any) -> None:
            seen.append(trainer.num_val_batches)

    quiet(max_epochs=3, reload_dataloaders_every_n_epochs=1, callbacks=Counts()).fit(Grows())
    assert seen == [[1], [2], [3]]
