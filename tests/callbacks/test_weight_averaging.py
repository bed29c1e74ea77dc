from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fulmen
from fulmen.callbacks import EMAWeightAveraging, ModelCheckpoint, WeightAveraging
from fulmen.errors import MisconfigurationException

DECAY = 0.8
DATA = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


class Net(fulmen.LightningModule):
    """Batch norm for its buffers, momentum for its state; remembers the weights it validates with."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.body = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
        self.validated: list[Tensor] = []
        self.fails_in_validation = False

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.body(batch).pow(2).mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validated.append(self.body[0].weight.detach().clone())
        self.log("val", self.body(batch).pow(2).mean())
        if self.fails_in_validation:
            raise RuntimeError("out of luck")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def loader() -> DataLoader[Tensor]:
    return DataLoader(DATA, batch_size=2)


def trainer(path: Path, *callbacks: Any, **arguments: Any) -> fulmen.Trainer:
    chosen: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "num_sanity_val_steps": 0,
        "default_root_dir": path,
    }
    return fulmen.Trainer(callbacks=list(callbacks), **{**chosen, **arguments})


def by_hand(epochs: int, **updates: Any) -> tuple[Net, dict[str, Tensor]]:
    """The loop and the exponential average as one would write them."""
    model, average = Net(), {}
    optimizer = model.configure_optimizers()
    for _ in range(epochs):
        for batch in DATA.split(2):
            loss = model.training_step(batch, 0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for name, value in model.state_dict().items():
                if not average.keys() >= {name}:
                    average[name] = value.clone()
                elif value.is_floating_point():
                    average[name].lerp_(value, 1 - DECAY)
                else:
                    average[name] = (average[name] * DECAY + value * (1 - DECAY)).to(value.dtype)
    return model, average


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_exponential_average_is_that_of_a_loop_by_hand(tmp_path):
    current, average = by_hand(2)
    model = Net()
    run = trainer(tmp_path, EMAWeightAveraging(decay=DECAY))
    run.fit(model, loader(), loader())
    assert same(model.state_dict(), average)
    run.save_checkpoint(tmp_path / "after.ckpt")
    saved = torch.load(tmp_path / "after.ckpt", weights_only=True)
    assert same(saved["state_dict"], average)
    assert same(saved["current_model_state"], current.state_dict())
    assert saved["averaging_state"] == {"n_averaged": torch.tensor(8)}
    assert saved["callbacks"]["EMAWeightAveraging"] == {"latest_update_step": 8}


def test_the_plain_average_is_the_mean_of_the_weights_after_each_step(tmp_path):
    seen = []

    class Watch(fulmen.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(pl_module.body[0].weight.detach().clone())

    model = Net()
    trainer(tmp_path, WeightAveraging(), Watch()).fit(model, loader(), loader())
    torch.testing.assert_close(model.body[0].weight.detach(), torch.stack(seen).mean(0))


def test_buffers_can_be_those_of_the_current_weights(tmp_path):
    current, average = by_hand(2)
    model = Net()
    trainer(tmp_path, EMAWeightAveraging(decay=DECAY, use_buffers=False)).fit(model, loader(), loader())
    assert torch.equal(model.body[0].weight, average["body.0.weight"])
    assert torch.equal(model.body[1].running_mean, current.body[1].running_mean)


def test_averaging_does_not_change_the_training(tmp_path):
    plain, averaged = Net(), Net()
    trainer(tmp_path).fit(plain, loader(), loader())
    run = trainer(tmp_path, EMAWeightAveraging(decay=DECAY))
    run.fit(averaged, loader(), loader())
    run.save_checkpoint(tmp_path / "after.ckpt")
    saved = torch.load(tmp_path / "after.ckpt", weights_only=True)
    assert same(saved["current_model_state"], plain.state_dict())


def test_validation_runs_with_the_average_and_its_hooks_see_it(tmp_path):
    class Sees(Net):
        def on_validation_epoch_end(self) -> None:
            self.validated.append(self.body[0].weight.detach().clone())

    model = Sees()
    trainer(tmp_path, EMAWeightAveraging(decay=DECAY)).fit(model, loader(), DataLoader(DATA, batch_size=8))
    in_step, at_end = model.validated[:2]
    assert torch.equal(in_step, by_hand(1)[1]["body.0.weight"])
    assert torch.equal(at_end, in_step)


def test_nothing_ever_uses_an_average_that_was_never_updated(tmp_path):
    plain, model = Net(), Net()
    trainer(tmp_path).fit(plain, loader(), loader())
    averaging = EMAWeightAveraging(decay=DECAY, update_starting_at_step=1000)
    saves = ModelCheckpoint(dirpath=tmp_path / "saved", save_top_k=-1)
    trainer(tmp_path, averaging, saves, num_sanity_val_steps=1).fit(model, loader(), loader())
    assert all(torch.equal(a, b) for a, b in zip(model.validated[1:], plain.validated, strict=True))
    assert same(model.state_dict(), plain.state_dict())
    saved = torch.load(saves.best_model_path, weights_only=True)
    assert same(saved["state_dict"], plain.state_dict())
    assert saved["averaging_state"] == {"n_averaged": torch.tensor(0)}


def test_the_average_begins_with_the_first_step_that_counts(tmp_path):
    averaging, model = EMAWeightAveraging(decay=DECAY, update_starting_at_step=7), Net()
    trainer(tmp_path, averaging).fit(model, loader(), loader())
    assert same(model.state_dict(), by_hand(2)[0].state_dict())


@pytest.mark.parametrize(
    ("arguments", "steps", "epochs"),
    [
        ({}, [0, 1, 2, 3, 4, 5], []),
        ({"update_every_n_steps": 2}, [0, 2, 4], []),
        ({"update_starting_at_step": 3, "update_every_n_steps": 2}, [4], []),
        ({"update_starting_at_step": 5, "update_starting_at_epoch": 1}, [5], [1, 2]),
        ({"update_starting_at_epoch": 2}, [0, 1, 2, 3, 4, 5], [2]),
    ],
)
def test_when_the_exponential_average_is_updated(arguments, steps, epochs):
    averaging = EMAWeightAveraging(**arguments)
    assert [step for step in range(6) if averaging.should_update(step_idx=step)] == steps
    assert [epoch for epoch in range(3) if averaging.should_update(epoch_idx=epoch)] == epochs


def test_who_overrides_should_update_is_asked_after_steps_and_epochs(tmp_path):
    asked = []

    class Asked(WeightAveraging):
        def should_update(self, step_idx=None, epoch_idx=None):
            asked.append((step_idx, epoch_idx))
            return True

    trainer(tmp_path, Asked(), accumulate_grad_batches=3).fit(Net(), loader(), loader())
    assert asked == [(0, None), (1, None), (None, 0), (2, None), (3, None), (None, 1)]


@pytest.mark.parametrize("weights_only", [False, True])
def test_checkpoints_hold_the_average_also_those_of_weights_only(tmp_path, weights_only):
    saves = ModelCheckpoint(dirpath=tmp_path / "saved", save_weights_only=weights_only)
    trainer(tmp_path, EMAWeightAveraging(decay=DECAY), saves).fit(Net(), loader(), loader())
    saved = torch.load(saves.best_model_path, weights_only=True)
    current, average = by_hand(2)
    assert same(saved["state_dict"], average)
    assert ("current_model_state" in saved) is not weights_only
    if not weights_only:
        assert same(saved["current_model_state"], current.state_dict())


def test_a_checkpoint_that_is_taken_in_a_validation_is_the_right_way_round(tmp_path):
    class Saves(Net):
        def on_validation_epoch_end(self) -> None:
            self.trainer.save_checkpoint(tmp_path / "inside.ckpt")

    trainer(tmp_path, EMAWeightAveraging(decay=DECAY), max_epochs=1).fit(Saves(), loader(), loader())
    saved = torch.load(tmp_path / "inside.ckpt", weights_only=True)
    current, average = by_hand(1)
    assert same(saved["state_dict"], average)
    assert same(saved["current_model_state"], current.state_dict())


@pytest.mark.parametrize("every", [3, 4], ids=["inside an epoch", "at its end"])
def test_a_resumed_run_is_exact(tmp_path, every):
    def callbacks():
        saves = ModelCheckpoint(dirpath=tmp_path / "saved", every_n_train_steps=every, save_top_k=-1)
        return EMAWeightAveraging(decay=DECAY), saves

    trainer(tmp_path, *callbacks()).fit(Net(), loader(), loader())
    first = next((tmp_path / "saved").glob(f"*step={every}.ckpt"))
    model = Net()
    nn.init.zeros_(model.body[0].weight)
    resumed = trainer(tmp_path, *callbacks())
    resumed.fit(model, loader(), loader(), ckpt_path=first)
    assert same(model.state_dict(), by_hand(2)[1])
    resumed.save_checkpoint(tmp_path / "after.ckpt")
    saved = torch.load(tmp_path / "after.ckpt", weights_only=True)
    assert same(saved["current_model_state"], by_hand(2)[0].state_dict())


def test_a_finished_run_goes_on_exactly_from_a_checkpoint_taken_after_it(tmp_path):
    run = trainer(tmp_path, EMAWeightAveraging(decay=DECAY), max_epochs=1)
    run.fit(Net(), loader(), loader())
    run.save_checkpoint(tmp_path / "after.ckpt")
    model = Net()
    trainer(tmp_path, EMAWeightAveraging(decay=DECAY)).fit(model, loader(), loader(), ckpt_path=tmp_path / "after.ckpt")
    assert same(model.state_dict(), by_hand(2)[1])


def test_an_exception_in_validation_leaves_the_current_weights(tmp_path):
    model = Net()
    model.fails_in_validation = True
    saves = ModelCheckpoint(dirpath=tmp_path / "saved", save_on_exception=True, every_n_epochs=5)
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer(tmp_path, EMAWeightAveraging(decay=DECAY), saves).fit(model, loader(), loader())
    current, average = by_hand(1)
    assert same(model.state_dict(), current.state_dict())
    saved = torch.load(next((tmp_path / "saved").glob("*.ckpt")), weights_only=True)
    assert same(saved["state_dict"], average)
    assert same(saved["current_model_state"], current.state_dict())


def test_validation_after_fit_neither_swaps_nor_loses_the_average(tmp_path):
    model = Net()
    run = trainer(tmp_path, EMAWeightAveraging(decay=DECAY))
    run.fit(model, loader(), loader())
    model.fails_in_validation = True
    with pytest.raises(RuntimeError, match="out of luck"):
        run.validate(model, loader(), verbose=False)
    assert same(model.state_dict(), by_hand(2)[1])


def test_a_second_fit_begins_a_new_average(tmp_path):
    averaging = EMAWeightAveraging(decay=DECAY)
    trainer(tmp_path, averaging).fit(Net(), loader(), loader())
    model = Net()
    trainer(tmp_path, averaging).fit(model, loader(), loader())
    assert same(model.state_dict(), by_hand(2)[1])


def test_a_checkpoint_without_averages_starts_both_from_its_weights(tmp_path):
    run = trainer(tmp_path, max_epochs=1)
    run.fit(Net(), loader(), loader())
    run.save_checkpoint(tmp_path / "plain.ckpt")
    model = Net()
    with pytest.warns(UserWarning, match="written without `EMAWeightAveraging`"):
        trainer(tmp_path, EMAWeightAveraging(decay=DECAY), max_steps=5, max_epochs=-1).fit(
            model, loader(), loader(), ckpt_path=tmp_path / "plain.ckpt"
        )
    plain = Net()
    trainer(tmp_path, max_steps=5, max_epochs=-1).fit(plain, loader(), loader())
    assert same(model.state_dict(), plain.state_dict())


def test_outside_of_fit_the_average_of_a_checkpoint_is_the_model(tmp_path, caplog):
    caplog.set_level("INFO", logger="fulmen")
    run = trainer(tmp_path, EMAWeightAveraging(decay=DECAY))
    run.fit(Net(), loader(), loader())
    run.save_checkpoint(tmp_path / "after.ckpt")
    model, other = Net(), trainer(tmp_path, EMAWeightAveraging(decay=DECAY))
    other.validate(model, loader(), ckpt_path=tmp_path / "after.ckpt", verbose=False)
    assert same(model.state_dict(), by_hand(2)[1])
    assert "has the averaged weights of the checkpoint" in caplog.text
    other.save_checkpoint(tmp_path / "outside.ckpt")
    assert "has no average of this module" in caplog.text
    assert "current_model_state" not in torch.load(tmp_path / "outside.ckpt", weights_only=True)


def test_a_module_that_is_made_by_configure_model_is_averaged(tmp_path):
    class Late(Net):
        def __init__(self) -> None:
            super().__init__()
            del self.body

        def configure_model(self) -> None:
            if not hasattr(self, "body"):
                torch.manual_seed(7)
                self.body = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))

    model = Late()
    trainer(tmp_path, EMAWeightAveraging(decay=DECAY)).fit(model, loader(), loader())
    assert same(model.state_dict(), by_hand(2)[1])


@pytest.mark.parametrize("arguments", [{"decay": 1.1}, {"decay": -0.1}, {"update_every_n_steps": 0}])
def test_values_out_of_range(arguments):
    with pytest.raises(MisconfigurationException, match=f"{next(iter(arguments))}.*expected"):
        EMAWeightAveraging(**arguments)
