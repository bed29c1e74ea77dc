"""A Trainer on two real processes: the same run on both, one of them writes and prints, and what it leaves is whole."""

import contextlib
import io
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen import Callback, LightningDataModule, LightningModule, Trainer
from fulmen.callbacks import BasePredictionWriter, ModelCheckpoint
from fulmen.hooks import HOOKS
from fulmen.loggers import CSVLogger
from processes import run_ranks

pytestmark = pytest.mark.filterwarnings("ignore::fulmen.errors.PossibleUserWarning")

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
BARE = {**QUIET, "enable_checkpointing": False}


class Net(LightningModule):
    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.Dropout(dropout), nn.Linear(4, 1))

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch, batch_idx):
        loss = self(batch[0]).pow(2).mean()
        self.log("loss", loss, on_step=True, on_epoch=False, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self(batch[0]).pow(2).mean(), sync_dist=True)

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self(batch[0]).pow(2).mean(), sync_dist=True)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), 0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def loader(size=16, batch_size=2, **kwargs):
    x = torch.randn(size, 4, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x), batch_size, **kwargs)


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


# -------------------------------------------------------------------------------------------------- the order of hooks


class Recorder(Callback):
    """Writes down every hook."""

    def __init__(self):
        self.calls = []


def _recording(name):
    def hook(self, *_, **__):
        self.calls.append(name)

    return hook


for _hook in HOOKS:
    if "C" in _hook.who:
        setattr(Recorder, _hook.name, _recording(_hook.name))


def recorded_hooks(devices):
    recorder = Recorder()
    trainer = Trainer(devices=devices, max_epochs=2, callbacks=recorder, accumulate_grad_batches=2, **BARE)
    # so many samples that one process has as many batches as each of two
    trainer.fit(Net(), loader(8 * devices), loader(4 * devices))
    return recorder.calls


def test_hooks_are_called_in_the_order_of_one_process():
    alone = recorded_hooks(1)
    assert "on_train_batch_end" in alone
    for calls in run_ranks(recorded_hooks, 2, 2):
        assert calls == alone


# -------------------------------------------------------------------------------------------------- what is known


def facts():
    trainer = Trainer(devices=2, **BARE)
    return {
        "world_size": trainer.world_size,
        "num_devices": trainer.num_devices,
        "num_nodes": trainer.num_nodes,
        "device_ids": trainer.device_ids,
        "sampler": trainer.distributed_sampler_kwargs,
        "ranks": (trainer.global_rank, trainer.local_rank, trainer.node_rank, trainer.is_global_zero),
    }


def test_what_a_trainer_knows_of_its_place():
    for rank, known in enumerate(run_ranks(facts, 2)):
        assert known == {
            "world_size": 2,
            "num_devices": 2,
            "num_nodes": 1,
            "device_ids": [0, 1],
            "sampler": {"num_replicas": 2, "rank": rank},
            "ranks": (rank, rank, 0, rank == 0),
        }


class Gathering(Net):
    def on_train_start(self):
        rank = torch.tensor(float(self.global_rank), requires_grad=True)
        self.gathered = self.all_gather({"rank": rank.detach(), "number": self.global_rank + 1})
        self.all_gather(rank, sync_grads=True).sum().backward()
        self.gradient = rank.grad.item()
        strategy = self.trainer.strategy
        self.told = strategy.broadcast(self.global_rank, 1), strategy.reduce_boolean_decision(self.global_rank == 0)


def gather_in_a_run():
    module = Gathering()
    Trainer(devices=2, fast_dev_run=True, **QUIET).fit(module, loader())
    return {name: value.tolist() for name, value in module.gathered.items()}, module.gradient, module.told


def test_collectives_of_module_and_strategy():
    for gathered, gradient, told in run_ranks(gather_in_a_run, 2):
        assert gathered == {"rank": [0.0, 1.0], "number": [1, 2]}
        assert gradient == 2.0
        assert told == (1, False)


# -------------------------------------------------------------------------------------------------- files and prints


class Preparing(LightningDataModule):
    def __init__(self, per_node):
        super().__init__()
        self.prepare_data_per_node, self.prepared = per_node, False

    def prepare_data(self):
        self.prepared = True

    def train_dataloader(self):
        return loader()


