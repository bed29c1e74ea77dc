"""What a step costs, counted in Python calls of fulmen's own code; nothing here is timed."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import fulmen
from fulmen.loggers import CSVLogger

MAX_FRAMES = 5
MAX_CALLS_PER_BATCH = 20
MAX_CALLS_PER_LOG = 12
MAX_CALLS_PER_BATCH_WITH_DEFAULTS = 35
MAX_CALLS_PER_EVALUATED_BATCH = 15
BATCHES = 200

HERE = str(Path(fulmen.__file__).parent)
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "max_epochs": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
BY_BOTH = {"on_step": True, "on_epoch": True, "prog_bar": True}


class Net(fulmen.LightningModule):
    """A model as small as they come, which logs with the given arguments if there are any."""

    def __init__(self, *logged: dict[str, Any]) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.logged = logged
        self.callers: list[str] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if not self.callers:
            self.callers = callers_up_to("fit")
        loss = self.layer(batch if isinstance(batch, Tensor) else batch[0]).pow(2).mean()
        for place, arguments in enumerate(self.logged):
            self.log(f"loss_{place}", loss, **arguments)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Evaluated(Net):
    def validation_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch)

    predict_step = validation_step


class Ready:
    """Batches that are there already."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter([torch.ones(1, 2)] * (2 * BATCHES))

    def __len__(self) -> int:
        return 2 * BATCHES


def from_dataset() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.ones(2 * BATCHES, 2)), batch_size=1)


def callers_up_to(name: str) -> list[str]:
    """The functions between the caller of this one and the nearest `name`, the innermost first."""
    callers, frame = [], sys._getframe(2)
    while frame is not None and frame.f_code.co_name != name:
        callers.append(frame.f_code.co_qualname)
        frame = frame.f_back
    return callers


def own_calls(run: Any, *arguments: Any, **keywords: Any) -> Counter[str]:
    """How often each function of fulmen is called in `run`, by `file:name`."""
    calls: Counter[str] = Counter()

    def count(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(HERE):
            calls[f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_qualname}"] += 1

    sys.setprofile(count)
    try:
        run(*arguments, **keywords)
    finally:
        sys.setprofile(None)
    return calls


def calls_per_batch(loader: Any, *logged: dict[str, Any], **arguments: Any) -> float:
    """Own calls that each further batch of an epoch adds."""
    short, long = (
        own_calls(fulmen.Trainer(limit_train_batches=batches, **{**QUIET, **arguments}).fit, Net(*logged), loader)
        for batches in (BATCHES, 2 * BATCHES)
    )
    return (long - short).total() / BATCHES


def test_frames_between_fit_and_the_users_step() -> None:
    module = Net()
    fulmen.Trainer(fast_dev_run=True, **QUIET).fit(module, Ready())
    assert module.callers[-1] == "Trainer._run"
    assert len(module.callers) <= MAX_FRAMES, module.callers


@pytest.mark.parametrize("loader", [Ready, from_dataset])
def test_calls_per_batch_with_everything_off(loader: Any) -> None:
    assert 5 < calls_per_batch(loader()) <= MAX_CALLS_PER_BATCH


def test_calls_per_batch_in_accumulation() -> None:
    assert calls_per_batch(Ready(), accumulate_grad_batches=4) <= MAX_CALLS_PER_BATCH


@pytest.mark.parametrize(
    "arguments", [{}, BY_BOTH, {"on_step": False, "on_epoch": True}], ids=["step", "both", "epoch"]
)
def test_calls_per_log(arguments: dict[str, Any]) -> None:
    logged = [arguments] * 3
    added = calls_per_batch(from_dataset(), *logged) - calls_per_batch(from_dataset())
    assert 2 * len(logged) <= added <= MAX_CALLS_PER_LOG * len(logged)


@pytest.mark.filterwarnings("ignore:.*exists and is not empty")
def test_calls_per_batch_with_the_default_callbacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    defaults = {"enable_checkpointing": True, "enable_progress_bar": True, "enable_model_summary": True}
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=50)
    calls = calls_per_batch(from_dataset(), BY_BOTH, logger=logger, default_root_dir=tmp_path, **defaults)
    assert calls <= MAX_CALLS_PER_BATCH_WITH_DEFAULTS


@pytest.mark.parametrize("name", ["validate", "predict"])
def test_calls_per_evaluated_batch(name: str) -> None:
    limit = {"validate": "limit_val_batches", "predict": "limit_predict_batches"}[name]
    short, long = (
        own_calls(getattr(fulmen.Trainer(**{limit: batches}, **QUIET), name), Evaluated(), Ready())
        for batches in (BATCHES, 2 * BATCHES)
    )
    assert (long - short).total() / BATCHES <= MAX_CALLS_PER_EVALUATED_BATCH


def test_hooks_that_nobody_overrides_are_not_called() -> None:
    trainer = fulmen.Trainer(callbacks=[fulmen.Callback()], limit_train_batches=4, limit_val_batches=2, **QUIET)
    calls = own_calls(trainer.fit, Evaluated(), Ready(), Ready())
    called = {
        name.partition(":")[2] for name in calls if name.startswith(("modulehooks.py:", "callback.py:Callback.on_"))
    }
    # these do something unless they are overridden
    assert called == {
        "ModuleHooks.configure_callbacks",
        "ModuleHooks.configure_model",
        "ModuleHooks.configure_sharded_model",
        "ModuleHooks.on_validation_model_eval",
        "ModuleHooks.on_validation_model_zero_grad",
    }


def test_one_more_listener_costs_its_call_and_one_to_open_the_page() -> None:
    class Listener(fulmen.Callback):
        def on_train_batch_start(self, *arguments: Any) -> None: ...

    assert calls_per_batch(Ready(), callbacks=[Listener()]) - calls_per_batch(Ready()) == 1
    assert calls_per_batch(Ready(), callbacks=[Listener(), Listener()]) - calls_per_batch(Ready()) == 1
