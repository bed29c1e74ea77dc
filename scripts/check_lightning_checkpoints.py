"""Checkpoints both ways: ``check_lightning_checkpoints.py PYTHON``, a Python with Lightning installed.

Each side trains for three epochs and keeps checkpoints inside of each epoch, after its validation and at its end. Then
each side goes on from each of these, and is compared with the run that was not interrupted: counters, weights and
learning rates. Only the public interface of Lightning is used.

Exit code 1 when fulmen does not end as the whole run from a checkpoint of either side, or when Lightning does worse
from ours than from its own. What a file of Lightning does not hold cannot be made up: the step of a scheduler on a
plateau that comes after the checkpoint of the epoch, or its metric.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

PACKAGES = {"fulmen": "fulmen", "lightning": "lightning.pytorch"}
SCENARIOS = ("plain", "by_step", "plateau", "manual", "accumulate", "hyperparameters", "early_stopping")
EPOCHS, BATCHES = 3, 4


def define(package: Any, scenario: str) -> Any:
    """Returns a module of the package at hand; its samples have a fixed order, and nothing in it is random."""
    import torch

    class Net(package.LightningModule):
        def __init__(self, rate: float = 0.1, name: str = "net") -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)
            with torch.no_grad():
                self.layer.weight.fill_(0.5)
                self.layer.bias.zero_()
            self.automatic_optimization = scenario != "manual"
            if scenario == "hyperparameters":
                self.save_hyperparameters()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = (self.layer(batch) - 1).pow(2).mean()
            if scenario == "manual":
                optimizer, scheduler = self.optimizers(), self.lr_schedulers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
                scheduler.step()
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", (self.layer(batch) - 1).pow(2).mean())

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
            schedulers = torch.optim.lr_scheduler
            if scenario == "plateau":
                scheduler: Any = schedulers.ReduceLROnPlateau(optimizer, patience=0)
                return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}
            scheduler = schedulers.StepLR(optimizer, 2, gamma=0.5)
            interval = "step" if scenario == "by_step" else "epoch"
            config = (
                {"scheduler": scheduler} if scenario == "manual" else {"scheduler": scheduler, "interval": interval}
            )
            return {"optimizer": optimizer, "lr_scheduler": config}

    return Net()


def train(side: str, scenario: str, directory: Path, ckpt_path: str | None) -> dict[str, Any]:
    """Fits on one side, from a checkpoint or the beginning; returns what the run came to."""
    import torch
    from torch.utils.data import DataLoader

    package = importlib.import_module(PACKAGES[side])
    callbacks = importlib.import_module(f"{PACKAGES[side]}.callbacks")
    data = torch.arange(2.0 * BATCHES).reshape(BATCHES, 2) / 10
    keep: list[Any] = []
    if ckpt_path is None:
        keep = [
            callbacks.ModelCheckpoint(directory, "end-{epoch}", save_top_k=-1, save_on_train_epoch_end=True),
            callbacks.ModelCheckpoint(directory, "inside-{step}", save_top_k=-1, every_n_train_steps=2),
            callbacks.ModelCheckpoint(
                directory, "validated-{step}", monitor="val_loss", save_top_k=-1, save_on_train_epoch_end=False
            ),
        ]
    if scenario == "early_stopping":
        keep.append(callbacks.EarlyStopping("val_loss", patience=20))
    module = define(package, scenario)
    trainer = package.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        accumulate_grad_batches=2 if scenario == "accumulate" else 1,
        logger=False,
        enable_checkpointing=ckpt_path is None,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=directory,
        callbacks=keep,
    )
    trainer.fit(module, DataLoader(data), DataLoader(data), ckpt_path=ckpt_path)
    return {
        "counters": [trainer.current_epoch, trainer.global_step],
        "weights": [value.flatten().tolist() for value in module.state_dict().values()],
        "rates": [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups],
    }


def work(side: str, tasks: Path) -> None:
    """Does the tasks of a file, in a process of the environment of that side, and writes the outcomes next to it."""
    warnings.simplefilter("ignore")
    import logging

    logging.disable(logging.WARNING)
    outcomes = []
    for scenario, directory, ckpt_path in json.loads(tasks.read_text()):
        try:
            outcomes.append(train(side, scenario, Path(directory), ckpt_path))
        except Exception as error:
            outcomes.append({"error": f"{type(error).__name__}: {error}"})
    tasks.with_suffix(".out").write_text(json.dumps(outcomes))


def run(python: str, side: str, tasks: list[tuple[str, str, str | None]], directory: Path) -> list[dict[str, Any]]:
    """Has the tasks done by the Python of one side."""
    file = directory / f"{side}-{len(list(directory.iterdir()))}.json"
    file.write_text(json.dumps(tasks))
    subprocess.run([python, __file__, "--side", side, "--tasks", str(file)], check=True)
    return json.loads(file.with_suffix(".out").read_text())  # type: ignore[no-any-return]


def verdict(outcome: dict[str, Any], whole: dict[str, Any]) -> str:
    """Compares two runs; the two sides may compute on different versions of torch."""
    if "error" in outcome or "error" in whole:
        return "fails"
    values = [[x for part in side["weights"] for x in part] + side["rates"] for side in (outcome, whole)]
    near = all(abs(a - b) <= 1e-6 * max(1, abs(a)) for a, b in zip(*values, strict=True))
    return "equal" if near and outcome["counters"] == whole["counters"] else "differs"


def compare(pythons: dict[str, str], directory: Path) -> int:
    """Trains on both sides, crosses over, prints a line for each checkpoint; returns the number of failures."""
    whole = {}
    for side, python in pythons.items():
        tasks: list[tuple[str, str, str | None]] = [(name, str(directory / side / name), None) for name in SCENARIOS]
        whole[side] = dict(zip(SCENARIOS, run(python, side, tasks, directory), strict=True))
    failures = [name for name in SCENARIOS if verdict(whole["fulmen"][name], whole["lightning"][name]) != "equal"]
    for name in failures:
        print(f"{name}: the whole runs differ: {[whole[side][name] for side in pythons]}")
    verdicts: dict[tuple[str, str, str, str], str] = {}
    for written_by, read_by in itertools.product(PACKAGES, PACKAGES):
        files = [(name, file) for name in SCENARIOS for file in sorted((directory / written_by / name).glob("*.ckpt"))]
        tasks = [(name, str(directory / "resumed"), str(file)) for name, file in files]
        for (name, file), outcome in zip(files, run(pythons[read_by], read_by, tasks, directory), strict=True):
            found = verdicts[written_by, read_by, name, file.name] = verdict(outcome, whole[written_by][name])
            print(f"{written_by} -> {read_by}, {name}, {file.name}: {found} {outcome.get('error', '')}".rstrip())
    return len(failures) + sum(not acceptable(case, found, verdicts) for case, found in verdicts.items())


def acceptable(case: tuple[str, str, str, str], found: str, verdicts: dict[tuple[str, str, str, str], str]) -> bool:
    """Returns whether a verdict is what can be expected."""
    written_by, read_by, name, file = case
    if found == "equal" or (written_by, read_by) == ("lightning", "lightning"):
        return True
    if read_by == "fulmen":
        return written_by == "lightning" and name == "plateau" and not file.startswith("inside")
    # the last batch's checkpoint is taken after its validation by fulmen, and before it by Lightning
    kinds = ("inside", "validated") if file.startswith("inside") else (file.partition("-")[0],)
    own = {verdicts.get(("lightning", "lightning", name, f"{kind}-{file.partition('-')[2]}")) for kind in kinds}
    accepted = found in own
    if not accepted:
        print(f"worse than from its own: {case}: {found}, {own}")
    return accepted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", nargs="?", help="the Python of an environment with Lightning")
    parser.add_argument("--side", choices=PACKAGES, help=argparse.SUPPRESS)
    parser.add_argument("--tasks", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.tasks is not None:
        work(args.side, args.tasks)
        return 0
    if args.python is None:
        parser.error("name the Python of an environment with Lightning")
    with tempfile.TemporaryDirectory() as name:
        failures = compare({"fulmen": sys.executable, "lightning": args.python}, Path(name).resolve())
    print(f"{failures} failures" if failures else "as good as can be")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
