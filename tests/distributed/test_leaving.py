"""Signals and failures on several processes: all leave after the same batch, nobody waits, what can be saved is."""

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist

from fulmen import Callback, LightningModule, Trainer
from fulmen.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from fulmen.errors import SIGTERMException
from fulmen.fabric.watch import RankFailedError
from fulmen.fabric.watch.leaving import Leaving, Meeting
from processes import RanksFailed, run_ranks

pytestmark = pytest.mark.filterwarnings("ignore::fulmen.errors.PossibleUserWarning")

QUIET = {
    "devices": 2,
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
SAVING = {**QUIET, "enable_checkpointing": True}
DATA = torch.ones(200, 1, 2)


class Net(LightningModule):
    """Does something at a moment, on a rank."""

    def __init__(self, ranks=(), at=3, act=None, where="train"):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.ranks, self.at, self.act, self.where = ranks, at, act, where
        self.trained = []

    def maybe(self, where, batch_idx):
        if self.act is not None and where == self.where and batch_idx == self.at and self.global_rank in self.ranks:
            self.act()

    def training_step(self, batch, batch_idx):
        self.trained.append((self.current_epoch, batch_idx))
        self.maybe("train", batch_idx)
        return self.layer(batch).mean()

    def validation_step(self, batch, batch_idx):
        self.maybe("validate", batch_idx)
        time.sleep(0.005)
        return batch

    test_step = predict_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Noting(Callback):
    """Writes down how a run ended, with an exchange among all."""

    def __init__(self):
        self.ends = []

    def on_exception(self, trainer, pl_module, exception):
        self.ends.append(type(exception).__name__)
        trainer.strategy.barrier("in the end")


def send(number):
    def act():
        os.kill(os.getpid(), number)

    return act


def leave_by(number, kind, ranks, folder, settings):
    module, noting = Net(ranks, act=send(number)), Noting()
    callbacks = [noting, OnExceptionCheckpoint(folder)]
    trainer = Trainer(max_epochs=5, callbacks=callbacks, **SAVING, **settings)
    with pytest.raises(kind):
        trainer.fit(module, DATA)
    left = trainer.global_step, module.trained[-1], noting.ends
    module.act = None
    trainer.fit(module, DATA[:10], ckpt_path="last")  # the program has caught it
    return left


@pytest.mark.parametrize("ranks", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 4}])
def test_sigterm_on_any_rank_ends_all_after_the_same_batch(ranks, settings, tmp_path):
    results = run_ranks(leave_by, 2, signal.SIGTERM, SIGTERMException, ranks, str(tmp_path), settings)
    assert results[0] == results[1]
    step, (epoch, batch), ends = results[0]
    assert epoch == 0
    assert 3 <= batch <= 3 + 4 + 3
    assert ends == ["SIGTERMException"]
    assert step == (batch + 1) // settings.get("accumulate_grad_batches", 1)


def test_ctrl_c_ends_all_after_the_same_batch(tmp_path):
    first, second = run_ranks(leave_by, 2, signal.SIGINT, SystemExit, (1,), str(tmp_path), {})
    assert first == second
    assert first[2] == ["KeyboardInterrupt"]


def leave_in_a_validation():
    module = Net((1,), act=send(signal.SIGTERM), where="validate", at=0)
    module.validated = 0
    module.on_validation_end = lambda: setattr(module, "validated", module.validated + 1)
    trainer = Trainer(max_epochs=5, num_sanity_val_steps=0, val_check_interval=10, **QUIET)
    with pytest.raises(SIGTERMException):
        trainer.fit(module, DATA, torch.ones(7, 1, 2))
    return trainer.global_step, module.validated


def test_the_validation_inside_fit_is_brought_to_its_end():
    first, second = run_ranks(leave_in_a_validation, 2)
    assert first == second
    assert first[1] == 1
    assert 10 <= first[0] < 20


def leave_an_evaluation(method):
    module = Net((1,), act=send(signal.SIGTERM), where="validate")
    trainer = Trainer(**QUIET)
    with pytest.raises(SIGTERMException):
        getattr(trainer, method)(module, DATA)
    return True


@pytest.mark.parametrize("method", ["test", "predict"])
def test_an_evaluation_is_left_at_once_by_all(method):
    assert run_ranks(leave_an_evaluation, 2, method) == [True, True]


def finish_before_it_matters():
    module = Net((1,), at=99, act=send(signal.SIGTERM))
    trainer = Trainer(max_epochs=1, **QUIET)
    trainer.fit(module, DATA[:100])
    return trainer.global_step


