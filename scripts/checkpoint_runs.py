"""Runs of one framework for ``checkpoint_matrix.py``: ``checkpoint_runs.py FRAMEWORK JOBS.json RESULTS.pt``.

The same code trains with fulmen and with Lightning; only the import differs. A job is a whole run, a run that ends at a
checkpoint ("first"), or one that goes on from it ("second"). Its record is what happened in each batch and validation,
what the logger got, and the checkpoint at the end.
"""

from __future__ import annotations

import importlib
import json
import logging
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS, BATCHES, BATCH_SIZE = 4, 7, 4
MIDDLE = 10  # the batches trained before the checkpoint in the middle of an epoch
HALF = 2  # the epochs trained before the checkpoint of an epoch


class Interrupted(Exception):
    """Ends a run where a checkpoint was taken, as a crash would."""


def data(size: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, 3, generator=generator)
    return TensorDataset(inputs, inputs.sum(1, keepdim=True).sin())


class StatefulLoader:
    """A loader that keeps its own position, as users of Lightning write it."""

    def __init__(self, dataset: TensorDataset) -> None:
        self.dataset, self.position = dataset, 0

    def __iter__(self) -> Any:
        loader = DataLoader(self.dataset, BATCH_SIZE)
        skipped, batches = self.position % BATCHES, list(loader)
        for index in range(skipped, BATCHES):
            self.position = index + 1
            yield batches[index]

    def __len__(self) -> int:
        return BATCHES

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


def train_loader(stateful: bool = True) -> Any:
    dataset = data(BATCHES * BATCH_SIZE, seed=1)
    return StatefulLoader(dataset) if stateful else DataLoader(dataset, BATCH_SIZE)


# ------------------------------------------------------------------------------------------------ the parts


def parts(framework: Any, tape: list[Any]) -> SimpleNamespace:
    """The classes of the runs, made from those of the framework."""

    class Net(framework.LightningModule):
        """Records on the tape whatever a batch and a validation see and give."""

        def __init__(
            self,
            schedule: str = "none",
            interval: str = "epoch",
            optimizer: str = "adam",
            frequency: int = 1,
            batch_norm: bool = True,
        ) -> None:
            super().__init__()
            self.save_hyperparameters()
            norm = nn.BatchNorm1d(5) if batch_norm else nn.LayerNorm(5)
            self.layers = nn.Sequential(nn.Linear(3, 5), norm, nn.Tanh(), nn.Linear(5, 1))
            self.validated: list[float] = []

        def loss(self, batch: Any) -> Tensor:
            return (self.layers(batch[0]) - batch[1]).square().mean()

        def mark(self, kind: str, *values: Any) -> None:
            rates = [group["lr"] for optimizer in self.trainer.optimizers for group in optimizer.param_groups]
            tape.append((kind, self.current_epoch, self.global_step, *values, rates))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = self.loss(batch)
            self.mark("train", batch_idx, batch[0].sum().item(), loss.item())
            self.log("loss", loss, on_step=True, on_epoch=False)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            loss = self.loss(batch)
            self.validated.append(loss.item())
            self.log("val_loss", loss)

        def on_validation_epoch_end(self) -> None:
            if not self.trainer.sanity_checking:
                self.mark("val", *self.validated)
            self.validated.clear()

        def configure_optimizers(self) -> Any:
            kinds = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD, "lbfgs": torch.optim.LBFGS}
            more = {"sgd": {"momentum": 0.9}, "lbfgs": {"max_iter": 3}}.get(self.hparams.optimizer, {})
            optimizer = kinds[self.hparams.optimizer](self.parameters(), lr=0.02, **more)
            if self.hparams.schedule == "none":
                return optimizer
            if self.hparams.schedule == "step":
                size = 1 if self.hparams.interval == "epoch" else 3
                scheduler: Any = torch.optim.lr_scheduler.StepLR(optimizer, size, gamma=0.7)
            elif self.hparams.schedule == "plateau":
                scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
            else:
                scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=EPOCHS * BATCHES + 1)
            settings = {"scheduler": scheduler, "interval": self.hparams.interval, "monitor": "val_loss"}
            settings["frequency"] = self.hparams.frequency
            return {"optimizer": optimizer, "lr_scheduler": settings}

    class Manual(Net):
        """Two optimizers, stepped by hand: the second every other batch; a scheduler stepped by hand."""

        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            first, second = self.optimizers()
            for optimizer in (first, second)[: 1 + batch_idx % 2]:
                loss = self.loss(batch)
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            self.mark("train", batch_idx, batch[0].sum().item(), loss.item())
            self.log("loss", loss)
            if batch_idx % 3 == 2:
                self.lr_schedulers().step()

        def configure_optimizers(self) -> Any:
            first = torch.optim.Adam(self.layers[0].parameters(), lr=0.02)
            second = torch.optim.SGD(self.layers[3].parameters(), lr=0.01, momentum=0.9)
            return [first, second], [torch.optim.lr_scheduler.StepLR(first, 1, gamma=0.9)]

    class Skipping(Net):
        """Has no loss for every third batch."""

        def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx % 3 == 1 else loss

    class WithExtras(Net):
        """Adds to the checkpoint by its hooks."""

        extra = 0

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.extra += batch_idx

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["extra"] = self.extra

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            self.extra = checkpoint["extra"]

    class Counting(framework.Callback):
        """A callback of the user with a state and an entry in the checkpoint."""

        def __init__(self) -> None:
            self.batches = self.entry = 0

        def on_train_batch_end(self, *arguments: Any) -> None:
            self.batches += 1

        def state_dict(self) -> dict[str, Any]:
            return {"batches": self.batches}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.batches = state["batches"]

        def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
            checkpoint["entry"] = self.batches

        def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
            tape.append(("entry", checkpoint["entry"]))

    class Data(framework.LightningDataModule):
        """A datamodule with hyperparameters and a state."""

        def __init__(self, seed: int = 1) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.epochs = 0

        def train_dataloader(self) -> Any:
            return train_loader()

        def val_dataloader(self) -> Any:
            return DataLoader(data(12, seed=2), 6)

        def state_dict(self) -> dict[str, Any]:
            return {"step": self.trainer.global_step}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            tape.append(("datamodule", state["step"]))

    class Tape(framework.Logger):
        """A logger that writes on the tape."""

        name, version = "tape", 0

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            tape.append(("log", step, {name: float(value) for name, value in metrics.items()}))

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
            tape.append(("hparams", len(args[0])))

    class Stop(framework.Callback):
        """Ends the run as soon as the checkpoint of a point has been taken."""

        def __init__(self, checkpoints: Path, point: str) -> None:
            self.checkpoints, self.point = checkpoints, point

        def on_train_epoch_start(self, *arguments: Any) -> None:
            if checkpoint_at(self.checkpoints, self.point) is not None:
                raise Interrupted

        on_train_batch_start = on_train_epoch_start

    return SimpleNamespace(
        Net=Net,
        Manual=Manual,
        Skipping=Skipping,
        WithExtras=WithExtras,
        Counting=Counting,
        Data=Data,
        Tape=Tape,
        Stop=Stop,
    )


