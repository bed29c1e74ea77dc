"""What is in a checkpoint: the keys, the counters (held against a record of the reference), and the hooks around it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fulmen
from fulmen.callbacks import ModelCheckpoint
from fulmen.fabric.precision import Precision

pytestmark = pytest.mark.filterwarnings("ignore::fulmen.errors.PossibleUserWarning")

KEYS = [
    "epoch",
    "global_step",
    "pytorch-lightning_version",
    "state_dict",
    "loops",
    "callbacks",
    "optimizer_states",
    "lr_schedulers",
]


# ---------------------------------------------------------------------------------------------------- the record


def read_record() -> dict[str, list[tuple[str, str]]]:
    """The recorded checkpoints of each scenario: file name and short form."""
    scenarios: dict[str, list[tuple[str, str]]] = {}
    text = (Path(__file__).parent / "loops_record.txt").read_text()
    for block in text.split("\n== ")[1:]:
        head, *files = block.split("\n-- ")
        parts = [file.partition("\n") for file in files]
        scenarios[head.partition(":")[0]] = [(name, body.rstrip()) for name, _, body in parts]
    return scenarios


RECORD = read_record()


def marks(counts: dict[str, int], names: str) -> str:
    return "/".join(str(counts[name]) for name in names.split())


def progress(state: dict[str, Any], names: str) -> str:
    return f"total {marks(state['total'], names)} current {marks(state['current'], names)}"


def short(checkpoint: dict[str, Any]) -> str:
    """The counters of a checkpoint in the form of the record."""
    loops = checkpoint["loops"]
    fit = loops["fit_loop"]
    four, two, three = "ready started processed completed", "ready completed", "ready started completed"
    stateful = f" fit.state_dict={fit['state_dict']}" if fit["state_dict"] else ""
    head = f"epoch={checkpoint['epoch']} global_step={checkpoint['global_step']} stepped={fit['epoch_loop.state_dict']}"
    batches, validation = fit["epoch_loop.batch_progress"], fit["epoch_loop.val_loop.batch_progress"]
    optimizer = fit["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    scheduler = fit["epoch_loop.scheduler_progress"]
    by_hand = fit["epoch_loop.manual_optimization.optim_step_progress"]
    lines = [
        head + stateful,
        f"epoch_progress {progress(fit['epoch_progress'], four)}",
        f"batch_progress {progress(batches, four)} is_last={batches['is_last_batch']}",
        f"auto step      {progress(optimizer['step'], two)} ; zero_grad {progress(optimizer['zero_grad'], three)}",
    ]
    if scheduler["total"]["ready"]:
        lines.append(f"scheduler      {progress(scheduler, two)}")
    if by_hand["total"]["ready"]:
        lines.append(f"manual step    {progress(by_hand, two)}")
    if validation["current"]["ready"]:
        lines.append(f"val batch      {progress(validation, four)} is_last={validation['is_last_batch']}")
    if loops["validate_loop"]["batch_progress"]["total"]["ready"]:
        lines.append(f"validate_loop {json.dumps(loops['validate_loop'])}")
    return "\n".join("  " + line for line in lines)


# ---------------------------------------------------------------------------------------------------- the runs


class Net(fulmen.LightningModule):
    def __init__(self, interval: str | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.interval = interval

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).sum()

    def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.layer(batch).sum())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        if self.interval is None:
            return optimizer
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.interval}}


class Manual(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        self.manual_backward(self.layer(batch).sum())
        for optimizer in self.optimizers():
            optimizer.step()
        for scheduler in self.lr_schedulers():
            scheduler.step()

    def configure_optimizers(self) -> Any:
        optimizers = [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]
        return optimizers, [torch.optim.lr_scheduler.StepLR(optimizer, 1) for optimizer in optimizers]


class Saver(fulmen.Callback):
    """Saves in one hook, whenever the step is a multiple of `every`, and in `on_exception`."""

    order = 1

    def __init__(self, hook: str, directory: Path, every: int = 1, name: str | None = None) -> None:
        self.name = name

        def save(trainer: fulmen.Trainer, *_: Any) -> None:
            if trainer.global_step != self.saved and trainer.global_step % every == 0:
                self.saved = trainer.global_step
                file = name or f"epoch={trainer.current_epoch}-step={trainer.global_step}.ckpt"
                trainer.save_checkpoint(directory / file)

        self.saved = 0
        setattr(self, hook, save)


class Boom(Exception):
    """What the broken modules raise."""


def breaks(hook: str, at: tuple[int, int]) -> Callable[[], Net]:
    """A module that raises in `hook` in a given epoch and batch."""

    class Breaks(Net):
        pass

    def broken(self: Net, *arguments: Any) -> Any:
        if (self.current_epoch, arguments[-1]) == at:
            raise Boom
        return getattr(Net, hook)(self, *arguments)

    setattr(Breaks, hook, broken)
    return Breaks


def loader(batches: int) -> DataLoader[Tensor]:
    return DataLoader(torch.ones(batches, 2))  # type: ignore[arg-type]


class Stateful:
    """A loader with a state that it keeps itself."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Any:
        return iter(torch.ones(3, 1, 2))

    def state_dict(self) -> dict[str, int]:
        return {"n": 0}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """There is nothing to load."""


