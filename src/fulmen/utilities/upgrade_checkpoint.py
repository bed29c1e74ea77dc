"""Upgrades checkpoint files for good: ``python -m fulmen.utilities.upgrade_checkpoint PATH``."""

from __future__ import annotations

from fulmen.checkpoint.upgrade import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