# ------------------------------------------------------------------------------------------------ scenarios

Scenario = Callable[[SimpleNamespace, Any], dict[str, Any]]
SCENARIOS: dict[str, Scenario] = {
    "adam": lambda own, callbacks: {"module": own.Net()},
    "step_lr_by_step": lambda own, callbacks: {"module": own.Net("step", "step")},
    "step_lr_by_epoch": lambda own, callbacks: {"module": own.Net("step", "epoch", "sgd")},
    "one_cycle": lambda own, callbacks: {"module": own.Net("one_cycle", "step", "sgd")},
    "plateau": lambda own, callbacks: {"module": own.Net("plateau")},
    "plateau_by_step": lambda own, callbacks: {
        "module": own.Net("plateau", "step", frequency=3),
        "trainer": {"val_check_interval": 2},
    },
    "accumulate": lambda own, callbacks: {
        "module": own.Net("step", "step"),
        "trainer": {"accumulate_grad_batches": 3},
        "steps": 4,
    },
    "lbfgs": lambda own, callbacks: {"module": own.Net(optimizer="lbfgs")},
    "no_loss": lambda own, callbacks: {"module": own.Skipping("step", "step")},
    "manual": lambda own, callbacks: {"module": own.Manual(), "steps": 14},
    "early_stopping": lambda own, callbacks: {
        "module": own.Net(),
        "callbacks": [callbacks.EarlyStopping("val_loss", min_delta=0.2, patience=2)],
    },
    "keep_best": lambda own, callbacks: {
        "module": own.Net(),
        "checkpoint": {"monitor": "val_loss", "save_top_k": 2, "save_last": True},
    },
    "timer": lambda own, callbacks: {"module": own.Net(), "callbacks": [callbacks.Timer("00:01:00:00")]},
    "lr_monitor": lambda own, callbacks: {
        "module": own.Net("step", "step"),
        "callbacks": [callbacks.LearningRateMonitor("step", log_momentum=True)],
    },
    "ema": lambda own, callbacks: {"module": own.Net(), "callbacks": [callbacks.EMAWeightAveraging(decay=0.8)]},
    "swa": lambda own, callbacks: {
        "module": own.Net("step", "epoch", "sgd", batch_norm=False),
        "callbacks": [callbacks.StochasticWeightAveraging(0.05, swa_epoch_start=2, annealing_epochs=2)],
    },
    "datamodule": lambda own, callbacks: {"module": own.Net(), "data": {"datamodule": own.Data(seed=3)}},
    "hooks": lambda own, callbacks: {"module": own.WithExtras(), "callbacks": [own.Counting()]},
    "bf16": lambda own, callbacks: {"module": own.Net(), "trainer": {"precision": "bf16-mixed"}},
    "validate_twice": lambda own, callbacks: {
        "module": own.Net("step", "step"),
        "trainer": {"val_check_interval": 0.5},
        "checkpoint": {"monitor": "val_loss", "save_top_k": 3},
        "batches": 11,
    },
    "plateau_validate_twice": lambda own, callbacks: {
        "module": own.Net("plateau"),
        "trainer": {"val_check_interval": 0.5},
        "batches": 11,
    },
    "no_validation": lambda own, callbacks: {"module": own.Net("step", "epoch"), "trainer": {"limit_val_batches": 0}},
    "plain_loader": lambda own, callbacks: {
        "module": own.Net(),
        "data": {"train_dataloaders": train_loader(False), "val_dataloaders": DataLoader(data(12, seed=2), 6)},
    },
}