@dataclass
class Run:
    module: Callable[[], Net] = Net
    saver: Callable[[Path], Any] = lambda path: ModelCheckpoint(path, save_top_k=-1)
    train: Any = 3
    validation: list[int] = field(default_factory=lambda: [2])
    arguments: dict[str, Any] = field(default_factory=dict)
    afterwards: Callable[[fulmen.Trainer, Path], None] = lambda trainer, path: None


def at_batch_end(every: int = 1) -> Callable[[Path], Saver]:
    return lambda path: Saver("on_train_batch_end", path, every)


def on_exception(path: Path) -> Saver:
    return Saver("on_exception", path, name="exc.ckpt")


def validated(trainer: fulmen.Trainer, path: Path) -> None:
    trainer.validate(trainer.lightning_module, loader(2), verbose=False)
    trainer.save_checkpoint(path / "after_validate.ckpt")


def saved(trainer: fulmen.Trainer, path: Path) -> None:
    trainer.save_checkpoint(path / "after.ckpt")


NONE: dict[str, Any] = {"saver": lambda path: Saver("on_train_start", path)}
ONE_EPOCH = {"max_epochs": 1}
RUNS: dict[str, Run] = {
    "a1": Run(),
    "a1b": Run(validation=[]),
    "a1c": Run(arguments={"num_sanity_val_steps": 2, **ONE_EPOCH}),
    "a1d": Run(saver=lambda path: ModelCheckpoint(path, monitor="val_loss"), arguments=ONE_EPOCH),
    "a2": Run(saver=at_batch_end(2), validation=[]),
    # our ModelCheckpoint would wait for the validation that follows, so as to see its metrics
    "a3": Run(saver=at_batch_end(2), arguments={"val_check_interval": 2}),
    "a3b": Run(saver=at_batch_end(2)),
    "a3c": Run(
        saver=lambda path: ModelCheckpoint(path, save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=False),
        arguments={"val_check_interval": 2},
    ),
    "a4": Run(module=breaks("training_step", (1, 1)), saver=on_exception),
    "a4b": Run(module=breaks("validation_step", (0, 1)), saver=on_exception),
    "a4c": Run(module=breaks("on_train_batch_end", (0, 1)), saver=on_exception, validation=[]),
    "a5": Run(**NONE, afterwards=saved),
    "a5b": Run(**NONE, afterwards=validated),
    "a6": Run(module=Manual, arguments=ONE_EPOCH),
    "a6b": Run(module=Manual, saver=at_batch_end(2), validation=[], arguments=ONE_EPOCH),
    "a7": Run(arguments={"accumulate_grad_batches": 2}),
    "a7b": Run(saver=at_batch_end(), validation=[], arguments={"accumulate_grad_batches": 2, **ONE_EPOCH}),
    "a8": Run(module=lambda: Net("epoch")),
    "a8b": Run(module=lambda: Net("step"), saver=at_batch_end(2), validation=[], arguments=ONE_EPOCH),
    "a9": Run(validation=[2, 1]),
    "a10": Run(**NONE, validation=[], arguments={"max_steps": 2}, afterwards=saved),
    "a11": Run(train=Stateful(), saver=at_batch_end(2), validation=[], arguments=ONE_EPOCH),
    "a12": Run(train=4, saver=lambda path: Saver("on_validation_end", path), arguments={"val_check_interval": 2}),
    "a13": Run(
        train=4,
        saver=lambda path: ModelCheckpoint(path, save_top_k=-1, save_on_train_epoch_end=True),
        arguments={"val_check_interval": 2},
    ),
    "a14": Run(
        saver=lambda path: ModelCheckpoint(path, save_top_k=-1, save_on_train_epoch_end=True),
        arguments={"check_val_every_n_epoch": 2, "max_epochs": 3},
    ),
}


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


def test_the_record_is_complete() -> None:
    assert list(RUNS) == list(RECORD)


@pytest.mark.filterwarnings("ignore:There is a `validation_step` but no val")
@pytest.mark.parametrize("name", RUNS)
def test_counters_are_those_of_the_reference(name: str, tmp_path: Path) -> None:
    run = RUNS[name]
    trainer = make_trainer(tmp_path, run.saver(tmp_path), **run.arguments)
    train = loader(run.train) if isinstance(run.train, int) else run.train
    validation = [loader(batches) for batches in run.validation]
    try:
        trainer.fit(run.module(), train, validation or None)
    except Boom:
        assert name.startswith("a4")
    run.afterwards(trainer, tmp_path)
    expected = RECORD[name]
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == sorted(file for file, _ in expected)
    for file, text in expected:
        if name == "a4":  # their optimizer step begins before the forward pass, which it contains, and ours after it
            text = text.replace("auto step      total 5/4 current 2/1", "auto step      total 4/4 current 1/1")
        assert short(torch.load(tmp_path / file)) == text


