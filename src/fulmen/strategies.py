"""The strategies, under the names users import."""

from __future__ import annotations

from fulmen.fabric.strategies import SingleDeviceStrategy, Strategy, StrategyRegistry

__all__ = ["SingleDeviceStrategy", "Strategy", "StrategyRegistry"]
