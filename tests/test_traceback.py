"""An error in the user's code looks like one: its own type and message, the user's line last, hardly a line of ours."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import fulmen
from fulmen.errors import MisconfigurationException

OURS = str(Path(fulmen.__file__).parent)

pytestmark = pytest.mark.filterwarnings("ignore::fulmen.errors.PossibleUserWarning")


class Mishap(Exception):
    """An exception of the user's, with a signature of its own."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{reason} ({code})")
        self.code = code


def mishap(*_: Any, **__: Any) -> Any:
    raise Mishap(7, reason="out of luck")  # the user's line


class Net(fulmen.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.layer(batch).sum())

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.layer(batch)

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(Dataset[Tensor]):
    def __init__(self, broken: bool = False) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Tensor:
        return mishap() if self.broken and index == 1 else torch.ones(2)


class Layer(nn.Linear):
    forward = mishap


def make_trainer(*callbacks: Any, **arguments: Any) -> fulmen.Trainer:
    chosen: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return fulmen.Trainer(callbacks=list(callbacks), **{**chosen, **arguments})


def with_method(cls: type, name: str) -> Any:
    return type(f"Broken{cls.__name__}", (cls,), {name: mishap})()


def fit(module: Any, *callbacks: Any, data: Any = None, **arguments: Any) -> None:
    make_trainer(*callbacks, **arguments).fit(module, DataLoader(data or Data()), DataLoader(Data()))


def fit_with_layer() -> None:
    module = Net()
    module.layer = Layer(2, 1)
    fit(module)


def fit_with_loss() -> None:
    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x

        backward = staticmethod(mishap)

    class Lossy(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return Loss.apply(self.layer(batch).sum())

    fit(Lossy())


class Stepping(torch.optim.SGD):
    step = mishap


class WithOptimizer(Net):
    def configure_optimizers(self) -> Any:
        return Stepping(self.parameters(), lr=0.1)


IN_FIT = "During fit: epoch 0, batch 0, global step "
MODULE_HOOKS = {
    **dict.fromkeys(["setup", "prepare_data", "configure_optimizers", "configure_model", "configure_callbacks"], ""),
    **dict.fromkeys(["on_fit_start", "on_train_start", "on_train_epoch_start"], ""),
    **dict.fromkeys(
        ["training_step", "on_train_batch_start", "on_before_zero_grad", "on_before_backward"], IN_FIT + "0."
    ),
    **dict.fromkeys(["backward", "on_after_backward", "configure_gradient_clipping", "optimizer_step"], IN_FIT + "0."),
    "on_train_batch_end": IN_FIT + "1.",
    **dict.fromkeys(["on_before_batch_transfer", "transfer_batch_to_device"], ""),
    "on_train_epoch_end": "During fit: epoch 0, after batch 2, global step 3.",
    "on_train_end": "During fit: epoch 1, after batch 2, global step 3.",
    **dict.fromkeys(["on_validation_start", "validation_step", "on_validation_epoch_end"], "During fit: validate"),
    **dict.fromkeys(["on_fit_end", "teardown"], "During fit: epoch 1, after batch 2, global step 3."),
}
CALLBACK_HOOKS = [
    "setup",
    "on_fit_start",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_validation_end",
    "teardown",
]

PLACES: dict[str, tuple[Callable[[], Any], str]] = {
    **{f"module {name}": (lambda name=name: fit(with_method(Net, name)), note) for name, note in MODULE_HOOKS.items()},
    **{
        f"callback {name}": (lambda name=name: fit(Net(), with_method(fulmen.Callback, name)), "")
        for name in CALLBACK_HOOKS
    },
    "dataset": (lambda: fit(Net(), data=Data(broken=True)), "During fit: epoch 0, after batch 0, global step 1."),
    "a layer": (fit_with_layer, IN_FIT + "0."),
    "an autograd function": (fit_with_loss, IN_FIT + "0."),
    "an optimizer": (lambda: fit(WithOptimizer()), IN_FIT + "0."),
    "sanity check": (
        lambda: fit(with_method(Net, "validation_step"), num_sanity_val_steps=2),
        "During fit: sanity_check",
    ),
    "validate": (
        lambda: make_trainer().validate(with_method(Net, "validation_step"), DataLoader(Data())),
        "During validate: validate, epoch 0",
    ),
    "test": (lambda: make_trainer().test(with_method(Net, "test_step"), DataLoader(Data())), "During test: test"),
    "predict": (
        lambda: make_trainer().predict(with_method(Net, "predict_step"), DataLoader(Data())),
        "During predict: predict",
    ),
}


def frames_of(error: BaseException) -> list[traceback.FrameSummary]:
    return list(traceback.extract_tb(error.__traceback__))


@pytest.mark.parametrize("place", PLACES)
def test_an_error_of_the_user_stays_as_it_is(place: str) -> None:
    run, note = PLACES[place]
    with pytest.raises(Mishap) as raised:
        run()
    error = raised.value
    assert (type(error), error.args, error.code) == (Mishap, ("out of luck (7)",), 7)
    assert (error.__cause__, error.__context__) == (None, None)
    frames = frames_of(error)
    assert frames[-1].line == 'raise Mishap(7, reason="out of luck")  # the user\'s line'
    assert len([frame for frame in frames if frame.filename.startswith(OURS)]) <= 1
    notes = getattr(error, "__notes__", [])
    assert len(notes) <= 1
    assert note in "".join(notes)


def test_the_frames_of_the_user_are_all_there() -> None:
    def inner() -> None:
        mishap()

    class Deep(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            inner()
            return super().training_step(batch, batch_idx)

    with pytest.raises(Mishap) as raised:
        fit(Deep())
    names = [frame.name for frame in frames_of(raised.value)]
    assert names[-4:] == ["fit", "training_step", "inner", "mishap"]


def test_all_frames_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FULMEN_FULL_TRACEBACK", "1")
    with pytest.raises(Mishap) as raised:
        fit(with_method(Net, "training_step"))
    frames = frames_of(raised.value)
    ours = [frame.name for frame in frames if frame.filename.startswith(OURS)]
    assert ours[:2] == ["fit", "_run"]
    assert {"run", "epoch"} <= set(ours)
    assert frames[-1].name == "mishap"


def test_an_error_of_ours_keeps_our_frames() -> None:
    class Odd(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = make_trainer()
    trainer.fit_loop.val_loop.batch_progress = None  # type: ignore[assignment]
    with pytest.raises(AttributeError) as raised:
        trainer.fit(Odd(), DataLoader(Data()), DataLoader(Data()))
    assert len([frame for frame in frames_of(raised.value) if frame.filename.startswith(OURS)]) > 3


def test_a_message_for_the_user_needs_no_frames() -> None:
    class Stepless(fulmen.LightningModule):
        """Has no training_step."""

    with pytest.raises(MisconfigurationException) as raised:
        make_trainer().fit(Stepless(), DataLoader(Data()))
    assert len([frame for frame in frames_of(raised.value) if frame.filename.startswith(OURS)]) == 1


@pytest.mark.slow
def test_an_error_in_a_worker_process_tells_the_line_there() -> None:
    class Plain(Dataset[Tensor]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Tensor:
            raise LookupError("no such sample")

    with pytest.raises(LookupError, match="no such sample") as raised:
        make_trainer().fit(Net(), DataLoader(Plain(), num_workers=1))
    assert 'raise LookupError("no such sample")' in str(raised.value)
    assert len([frame for frame in frames_of(raised.value) if frame.filename.startswith(OURS)]) <= 1
