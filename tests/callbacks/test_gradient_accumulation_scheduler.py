from __future__ import annotations

from typing import Any

import pytest
import torch

import fulmen
from fulmen import Callback
from fulmen.callbacks import GradientAccumulationScheduler
from fulmen.errors import MisconfigurationException
from fulmen.strategies import SingleDeviceStrategy


class Factors(Callback):
    """The factor and the steps so far, in each epoch."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.seen.append((trainer.accumulate_grad_batches, trainer.global_step))


@pytest.mark.parametrize("scheduling", [{}, None])
def test_there_must_be_a_schedule(scheduling: Any) -> None:
    with pytest.raises(TypeError, match="expected a dictionary"):
        GradientAccumulationScheduler(scheduling)


@pytest.mark.parametrize("scheduling", [{-1: 2}, {1.5: 2}, {"1": 2}, {1: 0}, {1: 2.0}, {1: None}], ids=str)
def test_epochs_and_factors_are_whole_numbers(scheduling: Any) -> None:
    with pytest.raises(MisconfigurationException, match=r"expected an int from [01] on"):
        GradientAccumulationScheduler(scheduling)


def test_what_is_scheduled() -> None:
    scheduler = GradientAccumulationScheduler({4: 1, 2: 3})
    assert scheduler.scheduling == {0: 1, 2: 3, 4: 1}
    assert scheduler.epochs == [0, 2, 4]
    assert [scheduler.get_accumulate_grad_batches(epoch) for epoch in range(6)] == [1, 1, 3, 3, 1, 1]
    assert scheduler.going_to_accumulate_grad_batches()
    assert not GradientAccumulationScheduler({0: 1, 3: 1}).going_to_accumulate_grad_batches()


def test_the_factor_changes_with_the_epochs(fit, scripted) -> None:
    factors = Factors()
    trainer = fit(scripted(), GradientAccumulationScheduler({1: 2, 3: 4}), factors, max_epochs=4)
    assert factors.seen == [(1, 4), (2, 6), (2, 8), (4, 9)]
    assert trainer.accumulate_grad_batches == 1


def test_a_further_fit_goes_on_with_the_schedule(fit, scripted) -> None:
    factors = Factors()
    trainer = fit(scripted(), GradientAccumulationScheduler({1: 2}), factors, max_epochs=2, validate=False)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(trainer.lightning_module, torch.ones(4, 1, 2), torch.ones(1, 1, 2))
    assert factors.seen == [(1, 4), (2, 6), (2, 8)]


def test_an_exception_leaves_the_trainer_as_it_was(fit, scripted) -> None:
    class Fails(scripted):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("as planned")

    callbacks = [GradientAccumulationScheduler({0: 2})]
    trainer = fulmen.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=callbacks, logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="as planned"):
        trainer.fit(Fails(), torch.ones(4, 1, 2), torch.ones(1, 1, 2))
    assert trainer.accumulate_grad_batches == 1


def test_an_epoch_that_is_resumed_has_its_factor(fit, scripted, tmp_path) -> None:
    class Saves(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.current_epoch == 1 and batch_idx == 1:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    fit(scripted(), GradientAccumulationScheduler({1: 2}), Saves(), max_epochs=2)
    factors = Factors()
    fit(scripted(), GradientAccumulationScheduler({1: 2}), factors, max_epochs=2, ckpt_path=tmp_path / "middle.ckpt")
    assert factors.seen == [(2, 6)]


def test_only_one_may_decide(fit, scripted) -> None:
    with pytest.raises(ValueError, match=r"accumulate_grad_batches=2.*both say"):
        fit(scripted(), GradientAccumulationScheduler({1: 2}), accumulate_grad_batches=2)


def test_not_in_manual_optimisation(fit, scripted) -> None:
    class Manual(scripted):
        automatic_optimization = False

    with pytest.raises(RuntimeError, match="manual optimisation"):
        fit(Manual(), GradientAccumulationScheduler({1: 2}))


def test_not_with_a_strategy_that_accumulates(fit, scripted) -> None:
    class Counts(SingleDeviceStrategy):
        handles_gradient_accumulation = True

    with pytest.raises(RuntimeError, match="Counts, which accumulates by itself"):
        fit(scripted(), GradientAccumulationScheduler({1: 2}), accelerator="auto", strategy=Counts("cpu"))


@pytest.mark.parametrize("hook", ["optimizer_step", "optimizer_zero_grad"])
def test_hooks_that_run_less_often_are_pointed_out(fit, scripted, hook: str) -> None:
    class Own(scripted):
        pass

    setattr(Own, hook, lambda self, *args, **kwargs: getattr(super(Own, self), hook)(*args, **kwargs))
    with pytest.warns(UserWarning, match=f"Own` overrides `{hook}`"):
        fit(Own(), GradientAccumulationScheduler({1: 2}), max_epochs=1)
    fit(Own(), GradientAccumulationScheduler({1: 1}), max_epochs=1)
