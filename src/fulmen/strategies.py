"""The strategies, under the names users import."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.fabric.strategies import SingleDeviceStrategy, Strategy, StrategyRegistry
from fulmen.lazy import importing

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


__getattr__ = importing(__name__, dict.fromkeys(__all__, "fulmen.fabric.strategies"))


def __dir__() -> list[str]:
    return __all__
