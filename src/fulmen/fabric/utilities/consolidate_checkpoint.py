"""Makes one file of a sharded checkpoint: ``python -m fulmen.fabric.utilities.consolidate_checkpoint FOLDER``."""

from __future__ import annotations

from fulmen.checkpoint.consolidate import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
