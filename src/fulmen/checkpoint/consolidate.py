"""One file made of a sharded checkpoint: `fulmen consolidate FOLDER`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from fulmen.checkpoint.sharded import read_sharded
from fulmen.checkpoint.store import TorchCheckpointIO
from fulmen.errors import CheckpointError
from fulmen.paths import absolute, exists

__all__ = ["add_command", "consolidate", "main"]

_SUFFIX = ".consolidated"


def consolidate(folder: str | Path, output_file: str | Path | None = None, weights_only: bool | None = None) -> str:
    """Makes one file of a sharded checkpoint, as a run on one device would have saved it.

    No process group is needed, and memory for the checkpoint once.

    Args:
        folder: The sharded checkpoint; a path or URL. It stays.
        output_file: The file; None for `<folder>.consolidated`.
        weights_only: As for `torch.load`; False unpickles anything, so only for checkpoints you trust.

    Returns:
        The path of the file.

    Raises:
        FileNotFoundError: There is no `folder`.
        FileExistsError: There is something at `output_file`.
        CheckpointError: `folder` is no sharded checkpoint, or holds what `weights_only` refuses.
        OSError: The file cannot be written.
    """
    path = absolute(str(folder).rstrip("/") + _SUFFIX if output_file is None else output_file)
    if exists(path):
        raise FileExistsError(
            f"There is something at {path!r} already. Remove it, or name another file: --output_file=PATH"
        )
    TorchCheckpointIO().save_checkpoint(read_sharded(folder, weights_only=weights_only), path)
    return path


def add_command(commands: Any) -> None:
    """Adds ``consolidate`` to the subcommands of the command line."""
    text = "make one file of a sharded checkpoint"
    parser: argparse.ArgumentParser = commands.add_parser("consolidate", help=text, description=f"{text.capitalize()}.")
    _add_arguments(parser)


def main(arguments: list[str] | None = None) -> None:
    """Consolidates the checkpoint that a command line names.

    Args:
        arguments: Those of the command line; None for the process's own.

    Raises:
        SystemExit: With status 1 if it could not be done, 2 if the command line is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fulmen.utilities.consolidate_checkpoint", description="Makes one file of a sharded checkpoint."
    )
    _add_arguments(parser)
    options = parser.parse_args(arguments)
    if status := run(options):
        sys.exit(status)


def run(arguments: argparse.Namespace) -> int:
    """Consolidates, and says so.

    Args:
        arguments: `checkpoint_folder`, `output_file` and `trust`.

    Returns:
        The exit status: 0, or 1 with the reason on the standard error.
    """
    try:
        path = consolidate(arguments.checkpoint_folder, arguments.output_file, False if arguments.trust else None)
    except (CheckpointError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Written: {path}")
    return 0


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint_folder", metavar="FOLDER", help="the directory of the sharded checkpoint")
    parser.add_argument(
        "--output_file",
        "--output-file",
        metavar="PATH",
        help=f"the file to write; it must not be there (default: FOLDER{_SUFFIX})",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="also read checkpoints with other things than tensors and plain values in them, which can run any code",
    )
    parser.set_defaults(run=run)
