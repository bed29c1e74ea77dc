"""The strategies, under the names users import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fulmen.fabric import strategies
from fulmen.fabric.strategies import SingleDeviceStrategy, Strategy, StrategyRegistry

if TYPE_CHECKING:
    from fulmen.fabric.strategies import DDPStrategy, FSDPStrategy, ParallelStrategy

__all__ = ["DDPStrategy", "FSDPStrategy", "ParallelStrategy", "SingleDeviceStrategy", "Strategy", "StrategyRegistry"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(strategies, name)


def __dir__() -> list[str]:
    return __all__
