"""``fulmen demo``: runs the example ``digits.py``, and says where everything is and how to go on."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fulmen.extras import need

if TYPE_CHECKING:
    from fulmen.trainer import Trainer

__all__ = ["add_command", "run"]

ROOT = "fulmen_runs/digits"


def add_command(commands: Any) -> None:
    """Adds ``demo`` to the subcommands of the command line."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "demo",
        help="train a network that reads handwritten digits",
        description="Trains a small network on 1,797 scans of handwritten digits, in some seconds. Ctrl-C at any time"
        " leaves a checkpoint to continue from.",
    )
    parser.add_argument("--root", default=ROOT, help="folder of the runs (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="continue the last run from its last checkpoint")
    parser.add_argument("--max-epochs", type=int, default=20, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Trains and tests, or goes on with that.

    Args:
        arguments: ``root``, ``resume``, ``max_epochs`` and ``seed``.

    Returns:
        The exit status: 0, or that of the run if it was stopped.
    """
    try:
        need("sklearn")
    except ModuleNotFoundError as error:
        print(f"The demo reads scikit-learn's scans of digits. {error}", file=sys.stderr)
        return 1
    resumed = last_run(arguments.root) if arguments.resume else None
    if resumed is not None and is_complete(folder := run_folder(arguments.root, resumed)):
        print(f"The last run is complete, there is nothing to continue. Its report: {folder / 'report.html'}")
        print(f"To start a new one: {command(arguments, resume=False)}")
        return 0
    if arguments.resume and resumed is None:
        print(f"There is no checkpoint in {arguments.root} to continue from; a new run begins.")
    return train(arguments, resumed)


def train(arguments: argparse.Namespace, resumed: int | None) -> int:
    """Runs the example, and says what came of it."""
    script = script_path()
    before, begin = last_run(arguments.root), time.monotonic()
    print("A small network learns to read handwritten digits. Ctrl-C stops it; nothing is lost.", flush=True)
    try:
        with one_thread():
            trainer = load(script).main(arguments.root, resumed, arguments.max_epochs, arguments.seed)
    except (SystemExit, KeyboardInterrupt) as stop:
        now = last_run(arguments.root)
        say_how_to_continue(arguments, now if resumed is not None or now != before else None)
        return stop.code if isinstance(stop, SystemExit) and isinstance(stop.code, int) else 130
    say_where_everything_is(trainer, script, time.monotonic() - begin)
    return 0


@contextmanager
def one_thread() -> Iterator[None]:
    """Images of 8 x 8 are too small to share: on a busy machine a second thread costs many times what it brings."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def say_where_everything_is(trainer: Trainer, script: Path, seconds: float) -> None:
    """The result, and the files of the run."""
    folder, checkpoints = Path(trainer.log_dir or "."), trainer.checkpoint_callback
    best = Path(getattr(checkpoints, "best_model_path", ""))
    accuracy = float(trainer.callback_metrics["test_accuracy"])
    print(f"\nTest accuracy {accuracy:.4f} on scans that were not used before, in {seconds:.0f} seconds.\n")
    rows = {
        "report": folder / "report.html",
        "metrics": folder / "metrics.csv",
        "best checkpoint": shown(best),
        "last checkpoint": shown(best.with_name("last.ckpt")),
        "script": shown(script),
    }
    print("\n".join(f"  {name:<15}  {path}" for name, path in rows.items()))


def say_how_to_continue(arguments: argparse.Namespace, number: int | None) -> None:
    """What to type after the run was stopped; ``number`` is the run, None if it has no checkpoint yet."""
    if number is None:
        print(f"\nStopped before the first checkpoint. To start again: {command(arguments, resume=False)}")
        return
    folder = run_folder(arguments.root, number)
    print(f"\nStopped. The state of the run is in {folder / 'checkpoints' / 'last.ckpt'}")
    print(f"To continue from there: {command(arguments, resume=True)}")


def command(arguments: argparse.Namespace, resume: bool) -> str:
    """The command line, as it can be typed here."""
    program = sys.argv[0]
    if Path(program).name == "__main__.py":
        program = f"{shown(sys.executable)} -m fulmen"
    elif (found := shutil.which("fulmen")) and os.path.realpath(found) == os.path.realpath(program):
        program = "fulmen"
    root = "" if arguments.root == ROOT else f" --root {arguments.root}"
    return f"{program} demo{' --resume' if resume else ''}{root}"


# ---------------------------------------------------------------------------------------------------- files


def last_run(root: str) -> int | None:
    """The highest number of a run that left a checkpoint, None if there is none."""
    found = Path(root).glob("version_*/checkpoints/last*.ckpt")
    numbers = [re.fullmatch(r"version_(\d+)", path.parts[-3]) for path in found]
    return max((int(match.group(1)) for match in numbers if match), default=None)


def run_folder(root: str, number: int) -> Path:
    """Where a run keeps everything."""
    return Path(root) / f"version_{number}"


def is_complete(folder: Path) -> bool:
    """Whether a run has come to the test at its end."""
    metrics = folder / "metrics.csv"
    return metrics.exists() and "test_accuracy" in metrics.read_text().partition("\n")[0]


def script_path() -> Path:
    """The example: in an installed package beside this file, in a clone of the repository under ``examples``."""
    here = Path(__file__).parent
    installed = here / "examples" / "digits.py"
    return installed if installed.exists() else here.parents[1] / "examples" / "digits.py"


def load(script: Path) -> ModuleType:
    """Imports a file that is not on the path."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[script.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown(path: str | Path) -> str:
    """A path as it is typed from here: relative, if it is below this folder."""
    absolute, here = Path(path).absolute(), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(path)
