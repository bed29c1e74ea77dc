"""In which hooks `self.log` works, and what it does there by default."""

from __future__ import annotations

from functools import wraps
from typing import Any

import pytest
import torch

from fulmen import Callback
from fulmen.book import LOG_RULES
from fulmen.errors import MisconfigurationException

TRAINING, VALIDATION = 3, 2

IN_TRAINING_BATCH = ["on_train_batch_start", "on_train_batch_end", "on_before_backward", "on_after_backward"]
IN_TRAINING_BATCH += ["on_before_optimizer_step", "on_before_zero_grad"]
METHODS_OF_TRAINING = ["training_step", "backward", "optimizer_step", "configure_gradient_clipping", "clip_gradients"]
METHODS_OF_TRAINING += ["optimizer_zero_grad"]

IN_EVALUATION_BATCH = [f"on_{stage}_batch_{end}" for stage in ("validation", "test") for end in ("start", "end")]
ONCE_AN_EPOCH = ["on_train_start", "on_train_epoch_start", "on_train_epoch_end"]
ONCE_AN_EPOCH += [
    f"on_{stage}_{at}" for stage in ("validation", "test") for at in ("start", "epoch_start", "epoch_end")
]

NEVER = ["setup", "teardown", "on_fit_start", "on_fit_end", "on_train_end", "on_validation_end", "on_test_end"]
NEVER += [f"on_predict_{at}" for at in ("start", "end", "epoch_start", "epoch_end", "batch_start", "batch_end")]
NEVER += ["on_save_checkpoint", "on_load_checkpoint", "state_dict", "load_state_dict"]
NEVER_IN_MODULE = ["predict_step", "configure_optimizers", "configure_callbacks", "configure_model", "prepare_data"]
NEVER_IN_MODULE += ["train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"]
NEVER_IN_MODULE += ["on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"]
NEVER_IN_MODULE += ["lr_scheduler_step", "on_validation_model_zero_grad", "on_predict_model_eval"]
NEVER_IN_MODULE += [f"on_{stage}_model_{mode}" for stage in ("validation", "test") for mode in ("eval", "train")]
NEVER_IN_CALLBACK = ["on_sanity_check_start", "on_sanity_check_end"]

ROWS = [("module", hook) for hook in (*IN_TRAINING_BATCH, *METHODS_OF_TRAINING)]
ROWS += [("callback", hook) for hook in IN_TRAINING_BATCH]
BATCH_OF_TRAINING = ROWS
BATCH_OF_EVALUATION = [(who, hook) for who in ("module", "callback") for hook in IN_EVALUATION_BATCH]
BATCH_OF_EVALUATION += [("module", "validation_step"), ("module", "test_step")]
ONCE = [(who, hook) for who in ("module", "callback") for hook in ONCE_AN_EPOCH]
NOWHERE = [(who, hook) for who in ("module", "callback") for hook in NEVER]
NOWHERE += [("module", hook) for hook in NEVER_IN_MODULE] + [("callback", hook) for hook in NEVER_IN_CALLBACK]


@pytest.fixture
def log_in(ValNet, data, quiet, tmp_path):
    """Runs everything that can be run, with `self.log("x", 1.0)` in one hook of the module or of a callback."""

    class FullNet(ValNet):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

        def train_dataloader(self) -> Any:
            return data(TRAINING)

        def val_dataloader(self) -> Any:
            return data(VALIDATION)

        test_dataloader = predict_dataloader = val_dataloader

        def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return super().load_state_dict(*args, **kwargs)

    class Stateful(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"some": "state"}

    def run(who: str, hook: str, **flags: Any) -> None:
        base: Any = FullNet if who == "module" else Stateful
        original = getattr(base, hook)

        @wraps(original)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            self.log("x", 1.0, batch_size=1, **flags)
            return result

        cls = type("Logging", (base,), {hook: method})
        module, callbacks = (cls(), []) if who == "module" else (FullNet(), [cls()])
        trainer = quiet(callbacks=callbacks, gradient_clip_val=1.0, num_sanity_val_steps="sanity" in hook)
        trainer.fit(module)
        for stage in (trainer.test, trainer.predict):
            if "test" in hook or "predict" in hook:
                stage(module, verbose=False) if stage == trainer.test else stage(module)
        if "state_dict" in hook or "checkpoint" in hook:
            trainer.save_checkpoint(tmp_path / "some.ckpt")
            trainer.fit_loop.max_epochs = 2
            trainer.fit(module, ckpt_path=tmp_path / "some.ckpt")

    return run


def batches_of(hook: str) -> int:
    return VALIDATION if "validation" in hook or "test" in hook else TRAINING


def test_the_table_of_the_code_is_this_one():
    rules = {hook: rule for hook, rule in LOG_RULES.items() if rule != "never"}
    expected = dict.fromkeys((hook for _, hook in BATCH_OF_TRAINING), "step")
    expected |= dict.fromkeys((hook for _, hook in BATCH_OF_EVALUATION), "evaluation")
    expected |= dict.fromkeys(ONCE_AN_EPOCH, "epoch")
    assert rules == expected


@pytest.mark.parametrize(("who", "hook"), BATCH_OF_TRAINING)
def test_hooks_of_a_training_batch_log_by_step(who, hook, log_in, recorder):
    log_in(who, hook)
    assert recorder.having("x") == [(1.0, step) for step in range(TRAINING)]


@pytest.mark.parametrize(("who", "hook"), BATCH_OF_EVALUATION)
def test_hooks_of_an_evaluation_batch_log_by_epoch(who, hook, log_in, recorder):
    log_in(who, hook)
    assert recorder.having("x") == [(1.0, TRAINING - 1 if "validation" in hook else TRAINING)]


