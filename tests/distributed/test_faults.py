"""Whatever goes wrong on one rank, all processes end, with one report on rank 0."""

import ctypes
import os
import signal
import sys
import time

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, IterableDataset

from faults import note_fault, note_waiting, run_faulty, wait_for_others
from fulmen import Trainer
from fulmen.demos import BoringModel


def rank():
    return int(os.environ["RANK"])


def trainer(**settings):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    limits = {"max_epochs": 1, "limit_train_batches": 6, "limit_val_batches": 0}
    return Trainer(
        accelerator="cpu",
        devices=int(os.environ["WORLD_SIZE"]),
        strategy="ddp",
        enable_model_summary=False,
        **quiet,
        **limits | settings,
    )


class Faulty(BoringModel):
    """Calls the fault on one rank, in batch 2."""

    def __init__(self, fault, on):
        super().__init__()
        self.fault, self.on = fault, on

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)["loss"]
        if batch_idx == 2 and rank() == self.on:
            note_fault()
            return self.fault(self, loss)
        if batch_idx == 2:
            note_waiting()
        return loss


def raises(module, loss):
    wait_for_others()
    note_fault()
    raise ValueError("a bad batch")


def is_killed(module, loss):
    os.kill(os.getpid(), signal.SIGKILL)


def calls_exit(module, loss):
    sys.exit(0)


def crashes(module, loss):
    os._exit(7)


def returns_none(module, loss):
    return None


def logs_alone(module, loss):
    module.log("only_here", loss, sync_dist=True)
    return loss


def exchanges_otherwise(module, loss):
    dist.barrier()
    return loss


def fit_with(fault, on, **settings):
    trainer(**settings).fit(Faulty(globals()[fault], on))


def fitted(outcome):
    """All ended by themselves, and not as if all were well."""
    assert None not in outcome.codes, outcome
    return outcome


@pytest.mark.parametrize(("on", "size"), [(0, 2), (1, 2), pytest.param(3, 4, marks=pytest.mark.slow)])
def test_a_rank_raises(on, size):
    outcome = fitted(run_faulty(fit_with, size, "raises", on))
    assert outcome.codes == [1] * size
    report = outcome.errors[0]
    if on == 0:
        assert "This was rank 0 of 2. Where the others stood:" in report
        assert "  rank 1: train, epoch 0, batch 2, in backward" in report
    else:
        assert report.count(f"Rank {on} of {size} failed first: ValueError: a bad batch") == 1
        assert "  rank 0: train, epoch 0, batch 2, in backward" in report
    assert report.count("in raises") == 1
    assert "During fit: epoch 0, batch 2, global step 2." in report
    for other in range(1, size):
        assert len(outcome.errors[other].strip().splitlines()) <= 1, outcome.errors[other]


def test_a_rank_is_killed():
    outcome = fitted(run_faulty(fit_with, 2, "is_killed", 1))
    assert outcome.codes == [1, -signal.SIGKILL]
    assert "Rank 1 of 2 has died without a word" in outcome.errors[0]
    assert "  rank 0: train, epoch 0, batch " in outcome.errors[0]


def test_rank_0_is_killed():
    outcome = fitted(run_faulty(fit_with, 3, "is_killed", 0))
    assert outcome.codes == [-signal.SIGKILL, 1, 1]
    assert "Rank 0 of 3 has died without a word" in outcome.errors[1]
    assert "  rank 1: train, epoch 0, batch " in outcome.errors[1]
    assert "  rank 1: train" not in outcome.errors[2]  # one report


def test_a_rank_calls_exit():
    outcome = fitted(run_faulty(fit_with, 2, "calls_exit", 1))
    assert outcome.codes == [1, 0]
    assert "Rank 1 of 2 failed first: SystemExit: 0" in outcome.errors[0]
    assert "in calls_exit" in outcome.errors[0]


def test_a_rank_returns_none():
    outcome = fitted(run_faulty(fit_with, 2, "returns_none", 1))
    assert outcome.codes == [1, 1]
    assert "`training_step` returned None, which skips the batch on this process only" in outcome.errors[0]


def test_a_rank_logs_alone():
    """Gloo ends a process that gets more than it waits for."""
    outcome = fitted(run_faulty(fit_with, 2, "logs_alone", 1))
    assert 0 not in outcome.codes
    assert "or exchanges that do not fit, as of a `self.log(..., sync_dist=True)`" in outcome.errors[0]
    assert "in logs_alone" in outcome.errors[1]  # the line, on the terminal of the process that died


def test_a_rank_exchanges_something_else():
    outcome = fitted(run_faulty(fit_with, 2, "exchanges_otherwise", 1))
    assert outcome.codes == [1, 1]
    assert "The processes have parted" in outcome.errors[0]
    assert "  rank 0: train, epoch 0, batch 2, in backward, at" in outcome.errors[0]
    assert "  rank 1: train, epoch 0, batch 2, in barrier, at" in outcome.errors[0]
    assert outcome.errors[1] == ""


class Uneven(IterableDataset):
    def __iter__(self):
        yield from torch.ones(6 if rank() == 0 else 3, 32)
        note_fault()


def fit_uneven():
    trainer(limit_train_batches=None).fit(BoringModel(), DataLoader(Uneven(), 1))


