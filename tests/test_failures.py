"""A run that ends by an exception: who is told, what is closed, and that nothing of the process stays changed."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import fulmen
from fulmen.callbacks import EarlyStopping, ModelCheckpoint
from fulmen.loggers import CSVLogger, Logger
from fulmen.strategies import SingleDeviceStrategy

pytestmark = pytest.mark.filterwarnings("ignore::fulmen.errors.PossibleUserWarning")


class Mishap(Exception):
    """What the user's code raises."""


class Net(fulmen.LightningModule):
    """Raises in one of its methods, from some step on."""

    def __init__(self, breaks: str | None = None, step: int = 0) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.breaks, self.step = breaks, step

    def pass_through(self, name: str) -> None:
        if self.breaks == name and self.global_step >= self.step:
            raise Mishap(name)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.pass_through("training_step")
        loss = self.layer(batch).pow(2).mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.pass_through("validation_step")
        self.log("val_loss", self.layer(batch).pow(2).mean())

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.pass_through("predict_step")
        return self.layer(batch)

    def configure_optimizers(self) -> Any:
        self.pass_through("configure_optimizers")
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(Dataset[Tensor]):
    """Can end, or raise, at one of its samples; with workers in the worker."""

    def __init__(self, bad: int = -1) -> None:
        self.bad = bad

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        if index == self.bad:
            raise Mishap("sample")
        return torch.ones(2)


def make_trainer(path: Path, *callbacks: Any, **arguments: Any) -> fulmen.Trainer:
    chosen: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": path,
    }
    return fulmen.Trainer(callbacks=list(callbacks), **{**chosen, **arguments})


# ---------------------------------------------------------------------------------------------------- who is told


class Told(list[str]):
    """Who was told of the exception, in order."""

    def callback(self, name: str) -> fulmen.Callback:
        told = self

        class Listening(fulmen.Callback):
            def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
                told.append(f"{name} {type(exception).__name__} {trainer.state.status}")

        return Listening()

    def logger(self, name: str) -> Logger:
        told = self

        class Closing(Logger):
            version, save_dir = 0, None

            @property
            def name(self) -> str:
                return name

            def log_metrics(self, *_: Any, **__: Any) -> None:
                """Nothing is kept."""

            def log_hyperparams(self, *_: Any, **__: Any) -> None:
                """Nothing is kept."""

            def finalize(self, status: str) -> None:
                told.append(f"{name} {status}")

        return Closing()

    def data(self) -> fulmen.LightningDataModule:
        told = self

        class Listening(fulmen.LightningDataModule):
            def train_dataloader(self) -> Any:
                return DataLoader(Data())

            val_dataloader = predict_dataloader = train_dataloader

            def on_exception(self, exception: BaseException) -> None:
                told.append(f"data {type(exception).__name__}")

            def teardown(self, stage: str) -> None:
                told.append("teardown")

        return Listening()

    def strategy(self) -> SingleDeviceStrategy:
        told = self

        class Listening(SingleDeviceStrategy):
            def on_exception(self, exception: BaseException) -> None:
                told.append(f"strategy {type(exception).__name__}")

            def teardown(self) -> None:
                told.append("strategy teardown")
                super().teardown()

        return Listening("cpu")


IN_ORDER = [
    *("first Mishap interrupted", "second Mishap interrupted", "data Mishap", "strategy Mishap"),
    *("a failed", "b failed", "strategy teardown"),
]


@pytest.mark.parametrize("place", ["training_step", "validation_step", "configure_optimizers", "configure_model"])
def test_everyone_is_told_in_order(tmp_path: Path, place: str) -> None:
    told = Told()
    module = Net(place)
    if place == "configure_model":
        module.configure_model = lambda: module.pass_through(place)  # type: ignore[method-assign]
    callbacks, loggers = [told.callback("first"), told.callback("second")], [told.logger("a"), told.logger("b")]
    trainer = make_trainer(tmp_path, *callbacks, logger=loggers, strategy=told.strategy())
    with pytest.raises(Mishap):
        trainer.fit(module, datamodule=told.data())
    assert told == IN_ORDER
    assert trainer.interrupted
    assert trainer.state.stage is None