def run_everything(folder, per_node):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        trainer = Trainer(
            devices=2,
            accelerator="cpu",
            max_epochs=1,
            default_root_dir=folder,
            logger=CSVLogger(folder),
            log_every_n_steps=1,
        )
        module, data = Net(), Preparing(per_node)
        trainer.fit(module, datamodule=data)
        trainer.print("told by hand")
        results = trainer.test(module, loader(), ckpt_path="best")
    paths = trainer.log_dir, trainer.logger.version, trainer.checkpoint_callback.best_model_path
    return printed.getvalue(), paths, results, data.prepared


@pytest.mark.parametrize("per_node", [True, False])
def test_rank_0_writes_prints_and_prepares(tmp_path, per_node):
    (said, paths, results, prepared), (silence, same_paths, same_results, did_too) = run_ranks(
        run_everything, 2, str(tmp_path), per_node
    )
    assert "Test metric" in said
    assert "told by hand" in said
    assert silence == ""
    assert prepared
    assert not did_too
    assert paths == same_paths
    assert results == same_results
    assert os.path.isfile(paths[2])
    assert os.listdir(tmp_path / "lightning_logs") == ["version_0"]
    rows = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 4 + 1  # a header, the steps, the test


def metric_of_each_rank(folder):
    """Paths with a metric in them, which is another one on each rank."""

    class Different(Net):
        def validation_step(self, batch, batch_idx):
            self.log("score", float(self.global_rank + self.current_epoch))

    callback = ModelCheckpoint(
        folder, filename="{epoch}-{score:.0f}", monitor="score", save_top_k=2, mode="max", save_last="link"
    )
    Trainer(devices=2, max_epochs=3, callbacks=callback, **QUIET).fit(Different(), loader(), loader())
    scores = {Path(path).name: float(score) for path, score in callback.best_k_models.items()}
    return scores, callback.best_model_path, callback.last_model_path


@pytest.mark.filterwarnings("ignore:.*sync_dist")
def test_checkpoints_are_named_and_ranked_by_rank_0(tmp_path):
    first, second = run_ranks(metric_of_each_rank, 2, str(tmp_path))
    assert first == second
    assert first[0] == {"epoch=1-score=1.ckpt": 1.0, "epoch=2-score=2.ckpt": 2.0}
    assert sorted(os.listdir(tmp_path)) == ["epoch=1-score=1.ckpt", "epoch=2-score=2.ckpt", "last.ckpt"]
    assert os.readlink(tmp_path / "last.ckpt") == "epoch=2-score=2.ckpt"


def save_and_read_at_once(folder):
    trainer = Trainer(devices=2, max_epochs=1, **BARE)
    trainer.fit(Net(), loader())
    path = os.path.join(folder, "by_hand.ckpt")
    trainer.save_checkpoint(path)
    return torch.load(path, weights_only=True)["global_step"]  # nobody goes on before it is whole


def test_a_checkpoint_is_there_for_all_when_it_is_saved(tmp_path):
    assert run_ranks(save_and_read_at_once, 2, str(tmp_path)) == [4, 4]


