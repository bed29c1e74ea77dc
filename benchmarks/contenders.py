"""The training loops that ``overhead.py`` compares: the same model, optimizer and ready batches under each framework.

A contender is loaded on demand; ``load`` raises ImportError when its package is missing. What it returns runs one
whole training over a list of batches: set-up, one epoch, tear-down.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Batch = tuple[Tensor, Tensor]
FEATURES, CLASSES, BATCH_SIZE, LEARNING_RATE = 32, 2, 32, 0.01


class ReadyBatches:
    """The loader of all contenders: a sized iterable of batches made beforehand.

    It is no list because some frameworks take a list for a collection of loaders.
    """

    def __init__(self, count: int, distinct: int = 64) -> None:
        generator = torch.Generator().manual_seed(0)
        pool = [
            (
                torch.randn(BATCH_SIZE, FEATURES, generator=generator),
                torch.randint(CLASSES, (BATCH_SIZE,), generator=generator),
            )
            for _ in range(min(count, distinct))
        ]
        self.batches: list[Batch] = [pool[index % len(pool)] for index in range(count)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


Run = Callable[[ReadyBatches, str], None]
"""``run(batches, folder)``: one whole training; files go into ``folder``."""


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    Attributes:
        key: the name on the command line.
        label: the name in the table.
        load: imports the framework and returns the training.
        share: fraction of the steps it runs; the slow ones need fewer for the same precision.
        note: in what its data path or set-up differs from the others'.
    """

    key: str
    label: str
    load: Callable[[], Run]
    share: float = 1.0
    note: str = ""


def make_model() -> nn.Module:
    return nn.Linear(FEATURES, CLASSES)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)


