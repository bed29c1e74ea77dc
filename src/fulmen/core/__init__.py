"""Modules and datamodules, under the names users of Lightning import."""

from __future__ import annotations

from fulmen.datamodule import LightningDataModule
from fulmen.module import LightningModule

__all__ = ["LightningDataModule", "LightningModule"]
