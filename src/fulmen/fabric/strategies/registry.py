"""Strategies under the names users type."""

from __future__ import annotations

from typing import Any

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

_DEEPSPEED = "fulmen.integrations.deepspeed:DeepSpeedStrategy"


def _register_deepspeed() -> None:
    StrategyRegistry.register_lazily("deepspeed", _DEEPSPEED, "ZeRO of the package deepspeed, stage 2")
    for stage, parts in enumerate(("optimizer states", "and gradients", "and parameters"), start=1):
        StrategyRegistry.register_lazily(f"deepspeed_stage_{stage}", _DEEPSPEED, f"ZeRO: {parts} divided", stage=stage)
    offload: dict[str, Any] = {"stage": 2, "offload_optimizer": True}
    StrategyRegistry.register_lazily(
        "deepspeed_stage_2_offload", _DEEPSPEED, "The same, the step on the CPU", **offload
    )
    offload |= {"stage": 3, "offload_parameters": True}
    StrategyRegistry.register_lazily("deepspeed_stage_3_offload", _DEEPSPEED, "The same, parameters too", **offload)
    nvme = dict.fromkeys(("remote_device", "offload_params_device", "offload_optimizer_device"), "nvme")
    StrategyRegistry.register_lazily(
        "deepspeed_stage_3_offload_nvme", _DEEPSPEED, "The same, on a disk", **offload, **nvme
    )


_register_deepspeed()

_XLA = "fulmen.integrations.xla"
StrategyRegistry.register_lazily("xla", f"{_XLA}:XLAStrategy", "A copy of the model on each core of a TPU")
StrategyRegistry.register_lazily("xla_debug", f"{_XLA}:XLAStrategy", "The same, with reports", debug=True)
StrategyRegistry.register_lazily("xla_fsdp", f"{_XLA}:XLAFSDPStrategy", "A part of each parameter on each core")
for _name in ("single_xla", "single_tpu"):
    StrategyRegistry.register_lazily(_name, f"{_XLA}:SingleDeviceXLAStrategy", "One process on one core of a TPU")
