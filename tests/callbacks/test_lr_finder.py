"""LearningRateFinder: a test at the start of a fit, which then trains with the rate."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fulmen import LightningModule
from fulmen.callbacks import LearningRateFinder

pytestmark = pytest.mark.filterwarnings(
    "ignore::fulmen.errors.PossibleUserWarning", "ignore:There is a val dataloader but no `validation_step`"
)


class Falling(LightningModule):
    """Its loss falls most steeply after 13 steps of a probe; notes the rates of the steps of the run itself."""

    def __init__(self, lr=0.5):
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(2, 1)
        self.seen = 0
        self.notes = Notes()

    def training_step(self, batch, batch_idx):
        self.seen += 1
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.notes.add(len(self.trainer.callbacks) > 1, rate)
        return self.layer(batch).pow(2).mean() * (1e-3 if self.seen > 13 else 1)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Notes:
    """Outside of what a probe puts back."""

    def __init__(self):
        self.run, self.probe = [], []

    def add(self, in_run, rate):
        (self.run if in_run else self.probe).append(rate)


class Other(LearningRateFinder):
    """A second callback, so that a run can be told from a probe."""

    def on_fit_start(self, trainer, pl_module):
        pass


def test_the_run_goes_on_with_the_rate_that_was_found(fit):
    finder, module = LearningRateFinder(num_training_steps=30), Falling()
    trainer = fit(module, finder, Other(), validate=False, max_epochs=1)
    rate = finder.optimal_lr.suggestion()
    assert rate not in (None, 0.5)
    assert module.hparams.lr == rate
    assert module.notes.run == pytest.approx([rate, rate / 2, rate / 3, rate / 4])  # by the scheduler, too
    assert len(module.notes.probe) == 30
    assert module.seen == 4
    assert trainer.global_step == 4
    assert trainer.callbacks[0] is finder


def test_only_looking_changes_nothing(fit):
    def weights(*callbacks):
        torch.manual_seed(1)
        module = Falling()
        fit(module, *callbacks, validate=False)
        return torch.cat([p.flatten() for p in module.parameters()])

    finder = LearningRateFinder(num_training_steps=30, update_attr=False)
    assert torch.equal(weights(finder), weights())
    assert finder.optimal_lr.suggestion() is not None


def test_an_optimizer_that_does_not_use_the_attribute_gets_the_rate(fit):
    class Fixed(Falling):
        def configure_optimizers(self):
            return torch.optim.SGD([{"params": [p]} for p in self.parameters()], lr=0.5)

    finder, module = LearningRateFinder(num_training_steps=30), Fixed()
    trainer = fit(module, finder, validate=False, max_epochs=1)
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [finder.optimal_lr.suggestion()] * 2


def test_groups_with_rates_of_their_own_keep_them(fit):
    class Groups(Falling):
        def configure_optimizers(self):
            lr = self.hparams.lr
            groups = [{"params": [self.layer.weight]}, {"params": [self.layer.bias], "lr": lr / 10}]
            return torch.optim.SGD(groups, lr=lr)

    finder, module = LearningRateFinder(num_training_steps=30), Groups()
    trainer = fit(module, finder, validate=False, max_epochs=1)
    rate = finder.optimal_lr.suggestion()
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [rate, rate / 10]


def test_a_subclass_looks_at_the_start_of_epochs(fit):
    class AtMilestones(LearningRateFinder):
        def __init__(self):
            super().__init__(num_training_steps=30)
            self.found = []

        def on_fit_start(self, trainer, pl_module):
            pass

        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch in (0, 2):
                states = len(trainer.optimizers[0].state)
                self.lr_find(trainer, pl_module)
                assert len(trainer.optimizers[0].state) == states
                self.found.append((trainer.current_epoch, trainer.global_step, self.optimal_lr.suggestion()))

    class Plain(Falling):
        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)

    finder, module = AtMilestones(), Plain()
    fit(module, finder, Other(), validate=False)
    (epoch, step, first), (last_epoch, last_step, second) = finder.found
    assert (epoch, step, last_epoch, last_step) == (0, 0, 2, 8)
    assert module.notes.run == [first] * 8 + [second] * 4
    assert module.hparams.lr == second
    assert module.seen == 12


def test_it_comes_first_and_does_nothing_in_a_fast_dev_run(fit):
    finder, module = LearningRateFinder(), Falling()
    with pytest.warns(UserWarning, match="does nothing in a `fast_dev_run`"):
        trainer = fit(module, Other(), finder, fast_dev_run=True)
    assert finder.order == -1
    assert finder.optimal_lr is None
    assert module.notes.probe == []
    assert module.hparams.lr == 0.5
    assert [callback.order for callback in trainer.callbacks] == sorted(c.order for c in trainer.callbacks)


def test_an_unknown_mode():
    assert LearningRateFinder.SUPPORTED_MODES == ("linear", "exponential")
    with pytest.raises(ValueError, match=r"`mode='power'` is not known. Type one of: 'linear', 'exponential'"):
        LearningRateFinder(mode="power")


def test_a_missing_attribute(fit):
    with pytest.raises(AttributeError, match="found no 'rate' in `Falling`"):
        fit(Falling(), LearningRateFinder(attr_name="rate"))
