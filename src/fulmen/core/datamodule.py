"""The datamodule, under the name users of Lightning import."""

from __future__ import annotations

from fulmen.datamodule import LightningDataModule

__all__ = ["LightningDataModule"]