def test_every_key_of_the_counters_is_there(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, ModelCheckpoint(tmp_path), max_epochs=1)
    trainer.fit(Net(), loader(3), loader(2))
    loops = torch.load(trainer.checkpoint_callback.best_model_path)["loops"]

    def four(count: int, completed: int | None = None) -> dict[str, int]:
        completed = count if completed is None else completed
        return {"ready": count, "completed": completed, "started": count, "processed": count}

    def both(counts: dict[str, int], **more: Any) -> dict[str, Any]:
        return {"total": counts, "current": counts, **more}

    def two(count: int) -> dict[str, int]:
        return {"ready": count, "completed": count}

    unused = {"state_dict": {}, "batch_progress": both(four(0))}
    expected = {
        "fit_loop": {
            "state_dict": {},
            "epoch_loop.state_dict": {"_batches_that_stepped": 3},
            "epoch_loop.batch_progress": both(four(3), is_last_batch=True),
            "epoch_loop.scheduler_progress": both(two(0)),
            "epoch_loop.automatic_optimization.state_dict": {},
            "epoch_loop.automatic_optimization.optim_progress": {
                "optimizer": {"step": both(two(3)), "zero_grad": both({**two(3), "started": 3})}
            },
            "epoch_loop.manual_optimization.state_dict": {},
            "epoch_loop.manual_optimization.optim_step_progress": both(two(0)),
            "epoch_loop.val_loop.state_dict": {},
            "epoch_loop.val_loop.batch_progress": both(four(2), is_last_batch=True),
            "epoch_progress": both(four(1, completed=0)),
        },
        "validate_loop": {"state_dict": {}, "batch_progress": both(four(0), is_last_batch=False)},
        "test_loop": {"state_dict": {}, "batch_progress": both(four(0), is_last_batch=False)},
        "predict_loop": unused,
    }
    assert json.dumps(loops) == json.dumps(expected)  # also in the same order


# ---------------------------------------------------------------------------------------------------- the keys


class WithParameters(Net):
    def __init__(self, width: int = 1, name: str = "a") -> None:
        super().__init__()
        self.save_hyperparameters()


class Data(fulmen.LightningDataModule):
    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.taken: list[Any] = []

    def train_dataloader(self) -> DataLoader[Tensor]:
        return loader(3)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": 7}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken.append(state)


@pytest.fixture
def fitted(tmp_path: Path) -> fulmen.Trainer:
    trainer = make_trainer(tmp_path, ModelCheckpoint(tmp_path), max_epochs=1)
    with pytest.warns(UserWarning, match="no val dataloader"):
        trainer.fit(WithParameters(), datamodule=Data())
    return trainer


def test_the_keys_in_order(fitted: fulmen.Trainer) -> None:
    checkpoint = torch.load(fitted.checkpoint_callback.best_model_path)
    parameters = ["hparams_name", "hyper_parameters"]
    datamodule = ["datamodule_hparams_name", "datamodule_hyper_parameters", "Data"]
    assert list(checkpoint) == [*KEYS, *parameters, *datamodule, "fulmen"]
    assert checkpoint["hyper_parameters"] == {"width": 1, "name": "a"}
    assert checkpoint["datamodule_hyper_parameters"] == {"size": 3}
    assert checkpoint["Data"] == {"seen": 7}
    assert list(checkpoint["callbacks"]) == [fitted.checkpoint_callback.state_key]
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == 0.1
    assert checkpoint["lr_schedulers"] == []


def test_without_parameters_and_datamodule_their_keys_are_missing(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, ModelCheckpoint(tmp_path), max_epochs=1)
    trainer.fit(Net(), loader(3), loader(1))
    assert list(torch.load(trainer.checkpoint_callback.best_model_path)) == [*KEYS, "fulmen"]


def test_weights_only(fitted: fulmen.Trainer, tmp_path: Path) -> None:
    fitted.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    checkpoint = torch.load(tmp_path / "weights.ckpt")
    left_out = {"callbacks", "optimizer_states", "lr_schedulers"}
    assert not left_out & set(checkpoint)
    assert [key for key in KEYS if key not in left_out] == list(checkpoint)[:5]
    assert "hyper_parameters" in checkpoint


