from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fulmen
from fulmen.callbacks import LearningRateMonitor, ModelCheckpoint, StochasticWeightAveraging
from fulmen.errors import MisconfigurationException
from fulmen.fabric.strategies.single import SingleDeviceStrategy
from fulmen.loggers import CSVLogger

DATA = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


class Net(fulmen.LightningModule):
    """Remembers each epoch's learning rate, its weights at the start, and whether gradients moved."""

    def __init__(self, batch_norm: bool = False, scheduler: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        norm = nn.BatchNorm1d(3) if batch_norm else nn.Identity()
        self.body = nn.Sequential(nn.Linear(4, 3), norm, nn.Linear(3, 1))
        self.scheduler = scheduler
        self.rates: list[float] = []
        self.starts: list[Tensor] = []
        self.inputs: list[Tensor] = []

    def on_train_epoch_start(self) -> None:
        self.starts.append(self.body[0].weight.detach().clone())
        self.inputs = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if batch_idx == 0:
            self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        self.inputs.append(self.body[0](batch).detach())
        return self.body(batch).pow(2).mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.5)
        return ([optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]) if self.scheduler else optimizer


class Manual(Net):
    def __init__(self) -> None:
        super().__init__(batch_norm=True)
        self.automatic_optimization = False

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        loss = super().training_step(batch, batch_idx)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


def loader() -> DataLoader[Tensor]:
    return DataLoader(DATA, batch_size=2)


def trainer(path: Path, *callbacks: Any, **arguments: Any) -> fulmen.Trainer:
    chosen: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 5,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "default_root_dir": path,
    }
    return fulmen.Trainer(callbacks=list(callbacks), **{**chosen, **arguments})


def averaging(**arguments: Any) -> StochasticWeightAveraging:
    return StochasticWeightAveraging(0.01, **{"swa_epoch_start": 0.5, "annealing_epochs": 2, **arguments})


@pytest.mark.parametrize(
    ("strategy", "scheduler", "rates"),
    [
        ("cos", False, [0.1, 0.1, 0.055, 0.01, 0.01]),
        ("linear", True, [0.1, 0.05, 0.03, 0.01, 0.01]),
    ],
)
def test_the_learning_rate_is_annealed_from_the_first_epoch_that_counts(tmp_path, caplog, strategy, scheduler, rates):
    caplog.set_level("INFO", logger="fulmen")
    model = Net(scheduler=scheduler)
    trainer(tmp_path, averaging(annealing_strategy=strategy)).fit(model, loader())
    assert model.rates == pytest.approx(rates)
    assert ("Swapping scheduler `StepLR` for `SWALR`" in caplog.text) is scheduler


def test_the_model_gets_the_mean_of_the_weights_at_the_epochs_starts(tmp_path):
    model, swa = Net(), averaging()
    run = trainer(tmp_path, swa)
    run.fit(model, loader())
    assert (swa.swa_start, swa.swa_end, int(swa.n_averaged)) == (1, 4, 4)
    torch.testing.assert_close(model.body[0].weight.detach(), torch.stack(model.starts[1:]).mean(0))
    assert (run.global_step, run.current_epoch, run.max_epochs) == (15, 5, 5)


def test_an_average_of_the_users_own(tmp_path):
    model = Net()
    trainer(tmp_path, averaging(avg_fn=lambda average, parameter, num_averaged: parameter)).fit(model, loader())
    assert torch.equal(model.body[0].weight, model.starts[-1])


def test_the_first_epoch_may_be_a_number(tmp_path):
    model, swa = Net(), averaging(swa_epoch_start=4)
    trainer(tmp_path, swa).fit(model, loader())
    torch.testing.assert_close(model.body[0].weight.detach(), torch.stack(model.starts[3:]).mean(0))


