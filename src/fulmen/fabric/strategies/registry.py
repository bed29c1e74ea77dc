"""Strategies under the names users type."""

from __future__ import annotations

from fulmen.fabric.registry import Registry
from fulmen.fabric.strategies.base import Strategy
from fulmen.fabric.strategies.single import SingleDeviceStrategy

__all__ = ["StrategyRegistry"]


class _StrategyRegistry(Registry[Strategy]):
    """Strategies under names."""

    def available_strategies(self) -> list[str]:
        """All names, in alphabetical order."""
        return self.names()


StrategyRegistry = _StrategyRegistry("strategy")
StrategyRegistry.register(
    SingleDeviceStrategy.strategy_name, SingleDeviceStrategy, description="One process on one device"
)