def test_everyone_is_told_of_an_error_in_evaluation(tmp_path: Path) -> None:
    for name, place in (("validate", "validation_step"), ("predict", "predict_step")):
        told = Told()
        callbacks, loggers = [told.callback("first"), told.callback("second")], [told.logger("a"), told.logger("b")]
        trainer = make_trainer(tmp_path, *callbacks, logger=loggers, strategy=told.strategy())
        with pytest.raises(Mishap):
            getattr(trainer, name)(Net(place), datamodule=told.data())
        assert told == IN_ORDER


def test_callbacks_are_told_of_settings_that_cannot_work(tmp_path: Path) -> None:
    told = Told()
    trainer = make_trainer(tmp_path, told.callback("first"))
    with pytest.raises(fulmen.errors.MisconfigurationException):
        trainer.fit(fulmen.LightningModule(), DataLoader(Data()))
    assert told == ["first MisconfigurationException interrupted"]


def test_a_run_that_went_well_tells_nobody(tmp_path: Path) -> None:
    told = Told()
    make_trainer(tmp_path, told.callback("first"), logger=told.logger("a"), strategy=told.strategy()).fit(
        Net(), datamodule=told.data()
    )
    assert told == ["strategy teardown", "teardown", "a success"]


class Failing(fulmen.Callback):
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def on_exception(self, *_: Any) -> None:
        raise self.error("and that, too")


class FailingLogger(CSVLogger):
    def finalize(self, status: str) -> None:
        raise OSError("no space left")


@pytest.mark.parametrize("second", [RuntimeError, SystemExit, KeyboardInterrupt])
def test_what_fails_afterwards_hides_nothing(tmp_path: Path, second: type[BaseException]) -> None:
    told = Told()
    loggers = [FailingLogger(tmp_path, "bad"), told.logger("b")]
    callbacks = [Failing(second), told.callback("first"), told.callback("second")]
    trainer = make_trainer(tmp_path, *callbacks, logger=loggers, strategy=told.strategy(), log_every_n_steps=1)
    with pytest.raises(Mishap) as raised:
        trainer.fit(Net("training_step"), datamodule=told.data())
    assert told == [event for event in IN_ORDER if event != "a failed"]
    assert raised.value.__notes__[1:] == [
        f"While this was handled, {second.__name__} was raised: and that, too",
        "While this was handled, OSError was raised: no space left",
    ]


# ---------------------------------------------------------------------------------------------------- what is kept