def load_raw() -> Run:
    def run(batches: ReadyBatches, folder: str) -> None:
        model = make_model()
        optimizer = make_optimizer(model)
        for features, labels in batches:
            loss = functional.cross_entropy(model(features), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return run


def _module_class(framework: Any, logs: bool) -> Any:
    """The user's module, written once for every framework that offers Lightning's names."""

    class Classifier(framework.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = make_model()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return make_optimizer(self.model)

    class Silent(Classifier):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            features, labels = batch
            return functional.cross_entropy(self.model(features), labels)

    class Logging(Classifier):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            features, labels = batch
            loss = functional.cross_entropy(self.model(features), labels)
            self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
            return loss

    return Logging if logs else Silent


def load_trainer(package: str, mode: str) -> Run:
    """Loads a Trainer with Lightning's names.

    Args:
        package: the import name, such as ``fulmen``.
        mode: ``off`` (nothing but the loop), ``log`` (one ``self.log`` a step, loggers off) or ``defaults``
            (one ``self.log`` a step, bar, CSV logger, checkpoints, summary).
    """
    framework = importlib.import_module(package)
    module_class = _module_class(framework, logs=mode != "off")
    trainer_class = framework.Trainer
    base = {"accelerator": "cpu", "devices": 1, "max_epochs": 1}
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    loggers = importlib.import_module(f"{package}.loggers") if mode == "defaults" else None

    def run(batches: ReadyBatches, folder: str) -> None:
        extra = quiet if loggers is None else {"logger": loggers.CSVLogger(folder)}
        trainer_class(**base, **extra, default_root_dir=folder).fit(module_class(), batches)

    return run


def load_fabric(package: str) -> Run:
    framework = importlib.import_module(package)
    fabric_class = framework.Fabric

    def run(batches: ReadyBatches, folder: str) -> None:
        fabric = fabric_class(accelerator="cpu", devices=1)
        plain = make_model()
        model, optimizer = fabric.setup(plain, make_optimizer(plain))
        for features, labels in batches:
            loss = functional.cross_entropy(model(features), labels)
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()

    return run


def load_ignite() -> Run:
    engine_module = importlib.import_module("ignite.engine")

    def run(batches: ReadyBatches, folder: str) -> None:
        model = make_model()
        optimizer = make_optimizer(model)

        def update(engine: Any, batch: Batch) -> Tensor:
            features, labels = batch
            loss = functional.cross_entropy(model(features), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            return loss.detach()

        engine_module.Engine(update).run(batches, max_epochs=1)

    return run


def load_accelerate() -> Run:
    accelerate = importlib.import_module("accelerate")

    def run(batches: ReadyBatches, folder: str) -> None:
        accelerator = accelerate.Accelerator(cpu=True)
        plain = make_model()
        model, optimizer = accelerator.prepare(plain, make_optimizer(plain))
        for features, labels in batches:
            with accelerator.accumulate(model):
                loss = functional.cross_entropy(model(features), labels)
                optimizer.zero_grad()
                accelerator.backward(loss)
                optimizer.step()

    return run


class _LossModel(nn.Module):
    """A model in the form that Hugging Face's Trainer expects: it returns its own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.model = make_model()

    def forward(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": functional.cross_entropy(self.model(features), labels)}


def load_transformers() -> Run:
    transformers = importlib.import_module("transformers")
    trainer_class = transformers.Trainer

    class FromReadyBatches(trainer_class):  # type: ignore[misc, valid-type]
        def get_train_dataloader(self) -> Any:
            return self.train_dataset

    def run(batches: ReadyBatches, folder: str) -> None:
        named = [{"features": features, "labels": labels} for features, labels in batches]
        model = _LossModel()
        optimizer = make_optimizer(model)
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            max_steps=len(named),
            use_cpu=True,
            max_grad_norm=0.0,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        trainer = FromReadyBatches(
            model=model, args=arguments, train_dataset=named, optimizers=(optimizer, scheduler), callbacks=[]
        )
        trainer.train()

    return run


def load_keras() -> Run:
    os.environ["KERAS_BACKEND"] = "torch"
    keras = importlib.import_module("keras")

    class FromReadyBatches(keras.utils.PyDataset):  # type: ignore[misc, name-defined]
        def __init__(self, ready: ReadyBatches) -> None:
            super().__init__()
            self.batches = ready.batches

        def __len__(self) -> int:
            return len(self.batches)

        def __getitem__(self, index: int) -> Batch:
            return self.batches[index]

    def run(batches: ReadyBatches, folder: str) -> None:
        model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(CLASSES)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer=keras.optimizers.SGD(LEARNING_RATE), loss=loss)
        model.fit(FromReadyBatches(batches), epochs=1, verbose=0, shuffle=False)

    return run


def _trainer_rows(package: str, key: str, label: str, share: float) -> list[Contender]:
    meaning = {
        "off": "everything off",
        "log": "self.log(on_step, on_epoch, prog_bar), loggers off",
        "defaults": "the same log, bar, CSV logger, checkpoints, summary",
    }
    return [
        Contender(f"{key}-{mode}", f"{label}: {text}", lambda mode=mode: load_trainer(package, mode), share)  # type: ignore[misc]
        for mode, text in meaning.items()
    ]


CONTENDERS = (
    Contender("raw", "raw loop against itself (noise)", load_raw),
    *_trainer_rows("fulmen", "fulmen", "fulmen", 1.0),
    Contender("fulmen-fabric", "fulmen Fabric", lambda: load_fabric("fulmen")),
    *_trainer_rows("lightning.pytorch", "lightning", "Lightning", 0.25),
    Contender("lightning-fabric", "Lightning Fabric", lambda: load_fabric("lightning.fabric")),
    Contender("ignite", "ignite Engine", load_ignite),
    Contender(
        "accelerate", "Accelerate", load_accelerate, 0.5, "its batches are not prepared (no data loader of its own)"
    ),
    Contender(
        "transformers", "Hugging Face Trainer", load_transformers, 0.25, "batches are dictionaries; loop, no logging"
    ),
    Contender("keras", "Keras on torch", load_keras, 0.25, "batches come through a PyDataset; its own Dense and SGD"),
)
