"""What depends on a clock, a metric or chance is decided alike on all processes, or they would part."""

import itertools
import os
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen import LightningModule, Trainer
from fulmen.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    DeviceStatsMonitor,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    SpikeDetection,
    StochasticWeightAveraging,
    ThroughputMonitor,
    Timer,
    WeightAveraging,
)
from fulmen.callbacks.early_stopping import EarlyStoppingReason
from fulmen.clock import Clock
from fulmen.errors import MisconfigurationException, TrainingSpikeException
from fulmen.extras import available
from fulmen.loggers import CSVLogger
from fulmen.tuner import Tuner
from processes import run_ranks

pytestmark = [
    pytest.mark.filterwarnings("ignore::fulmen.errors.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*sync_dist"),
]

QUIET = {
    "devices": 2,
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Net(LightningModule):
    def __init__(self, *layers):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*(layers or (nn.Linear(4, 4), nn.Linear(4, 1))))
        self.lr = 0.1

    def training_step(self, batch, batch_idx):
        return self.layers(batch[0]).pow(2).mean()

    def validation_step(self, batch, batch_idx):
        self.log("score", float(self.layers(batch[0]).sum()))

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], self.lr)


def loader(size=16, batch_size=2):
    x = torch.randn(size, 4, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x), batch_size)


