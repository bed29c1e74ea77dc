"""What can be watched of a run, under which names, and that nothing is left behind."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch.utils.data import DataLoader

import fulmen
from fulmen.callbacks import ModelCheckpoint
from fulmen.profilers import Profiler
from fulmen.strategies import Strategy

S, M, D = "[Strategy]SingleDeviceStrategy.", "[LightningModule]Net.", "[LightningDataModule]Data."


class Net(fulmen.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(fulmen.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(torch.ones(2, 2), batch_size=1)

    def val_dataloader(self):
        return self.train_dataloader()

    test_dataloader = predict_dataloader = val_dataloader


class Tree(Profiler):
    """Writes the actions down, indented by what they run inside of."""

    def __init__(self):
        super().__init__()
        self.lines = []
        self.depth = 0

    def start(self, action_name):
        self.lines.append("  " * self.depth + action_name)
        self.depth += 1

    def stop(self, action_name):
        self.depth -= 1

    @property
    def actions(self):
        return [line.strip() for line in self.lines]


@pytest.fixture
def trainer_with(tmp_path):
    def make(profiler=None, *callbacks, **arguments):
        quiet = {
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": False,
            "num_sanity_val_steps": 0,
            "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
        }
        return fulmen.Trainer(profiler=profiler, callbacks=list(callbacks), **quiet | arguments)

    return make


def loader(batches=1):
    return DataLoader(torch.ones(batches, 2), batch_size=1)


# ---------------------------------------------------------------------------------------------------- names


def test_the_parts_of_a_fit(trainer_with):
    class Validated(Net):
        def validation_step(self, batch, batch_idx):
            self.layer(batch)

        def on_train_epoch_end(self):
            pass

    Validated.__name__ = "Net"
    tree = Tree()
    trainer_with(tree).fit(Validated(), datamodule=Data())
    batch = [
        "    [_TrainingEpochLoop].train_dataloader_next",
        f"      {S}batch_to_device",
        "    run_training_batch",
        f"      {S}training_step",
        f"      {M}optimizer_zero_grad",
        f"      {S}backward",
        f"      {S}optimizer_step",
    ]
    evaluated = ["      [_EvaluationLoop].val_next", f"        {S}batch_to_device", f"      {S}validation_step"]
    assert tree.lines == [
        f"{M}configure_model",
        f"{M}configure_optimizers",
        "run_training",
        "  setup_train_dataloader",
        f"    {D}train_dataloader",
        "  setup_val_dataloader",
        f"    {D}val_dataloader",
        "  run_training_epoch",
        "    start_train_epoch",
        *batch,
        *batch,
        "    run_validation",
        f"      {M}on_validation_model_zero_grad",
        f"      {M}on_validation_model_eval",
        "      start_val_epoch",
        *evaluated,
        *evaluated,
        f"    {M}on_train_epoch_end",
    ]


@pytest.mark.parametrize(
    ("name", "step", "fetch"),
    [
        ("validate", "validation_step", "[_EvaluationLoop].val_next"),
        ("test", "test_step", "[_EvaluationLoop].test_next"),
        ("predict", "predict_step", "[_PredictionLoop].predict_next"),
    ],
)
def test_the_parts_of_other_runs(trainer_with, name, step, fetch):
    module = Net()
    setattr(module, step, lambda batch, batch_idx: module.layer(batch))
    tree = Tree()
    getattr(trainer_with(tree), name)(module, datamodule=Data())
    short = {"validate": "val"}.get(name, name)
    assert tree.actions.count(S + step) == tree.actions.count(fetch) == 2
    assert f"setup_{short}_dataloader" in tree.actions
    assert f"{D}{short}_dataloader" in tree.actions


def test_hooks_are_named_by_who_has_them(trainer_with):
    class Stateful(fulmen.Callback):
        state_key = "Stateful[a=1]"

        def on_train_start(self, trainer, pl_module):
            pass

    class Duck:
        def on_train_end(self, trainer, pl_module):
            pass

    class Own(type(trainer_with().strategy)):
        def on_train_start(self):
            pass

    assert issubclass(Own, Strategy)
    module = Net()
    module.on_train_start = lambda: None
    plain = fulmen.Callback()
    plain.on_fit_start = lambda trainer, pl_module: None
    tree = Tree()
    trainer_with(tree, Stateful(), Duck(), plain, strategy=Own()).fit(module, loader())
    assert [action for action in tree.actions if action.endswith(("_start", "_end"))] == [
        "[Callback]Callback.on_fit_start",
        "[Callback]Stateful[a=1].on_train_start",
        "[LightningModule]Net.on_train_start",
        "[Strategy]Own.on_train_start",
        "[Callback]Duck.on_train_end",
    ]


def test_checkpoints_loggers_and_schedulers(trainer_with, tmp_path):
    from fulmen.loggers import CSVLogger

    class Logged(Net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    tree = Tree()
    trainer = trainer_with(
        tree, ModelCheckpoint(tmp_path / "c"), logger=CSVLogger(tmp_path), log_every_n_steps=1, gradient_clip_val=1.0
    )
    trainer.fit(Logged(), loader())
    for action in ("save_checkpoint", "log_metrics"):
        assert tree.actions.count(action) == 1, action
    assert "[LightningModule]Logged.lr_scheduler_step" in tree.actions
    assert "[LightningModule]Logged.configure_gradient_clipping" in tree.actions


def test_a_step_with_a_closure(trainer_with):
    class Closure(Net):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            optimizer.step(closure=optimizer_closure)

    tree = Tree()
    trainer_with(tree).fit(Closure(), loader())
    begin = tree.lines.index("    run_training_batch")
    assert tree.lines[begin:] == [
        "    run_training_batch",
        "      [LightningModule]Closure.optimizer_step",
        f"        {S}optimizer_step",
        f"          {S}training_step",
        "          [LightningModule]Closure.optimizer_zero_grad",
        f"          {S}backward",
    ]


def test_a_step_by_hand(trainer_with):
    class Manual(Net):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    tree = Tree()
    trainer_with(tree).fit(Manual(), loader())
    begin = tree.lines.index("    run_training_batch")
    assert tree.lines[begin:] == [
        "    run_training_batch",
        f"      {S}training_step",
        f"        {S}backward",
        "        optimizer_step",
    ]


# ---------------------------------------------------------------------------------------------------- swapping


def swapped(trainer):
    """What stands in the way of the classes' own methods."""
    owners = (trainer, trainer.fit_loop, trainer.fit_loop.val_loop, trainer.validate_loop, trainer.data)
    return {
        (type(owner).__name__, name)
        for owner in owners
        for name in vars(owner)
        if callable(getattr(type(owner), name, None))
    }