def test_a_rank_has_fewer_batches():
    outcome = fitted(run_faulty(fit_uneven, 2))
    assert 0 not in outcome.codes
    assert "The processes have parted" in outcome.errors[0]
    assert "Look for data of different lengths" in outcome.errors[0]


class Broken(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index == 3 and rank() == 1:
            note_fault()
            raise KeyError("a bad sample")
        return torch.ones(32)


def fit_with_workers():
    loader = DataLoader(Broken(), 1, num_workers=1, multiprocessing_context="fork")
    trainer(use_distributed_sampler=False).fit(BoringModel(), loader)


def test_a_loaders_worker_raises():
    outcome = fitted(run_faulty(fit_with_workers, 2))
    assert outcome.codes == [1, 1]
    assert "Rank 1 of 2 failed first: KeyError" in outcome.errors[0]
    assert "a bad sample" in outcome.errors[0]


class Waiting(Broken):
    """The worker of rank 1 waits for long, while rank 1 is killed."""

    def __getitem__(self, index):
        if index == 3 and rank() == 1:
            note_fault()
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(100)
        return torch.ones(32)


def fit_with_a_waiting_worker():
    trainer(use_distributed_sampler=False).fit(
        BoringModel(), DataLoader(Waiting(), 1, num_workers=1, multiprocessing_context="fork")
    )


def test_a_loaders_worker_does_not_hide_the_death_of_its_rank():
    outcome = fitted(run_faulty(fit_with_a_waiting_worker, 2))
    assert outcome.codes == [1, -signal.SIGKILL]
    assert "Rank 1 of 2 has died without a word" in outcome.errors[0]


def fit_and_leave_early(on):
    fitting = trainer()
    fitting.fit(BoringModel())
    if rank() == on:
        note_fault()
        return
    fitting.strategy.barrier("the others")


@pytest.mark.parametrize("on", [0, 1])
def test_a_rank_leaves_early(on):
    outcome = fitted(run_faulty(fit_and_leave_early, 2, on))
    assert 1 in outcome.codes
    assert outcome.codes[1 - on] == 1
    assert f"Rank {on} of 2 has ended while others still wait for it" in outcome.errors[0]


def fit_and_raise_outside():
    trainer().fit(BoringModel())
    if rank() == 1:
        wait_for_others()
        note_fault()
        raise ValueError("after the fit")
    note_waiting()
    dist.barrier()


def test_a_rank_raises_outside_of_a_run():
    outcome = fitted(run_faulty(fit_and_raise_outside, 2))
    assert outcome.codes == [1, 1]
    assert "Rank 1 of 2 failed first: ValueError: after the fit" in outcome.errors[0]
    assert "rank 0: in barrier, at" in outcome.errors[0]
    assert outcome.errors[1].strip().startswith("[rank 1] ValueError: after the fit")


class FailingOnce(BoringModel):
    """Raises on all ranks, on one later than on the other."""

    fails = True

    def training_step(self, batch, batch_idx):
        if batch_idx == 2 and self.fails:
            self.fails = False
            time.sleep(0.3 * rank())
            raise ValueError("caught")
        return super().training_step(batch, batch_idx)


def catch_and_fit_again(pause):
    module = FailingOnce()
    with pytest.raises(ValueError, match="caught"):
        trainer().fit(module)
    time.sleep(pause)
    dist.barrier()
    trainer().fit(module)
    print("fitted again")


@pytest.mark.parametrize("pause", [0, pytest.param(9, marks=pytest.mark.slow)])
def test_what_all_ranks_catch_ends_nothing(pause):
    outcome = run_faulty(catch_and_fit_again, 2, pause)
    assert outcome.codes == [0, 0], outcome
    assert outcome.outputs == ["fitted again\n"] * 2


def test_a_rank_raises_in_the_run_after_one_that_was_caught():
    outcome = fitted(run_faulty(catch_and_raise_alone, 2))
    assert outcome.codes == [1, 1]
    assert "Rank 1 of 2 failed first: ValueError: a bad batch" in outcome.errors[0]


def catch_and_raise_alone():
    with pytest.raises(ValueError, match="caught"):
        trainer().fit(FailingOnce())
    fit_with("raises", 1)


class SavingSlowly(BoringModel):
    """Each rank does something by itself for longer than a process may stand still in an exchange."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if batch_idx == rank():
            time.sleep(self.seconds)

    def training_step(self, batch, batch_idx):
        if batch_idx == 3 and rank() == 0:
            time.sleep(self.seconds)
        return super().training_step(batch, batch_idx)


def train_unevenly():
    trainer().fit(SavingSlowly(6))
    dist.barrier()
    hold_the_interpreter(6 * (rank() == 0))
    dist.barrier()
    time.sleep(6 * rank())
    print("all is well")


def hold_the_interpreter(seconds):
    """Nothing else of Python runs meanwhile, so that nobody hears of this process."""
    ctypes.PyDLL(None).sleep(seconds)


@pytest.mark.slow
def test_a_slow_rank_is_no_fault():
    outcome = run_faulty(train_unevenly, 2)
    assert outcome.codes == [0, 0], outcome
    assert outcome.outputs == ["all is well\n"] * 2
