"""Steps that draw their batches themselves: `training_step(self, dataloader_iter)`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset

import fulmen
from fulmen.data.feed import Feed
from fulmen.errors import MisconfigurationException, PossibleUserWarning
from fulmen.loops.draws import BatchIterator, batches_for

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*draws its batches itself"),
    pytest.mark.filterwarnings("ignore:There is a `validation_step` but no val dataloader"),
]


class Drawing(fulmen.LightningModule):
    """Draws `pulls` batches a step, and notes what it and the hooks got: the first number of each batch."""

    def __init__(self, pulls: int = 1) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.pulls = pulls
        self.notes: list[Any] = []

    def draw(self, dataloader_iter: Any) -> Any:
        drawn = [next(dataloader_iter) for _ in range(self.pulls)]
        self.notes.append([(int(batch[0, 0]), *where) for batch, *where in drawn])
        return drawn[-1][0]

    def training_step(self, dataloader_iter: Any) -> Any:
        loss = self.layer(self.draw(dataloader_iter)).pow(2).mean()
        self.log("loss", loss, on_step=True, on_epoch=True, batch_size=1)
        return loss

    def validation_step(self, dataloader_iter: Any) -> None:
        self.log("val", self.draw(dataloader_iter).mean(), batch_size=1)

    def predict_step(self, dataloader_iter: Any) -> Any:
        return self.draw(dataloader_iter).sum()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.notes.append(f"start {batch_idx} of {int(batch[0, 0])}")

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.notes.append(f"end {batch_idx} of {int(batch[0, 0])}")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        raise AssertionError("not called for batches that a step draws itself")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(torch.arange(3.0)[:, None].expand(-1, 2))


def steps(module: Drawing) -> list[Any]:
    return [note for note in module.notes if isinstance(note, list)]


def test_one_batch_a_step(fit: Any, data: Any) -> None:
    module = Drawing()
    trainer = fit(module, data(3))
    assert module.notes == [
        *("start 0 of 0", [(0, 0, 0)], "end 0 of 0"),
        *("start 1 of 1", [(1, 1, 0)], "end 1 of 1"),
        *("start 2 of 2", [(2, 2, 0)], "end 2 of 2"),
    ]
    assert (trainer.global_step, trainer.current_epoch) == (3, 1)


def test_several_batches_a_step(fit: Any, data: Any) -> None:
    module = Drawing(pulls=2)
    trainer = fit(module, data(4), data(2))
    assert steps(module) == [[(0, 0, 0), (1, 1, 0)], [(2, 2, 0), (3, 3, 0)], [(0, 0, 0), (1, 1, 0)]]
    assert module.notes[-2] == "end 1 of 3"
    assert trainer.global_step == 2
    assert trainer.callback_metrics["val"] == 1.0


def test_an_epoch_ends_when_a_step_finds_no_batch(fit: Any, data: Any) -> None:
    module = Drawing(pulls=2)
    trainer = fit(module, data(3), max_epochs=2)
    assert steps(module) == [[(0, 0, 0), (1, 1, 0)]] * 2
    assert (trainer.global_step, trainer.current_epoch) == (2, 2)


def test_the_last_batch_closes_its_window(fit: Any, data: Any) -> None:
    assert fit(Drawing(), data(3), accumulate_grad_batches=2).global_step == 2


def test_a_stream(fit: Any) -> None:
    module = Drawing()
    trainer = fit(module, torch.utils.data.DataLoader(Stream(), batch_size=1))
    assert steps(module) == [[(0, 0, 0)], [(1, 1, 0)], [(2, 2, 0)]]
    assert trainer.global_step == 3


def test_several_validation_loaders(quiet: Any, data: Any) -> None:
    module = Drawing()
    results = quiet().validate(module, [data(2), data(3)], verbose=False)
    assert steps(module) == [[(0, 0, 0)], [(1, 1, 0)], [(0, 0, 1)], [(1, 1, 1)], [(2, 2, 1)]]
    assert results == [{"val/dataloader_idx_0": 0.5}, {"val/dataloader_idx_1": 1.0}]


def test_a_validation_that_finds_no_batch(quiet: Any, data: Any) -> None:
    module = Drawing(pulls=2)
    assert quiet().validate(module, data(3), verbose=False) == [{"val": 1.0}]


def test_prediction(quiet: Any, data: Any) -> None:
    assert quiet().predict(Drawing(), data(3)) == [0.0, 2.0, 4.0]
    assert quiet().predict(Drawing(pulls=2), data(5)) == [2.0, 6.0]


def test_a_mean_needs_the_batch_size(fit: Any, data: Any) -> None:
    class Guesses(Drawing):
        def training_step(self, dataloader_iter: Any) -> None:
            self.log("x", self.draw(dataloader_iter).mean(), on_epoch=True)

    with pytest.raises(MisconfigurationException, match=r"batch_size=\.\.\."):
        fit(Guesses(), data(1))


@pytest.mark.filterwarnings("default:.*draws its batches itself")
def test_it_is_experimental(fit: Any, data: Any) -> None:
    with pytest.warns(PossibleUserWarning, match=r"`Drawing.training_step` draws its batches itself"):
        fit(Drawing(), data(1))


def test_a_stop_iteration_of_a_usual_step_is_an_error(fit: Any, data: Any, Net: Any) -> None:
    class Ends(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise StopIteration

    with pytest.raises(StopIteration):
        fit(Ends(), data(2))


def test_a_run_goes_on_after_several_batches_a_step(fit: Any, quiet: Any, data: Any, tmp_path: Any) -> None:
    class Saves(fulmen.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 1:
                trainer.save_checkpoint(tmp_path / "first.ckpt")

    fit(Drawing(pulls=2), data(6), callbacks=Saves())
    module = Drawing(pulls=2)
    quiet().fit(module, data(6), ckpt_path=tmp_path / "first.ckpt")
    assert steps(module) == [[(2, 2, 0), (3, 3, 0)], [(4, 4, 0), (5, 5, 0)]]


def test_a_step_that_draws_nothing_leaves_the_batch_to_the_next(data: Any) -> None:
    feed = Feed(data(2))
    found = []
    for place, iterator in enumerate(BatchIterator(feed, feed.start(0)).steps()):
        if place != 1:
            found.append(next(iterator)[1])
    assert found == [0, 1]


def test_other_steps_get_plain_batches(data: Any) -> None:
    batches = list(batches_for(lambda batch: None, Feed(data(2)), 0))
    assert [int(batch[0, 0]) for batch in batches] == [0, 1]
