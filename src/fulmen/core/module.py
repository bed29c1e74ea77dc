"""The module, under the name users of Lightning import."""

from __future__ import annotations

from typing import TypeAlias

from torch.optim import Optimizer

from fulmen.module import LightningModule
from fulmen.optim import LightningOptimizer

__all__ = ["MODULE_OPTIMIZERS", "LightningModule"]

MODULE_OPTIMIZERS: TypeAlias = Optimizer | LightningOptimizer | list[Optimizer] | list[LightningOptimizer]
"""What `LightningModule.optimizers` returns."""