@pytest.mark.parametrize(("who", "hook"), [*BATCH_OF_TRAINING, *BATCH_OF_EVALUATION])
def test_hooks_of_a_batch_log_by_both_if_told_so(who, hook, log_in, recorder):
    log_in(who, hook, on_step=True, on_epoch=True)
    assert [value for value, _ in recorder.having("x_step")] == [1.0] * batches_of(hook)
    assert [value for value, _ in recorder.having("x_epoch")] == [1.0]
    assert not recorder.having("x")


@pytest.mark.parametrize(("who", "hook"), [*BATCH_OF_TRAINING, *BATCH_OF_EVALUATION])
@pytest.mark.parametrize("by", ["step", "epoch"])
def test_hooks_of_a_batch_log_by_one_of_them_if_told_so(who, hook, by, log_in, recorder):
    log_in(who, hook, on_step=by == "step", on_epoch=by == "epoch")
    assert len(recorder.having("x")) == (batches_of(hook) if by == "step" else 1)


@pytest.mark.parametrize(("who", "hook"), ONCE)
def test_hooks_of_an_epoch_log_by_epoch(who, hook, log_in, recorder):
    log_in(who, hook)
    assert len(recorder.having("x")) == 1
    recorder.calls.clear()
    log_in(who, hook, on_step=False, on_epoch=True)
    assert len(recorder.having("x")) == 1


@pytest.mark.parametrize(("who", "hook"), ONCE)
@pytest.mark.parametrize("flags", [{"on_step": True}, {"on_step": True, "on_epoch": False}])
def test_hooks_of_an_epoch_refuse_to_log_by_step(who, hook, flags, log_in):
    with pytest.raises(MisconfigurationException, match=rf"on_step=True.*`{hook}`.*only `on_epoch=True` is possible"):
        log_in(who, hook, **flags)


@pytest.mark.parametrize(("who", "hook"), NOWHERE)
def test_other_hooks_refuse(who, hook, log_in):
    with pytest.raises(MisconfigurationException, match=r"`self.log\('x', ...\)`.*there is no loop that could log it"):
        log_in(who, hook)


def test_on_exception_cannot_log_and_does_not_hide_the_exception(Net, data, quiet):
    class Broken(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise ZeroDivisionError("the user's")

    class Logs(Callback):
        def on_exception(self, *_: Any) -> None:
            self.log("x", 1.0)

    with pytest.raises(ZeroDivisionError, match="the user's") as caught:
        quiet(callbacks=[Logs()]).fit(Broken(), data())
    assert any("`self.log('x', ...)` in `on_exception`" in note for note in caught.value.__notes__)


def test_between_runs_there_is_no_hook(Net, data, quiet):
    module = Net()
    trainer = quiet()
    trainer.fit(module, data())
    with pytest.raises(MisconfigurationException, match="outside of the hooks of a run"):
        module.log("x", 1.0)


def test_what_a_hook_calls_counts_as_the_hook(Net, data, quiet, recorder):
    class Forwards(Net):
        def forward(self, batch: Any) -> Any:
            self.log("x", 1.0)
            return self.layer(batch)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self(batch).pow(2).mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self(batch)

    quiet().fit(Forwards(), data(2), data(2))
    assert recorder.having("x") == [(1.0, 0), (1.0, 1), (1.0, 1)]


def test_part_of_the_module_logs_through_it(Net, data, quiet, recorder):
    class Part(Net):
        def forward(self, batch: Any) -> Any:
            self.log("part", 2.0)
            return self.layer(batch)

    class Whole(Net):
        def __init__(self) -> None:
            super().__init__()
            self.part = Part()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.part(batch).pow(2).mean()

    quiet().fit(Whole(), data(1))
    assert recorder.having("part") == [(2.0, 0)]


def test_a_checkpoint_in_the_middle_of_a_hook_does_not_end_it(Net, data, quiet, recorder, tmp_path):
    class Saves(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.trainer.save_checkpoint(tmp_path / "some.ckpt")
            self.log("x", 1.0)
            return super().training_step(batch, batch_idx)

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["mine"] = 1

    quiet().fit(Saves(), data(2))
    assert recorder.having("x") == [(1.0, 0), (1.0, 1)]


def test_the_module_logs_after_a_callback_that_saved_a_checkpoint(Net, data, quiet, recorder, tmp_path):
    class Saves(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / "some.ckpt")

        def on_save_checkpoint(self, *_: Any) -> None:
            """Something to be called."""

    class Logs(Net):
        def on_train_batch_end(self, *_: Any) -> None:
            self.log("x", 1.0)

    quiet(callbacks=[Saves()]).fit(Logs(), data(2))
    assert len(recorder.having("x")) == 2


def test_unattached_module_warns(Net):
    with pytest.warns(UserWarning, match=r"`self.log\('x', ...\)` is ignored: the module is not attached"):
        Net().log("x", 1.0)
    with pytest.warns(UserWarning, match="not attached"):
        Net().log_dict({"x": 1.0})


def test_barebones_warns_once(Net, data, quiet):
    class Logs(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("x", 1.0)
            self.log_dict({"y": 1.0, "z": 2.0})
            return super().training_step(batch, batch_idx)

    off = {"logger": None, "log_every_n_steps": None, "num_sanity_val_steps": None, "enable_checkpointing": None}
    trainer = quiet(barebones=True, **off, enable_progress_bar=None, enable_model_summary=None)
    with pytest.warns(UserWarning, match="ignored under `Trainer\\(barebones=True\\)") as caught:
        trainer.fit(Logs(), data())
    assert len([warning for warning in caught if "self.log" in str(warning.message)]) == 1
    assert trainer.callback_metrics == {}
