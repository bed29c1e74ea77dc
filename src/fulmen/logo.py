"""The lightning bolt of fulmen, which is Latin for it."""

from __future__ import annotations

import logging

__all__ = ["LIGHTNING_LOGO", "cli_lightning_logo", "formatter"]

LIGHTNING_LOGO = r"""
          ____
         /   /
        /   /____
       /___     /
          /   /
         /  /     fulmen
        / /
       //
"""
"""A bolt in plain characters."""

formatter = logging.Formatter("%(levelname)s: %(message)s")
"""For handlers that show fulmen's records among those of other libraries: level, then message."""


def cli_lightning_logo() -> None:
    """Prints the bolt."""
    print(LIGHTNING_LOGO)
