"""Files of older layouts, brought to the present one for good."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from fulmen.checkpoint.format import LIGHTNING_VERSION, VERSION
from fulmen.checkpoint.migration import migrate
from fulmen.checkpoint.store import TorchCheckpointIO, read, to_cpu
from fulmen.errors import CheckpointError

__all__ = ["find", "main", "upgrade"]


def main(arguments: list[str] | None = None) -> None:
    """Upgrades the files that a command line names.

    Args:
        arguments: Those of the command line; None for the process's own.

    Raises:
        SystemExit: There is nothing to upgrade (status 1), a file cannot be (1), or the command line is wrong (2).
    """
    options = _parser().parse_args(arguments)
    files = find(options.path, options.extension)
    if not files:
        sys.exit(
            f"There is no checkpoint at {str(options.path)!r}: no such file, and no *{options.extension} below it."
        )
    failed = 0
    for file in files:
        try:
            print(f"{file}: {upgrade(file, options.map_to_cpu, weights_only=not options.trust)}")
        except (CheckpointError, OSError) as error:
            failed += 1
            print(f"{file}: left as it is. {error}", file=sys.stderr)
    if failed:
        trust = "" if options.trust else " Files of yours that were refused for what is in them: type --trust."
        sys.exit(f"{failed} of {len(files)} file(s) could not be upgraded.{trust}")


def find(path: Path, extension: str = ".ckpt") -> list[Path]:
    """The files at a path: itself, or all in a folder and below it that end in `extension`."""
    return [path] if path.is_file() else sorted(each for each in path.rglob(f"*{extension}") if each.is_file())


def upgrade(path: Path, map_to_cpu: bool = False, weights_only: bool = True) -> str:
    """Brings one file to the present layout; what it was before is kept beside it as `.bak`.

    Args:
        path: The file.
        map_to_cpu: Put its tensors on the CPU.
        weights_only: As for `torch.load`; False unpickles anything, so only for files you trust.

    Returns:
        What was done.

    Raises:
        CheckpointError: It is no checkpoint, or holds what `weights_only` refuses. The file is as it was.
        OSError: It cannot be read or written.
    """
    checkpoint = read(path, to_cpu if map_to_cpu else None, weights_only)
    migrated = migrate(checkpoint)
    if migrated is checkpoint and not map_to_cpu:
        return f"has the layout of {LIGHTNING_VERSION} already"
    backup = _unused(path.with_suffix(".bak"))
    shutil.copy2(path, backup)
    TorchCheckpointIO().save_checkpoint(migrated, path)
    return f"upgraded from {checkpoint[VERSION]} to {LIGHTNING_VERSION}; the old file is {backup}"


def _unused(path: Path) -> Path:
    """The path itself, or with a number if there is a file: an earlier copy is not lost either."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}{number}")
    return candidate


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fulmen.utilities.upgrade_checkpoint",
        description=f"Brings checkpoints of older versions to the layout of {LIGHTNING_VERSION}, for good. "
        "A copy of each changed file is kept as .bak.",
    )
    parser.add_argument("path", type=Path, help="a checkpoint, or a folder to search for them")
    parser.add_argument("--extension", default=".ckpt", help="what the checkpoints in a folder end in (%(default)s)")
    parser.add_argument("--map-to-cpu", action="store_true", help="put all tensors on the CPU")
    parser.add_argument(
        "--trust", action="store_true", help="also load files with other things than tensors and plain values in them,"
        " which can run any code"
    )  # fmt: skip
    return parser
