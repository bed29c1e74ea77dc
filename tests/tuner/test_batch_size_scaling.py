"""The search for a batch size: which sizes are tried, and that the one returned was run."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from fulmen.errors import MisconfigurationException
from fulmen.tuner import Tuner
from fulmen.tuner.batch_size_scaling import _bisect, _bracket, _with_margin

pytestmark = pytest.mark.filterwarnings("ignore::fulmen.errors.PossibleUserWarning")


@pytest.fixture
def scale(make, net):
    """Searches; returns the size and, for each size tried, the number of training or evaluation batches."""

    def search(limit=None, num_samples=10_000, trainer=None, module=None, **arguments):
        module = module or net(limit=limit, num_samples=num_samples)
        trainer = trainer or make(limit_val_batches=0)
        size = Tuner(trainer).scale_batch_size(module, **arguments)
        assert module.batch_size == size
        return size, module.sizes.tried

    return search


# ------------------------------------------------------------------------------------------------ power


def test_power_doubles_for_so_many_trials(scale):
    assert scale(init_val=4, max_trials=3) == (16, [(4, 3), (8, 3), (16, 3)])


def test_power_ends_at_the_first_failure(scale):
    assert scale(limit=50) == (32, [(2, 3), (4, 3), (8, 3), (16, 3), (32, 3), (64, 1)])


def test_power_halves_a_start_that_does_not_fit(scale):
    assert scale(limit=50, init_val=200) == (25, [(200, 1), (100, 1), (50, 1), (25, 3)])
    assert scale(limit=2) == (1, [(2, 1), (1, 3)])


def test_power_ends_when_the_dataset_is_in_one_batch(scale):
    size, tried = scale(num_samples=1000)
    assert size == 1024
    assert [size for size, _ in tried] == [2**i for i in range(1, 11)]
    assert all(batches == 3 for _, batches in tried)
    assert scale(num_samples=16, init_val=8)[0] == 16


def test_power_ends_at_max_val_and_has_run_it(scale):
    assert scale(max_val=64, init_val=16) == (64, [(16, 3), (32, 3), (64, 3)])
    assert scale(max_val=100, init_val=32) == (100, [(32, 3), (64, 3), (100, 3)])
    assert scale(max_val=5, init_val=5) == (5, [(5, 3)])


def test_power_without_an_answer_is_an_error(scale):
    with pytest.raises(MisconfigurationException, match=r"last one tried was 100: CUDA out of memory.*`init_val`"):
        scale(limit=50, init_val=200, max_trials=2)


# ------------------------------------------------------------------------------------------------ binsearch


def test_binsearch_takes_the_margin_off_and_runs_what_is_left(scale):
    assert scale(init_val=4, max_trials=3, mode="binsearch") == (15, [(4, 3), (8, 3), (16, 3), (15, 3)])


def test_binsearch_bisects_to_the_largest_size_that_fits(scale):
    size, tried = scale(limit=50, mode="binsearch", margin=0.0)
    assert size == 49
    assert tried[5:] == [(64, 1), (48, 3), (56, 1), (52, 1), (50, 1), (49, 3)]
    assert scale(limit=50, mode="binsearch", margin=0.05)[0] == 46
    assert scale(limit=50, init_val=200, mode="binsearch", margin=0.0)[0] == 49
    assert scale(limit=2, mode="binsearch")[0] == 1


def test_binsearch_at_max_val_and_in_one_batch(scale):
    assert scale(max_val=100, init_val=50, mode="binsearch") == (95, [(50, 3), (100, 3), (95, 3)])
    assert scale(num_samples=1000, init_val=256, mode="binsearch")[0] == 972


class Simulated:
    """Sizes that fit below a limit."""

    reason = "too large"
    available = float("inf")

    def __init__(self, limit):
        self.limit, self.tried = limit, []

    def fits(self, size):
        self.tried.append(size)
        return size < self.limit


@given(limit=st.integers(2, 10_000), start=st.integers(1, 10_000), margin=st.floats(0, 0.99))
def test_the_size_found_is_the_largest_and_was_run(limit, start, margin):
    sizes = Simulated(limit)
    low, high = _bracket(sizes, start, 25, 10_000)
    assert low in sizes.tried
    assert low < limit
    assert high is None or high >= limit
    low = low if high is None else _bisect(sizes.fits, low, high)
    assert low == min(limit - 1, 10_000)
    smaller = _with_margin(sizes, low, margin)
    assert smaller in sizes.tried
    assert max(1, low * (1 - margin) - 1) <= smaller <= low


def test_a_margin_that_does_not_help():
    class Moody(Simulated):
        def fits(self, size):
            self.tried.append(size)
            return self.tried.count(size) > 1 or size < self.limit

    sizes = Moody(10)
    assert _with_margin(sizes, 100, 0.5) == 6
    assert sizes.tried == [50, 25, 12, 6]
    with pytest.raises(MisconfigurationException, match="Batch size 8 fitted once, and after that not even 1"):
        _with_margin(Moody(1), 8, 0.5)


# ------------------------------------------------------------------------------------------------ what a trial runs


def test_a_size_runs_its_steps_over_as_many_epochs_as_it_takes(scale):
    assert scale(num_samples=10, init_val=16, steps_per_trial=5) == (16, [(16, 5)])


def test_steps_are_those_of_the_optimizer(scale, make):
    trainer = make(accumulate_grad_batches=2, limit_val_batches=0)
    assert scale(trainer=trainer, init_val=4, max_trials=1) == (4, [(4, 6)])


def test_the_validation_of_a_fit_must_fit_too(make, net):
    class Evaluating(net):
        def validation_step(self, batch, batch_idx):
            self.sizes.seen.append(("val", len(batch[0])))
            if self.batch_size > 8:
                raise RuntimeError("CUDA out of memory.")

    module = Evaluating()
    assert Tuner(make()).scale_batch_size(module, init_val=4) == 8
    assert module.sizes.seen == [4, 4, 4, *[("val", 4)] * 3, 8, 8, 8, *[("val", 8)] * 3, 16, 16, 16, ("val", 16)]


@pytest.mark.filterwarnings("error:.*never comes due")
def test_a_trial_shorter_than_an_epoch_is_no_mistake(make, net):
    class Evaluating(net):
        def validation_step(self, batch, batch_idx):
            pass

    assert Tuner(make()).scale_batch_size(Evaluating(limit=16)) == 8


@pytest.mark.parametrize("method", ["validate", "test", "predict"])
def test_evaluation(scale, make, method):
    expected = [(2, 3), (4, 3), (8, 3), (16, 3), (32, 3), (64, 1)]
    assert scale(limit=50, method=method, trainer=make()) == (32, expected)
    assert scale(num_samples=10, init_val=16, method=method, trainer=make()) == (16, [(16, 3)])


def test_manual_optimization(scale, net):
    class Manual(net):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            for _ in range(2):
                optimizer.step()
            self.lr_schedulers().step()

    assert scale(module=Manual(limit=5)) == (4, [(2, 3), (4, 3), (8, 1)])


def test_a_scheduler_that_waits_for_a_metric_is_left_out(scale, net):
    class Plateau(net):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}

    assert scale(module=Plateau(num_samples=8), init_val=8)[0] == 8


@pytest.mark.parametrize("arguments", [{"max_steps": 0}, {"max_epochs": 0}, {"max_time": "00:00:00:00"}])
def test_limits_of_the_fit_do_not_end_a_trial(scale, make, arguments):
    """A trial that ran nothing would call every size one that fits."""
    assert scale(limit=8, trainer=make(limit_val_batches=0, **arguments)) == (4, [(2, 3), (4, 3), (8, 1)])


def test_a_trainer_that_has_reached_its_limit(make, net):
    trainer, module = make(max_epochs=1, limit_train_batches=1, limit_val_batches=0), net(limit=8)
    trainer.fit(module)
    module.sizes.run.clear()
    assert Tuner(trainer).scale_batch_size(module) == 4
    assert module.sizes.tried == [(2, 3), (4, 3), (8, 1)]
    assert trainer.global_step == 1


@pytest.mark.filterwarnings("ignore:The train loader has no batches")
def test_a_size_without_batches_does_not_count(make, net):
    class Dropping(net):
        def train_dataloader(self):
            return DataLoader(TensorDataset(torch.ones(100, 2)), batch_size=self.batch_size, drop_last=True)

    module = Dropping()
    assert Tuner(make(limit_val_batches=0)).scale_batch_size(module, init_val=32) == 64
    assert module.sizes.tried == [(32, 3), (64, 3)]
    assert Tuner(make(limit_val_batches=0)).scale_batch_size(Dropping(), mode="binsearch", margin=0.0) == 100


@pytest.mark.filterwarnings("ignore:The .* loader has no batches")
def test_no_batches_at_all_is_an_error(make, net):
    with pytest.raises(MisconfigurationException, match="no batch is run"):
        Tuner(make()).scale_batch_size(net(num_samples=0, limit=1), method="predict")
    for stage, method in {"train": "fit", "val": "validate", "test": "test", "predict": "predict"}.items():
        module = net()
        with pytest.raises(MisconfigurationException, match="a limit of 0 batches"):
            Tuner(make(**{f"limit_{stage}_batches": 0})).scale_batch_size(module, method=method)
        assert module.sizes.run == []


def test_a_fraction_as_limit_does_not_end_the_search(scale, make):
    assert scale(num_samples=16, trainer=make(limit_train_batches=0.1, limit_val_batches=0.1))[0] == 16


def test_other_errors_come_out(scale, net):
    module = net()
    module.error, module.error_at = RuntimeError("mat1 and mat2 shapes cannot be multiplied"), 0
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        scale(module=module)
    assert module.batch_size == 4


def test_a_size_that_the_loader_does_not_use(make, net):
    class Fixed(net):
        def train_dataloader(self):
            return DataLoader(TensorDataset(torch.ones(100, 2)), batch_size=3)

    trainer = make(limit_val_batches=0)
    with pytest.warns(UserWarning, match="With `batch_size=2` as with 4 the first batch has 3 samples"):
        assert Tuner(trainer).scale_batch_size(Fixed(), max_trials=2) == 4
    # no warning where every batch holds the whole dataset
    Tuner(trainer).scale_batch_size(net(num_samples=10), init_val=16, mode="binsearch")


@pytest.mark.filterwarnings("ignore:.*its batch size|.*a size of")
def test_a_loader_of_unknown_length(scale, net):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(torch.ones(50, 2))

    class Streaming(net):
        def train_dataloader(self):
            return DataLoader(Stream(), batch_size=self.batch_size, collate_fn=lambda rows: [torch.stack(rows)])

    assert scale(module=Streaming(), init_val=16, max_val=64) == (64, [(16, 3), (32, 3), (64, 3)])


def test_an_attribute_of_another_name(make, net):
    class Own(net):
        def train_dataloader(self):
            return DataLoader(TensorDataset(torch.ones(100, 2)), batch_size=self.hparams["size"])

    module = Own()
    module.hparams["size"] = 4
    trainer = make(limit_val_batches=0)
    assert Tuner(trainer).scale_batch_size(module, batch_arg_name="size", max_val=8) == 8
    assert module.hparams["size"] == 8
    assert module.sizes.seen == [2] * 3 + [4] * 3 + [8] * 3


def test_holders_that_differed_get_their_own_values_back(make, net):
    module = net(limit=1)
    module.hparams["batch_size"] = 99
    with (
        pytest.warns(UserWarning, match="is an attribute of `Net` and one of its hyperparameters"),
        pytest.raises(MisconfigurationException, match="No batch size fits"),
    ):
        Tuner(make()).scale_batch_size(module)
    assert (module.batch_size, module.hparams["batch_size"]) == (4, 99)


def test_the_search_is_told(make, net, caplog):
    trainer = make(limit_val_batches=0)
    with caplog.at_level("INFO", logger="fulmen"):
        caplog.clear()
        Tuner(trainer).scale_batch_size(net(limit=8), init_val=4, mode="binsearch", margin=0.2)
    assert caplog.messages == [
        "Batch size 4 fits.",
        "Batch size 8 does not fit: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "Batch size 6 fits.",
        "Batch size 7 fits.",
        "Batch size 5 fits.",
        "Batch size 7 fits; 5 leaves a margin of 20%.",
        "Batch size set to 5.",
    ]


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mode": "linear"}, ValueError, "`mode='linear'` is not known. Type one of: 'power', 'binsearch'"),
        ({"margin": 1.0}, AssertionError, "`margin=1.0` is not possible"),
        ({"margin": -0.1}, AssertionError, "`margin=-0.1` is not possible"),
        ({"steps_per_trial": 0}, MisconfigurationException, "`steps_per_trial=0` would run nothing"),
        ({"init_val": 0}, MisconfigurationException, "`init_val=0` would run nothing"),
        ({"max_trials": 0}, MisconfigurationException, "`max_trials=0` would run nothing"),
        ({"init_val": 64, "max_val": 32}, MisconfigurationException, "start at `init_val=64`, above `max_val=32`"),
        ({"batch_arg_name": "size"}, MisconfigurationException, "found no 'size' in `Net`"),
    ],
)
def test_settings_that_cannot_work(make, net, arguments, error, message):
    module = net()
    with pytest.raises(error, match=message):
        Tuner(make()).scale_batch_size(module, **arguments)
    assert module.sizes.run == []


@pytest.mark.parametrize("method", ["validate", "test", "predict"])
def test_several_loaders_in_evaluation(make, net, method):
    class Two(net):
        def val_dataloader(self):
            return [super().val_dataloader()] * 2

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            pytest.fail("nothing should run")

        test_step = predict_step = validation_step
        test_dataloader = predict_dataloader = val_dataloader

    with pytest.raises(MisconfigurationException, match=f"one dataloader in `{method}`; there are 2"):
        Tuner(make()).scale_batch_size(Two(), method=method)


def test_several_loaders_in_training_are_scaled_together(make, net):
    class Two(net):
        def train_dataloader(self):
            return {"a": super().train_dataloader(), "b": super().train_dataloader()}

        def training_step(self, batch, batch_idx):
            return super().training_step(batch["a"], batch_idx)

    assert Tuner(make(limit_val_batches=0)).scale_batch_size(Two(num_samples=9), init_val=8) == 16


@given(limit=st.integers(1, 40), start=st.integers(1, 20), mode=st.sampled_from(["power", "binsearch"]))
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_size_that_is_returned_was_run(make, net, limit, start, mode):
    module = net(limit=limit)
    try:
        size = Tuner(make(limit_val_batches=0)).scale_batch_size(module, init_val=start, mode=mode)
    except MisconfigurationException:
        assert limit == 1
    else:
        assert (size, 3) in module.sizes.tried
