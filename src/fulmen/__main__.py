"""The command ``fulmen``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fulmen import __version__, demo
from fulmen.checkpoint import consolidate


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: The arguments; those of the process if None.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="fulmen", description="Runs the training of PyTorch models.")
    parser.add_argument("--version", action="version", version=f"fulmen {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    demo.add_command(commands)
    consolidate.add_command(commands)
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