POINTS_OF = dict.fromkeys(("ema", "swa"), ("epoch", "middle"))  # the end of a fit puts the average into the model


def run(framework: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Does one job in its folder; its record."""
    tape: list[Any] = []
    own = parts(framework, tape)
    torch.manual_seed(0)
    scenario = SCENARIOS[job["scenario"]](own, framework.callbacks)
    folder, point, part = Path(job["folder"]), job.get("point"), job["part"]
    batches = scenario.get("batches", MIDDLE)
    checkpoints = folder / "checkpoints"
    keeper = framework.callbacks.ModelCheckpoint(checkpoints, **{"save_top_k": -1, **scenario.get("checkpoint", {})})
    callbacks = [keeper, *scenario.get("callbacks", ())]
    callbacks.append(
        framework.callbacks.ModelCheckpoint(
            checkpoints, "middle-{step}", save_top_k=-1, every_n_train_steps=scenario.get("steps", batches)
        )
    )
    ends_here = part == "first" and point == "end"
    if part == "first" and not ends_here:
        callbacks.append(own.Stop(checkpoints, point))
    trainer = framework.Trainer(
        accelerator="cpu", max_epochs=HALF if ends_here else EPOCHS, logger=own.Tape(), log_every_n_steps=2,
        enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks, **scenario.get("trainer", {}),
    )  # fmt: skip
    feeds = {"train_dataloaders": train_loader(), "val_dataloaders": DataLoader(data(12, seed=2), 6)}
    feeds = scenario.get("data", feeds)
    try:
        trainer.fit(scenario["module"], **feeds, ckpt_path=job.get("resume"))
    except Interrupted:
        return {"tape": tape}
    trainer.save_checkpoint(folder / "end.ckpt")
    resumed_from = Path(job.get("resume", "")).name  # whether that one is kept is not what is compared
    files = sorted(path.name for path in checkpoints.iterdir() if path.name != resumed_from)
    return {
        "tape": tape,
        "files": files,
        "resumed_from": resumed_from,
        "end": torch.load(folder / "end.ckpt", weights_only=False),
    }


def checkpoint_at(checkpoints: Path, point: str) -> Path | None:
    """The file that a first half leaves for its second, None if it is not there yet."""
    if point == "end":
        return checkpoints.parent / "end.ckpt"
    pattern = "middle-step=*.ckpt" if point == "middle" else f"epoch={HALF - 1}-*.ckpt"
    return next(iter(checkpoints.glob(pattern)), None)


def do(framework: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Prepares the folder, does the job, and puts aside what a later job goes on from."""
    folder = Path(job["folder"])
    shutil.rmtree(folder, ignore_errors=True)
    if job["part"] == "second":
        shutil.copytree(job["from"], folder)
        job["resume"] = str(checkpoint_at(folder / "checkpoints", job["point"]))
    else:
        folder.mkdir(parents=True)
    record = run(framework, job)
    if job["part"] == "first":
        shutil.copytree(folder, job["to"])
    return record


def main(name: str, jobs: str, results: str) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    framework = importlib.import_module("lightning.pytorch" if name == "lightning" else name)
    callbacks = importlib.import_module(f"{framework.__name__}.callbacks")
    framework = SimpleNamespace(
        LightningModule=framework.LightningModule, LightningDataModule=framework.LightningDataModule,
        Trainer=framework.Trainer, Callback=callbacks.Callback, callbacks=callbacks,
        Logger=importlib.import_module(f"{framework.__name__}.loggers").Logger,
    )  # fmt: skip
    records = []
    for job in json.loads(Path(jobs).read_text()):
        try:
            records.append(do(framework, job))
        except Exception:
            records.append({"error": traceback.format_exc()})
    torch.save(records, results)


if __name__ == "__main__":
    main(*sys.argv[1:])