def checkpoint_of(devices, folder):
    trainer = Trainer(devices=devices, max_epochs=2, **BARE)
    trainer.fit(Net(), loader(batch_size=4 // devices), loader(batch_size=4 // devices))
    path = os.path.join(folder, f"{devices}.ckpt")
    trainer.save_checkpoint(path)
    return path


def difference(one, other, where=""):
    """Where two nestings differ."""
    if isinstance(one, torch.Tensor):
        close = one.shape == other.shape and torch.allclose(one.double(), other.double(), atol=1e-6)
        return None if close else where
    if isinstance(one, dict):
        if list(one) != list(other):
            return where, list(one), list(other)
        return next((found for key in one if (found := difference(one[key], other[key], f"{where}/{key}"))), None)
    if isinstance(one, (list, tuple)):
        return difference(dict(enumerate(one)), dict(enumerate(other)), where)
    return None if one == other else (where, one, other)


def test_a_checkpoint_equals_that_of_one_process_key_by_key(tmp_path):
    alone = torch.load(checkpoint_of(1, str(tmp_path)), weights_only=True)
    together = torch.load(run_ranks(checkpoint_of, 2, 2, str(tmp_path))[0], weights_only=True)
    ours, theirs = alone.pop("fulmen"), together.pop("fulmen")
    assert difference(alone, together) is None
    assert ours.keys() == theirs.keys() - {"random_of_others"}
    assert len(theirs["random_of_others"]) == 1


class Writer(BasePredictionWriter):
    def __init__(self):
        super().__init__("batch_and_epoch")
        self.batches, self.epoch = [], None

    def write_on_batch_end(self, trainer, pl_module, prediction, batch_indices, batch, batch_idx, dataloader_idx):
        self.batches.append((prediction.flatten().tolist(), batch_indices))

    def write_on_epoch_end(self, trainer, pl_module, predictions, batch_indices):
        self.epoch = [value.flatten().tolist() for value in predictions], batch_indices


class Echo(Net):
    def predict_step(self, batch, batch_idx):
        return batch[0]


def write_predictions(size):
    writer = Writer()
    data = DataLoader(TensorDataset(torch.arange(float(size))[:, None]), 2)
    predicted = Trainer(devices=2, callbacks=writer, **BARE).predict(Echo(), data)
    return writer.batches, writer.epoch, [value.flatten().tolist() for value in predicted]


def test_each_rank_writes_its_own_predictions_and_knows_which_they_are():
    seen = []
    for batches, (values, indices), predicted in run_ranks(write_predictions, 2, 7):
        assert [[int(value) for value in prediction] for prediction, _ in batches] == [where for _, where in batches]
        assert values == predicted == [prediction for prediction, _ in batches]
        assert indices == [[where for _, where in batches]]
        seen += [index for _, where in batches for index in where]
    assert sorted(seen) == list(range(7))


# -------------------------------------------------------------------------------------------------- going on


def train_to(epochs, folder, path=None, dropout=0.5):
    torch.manual_seed(dist.get_rank() if dist.is_initialized() else 0)
    module = Net(dropout)
    torch.manual_seed(dist.get_rank() + 100 if dist.is_initialized() else 100)
    devices = dist.get_world_size() if dist.is_initialized() else 1
    trainer = Trainer(devices=devices, max_epochs=epochs, **BARE)
    trainer.fit(module, loader(shuffle=True), ckpt_path=path)
    if folder is not None:
        trainer.save_checkpoint(os.path.join(folder, "stopped.ckpt"))
    return weights(module)


def test_a_run_that_goes_on_on_two_ranks_ends_where_one_that_was_not_stopped_does(tmp_path):
    expected = run_ranks(train_to, 2, 3, None)
    run_ranks(train_to, 2, 1, str(tmp_path))
    results = run_ranks(train_to, 2, 3, None, str(tmp_path / "stopped.ckpt"))
    for one, other in zip(results, expected, strict=True):
        for name, value in other.items():
            assert torch.equal(one[name], value)


def go_on(path):
    devices = dist.get_world_size() if dist.is_initialized() else 1
    trainer = Trainer(devices=devices, max_epochs=3, **BARE)
    module = Net()
    trainer.fit(module, loader(12), ckpt_path=path)
    return trainer.current_epoch, trainer.global_step, weights(module)


def test_a_run_goes_on_in_another_number_of_ranks(tmp_path):
    run_ranks(train_to, 2, 1, str(tmp_path), None, 0.0)
    path = str(tmp_path / "stopped.ckpt")
    epoch, step, _ = go_on(path)
    assert (epoch, step) == (3, 4 + 2 * 6)
    results = run_ranks(go_on, 3, path)
    assert [result[:2] for result in results] == [(3, 4 + 2 * 2)] * 3
    for _, _, other in results[1:]:
        assert all(torch.equal(other[name], value) for name, value in results[0][2].items())


def choose_a_checkpoint():
    trainer = Trainer(devices=2, **BARE)
    with pytest.raises(ValueError, match="no checkpoint callback") as caught:
        trainer.validate(Net(), loader(), ckpt_path="best")
    trainer.validate(Net(), loader(), verbose=False)  # the program has caught it on all ranks, and goes on
    return str(caught.value)


def test_what_is_wrong_with_a_path_is_raised_on_all_ranks():
    first, second = run_ranks(choose_a_checkpoint, 2)
    assert first == second


# -------------------------------------------------------------------------------------------------- other ways to run


def run_in_a_hurry(settings):
    module = Net()
    trainer = Trainer(devices=2, **settings)
    trainer.fit(module, loader(), loader())
    return trainer.global_step, weights(module)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"fast_dev_run": 2, "accelerator": "cpu", "enable_progress_bar": False}, 2),
        ({"barebones": True, "max_epochs": 1, "accelerator": "cpu"}, 4),
    ],
)
@pytest.mark.filterwarnings("ignore:.*barebones")
def test_runs_that_leave_things_out(settings, steps):
    (count, one), (same, other) = run_ranks(run_in_a_hurry, 2, settings)
    assert count == same == steps
    assert all(torch.equal(one[name], other[name]) for name in one)