@pytest.mark.parametrize("place", ["training_step", "validation_step"])
def test_the_last_checkpoint_is_whole_and_the_run_can_go_on(tmp_path: Path, place: str) -> None:
    def run(seed: int, place: str | None, ckpt_path: str | None = None) -> tuple[ModelCheckpoint, Net]:
        torch.manual_seed(seed)
        checkpoint, module = ModelCheckpoint(tmp_path / (place or "kept"), every_n_train_steps=1), Net(place, step=6)
        trainer = make_trainer(tmp_path, checkpoint, val_check_interval=2)
        with nullcontext() if place is None else pytest.raises(Mishap):
            trainer.fit(module, DataLoader(Data()), DataLoader(Data()), ckpt_path=ckpt_path)
        return checkpoint, module

    _, whole = run(1, None)
    checkpoint, _ = run(1, place)
    assert [str(entry) for entry in (tmp_path / place).iterdir()] == [checkpoint.best_model_path]
    with pytest.warns(UserWarning, match="only `best_model_path` is taken over"):
        _, rest = run(2, None, checkpoint.best_model_path)
    torch.testing.assert_close(rest.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_the_rows_of_a_run_that_failed_are_in_the_file(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, "a", flush_logs_every_n_steps=1000)
    trainer = make_trainer(tmp_path, logger=logger, log_every_n_steps=1)
    with pytest.raises(Mishap):
        trainer.fit(Net("training_step", step=3), DataLoader(Data()), DataLoader(Data()))
    assert logger.experiment._file is None
    rows = Path(logger.log_dir, "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 3


def test_the_metrics_so_far_can_be_read(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    with pytest.raises(Mishap):
        trainer.fit(Net("training_step", step=4), DataLoader(Data()), DataLoader(Data()))
    assert set(trainer.callback_metrics) == {"loss", "val_loss"}


@pytest.mark.slow
@pytest.mark.parametrize("place", ["training_step", "a worker", "nowhere"])
def test_no_worker_is_left(tmp_path: Path, place: str) -> None:
    loader = DataLoader(Data(bad=2 if place == "a worker" else -1), num_workers=1, persistent_workers=True)
    trainer = make_trainer(tmp_path, limit_val_batches=0)
    before = set(torch.multiprocessing.active_children())
    if place == "nowhere":
        trainer.fit(Net(), loader, loader)
    else:
        with pytest.raises(Mishap):
            trainer.fit(Net(place), loader, loader)
    assert set(torch.multiprocessing.active_children()) == before


# ---------------------------------------------------------------------------------------------------- the process


def state_of_the_process() -> dict[str, Any]:
    return {
        "signals": {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)},
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "benchmark": torch.backends.cudnn.benchmark,
        "environment": dict(os.environ),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "anomaly": torch.is_anomaly_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "warnings": list(warnings.filters),
        "seed": torch.initial_seed(),
        "threads": torch.get_num_threads(),
        "thread names": {thread.name for thread in threading.enumerate()},
        "directory": os.getcwd(),
    }


CHANGING: dict[str, Any] = {
    "deterministic": True,
    "benchmark": True,
    "detect_anomaly": True,
    "precision": "64-true",
    "gradient_clip_val": 1.0,
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.filterwarnings("ignore:Deterministic behavior")
@pytest.mark.filterwarnings("ignore:.*deterministic=True, benchmark=True")
@pytest.mark.parametrize("arguments", [{}, CHANGING, {"precision": "bf16-mixed"}, {"deterministic": "warn"}], ids=str)
@pytest.mark.parametrize("place", [None, "training_step", "validation_step", "configure_optimizers", "predict_step"])
def test_the_process_is_as_it_was(tmp_path: Path, place: str | None, arguments: dict[str, Any]) -> None:
    torch.manual_seed(5)
    trainer = make_trainer(tmp_path, num_sanity_val_steps=1, **arguments)
    before = state_of_the_process()

    def run() -> None:
        if place == "predict_step":
            trainer.predict(Net(place), Doubles(arguments))
        else:
            trainer.fit(Net(place), Doubles(arguments), Doubles(arguments))

    if place is None:
        run()
        trainer.predict(Net(), Doubles(arguments))
    else:
        with pytest.raises(Mishap):
            run()
    assert state_of_the_process() == before


def Doubles(arguments: dict[str, Any]) -> DataLoader[Any]:
    dtype = torch.float64 if arguments.get("precision") == "64-true" else torch.float32
    return DataLoader(torch.ones(4, 2, dtype=dtype))  # type: ignore[arg-type]


def test_what_the_user_sets_during_a_run_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)

    class Setting(Net):
        def on_fit_start(self) -> None:
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":16:8"
            torch.backends.cudnn.benchmark = True

    make_trainer(tmp_path).fit(Setting(), DataLoader(Data()), DataLoader(Data()))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert torch.backends.cudnn.benchmark
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")


def test_a_run_inside_of_no_grad_leaves_it(tmp_path: Path) -> None:
    with torch.no_grad():
        make_trainer(tmp_path, max_epochs=1).fit(Net(), DataLoader(Data()), DataLoader(Data()))
        assert not torch.is_grad_enabled()


def test_the_trainer_can_be_used_again(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, EarlyStopping("val_loss"), max_epochs=1)
    with pytest.raises(Mishap):
        trainer.fit(Net("validation_step"), DataLoader(Data()), DataLoader(Data()))
    module = Net()
    trainer.fit(module, DataLoader(Data()), DataLoader(Data()))
    assert trainer.state.finished
    assert trainer.current_epoch == 1
    assert len(trainer.validate(module, DataLoader(Data()), verbose=False)) == 1