def test_the_precision_has_its_own_key(tmp_path: Path) -> None:
    class Scaled(Precision):
        def state_dict(self) -> dict[str, Any]:
            return {"scale": 2.0}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.taken = state

    trainer = make_trainer(tmp_path, max_epochs=1, plugins=[Scaled()])
    trainer.fit(Net(), loader(3), loader(1))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt")
    key = Scaled.__qualname__
    assert checkpoint[key] == {"scale": 2.0}
    assert list(checkpoint) == [*KEYS, key, "fulmen"]

    precision = Scaled()
    make_trainer(tmp_path, plugins=[precision]).fit(Net(), loader(3), loader(1), ckpt_path=tmp_path / "a.ckpt")
    assert precision.taken == {"scale": 2.0}


def test_there_is_nothing_to_save_before_a_run(tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match=r"no model is attached\. Call it after `fit`"):
        make_trainer(tmp_path).save_checkpoint(tmp_path / "a.ckpt")


# ---------------------------------------------------------------------------------------------------- the hooks


class Tape(list[str]):
    def noting(self, cls: type, name: str, *hooks: str) -> Any:
        """An object of a subclass of `cls` that notes when these hooks are called."""

        def noted(hook: str) -> Callable[..., Any]:
            def call(this: Any, *arguments: Any, **keywords: Any) -> Any:
                self.append(f"{name}.{hook}")
                return getattr(cls, hook)(this, *arguments, **keywords)

            return call

        return type(cls.__name__, (cls,), {hook: noted(hook) for hook in hooks})


class Counting(fulmen.Callback):
    def __init__(self, key: str, state: dict[str, Any]) -> None:
        self.key, self.state = key, state

    @property
    def state_key(self) -> str:
        return self.key

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


HOOKS = ("state_dict", "load_state_dict", "on_save_checkpoint", "on_load_checkpoint")


def test_the_order_of_the_hooks(tmp_path: Path) -> None:
    tape = Tape()

    def run(**arguments: Any) -> fulmen.Trainer:
        checkpoint = tape.noting(ModelCheckpoint, "checkpoint", "state_dict", "load_state_dict")(tmp_path)
        callbacks = [
            tape.noting(Counting, "a", *HOOKS)("key_a", {"n": "a"}),
            tape.noting(Counting, "b", *HOOKS)("key_b", {}),
        ]
        trainer = make_trainer(tmp_path, checkpoint, *callbacks, limit_val_batches=0)
        module = tape.noting(Net, "module", *HOOKS)()
        trainer.fit(module, datamodule=tape.noting(Data, "data", *HOOKS)(), **arguments)
        return trainer

    trainer = run()
    one_save = [
        *("module.state_dict", "a.state_dict", "b.state_dict", "checkpoint.state_dict", "data.state_dict"),
        *("a.on_save_checkpoint", "b.on_save_checkpoint", "module.on_save_checkpoint"),
    ]
    assert tape == one_save * 2
    tape.clear()
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    assert tape == ["module.state_dict", "data.state_dict", "module.on_save_checkpoint"]
    tape.clear()
    run(ckpt_path=trainer.checkpoint_callback.best_model_path)
    assert tape == [
        *("module.on_load_checkpoint", "module.load_state_dict", "data.load_state_dict"),
        *("a.on_load_checkpoint", "b.on_load_checkpoint", "a.load_state_dict", "checkpoint.load_state_dict"),
    ]


def test_hooks_may_change_the_checkpoint(tmp_path: Path) -> None:
    class Changing(Net):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["mine"] = 3
            del checkpoint["state_dict"]["layer.bias"]

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["state_dict"]["layer.bias"] = torch.full((1,), float(checkpoint["mine"]))

    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(Changing(), loader(3), loader(1))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    module = Changing()
    make_trainer(tmp_path, max_epochs=1).fit(module, loader(3), loader(1), ckpt_path=tmp_path / "a.ckpt")
    assert module.layer.bias.item() == 3


def test_a_callback_gets_a_copy_of_its_state(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    trainer = make_trainer(tmp_path, Counting("a", {"items": [1]}), max_epochs=1)
    trainer.fit(Net(), loader(3), loader(1))
    trainer.save_checkpoint(path)

    class Watching(Counting):
        def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
            self.checkpoint = checkpoint

    callback = Watching("a", {})
    make_trainer(tmp_path, callback, max_epochs=1).fit(Net(), loader(3), loader(1), ckpt_path=path)
    assert callback.state == {"items": [1]}
    assert callback.state["items"] is not callback.checkpoint["callbacks"]["a"]["items"]


def test_logging_goes_on_after_a_checkpoint_in_the_middle_of_a_step(tmp_path: Path) -> None:
    class Saving(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            self.trainer.save_checkpoint(tmp_path / "a.ckpt")
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss)
            return loss

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            """Its mere presence makes it the current hook."""

    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(Saving(), loader(3), loader(1))
    assert "loss" in trainer.callback_metrics
