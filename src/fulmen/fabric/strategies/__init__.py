"""Strategies: how a module is spread over devices."""

from __future__ import annotations

from fulmen.fabric.strategies.base import Strategy, overrides, plain
from fulmen.fabric.strategies.registry import StrategyRegistry
from fulmen.fabric.strategies.single import SingleDeviceStrategy

__all__ = ["SingleDeviceStrategy", "Strategy", "StrategyRegistry", "overrides", "plain"]