@pytest.mark.parametrize("kind", [lambda: Net(batch_norm=True), Manual], ids=["automatic", "manual"])
def test_batch_norm_gets_the_statistics_of_the_averaged_weights_in_one_more_epoch(tmp_path, kind):
    model, swa = kind(), averaging()
    run = trainer(tmp_path, swa)
    run.fit(model, loader())
    assert (run.current_epoch, run.global_step, run.max_epochs) == (6, 15, 5)
    torch.testing.assert_close(model.starts[5], torch.stack(model.starts[1:5]).mean(0))
    assert torch.equal(model.body[0].weight, model.starts[5])
    norm, batches = model.body[1], model.inputs
    assert norm.num_batches_tracked == 3
    torch.testing.assert_close(norm.running_mean, torch.stack([batch.mean(0) for batch in batches]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([batch.var(0) for batch in batches]).mean(0))
    assert norm.momentum == 0.1


@pytest.mark.parametrize("kind", [lambda: Net(batch_norm=True), Manual], ids=["automatic", "manual"])
def test_the_extra_epoch_neither_logs_nor_counts_steps(tmp_path, kind):
    model = kind()
    plain_step = model.training_step

    def training_step(batch: Tensor, batch_idx: int) -> Any:
        model.log("loss", float(len(model.starts)), on_step=True, on_epoch=True)
        return plain_step(batch, batch_idx)

    model.training_step = training_step
    model.validation_step = lambda batch, batch_idx: model.log("score", float(len(model.starts)))
    logger, seen = CSVLogger(tmp_path), []

    class Look(fulmen.Callback):
        def on_train_batch_end(self, trainer, *arguments):
            seen.append((trainer.global_step, trainer.logging_step))

    rates = [LearningRateMonitor("step"), LearningRateMonitor("epoch", log_key_prefix="by epoch ")]
    run = trainer(tmp_path, averaging(), *rates, Look(), logger=logger, log_every_n_steps=1, num_sanity_val_steps=0)
    run.fit(model, loader(), loader())
    with open(tmp_path / "lightning_logs" / "version_0" / "metrics.csv") as file:
        rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    assert sum("loss_step" in row for row in rows) == sum("lr-SGD" in row for row in rows) == 15
    assert max(int(row["step"]) for row in rows) == 14
    assert [row for row in rows if row.get("epoch") == "5"] == [
        {"epoch": "5", "score": "6.0", "step": "14"},
        {"epoch": "5", "loss_epoch": "6.0", "step": "14"},
    ]
    assert seen[-4:] == [(15, 14)] * 4
    assert (run.global_step, run.logging_step, run.fit_loop.updates) == (15, 15, True)


def test_training_goes_on_after_the_extra_epoch(tmp_path):
    model, swa = Net(batch_norm=True), averaging()
    run = trainer(tmp_path, swa)
    run.fit(model, loader())
    run.fit_loop.max_epochs = 8
    run.fit(model, loader())
    assert (run.global_step, run.current_epoch) == (21, 9)  # the extra epochs are the sixth and the ninth


def test_hooks_that_are_compiled_in_the_extra_epoch_leave_it_as_it_is(tmp_path):
    class Recompiles(fulmen.Callback):
        def on_train_batch_end(self, trainer, *arguments):
            trainer.recompile_hooks()

    model = Net(batch_norm=True)
    run = trainer(tmp_path, averaging(), Recompiles())
    run.fit(model, loader())
    assert run.global_step == 15
    assert torch.equal(model.body[0].weight, model.starts[5])


def test_frozen_batch_norm_keeps_its_statistics(tmp_path):
    model = Net(batch_norm=True)
    model.body[1].eval()
    model.body[1].running_mean.fill_(3.0)
    run = trainer(tmp_path, averaging())
    with pytest.warns(UserWarning, match="in eval mode"):
        run.fit(model, loader())
    assert run.current_epoch == 5
    assert model.body[1].running_mean.tolist() == [3.0] * 3


@pytest.mark.parametrize("step", [3, 7, 9, 15, 16], ids=lambda step: f"step {step}")
def test_a_resumed_run_is_exact(tmp_path, step):
    class Saves(fulmen.Callback):
        order = 1

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.fit_loop.total_batch_idx + 1 == step:
                trainer.save_checkpoint(tmp_path / "saved.ckpt")

    whole = Net(batch_norm=True, scheduler=True)
    trainer(tmp_path, averaging(), Saves()).fit(whole, loader())
    resumed = Net(batch_norm=True, scheduler=True)
    run = trainer(tmp_path, averaging())
    run.fit(resumed, loader(), ckpt_path=tmp_path / "saved.ckpt")
    expected, found = whole.state_dict(), resumed.state_dict()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert run.max_epochs == 5
    assert resumed.body[1].momentum == 0.1


def test_a_run_that_is_stopped_early_gets_the_average_so_far(tmp_path):
    class Stops(Net):
        def on_train_epoch_end(self) -> None:
            self.trainer.should_stop = self.current_epoch == 3

    model = Stops(batch_norm=True)
    run = trainer(tmp_path, averaging())
    with pytest.warns(UserWarning, match="before the epoch that finds the batch-norm statistics"):
        run.fit(model, loader())
    torch.testing.assert_close(model.body[0].weight.detach(), torch.stack(model.starts[1:4]).mean(0))
    assert run.max_epochs == 5


def test_a_run_that_is_stopped_before_it_averages_keeps_its_weights(tmp_path):
    plain, model = Net(), Net()
    trainer(tmp_path, max_epochs=2).fit(plain, loader())
    trainer(tmp_path, averaging(swa_epoch_start=4), max_steps=6).fit(model, loader())
    assert torch.equal(model.body[0].weight, plain.body[0].weight)


def test_an_exception_in_the_extra_epoch_puts_everything_back(tmp_path):
    class Fails(Net):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if self.current_epoch == 5:
                raise RuntimeError("out of luck")

    model, run = Fails(batch_norm=True), trainer(tmp_path, averaging())
    with pytest.raises(RuntimeError, match="out of luck"):
        run.fit(model, loader())
    assert (run.max_epochs, run.fit_loop.updates, model.body[1].momentum) == (5, True, 0.1)


def test_what_a_checkpoint_holds_of_it(tmp_path):
    saves = ModelCheckpoint(dirpath=tmp_path / "saved", save_top_k=-1)
    trainer(tmp_path, averaging(), saves).fit(Net(), loader())
    states = [
        torch.load(tmp_path / "saved" / f"epoch={epoch}-step={3 * epoch + 3}.ckpt", weights_only=True)["callbacks"]
        for epoch in (0, 2)
    ]
    before, inside = (state["StochasticWeightAveraging"] for state in states)
    assert (before["n_averaged"], before["latest_update_epoch"], before["scheduler_state"]) == (0, -1, None)
    assert (inside["n_averaged"], inside["latest_update_epoch"]) == (2, 2)
    assert inside["scheduler_state"]["_last_lr"] == pytest.approx([0.01])
    assert list(inside["average_model_state"]) == list(Net().state_dict())


@pytest.mark.parametrize(
    "arguments",
    [
        {"swa_epoch_start": 0},
        {"swa_epoch_start": 1.5},
        {"swa_epoch_start": -0.1},
        {"swa_lrs": 0.0},
        {"swa_lrs": 1},
        {"swa_lrs": [0.1, -0.1]},
        {"swa_lrs": []},
        {"annealing_strategy": "quick"},
        {"avg_fn": 3},
        {"device": 3},
    ],
    ids=str,
)
def test_arguments_that_cannot_work(arguments):
    with pytest.raises(MisconfigurationException, match=rf"\({next(iter(arguments))}=.*expected"):
        StochasticWeightAveraging(**{"swa_lrs": 0.1, **arguments})


def test_the_last_epochs_must_be_known(tmp_path):
    with pytest.raises(MisconfigurationException, match="max_epochs"):
        trainer(tmp_path, averaging(), max_epochs=-1, max_steps=3).fit(Net(), loader())


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy"])
def test_a_strategy_that_spreads_the_weights(tmp_path, name):
    spreads = type(name, (SingleDeviceStrategy,), {})("cpu")
    with pytest.raises(MisconfigurationException, match=f"whole module on each device; {name} spreads it"):
        trainer(tmp_path, averaging(), strategy=spreads).fit(Net(), loader())


def test_one_optimizer_and_one_scheduler(tmp_path):
    class Two(Net):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1) for _ in range(2)]

    with pytest.raises(MisconfigurationException, match="returned 1 and 2"):
        trainer(tmp_path, averaging()).fit(Two(), loader())