def state(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def assert_equal(states):
    for other in states[1:]:
        assert other.keys() == states[0].keys()
        for name, value in states[0].items():
            torch.testing.assert_close(other[name], value, msg=name, rtol=0, atol=0)


# -------------------------------------------------------------------------------------------------- metrics


class BadOnRank1(Net):
    def validation_step(self, batch, batch_idx):
        bad = self.global_rank == 1 and self.current_epoch == 1
        self.log("score", float("nan") if bad else -float(self.current_epoch))


def stop_early():
    callback = EarlyStopping("score")
    trainer = Trainer(max_epochs=5, callbacks=callback, **QUIET)
    trainer.fit(BadOnRank1(), loader(), loader())
    return trainer.current_epoch, callback.stopped_epoch, callback.stopping_reason, callback.stopping_reason_message


def test_a_metric_that_is_bad_on_one_rank_stops_all_for_one_reason():
    first, second = run_ranks(stop_early, 2)
    assert first == second
    assert first[:3] == (2, 1, EarlyStoppingReason.NON_FINITE_METRIC)


class LoggedOnRank0(Net):
    def validation_step(self, batch, batch_idx):
        if self.global_rank == 0:
            self.log("score", 1.0, rank_zero_only=True)


def watch_what_only_rank_0_logs(callback):
    trainer = Trainer(max_epochs=1, callbacks=callback, **{**QUIET, "enable_checkpointing": None})
    with pytest.raises(MisconfigurationException, match="1 of 2 processes have logged") as caught:
        trainer.fit(LoggedOnRank0(), loader(), loader())
    return str(caught.value)


@pytest.mark.parametrize("kind", [EarlyStopping, ModelCheckpoint])
def test_a_metric_that_only_some_have_is_an_error_on_all(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for rank, message in enumerate(run_ranks(watch_what_only_rank_0_logs, 2, kind(monitor="score"))):
        assert f"rank {rank} has{' not' if rank else ''}." in message
        assert "sync_dist=True" in message


class SpikingOnRank1(Net):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * float("inf") if self.global_rank == 1 and batch_idx == 2 else loss


def see_a_spike(folder):
    trainer = Trainer(max_epochs=1, callbacks=SpikeDetection(), default_root_dir=folder, **QUIET)
    with pytest.raises(TrainingSpikeException):
        trainer.fit(SpikingOnRank1(), loader())
    return trainer.global_step


def test_a_spike_on_one_rank_ends_all(tmp_path):
    assert run_ranks(see_a_spike, 2, str(tmp_path)) == [3, 3]
    assert (tmp_path / "skip_batches.json").read_text() == "[1, 2]"


# -------------------------------------------------------------------------------------------------- clocks


def wrong_clock():
    """Rank 1's clock is years ahead, and runs backwards."""
    if dist.get_rank() == 1:
        ticks = itertools.count()
        time.monotonic = lambda: 1e9 - next(ticks) * 100.0


class Slow(Net):
    def training_step(self, batch, batch_idx):
        time.sleep(0.02)
        return super().training_step(batch, batch_idx)


def stop_by_time():
    wrong_clock()
    trainer = Trainer(max_time=timedelta(seconds=0.2), max_epochs=-1, **QUIET)
    trainer.fit(Slow(), loader(400))
    return trainer.global_step


def test_max_time_is_that_of_rank_0():
    first, second = run_ranks(stop_by_time, 2)
    assert first == second
    assert 1 < first < 50


class CountingValidations(Slow):
    seen = 0

    def on_validation_start(self):
        self.seen += 1


def trigger_by_time(folder):
    wrong_clock()
    callback = ModelCheckpoint(folder, train_time_interval=timedelta(seconds=0.1), save_top_k=-1)
    settings = {**QUIET, "enable_checkpointing": None}
    trainer = Trainer(
        max_epochs=1, callbacks=callback, val_check_interval=timedelta(seconds=0.1), num_sanity_val_steps=0, **settings
    )
    module = CountingValidations()
    trainer.fit(module, loader(80), loader(4))
    return module.seen, trainer.global_step, callback.best_model_path


def test_validations_and_checkpoints_by_time_are_due_by_the_clock_of_rank_0(tmp_path):
    first, second = run_ranks(trigger_by_time, 2, str(tmp_path))
    assert first == second
    assert first[0] >= 1
    assert os.path.isfile(first[2])


def count_exchanges():
    exchanges = 0
    broadcast = dist.broadcast_object_list

    def counting(*args, **kwargs):
        nonlocal exchanges
        exchanges += 1
        return broadcast(*args, **kwargs)

    trainer = Trainer(max_epochs=1, callbacks=Timer({"hours": 1}), **QUIET)
    module = Net()
    module.on_train_start = lambda: setattr(dist, "broadcast_object_list", counting)
    trainer.fit(module, loader(2000))
    return trainer.global_step, exchanges


def test_fast_batches_do_not_exchange_the_time_each():
    for steps, exchanges in run_ranks(count_exchanges, 2):
        assert steps == 500
        assert exchanges < 100


def read_the_clock():
    trainer = Trainer(max_epochs=1, **QUIET)
    clock, read = Clock(trainer), []
    module = Net()
    module.on_train_batch_end = lambda *_: read.append((clock.now(), clock.now(fresh=True)))
    wrong_clock()
    trainer.fit(module, loader())
    return read


def test_all_processes_read_the_same_time():
    first, second = run_ranks(read_the_clock, 2)
    assert first == second
    fresh = [reading for _, reading in first]
    assert fresh == sorted(fresh)


# -------------------------------------------------------------------------------------------------- weights


class KeepingBatches(Net):
    def on_train_epoch_start(self):
        self.batches_of_last_epoch = []

    def on_train_batch_start(self, batch, batch_idx):
        self.batches_of_last_epoch.append(batch)


def average_statistics_of_all():
    module = KeepingBatches(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    trainer = Trainer(max_epochs=2, callbacks=StochasticWeightAveraging(0.01, swa_epoch_start=1), **QUIET)
    trainer.fit(module, loader(16, 4), loader(8, 4))
    with torch.no_grad():
        seen = [module.layers[0](batch) for (batch,) in module.batches_of_last_epoch]
    return state(module), [(x.mean(0), x.var(0)) for x in seen]


def test_swa_learns_the_statistics_of_all_processes():
    (one, batches), (other, more) = run_ranks(average_statistics_of_all, 2)
    assert_equal([one, other])
    means, variances = zip(*batches, *more, strict=True)
    assert len(means) == 4
    torch.testing.assert_close(one["layers.1.running_mean"], torch.stack(means).mean(0))
    torch.testing.assert_close(one["layers.1.running_var"], torch.stack(variances).mean(0))


def fit_with(callback, devices):
    module = Net()
    trainer = Trainer(max_epochs=3, callbacks=callback, **{**QUIET, "devices": devices})
    trainer.fit(module, loader(16, 4 // devices), loader(8, 4 // devices))
    return state(module)


@pytest.mark.parametrize("kind", [WeightAveraging, EMAWeightAveraging])
def test_averages_equal_those_of_one_process(kind):
    alone = fit_with(kind(), 1)
    for together in run_ranks(fit_with, 2, kind(), 2):
        for name, value in alone.items():
            torch.testing.assert_close(together[name], value)


def prune_by_chance(settings):
    module = Net()
    torch.manual_seed(dist.get_rank())
    callback = ModelPruning("random_unstructured", amount=0.5, **settings)
    Trainer(max_epochs=3, callbacks=callback, **QUIET).fit(module, loader())
    return state(module)


@pytest.mark.parametrize("settings", [{}, {"resample_parameters": True}])
def test_all_processes_prune_the_same_entries(settings):
    one, other = run_ranks(prune_by_chance, 2, settings)
    assert_equal([one, other])
    assert sum(int((value == 0).sum()) for value in one.values()) > 5


class WithBackbone(Net):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(4, 4)

    def training_step(self, batch, batch_idx):
        return self.layers(self.backbone(batch[0])).pow(2).mean()


def unfreeze(devices):
    module = WithBackbone()
    trainer = Trainer(max_epochs=3, callbacks=BackboneFinetuning(1), **{**QUIET, "devices": devices})
    trainer.fit(module, loader(16, 4 // devices))
    return state(module)


def test_what_is_unfrozen_later_is_trained_on_the_gradients_of_all():
    alone, before = unfreeze(1), state(WithBackbone())
    assert not torch.equal(alone["backbone.weight"], before["backbone.weight"])
    together = run_ranks(unfreeze, 2, 2)
    assert_equal(together)
    for name, value in alone.items():
        torch.testing.assert_close(together[0][name], value)


# -------------------------------------------------------------------------------------------------- the tuner


class NoisyLoss(Net):
    """The losses of the processes are far apart."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (1 + 50 * self.global_rank * (batch_idx % 3))


def find_a_rate(by_callback, folder):
    module = NoisyLoss()
    before = state(module)
    callbacks = [LearningRateFinder(num_training_steps=30, early_stop_threshold=None)] if by_callback else []
    trainer = Trainer(max_epochs=1, default_root_dir=folder, callbacks=callbacks, **QUIET)
    if by_callback:
        trainer.fit(module, loader())
        finder = callbacks[0].optimal_lr
    else:
        finder = Tuner(trainer).lr_find(module, loader(), num_training=30, early_stop_threshold=None)
        assert_equal([state(module), before])
        trainer.fit(module, loader())
    return finder.results, module.lr, state(module)


@pytest.mark.parametrize("by_callback", [True, False])
def test_the_learning_rate_finder_finds_the_same_on_all(by_callback, tmp_path):
    (results, rate, one), (same, also, other) = run_ranks(find_a_rate, 2, by_callback, str(tmp_path))
    assert results == same
    assert rate == also != 0.1
    assert_equal([one, other])
    assert list(tmp_path.iterdir()) == []


def find_a_batch_size():
    with pytest.raises(ValueError, match="devices=1"):
        Tuner(Trainer(**QUIET)).scale_batch_size(Net())
    with pytest.raises(MisconfigurationException, match="devices=1"):
        Trainer(callbacks=BatchSizeFinder(), max_epochs=1, **QUIET).fit(Net(), loader())


def test_the_batch_size_finder_says_that_it_needs_one_process():
    run_ranks(find_a_batch_size, 2)


def find_a_rate_in_spawned_processes():
    with pytest.raises(MisconfigurationException, match="LearningRateFinder"):
        Tuner(Trainer(strategy="ddp_fork", **QUIET)).lr_find(Net(), loader())


def test_a_rate_cannot_be_looked_for_where_a_trainer_launches_once():
    find_a_rate_in_spawned_processes()


# -------------------------------------------------------------------------------------------------- monitors


def monitor(folder):
    logger = CSVLogger(folder, name=None, version="")
    callbacks = [LearningRateMonitor("step"), ThroughputMonitor(lambda batch: len(batch[0]), window_size=2)]
    callbacks += [DeviceStatsMonitor()] if available("psutil") else []
    settings = {**QUIET, "logger": logger}
    module = Net()
    module.flops_per_batch = 10
    trainer = Trainer(max_epochs=1, log_every_n_steps=1, callbacks=callbacks, **settings)
    trainer.fit(module, loader(), loader())
    return sorted(trainer.callback_metrics)


def test_monitors_write_on_rank_0(tmp_path):
    first, second = run_ranks(monitor, 2, str(tmp_path))
    assert first == second
    assert "lr-SGD" in first
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0]
    stats = ["DeviceStatsMonitor.on_train_batch_start/cpu_percent"] if available("psutil") else []
    for name in ("lr-SGD", "train/batches_per_sec", *stats):
        assert name in header
