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

_DDP = "fulmen.fabric.strategies.ddp:DDPStrategy"
_STARTS = {"ddp": "popen", "ddp_spawn": "spawn", "ddp_fork": "fork", "ddp_notebook": "fork"}


def _register_ddp() -> None:
    for name, start_method in _STARTS.items():
        description = f"A copy of the model on each device, gradients averaged; processes by {start_method}"
        StrategyRegistry.register_lazily(name, _DDP, description, start_method=start_method)
        for unused in (True, False):
            StrategyRegistry.register_lazily(
                f"{name}_find_unused_parameters_{str(unused).lower()}",
                _DDP,
                f"{description}, find_unused_parameters={unused}",
                start_method=start_method,
                find_unused_parameters=unused,
            )


_register_ddp()

_FSDP = "fulmen.fabric.strategies.fsdp:FSDPStrategy"
StrategyRegistry.register_lazily("fsdp", _FSDP, "A part of each parameter on each device")
StrategyRegistry.register_lazily(
    "fsdp_cpu_offload", _FSDP, "A part of each parameter for each device, on the CPU between steps", cpu_offload=True
)
