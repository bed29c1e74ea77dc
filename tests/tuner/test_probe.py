"""A probe leaves no trace: everything is as it was before it, in whatever way it ends."""

from __future__ import annotations

import logging
import signal

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fulmen import Callback
from fulmen.callbacks import BatchSizeFinder, LearningRateFinder, ModelCheckpoint
from fulmen.errors import MisconfigurationException, SIGTERMException
from fulmen.loggers import CSVLogger
from fulmen.plugins import MixedPrecision
from fulmen.strategies import SingleDeviceStrategy
from fulmen.tuner import Tuner

pytestmark = pytest.mark.filterwarnings("ignore::fulmen.errors.PossibleUserWarning")

ENDS = {
    "well": None,
    "error": ZeroDivisionError("a bug of the user's"),
    "interrupt": KeyboardInterrupt(),
    "exit": SystemExit(3),
}


def trained(make, net, tmp_path):
    """A trainer and a module after a fit with optimizer states, a scheduler, a logger and a checkpoint."""
    trainer = make(
        max_epochs=1,
        limit_train_batches=3,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        logger=CSVLogger(tmp_path),
        log_every_n_steps=1,
        enable_checkpointing=True,
        callbacks=[ModelCheckpoint(monitor="loss")],
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
    )
    module = net()
    trainer.fit(module)
    module.body[0].eval()
    module.history.clear()  # the step that fails is counted from here
    return trainer, module


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("probe", ["lr_find", "power", "binsearch", "validate"])
def test_after_a_fit_everything_is_as_it_was(make, net, tmp_path, unchanged, probe, end):
    trainer, module = trained(make, net, tmp_path)
    module.error = ENDS[end]
    check = unchanged(trainer, module)
    tuner = Tuner(trainer)
    calls = {
        "lr_find": lambda: tuner.lr_find(module, num_training=8, update_attr=False),
        "power": lambda: tuner.scale_batch_size(module, max_val=8),
        "binsearch": lambda: tuner.scale_batch_size(module, mode="binsearch", max_val=8),
        "validate": lambda: tuner.scale_batch_size(module, method="validate", max_val=8),
    }
    if end == "well":
        calls[probe]()
    else:
        with pytest.raises(type(module.error)):
            calls[probe]()
    if end == "well" and probe != "lr_find":
        assert module.batch_size == {"power": 8, "binsearch": 7, "validate": 8}[probe]
        module.batch_size = 4
    assert module.sizes.run
    check()


def test_before_any_fit_everything_is_as_it_was(make, net, unchanged):
    trainer, module = make(), net()
    check = unchanged(trainer, module)
    assert Tuner(trainer).lr_find(module, num_training=5, update_attr=False) is not None
    check()
    assert module._trainer is None


@pytest.mark.parametrize("place", ["configure_optimizers", "train_dataloader", "setup", "configure_model"])
def test_a_failure_before_the_first_step(make, net, unchanged, place):
    class Failing(net):
        pass

    def fail(self, *_):
        self.history.append("was here")
        raise ZeroDivisionError

    setattr(Failing, place, fail)
    trainer, module = make(), Failing()
    check = unchanged(trainer, module)
    for probe in (Tuner(trainer).lr_find, Tuner(trainer).scale_batch_size):
        with pytest.raises(ZeroDivisionError):
            probe(module)
        check()


def test_memory_that_runs_out_with_every_size(make, net, unchanged):
    trainer, module = make(), net(limit=1)
    check = unchanged(trainer, module)
    with pytest.raises(MisconfigurationException, match=r"No batch size fits. The last one tried was 1: CUDA out"):
        Tuner(trainer).scale_batch_size(module)
    assert module.sizes.tried == [(2, 1), (1, 1)]
    check()


def test_a_probe_after_a_failure_is_a_probe_like_any_other(make, net):
    trainer, module = make(), net()
    module.error = ZeroDivisionError()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            Tuner(trainer).lr_find(module, num_training=5)
    module.error = None
    assert len(Tuner(trainer).lr_find(module, num_training=5).results["lr"]) == 5


def test_the_fit_after_a_probe_is_the_fit_without_one(make, net):
    def weights(probe):
        torch.manual_seed(1)
        trainer, module = make(limit_train_batches=5, limit_val_batches=1), net()
        if probe:
            Tuner(trainer).lr_find(module, num_training=7, update_attr=False)
            assert Tuner(trainer).scale_batch_size(module, init_val=4, max_trials=1) == 4
        trainer.fit(module)
        return torch.cat([p.flatten() for p in module.parameters()])

    assert torch.equal(weights(probe=True), weights(probe=False))


# ------------------------------------------------------------------------------------------------ the datamodule


def test_a_datamodule_is_set_up_once_and_left_as_it_was(make, net, data, unchanged):
    trainer, module, source = make(), net(), data()
    check = unchanged(trainer, module, source)
    assert Tuner(trainer).scale_batch_size(module, datamodule=source, init_val=4, max_trials=3) == 16
    assert source.events == ["prepare_data", "setup fit", "teardown fit"]
    assert source.hparams.batch_size == module.batch_size == 16
    source.hparams.batch_size = module.batch_size = 4
    check()
    assert not hasattr(source, "data")


def test_a_datamodule_is_told_of_a_failure(make, net, data, unchanged):
    trainer, module, source = make(), net(), data(fails=True)
    check = unchanged(trainer, module, source)
    with pytest.raises(OSError, match="no data"):
        Tuner(trainer).lr_find(module, source)
    assert source.events == ["prepare_data", "setup fit", "on_exception OSError"]
    check()


