"""`self.log` over real ranks: what is synchronised has the value that one process has over all batches."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen import LightningModule, Trainer
from fulmen.callbacks import EarlyStopping
from fulmen.fabric import distributed
from fulmen.loss import Loss
from processes import RanksFailed, run_ranks

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}

SIZE = 11  # which 2 and 3 ranks do not divide, nor batches of 2 or 3

pytestmark = [
    pytest.mark.filterwarnings("ignore:The .* loader (has . workers|shuffles):fulmen.errors.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:There is a `validation_step` but no val:fulmen.errors.PossibleUserWarning"),
]


class Logs(LightningModule):
    """Logs eighths, of which sums are exact in whatever order."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.steps = []

    def training_step(self, batch, batch_idx):
        (x,) = batch
        self.log("train", x.mean(), on_step=False, on_epoch=True, sync_dist=True)
        return self.layer(x).mean()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        (x,) = batch
        for reduce_fx in ("mean", "sum", "min", "max"):
            self.log(reduce_fx, x.mean(), reduce_fx=reduce_fx, sync_dist=True)
        self.log("double", x.mean().double(), sync_dist=True)
        self.log("loss", Loss(x.sum(), len(x)), sync_dist=True)
        if 3 in x:
            self.log("rare", x.sum(), sync_dist=True, batch_size=1, prog_bar=True)

    test_step = validation_step

    def on_validation_epoch_end(self):
        self.log("at the end", 3.0 + self.global_rank, sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def loader(size, batch_size):
    return DataLoader(TensorDataset(torch.arange(float(size))[:, None] / 8 + 1), batch_size)


def trainer_for(devices, **settings):
    return Trainer(devices=devices, **{"max_epochs": 1, "num_sanity_val_steps": 0, **QUIET, **settings})


def validate(devices, size, batch_size):
    module, trainer = Logs(), trainer_for(devices)
    (results,) = trainer.validate(module, loader(size, batch_size), verbose=False)
    assert results == pytest.approx({name: value.item() for name, value in trainer.callback_metrics.items()})
    assert trainer.callback_metrics["double"].dtype == torch.float64
    return results


@pytest.mark.parametrize("size", [SIZE, 26, 1])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_epochs_of_evaluation_equal_those_of_one_process(ranks, size):
    values = [index / 8 + 1 for index in range(size)]
    expected = validate(1, size, 6)
    # these depend on what a batch is, or on the rank
    for name in ("sum", "min", "max", "rare", "at the end"):
        expected.pop(name, None)
    assert expected["mean"] == expected["loss"] == pytest.approx(sum(values) / size)
    results = run_ranks(validate, ranks, ranks, size, 2)
    for result in results:
        assert result == results[0]
        assert {name: result[name] for name in expected} == expected
        assert result["at the end"] == 3 + (ranks - 1) / 2
        assert ("rare" in result) == (size >= 17)


def validate_one_by_one(devices):
    """With batches of one sample every reduction is the same, whoever had which batch."""
    return validate(devices, SIZE, 1)


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_reduction(ranks):
    expected = validate_one_by_one(1)
    assert (expected["min"], expected["max"]) == (1, 1 + (SIZE - 1) / 8)
    del expected["at the end"]
    for result in run_ranks(validate_one_by_one, ranks, ranks):
        del result["at the end"]
        assert result == expected


def train(devices, batch_size):
    trainer = trainer_for(devices, max_epochs=2)
    trainer.fit(Logs(), loader(12, batch_size))
    return trainer.callback_metrics["train"].item()


def test_epochs_of_training_equal_those_of_one_process():
    expected = train(1, 6)
    assert expected == sum(index / 8 + 1 for index in range(12)) / 12
    assert run_ranks(train, 3, 3, 2) == [expected] * 3


class Steps(Logs):
    def training_step(self, batch, batch_idx):
        rank = self.global_rank
        for reduce_fx in ("mean", "sum", "min", "max"):
            self.log(reduce_fx, rank + 1, on_step=True, on_epoch=True, sync_dist=True, reduce_fx=reduce_fx)
        self.log("tensor", torch.tensor(rank + 1.0), sync_dist=True)
        self.log("own", rank + 1, on_step=True, on_epoch=False)
        if rank == 0:
            self.log("first", 7, on_epoch=True, sync_dist=True, rank_zero_only=True)
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        metrics = self.trainer.callback_metrics
        self.steps.append({name: value.item() for name, value in metrics.items() if not name.endswith("_step")})

    def on_train_epoch_end(self):
        self.log("twice", self.global_rank, sync_dist=True)
        self.log("twice", self.global_rank + 1, sync_dist=True, batch_size=3)
        self.log("largest", torch.tensor(float(self.global_rank)), sync_dist=True, reduce_fx="max")
        assert self.trainer.callback_metrics["largest"] == self.trainer.world_size - 1


def log_by_step():
    module, trainer = Steps(), trainer_for(3)
    trainer.fit(module, loader(12, 2))
    return module.steps, {name: value.item() for name, value in trainer.callback_metrics.items()}


def test_steps_are_reduced_when_they_are_logged():
    for rank, (steps, metrics) in enumerate(run_ranks(log_by_step, 3)):
        for step in steps:
            assert {name: step[name] for name in ("mean", "sum", "min", "max", "tensor", "own")} == {
                "mean": 2, "sum": 6, "min": 1, "max": 3, "tensor": 2, "own": rank + 1,
            }  # fmt: skip
        assert (metrics["mean_epoch"], metrics["sum_epoch"]) == (2, 6 * len(steps))
        assert (metrics["min_epoch"], metrics["max_epoch"]) == (1, 3)
        assert ("first_epoch" in metrics) == (rank == 0)
        assert metrics["twice"] == pytest.approx((0 + 1 + 2 + 3 * (1 + 2 + 3)) / 12)
        assert metrics["largest"] == 2


class Several(Logs):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("x", batch[0].mean(), sync_dist=True)

    def on_validation_epoch_end(self):
        pass


def validate_several(devices):
    return trainer_for(devices).validate(Several(), [loader(SIZE, 2), loader(1, 2), loader(7, 4)], verbose=False)


@pytest.mark.parametrize("ranks", [2, 3])
def test_several_loaders_one_of_which_has_too_little_for_all(ranks):
    expected = validate_several(1)
    assert [list(metrics) for metrics in expected] == [[f"x/dataloader_idx_{index}"] for index in range(3)]
    assert run_ranks(validate_several, ranks, ranks) == [expected] * ranks


class Pair(Several):
    def validation_step(self, batch, batch_idx):
        self.log("pair", 1 + self.global_rank, sync_dist=True, sync_dist_group=self.group, batch_size=1)
        self.log("step", self.global_rank, on_step=True, on_epoch=False, sync_dist=True, sync_dist_group=self.group)


def validate_in_pairs():
    module, trainer = Pair(), trainer_for(4)
    groups = [dist.new_group(ranks) for ranks in ([0, 1], [2, 3])]
    module.group = groups[dist.get_rank() // 2]
    trainer.validate(module, loader(8, 2), verbose=False)
    return trainer.callback_metrics["pair"].item(), trainer.logged_metrics["step"].item()


def test_a_group_of_ranks():
    assert run_ranks(validate_in_pairs, 4) == [(1.5, 0.5), (1.5, 0.5), (3.5, 2.5), (3.5, 2.5)]


class Counts(Several):
    def validation_step(self, batch, batch_idx):
        for index in range(20):
            self.log(f"x{index}", batch[0].mean(), sync_dist=True, reduce_fx=["mean", "sum", "max", "min"][index % 4])


def count_exchanges():
    counts = []
    gather, reduce = distributed.all_gather_object, distributed.reduce
    distributed.all_gather_object = lambda *args, **kwargs: counts.append(kwargs["name"]) or gather(*args, **kwargs)
    distributed.reduce = lambda *args, **kwargs: counts.append("reduce") or reduce(*args, **kwargs)
    trainer_for(2).validate(Counts(), loader(9, 2), verbose=False)
    return [name for name in counts if "lengths" not in name]


def test_everything_is_exchanged_at_once():
    assert run_ranks(count_exchanges, 2) == [["metrics of validate"]] * 2


class Opposed(Several):
    """A loss that falls on rank 1, rises on rank 0, and stays what it is for both together."""

    def validation_step(self, batch, batch_idx):
        self.log("loss", (1 - 2 * self.global_rank) * (2.0 + self.current_epoch), sync_dist=True)


def stop_early():
    trainer = trainer_for(2, max_epochs=5, callbacks=EarlyStopping("loss", patience=1))
    trainer.fit(Opposed(), loader(8, 2), loader(8, 2))
    return trainer.current_epoch


def test_callbacks_see_the_same_on_all_ranks():
    assert run_ranks(stop_early, 2) == [2, 2]


class Unsynchronised(Several):
    def validation_step(self, batch, batch_idx):
        self.log("x", float(self.global_rank))
        self.log("step", 1.0, on_step=True, on_epoch=False)
        self.log("zero", 1.0, rank_zero_only=True)


def validate_unsynchronised():
    trainer = trainer_for(2)
    with pytest.warns(match="`self.log") if dist.get_rank() == 0 else pytest.MonkeyPatch.context() as caught:
        trainer.validate(Unsynchronised(), loader(8, 2), verbose=False)
    told = [str(each.message) for each in caught] if dist.get_rank() == 0 else []
    return trainer.callback_metrics["x"].item(), [text for text in told if "self.log" in text]


def test_what_is_not_synchronised_is_the_ranks_own_and_said_once():
    (first, told), (second, _) = run_ranks(validate_unsynchronised, 2)
    assert (first, second) == (0, 1)
    assert len(told) == 1
    assert "`self.log('x', ..., sync_dist=True)`" in told[0]


class Parted(Logs):
    def training_step(self, batch, batch_idx):
        if self.global_rank == 0:
            self.log("only here", 1.0, sync_dist=True)
        return super().training_step(batch, batch_idx)


def part():
    trainer_for(2).fit(Parted(), loader(8, 2))


def test_a_step_logged_on_one_rank_only_is_no_hang():
    with pytest.raises(RanksFailed, match="only here"):
        run_ranks(part, 2, timeout=20)
