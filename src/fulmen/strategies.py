"""The strategies, under the names users import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fulmen.fabric import strategies
from fulmen.fabric.strategies import SingleDeviceStrategy, Strategy, StrategyRegistry

if TYPE_CHECKING:
    from fulmen.fabric.strategies import (
        DDPStrategy,
        DeepSpeedStrategy,
        FSDPStrategy,
        ModelParallelStrategy,
        ParallelStrategy,
        SingleDeviceXLAStrategy,
        XLAStrategy,
    )

__all__ = [
    "DDPStrategy",
    "DeepSpeedStrategy",
    "FSDPStrategy",
    "ModelParallelStrategy",
    "ParallelStrategy",
    "SingleDeviceStrategy",
    "SingleDeviceXLAStrategy",
    "Strategy",
    "StrategyRegistry",
    "XLAStrategy",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(strategies, name)


def __dir__() -> list[str]:
    return __all__