def test_a_signal_in_the_last_batch_comes_too_late():
    assert run_ranks(finish_before_it_matters, 2) == [100, 100]


# -------------------------------------------------------------------------------------------------- the agreement


def test_the_agreement_is_on_a_batch_that_nobody_has_begun():
    """Three processes of which the messages are carried by hand."""
    told, asked = [], []
    meeting = Meeting(3, told.append)
    parts = [Leaving(lambda message, rank=rank: meeting.take(rank, message)) for rank in range(3)]
    for rank, part in enumerate(parts[:2]):
        part.begin(asked.append, lambda rank=rank: 10 + rank)  # the third is not in a run
    parts[0].ask("SIGTERM")
    parts[1].ask("SIGTERM")  # the same signal
    assert told == [{"leave": "SIGTERM"}]
    for part in parts:
        part.take(told[0])
    assert told[1:] == [{"leave_after": 12}]
    for part in parts:
        part.take(told[1])
        part.take({"leave_after": 99})  # a later answer does not count any more
    assert [part.agree("SIGTERM") for part in parts] == [12, 12, 12]
    assert asked == ["SIGTERM", "SIGTERM"]


def test_who_gets_no_answer_leaves_by_itself(monkeypatch):
    monkeypatch.setattr("fulmen.fabric.watch.leaving.AGREE_SECONDS", 0.01)
    assert Leaving(lambda message: None).agree("SIGTERM") is None


# -------------------------------------------------------------------------------------------------- failures


def boom():
    raise ValueError("boom")


class Slowed(Noting):
    """Has every reason to wait for the others in the end."""

    def on_exception(self, trainer, pl_module, exception):
        super().on_exception(trainer, pl_module, exception)
        trainer.strategy.broadcast(0)
        trainer.strategy.reduce(torch.ones(1))
        pl_module.all_gather(torch.ones(1))


def fail(ranks, trainer, module):
    """The failed process ends at once, if it is one alone."""
    began = time.monotonic()
    with pytest.raises((ValueError, RankFailedError)) as caught:
        trainer.fit(module, DATA)
    assert time.monotonic() - began < 10
    assert trainer.global_step == 3
    assert "ValueError: boom" in f"{caught.type.__name__}: {caught.value}"
    if ranks == (dist.get_rank(),):
        assert caught.type is ValueError
        os._exit(7)
    return caught.value


def fail_and_save(ranks, callback):
    fail(ranks, Trainer(max_epochs=1, callbacks=[Slowed(), callback], **SAVING), Net(ranks, act=boom))


def run_ranks_of_which_one_ends(function, ranks, *args):
    if len(ranks) > 1:
        run_ranks(function, 2, ranks, *args)
        return
    with pytest.raises(RanksFailed) as caught:
        run_ranks(function, 2, ranks, *args)
    assert list(caught.value.reports) == list(ranks)
    assert "It died with exit code 7." in caught.value.reports[ranks[0]]


def on_exception_checkpoint(folder):
    return OnExceptionCheckpoint(folder, "saved")


def model_checkpoint(folder):
    return ModelCheckpoint(folder, "saved", save_on_exception=True, every_n_epochs=9)


@pytest.mark.parametrize("ranks", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("make", [on_exception_checkpoint, model_checkpoint])
def test_a_failure_is_saved_without_waiting_for_anybody(ranks, make, tmp_path):
    run_ranks_of_which_one_ends(fail_and_save, ranks, make(str(tmp_path)))
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    assert saved["global_step"] == 3
    assert list(saved["optimizer_states"][0]) == ["state", "param_groups"]


class Sharded(Net):
    def configure_optimizers(self):
        from torch.distributed.optim import ZeroRedundancyOptimizer  # warns

        return ZeroRedundancyOptimizer(self.parameters(), torch.optim.SGD, lr=0.1)


def fail_with_spread_state(ranks, callback):
    error = fail(ranks, Trainer(max_epochs=1, callbacks=callback, **SAVING), Sharded(ranks, act=boom))
    assert any("the state is spread over 2 processes" in note for note in error.__notes__)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_what_is_spread_over_processes_is_not_saved_after_a_failure(tmp_path):
    run_ranks_of_which_one_ends(fail_with_spread_state, (1,), on_exception_checkpoint(str(tmp_path)))
    assert list(tmp_path.iterdir()) == []