def test_running_out_of_memory_is_no_exception_of_the_run(make, net, data):
    module, source = net(limit=8), data()
    assert Tuner(make()).scale_batch_size(module, datamodule=source) == 4
    assert source.events == ["prepare_data", "setup fit", "teardown fit"]


# ------------------------------------------------------------------------------------------------ what a probe is


def test_no_callback_or_logger_of_the_user_hears_of_it(make, net, tmp_path):
    seen = []

    class Net(net):
        def configure_callbacks(self):
            return [LearningRateFinder()]

        def training_step(self, batch, batch_idx):
            trainer = self.trainer
            self.logger.experiment.anything(1)
            seen.append((len(trainer.callbacks), trainer.checkpoint_callback, type(self.logger).__name__))
            return super().training_step(batch, batch_idx)

    trainer = make(logger=CSVLogger(tmp_path), enable_checkpointing=True)
    Tuner(trainer).lr_find(Net(), num_training=2)
    assert seen == [(1, None, "DummyLogger")] * 2
    assert list(tmp_path.iterdir()) == []


def test_it_has_the_settings_of_the_users_trainer(make, net):
    seen = {}

    class Net(net):
        def training_step(self, batch, batch_idx):
            names = ("accumulate_grad_batches", "gradient_clip_val", "detect_anomaly", "precision", "max_steps")
            seen.update({name: getattr(self.trainer, name) for name in names})
            return super().training_step(batch, batch_idx)

    trainer = make(accumulate_grad_batches=3, gradient_clip_val=0.5, precision="bf16-mixed", val_check_interval=5000)
    module = Net(num_samples=20)
    assert Tuner(trainer).scale_batch_size(module, max_val=4) == 4
    assert seen.pop("precision") == "bf16-mixed"
    assert seen == {"accumulate_grad_batches": 3, "gradient_clip_val": 0.5, "detect_anomaly": False, "max_steps": 3}


def test_a_strategy_of_the_users_keeps_what_it_holds(make, net, unchanged):
    class Counting(SingleDeviceStrategy):
        def training_step(self, *args, **kwargs):
            return super().training_step(*args, **kwargs)

    strategy = Counting("cpu")
    trainer = make(strategy=strategy, accelerator="auto", limit_train_batches=2, limit_val_batches=0)
    module = net()
    trainer.fit(module)
    check = unchanged(trainer, module)
    bound = dict(strategy._bound)
    Tuner(trainer).lr_find(module, num_training=3, update_attr=False)
    check()
    assert strategy._bound == bound


def test_double_precision_does_not_stay(make, net, unchanged):
    trainer, module = make(precision="64-true"), net()
    check = unchanged(trainer, module)
    Tuner(trainer).lr_find(module, num_training=3, update_attr=False)
    check()
    assert module.dtype == torch.float32


def test_the_loss_scale_does_not_stay(make, net):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=2)
    trainer = make(plugins=MixedPrecision("16-mixed", "cpu", scaler))
    before = scaler.state_dict()
    assert len(Tuner(trainer).lr_find(net(), num_training=5, update_attr=False).results["lr"]) == 5
    assert trainer.scaler is scaler
    assert scaler.state_dict() == before


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SIGTERMException)])
def test_signals_end_it_after_the_batch(make, net, unchanged, number, error):
    class Signalled(net):
        def training_step(self, batch, batch_idx):
            signal.raise_signal(number)
            return super().training_step(batch, batch_idx)

    trainer, module = make(), Signalled()
    check = unchanged(trainer, module)
    before = signal.getsignal(number)
    with pytest.raises(error):
        Tuner(trainer).lr_find(module)
    assert signal.getsignal(number) is before
    assert len(module.sizes.run) == 1
    check()


def test_it_is_silent(make, net, caplog):
    with caplog.at_level(logging.INFO, logger="fulmen"):
        trainer = make()
        caplog.clear()
        Tuner(trainer).lr_find(net(), num_training=3, update_attr=False)
    assert caplog.messages == []


def test_an_iterator_is_refused_before_anything_is_read(make, net):
    batches = iter([[torch.ones(4, 2)]] * 5)
    with pytest.raises(MisconfigurationException, match="an iterator: what it reads would be missing"):
        Tuner(make()).lr_find(net(), batches)
    assert len(list(batches)) == 5


def test_given_loaders_draw_as_if_nothing_had_been(make, net, unchanged):
    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(TensorDataset(torch.rand(8, 2)), 4, shuffle=True, generator=generator)
    before = generator.get_state()
    Tuner(make()).lr_find(net(), loader, num_training=3, update_attr=False)
    assert torch.equal(generator.get_state(), before)


# ------------------------------------------------------------------------------------------------ inside a run


@pytest.mark.parametrize("end", [end for end in ENDS if end != "well"])
@pytest.mark.parametrize("finder", [LearningRateFinder(num_training_steps=5), BatchSizeFinder(max_val=8)])
def test_a_run_ends_as_its_probe_ends(make, net, data, finder, end):
    heard = []

    class Listener(Callback):
        def on_exception(self, trainer, pl_module, exception):
            heard.append((type(exception), pl_module.trainer is trainer, trainer.state.status.value))

    module = net()
    module.error = ENDS[end]
    trainer = make(callbacks=[finder, Listener()])
    expected = SystemExit if end == "interrupt" else type(module.error)
    with pytest.raises(expected):
        trainer.fit(module)
    assert heard == [(type(module.error), True, "interrupted")]
    assert trainer.callbacks[0] is finder
    assert (trainer.global_step, trainer.current_epoch) == (0, 0)
    assert module.history == []
    assert module.batch_size == 4
