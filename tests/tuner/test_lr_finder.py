"""The learning-rate range test: rates, smoothing, early stop, suggestion, plot."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from fulmen import LightningModule
from fulmen.errors import MisconfigurationException
from fulmen.tuner import Tuner
from fulmen.tuner.lr_finder import _LRFinder

pytestmark = pytest.mark.filterwarnings("ignore::fulmen.errors.PossibleUserWarning")


class Scripted(LightningModule):
    """Gives the losses of a list, one after the other; notes the rates it is trained with."""

    def __init__(self, losses=(1.0,) * 200, num_optimizers=1, lr=0.1):
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.losses, self.num_optimizers, self.lr = losses, num_optimizers, lr
        self.place = 0
        self.rates = Rates()
        self.schedulers = []

    def training_step(self, batch, batch_idx):
        self.rates.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])
        loss = self.losses[self.place]
        self.place += 1
        return None if loss is None else self.layer(batch).sum() * 0 + loss

    def configure_optimizers(self):
        groups = [{"params": [self.layer.weight]}, {"params": [self.layer.bias], "lr": 7.0}]
        optimizers = [torch.optim.SGD(groups, lr=self.lr) for _ in range(self.num_optimizers)]
        return optimizers, [torch.optim.lr_scheduler.ExponentialLR(optimizers[0], 0.1)]


class Rates:
    """Outside of what a probe puts back."""

    def __init__(self):
        self.seen = []

    def append(self, rates):
        self.seen.append(rates)


LOADER = DataLoader(torch.ones(10, 2), batch_size=1)
random.seed(0)
#: The numbers below are what Lightning 2.6.6 gives for these losses.
LOSSES = [2 + random.random() - 0.05 * i for i in range(30)]
SMOOTHED = [1.43658, 1.86896, 1.98531, 2.01104, 2.06364, 2.07748, 2.13194, 2.11045, 2.10675, 2.10942]


def find(make, module, loader=LOADER, trainer=None, **arguments):
    chosen = {"num_training": 10, "min_lr": 1e-4, "early_stop_threshold": None, "update_attr": False, **arguments}
    return Tuner(trainer or make()).lr_find(module, loader, **chosen)


def test_exponential(make):
    module = Scripted(LOSSES)
    found = find(make, module)
    rates = [1e-4, 0.000630957, 0.00158489, 0.00398107, 0.01, 0.0251189, 0.0630957, 0.158489, 0.398107, 1]
    assert found.results["lr"] == pytest.approx(rates, rel=1e-5)
    assert found.results["loss"] == pytest.approx(SMOOTHED, rel=1e-5)
    assert module.rates.seen == [[rate, rate] for rate in found.results["lr"]]
    assert found.suggestion(0, 1) == pytest.approx(0.158489, rel=1e-5)
    assert found.suggestion(2, 3) == pytest.approx(0.0251189, rel=1e-5)
    assert (found.mode, found.lr_min, found.lr_max, found.num_training) == ("exponential", 1e-4, 1, 10)


def test_linear(make):
    found = find(make, Scripted(LOSSES), mode="linear")
    rates = [0.0001, 0.20008, 0.30007, 0.40006, 0.50005, 0.60004, 0.70003, 0.80002, 0.90001, 1]
    assert found.results["lr"] == pytest.approx(rates)
    assert found.results["loss"] == pytest.approx(SMOOTHED, rel=1e-5)
    assert found.suggestion(0, 1) == pytest.approx(0.80002)
    assert found.suggestion(2, 3) == pytest.approx(0.30007)


@given(
    mode=st.sampled_from(["linear", "exponential"]),
    low=st.floats(1e-9, 1e-2),
    factor=st.floats(1.5, 1e6),
    steps=st.integers(2, 300),
)
def test_rates_grow_from_the_first_to_the_last(mode, low, factor, steps):
    finder = _LRFinder(mode, low, low * factor, steps)
    rates = [finder.rate(step) for step in range(steps)]
    assert rates[0] == low
    assert rates[-1] == pytest.approx(low * factor)
    assert all(before < after for before, after in itertools.pairwise(rates))


def test_it_goes_on_over_epochs_whatever_max_epochs_says(make):
    assert len(find(make, Scripted(), trainer=make(max_epochs=1), num_training=35).results["lr"]) == 35


def test_the_loss_of_a_window_is_the_mean_of_its_batches(make):
    module = Scripted([float(i) for i in range(1, 20)])
    found = find(make, module, trainer=make(accumulate_grad_batches=4), num_training=4)
    # windows of an epoch of ten batches: 4, 4, 2
    smoothed, average = [], 0.0
    for step, loss in enumerate([2.5, 6.5, 9.5, 12.5]):
        average = 0.98 * average + 0.02 * loss
        smoothed.append(average / (1 - 0.98 ** (step + 2)))
    assert found.results["loss"] == pytest.approx(smoothed)


@pytest.mark.parametrize(
    ("losses", "steps"),
    [
        ([1.0, 1.0, 1.0, 300.0], 4),
        ([1.0, 300.0], 2),  # not after the first step, but after the second
        ([1.0, 1.0, math.nan], 3),
        ([1.0, math.inf], 2),
        ([-1.0] * 9, 9),  # four times a negative loss is less than that loss
        ([-1.0, -1.0, 300.0], 3),
    ],
)
def test_early_stop(make, losses, steps):
    found = find(make, Scripted(losses + [1.0] * 9), num_training=9, early_stop_threshold=4.0)
    assert len(found.results["loss"]) == len(found.results["lr"]) == steps


def test_early_stop_at_the_numbers_of_lightning(make):
    found = find(make, Scripted([1.0, 1.0, 1.0, 300.0]), num_training=9, early_stop_threshold=4.0)
    assert found.results["loss"] == pytest.approx([0.50505, 0.673378, 0.757524, 63.0483], rel=1e-5)


def test_no_early_stop_without_a_threshold(make):
    assert len(find(make, Scripted([1.0, 300.0, math.nan] * 3), num_training=9).results["lr"]) == 9


@pytest.mark.filterwarnings("ignore:`training_step` returned None")
def test_steps_without_a_loss_are_not_a_number(make):
    found = find(make, Scripted([1.0, None] * 5), num_training=5)
    assert found.results["loss"] == pytest.approx(
        [0.50505, math.nan, 0.5101, math.nan, 0.515147], rel=1e-5, nan_ok=True
    )
    assert found.suggestion(0, 0) is not None
    found = find(make, Scripted([None] * 5), num_training=5, early_stop_threshold=4.0)
    assert found.results["loss"] == pytest.approx([math.nan] * 5, nan_ok=True)
    assert found.suggestion(0, 0) is None


def test_manual_optimization(make):
    class Manual(Scripted):
        def __init__(self):
            super().__init__([3.0] * 9)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.manual_backward(loss)
            self.optimizers().step()
            self.lr_schedulers().step()
            return loss

    module = Manual()
    found = find(make, module, num_training=5)
    assert len(found.results["loss"]) == 5
    assert module.rates.seen == [[rate, rate] for rate in found.results["lr"]]


# ------------------------------------------------------------------------------------------------ suggestion, plot


def test_a_suggestion_needs_two_points(make, caplog):
    found = _LRFinder("linear", 0.0, 1.0, 20)
    found.results = {"lr": [i / 20 for i in range(20)], "loss": [math.nan] * 12 + [1.0, 0.5, *[math.inf] * 6]}
    assert found.suggestion() == 12 / 20
    assert found.suggestion(skip_begin=13) is None
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "of 20 steps 1 finite ones are left" in caplog.text


@given(st.integers(0, 12), st.integers(0, 12))
def test_a_suggestion_is_not_among_what_is_skipped(begin, end):
    found = _LRFinder("linear", 0.0, 1.0, 10)
    found.results = {"lr": [i / 10 for i in range(10)], "loss": [1 / (i + 1) for i in range(10)]}
    suggestion = found.suggestion(begin, end)
    assert (suggestion is None) == (10 - begin - end < 2)
    assert suggestion is None or suggestion in found.results["lr"][begin : 10 - end]


class Axes:
    """Notes what is drawn; stands for those of matplotlib."""

    figure = "the figure"

    def __init__(self):
        self.drawn = []

    def plot(self, x, y, **style):
        self.drawn.append((x, y, style.get("marker")))

    def set_xscale(self, scale):
        self.drawn.append(scale)

    def set_xlabel(self, label):
        self.drawn.append(label)

    def set_ylabel(self, label):
        self.drawn.append(label)


def test_plot():
    found = _LRFinder("exponential", 1e-3, 1.0, 20)
    found.results = {"lr": [found.rate(i) for i in range(20)], "loss": [float(20 - i) for i in range(20)]}
    rates, losses = found.results["lr"], found.results["loss"]
    axes = Axes()
    assert found.plot(ax=axes) == "the figure"
    assert axes.drawn == [(rates, losses, None), "log", "Learning rate", "Loss"]
    axes = Axes()
    found.plot(suggest=True, ax=axes)
    place = rates.index(found.suggestion())
    assert axes.drawn[-1] == (rates[place], losses[place], "o")
    linear = _LRFinder("linear", 1e-3, 1.0, 20)
    axes = Axes()
    linear.plot(suggest=True, ax=axes)
    assert axes.drawn == [([], [], None), "Learning rate", "Loss"]


def test_plot_without_matplotlib(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MisconfigurationException, match="pip install matplotlib"):
        _LRFinder("linear", 0.1, 1.0, 3).plot()


# ------------------------------------------------------------------------------------------------ the attribute


class Falling(Scripted):
    """Its loss falls most steeply at the step of number 13."""

    def __init__(self, **hparams):
        super().__init__([10.0] * 13 + [1.0] * 187)
        if hparams:
            self.save_hyperparameters(hparams)
        del self.lr

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("name", ["lr", "learning_rate"])
def test_the_suggestion_is_set_wherever_the_attribute_is(make, data, name):
    module = Falling(**{name: 0.5})
    source = data()
    source.train_dataloader = lambda: LOADER
    setattr(module, name, 0.5)
    setattr(source, name, 0.5)
    source.hparams[name] = 0.5
    found = find(make, module, source, num_training=30, update_attr=True)
    rate = found.suggestion()
    assert rate != 0.5
    assert getattr(module, name) == module.hparams[name] == getattr(source, name) == source.hparams[name] == rate


def test_lr_comes_before_learning_rate_and_a_name_before_both(make):
    module = Falling(lr=0.5, learning_rate=0.5, own=0.5)
    rate = find(make, module, num_training=30, update_attr=True).suggestion()
    assert module.hparams == {"lr": rate, "learning_rate": 0.5, "own": 0.5}
    find(make, module, num_training=30, update_attr=True, attr_name="own")
    assert module.hparams["own"] == rate


def test_nothing_is_set_unless_asked_for_or_without_a_suggestion(make):
    module = Falling(lr=0.5)
    find(make, module, num_training=30)
    find(make, module, num_training=5, update_attr=True)
    assert module.hparams.lr == 0.5


def test_a_missing_attribute_is_an_error_before_anything_is_run(make):
    module = Falling()
    with pytest.raises(AttributeError, match="found neither 'lr' nor 'learning_rate' in `Falling`"):
        find(make, module, update_attr=True)
    with pytest.raises(AttributeError, match="found no 'rate' in `Falling`"):
        find(make, module, update_attr=True, attr_name="rate")
    assert module.rates.seen == []
    assert find(make, module, attr_name="rate") is not None


# ------------------------------------------------------------------------------------------------ errors


def test_several_optimizers(make):
    class Manual(Scripted):
        def __init__(self):
            super().__init__(num_optimizers=2)
            self.automatic_optimization = False

    with pytest.raises(MisconfigurationException, match=r"needs one optimizer; `configure_optimizers` returned 2"):
        find(make, Manual())


@pytest.mark.parametrize(
    "arguments",
    [{"min_lr": 0.0}, {"min_lr": 1.0, "max_lr": 0.1}, {"num_training": 0}],
)
def test_a_range_that_is_none(make, arguments):
    module = Scripted()
    with pytest.raises(MisconfigurationException, match="learning-rate finder"):
        find(make, module, **arguments)
    assert module.rates.seen == []


def test_a_probe_of_no_steps_is_an_error(make):
    with pytest.raises(MisconfigurationException, match=r"could not train a single step.*`limit_train_batches` 0"):
        find(make, Scripted(), trainer=make(limit_train_batches=0))

    class Skipping(Scripted):
        def on_train_batch_start(self, batch, batch_idx):
            return -1

    with pytest.raises(MisconfigurationException, match="could not train a single step"):
        find(make, Skipping())