def test_without_instruments_nothing_is_swapped(trainer_with):
    during = []

    class Look(fulmen.Callback):
        def on_train_batch_end(self, trainer, *arguments):
            during.append((swapped(trainer), trainer.fit_loop.step.training_step, trainer.hooks.on_train_batch_end[1]))

    trainer, module = trainer_with(None, Look()), Net()
    trainer.fit(module, loader())
    ((seen, step, listener),) = during
    assert seen == set()
    assert step == module.training_step
    assert listener.func == trainer.callbacks[0].on_train_batch_end


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_put_back_after_the_run(trainer_with, fails):
    class Failing(Net):
        def on_train_epoch_end(self):
            if fails:
                raise ZeroDivisionError

    tree = Tree()
    trainer, module = trainer_with(tree), Failing()
    try:
        trainer.fit(module, loader())
    except ZeroDivisionError:
        assert fails
    assert tree.depth == 0
    assert tree.actions
    assert swapped(trainer) == set()
    assert trainer.fit_loop.step.training_step == module.training_step
    assert trainer.hooks.on_train_epoch_end[1] == module.on_train_epoch_end
    tree.lines.clear()
    trainer.save_checkpoint(trainer.default_root_dir + "/last.ckpt")
    assert tree.lines == []


class Counter:
    """An instrument that counts calls by kind."""

    def __init__(self):
        self.calls = {}

    def wrap(self, kind, action, function):
        def call(*arguments, **keywords):
            self.calls[kind] = self.calls.get(kind, 0) + 1
            return function(*arguments, **keywords)

        return call


def test_an_instrument_may_come_and_go_in_the_middle_of_a_run(trainer_with):
    counter, removed = Counter(), []

    class Between(fulmen.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 1:
                removed.append(trainer.instruments.add(counter))
            if batch_idx == 4:
                removed[0]()
                removed[0]()

    tree = Tree()
    trainer = trainer_with(tree, Between(), max_epochs=2, limit_train_batches=6)
    trainer.fit(Net(), loader(6))
    assert counter.calls["training_step"] == 2 * 3
    assert counter.calls["hook"] >= 3
    assert tree.actions.count(f"{S}training_step") == 12  # the other instrument is not disturbed
    assert swapped(trainer) == set()


def test_hooks_assigned_in_a_run_are_watched(trainer_with):
    class Assigning(fulmen.Callback):
        def on_train_start(self, trainer, pl_module):
            pl_module.on_before_backward = lambda loss: None
            trainer.recompile_hooks()

    tree = Tree()
    trainer_with(tree, Assigning()).fit(Net(), loader(2))
    assert tree.actions.count("[LightningModule]Net.on_before_backward") == 2
    assert tree.actions.count(f"{S}training_step") == 2  # the step was bound again, and is watched once


def test_timings_and_a_profiler_together(trainer_with):
    tree = Tree()
    trainer = trainer_with(tree)
    stop = trainer.measure_timings()
    trainer.fit(Net(), loader(3))
    stop()
    assert tree.actions.count(f"{S}training_step") == 3
    assert trainer.timings["forward_backward"] > 0
    assert trainer.timings["data"] > 0


def test_the_context_of_an_action_may_be_overridden(trainer_with):
    class Contexts(Tree):
        @contextmanager
        def profile(self, action_name):
            self.lines.append(action_name)
            yield action_name

    contexts = Contexts()
    trainer_with(contexts).fit(Net(), loader())
    assert "run_training_batch" in contexts.lines
    assert contexts.depth == 0


def test_the_values_are_those_of_a_run_without(trainer_with):
    weights = []
    for profiler in (None, Tree()):
        torch.manual_seed(0)
        module = Net()
        trainer = trainer_with(profiler, accumulate_grad_batches=2, max_epochs=2)
        trainer.fit(module, DataLoader(torch.randn(5, 2, generator=torch.Generator().manual_seed(1)), batch_size=1))
        weights.append(module.layer.weight.detach().clone())
        assert trainer.global_step == 6
    assert torch.equal(*weights)
