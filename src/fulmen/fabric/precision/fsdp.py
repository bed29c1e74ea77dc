"""The precision of a module whose parameters are sharded over devices."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.amp import GradScaler

from fulmen.fabric.errors import PlanError
from fulmen.fabric.precision.base import convert_floats, default_dtype
from fulmen.fabric.precision.mixed import ScalingPrecision

if TYPE_CHECKING:
    from torch.distributed.fsdp import MixedPrecision as MixedPrecisionConfig
    from torch.distributed.fsdp import MixedPrecisionPolicy

__all__ = ["FSDPPrecision"]

_DTYPES = {
    "32-true": torch.float32,
    "16-true": torch.float16,
    "bf16-true": torch.bfloat16,
    "16-mixed": torch.float16,
    "bf16-mixed": torch.bfloat16,
}


class FSDPPrecision(ScalingPrecision):
    """In which types a sharded module gathers its parameters, computes, and reduces its gradients.

    Gradients are clipped by norm over all shards, as `torch.nn.utils.clip_grad_norm_` does with sharded parameters.

    Args:
        precision: "32-true", "16-true", "bf16-true", or with 32-bit shards "16-mixed", "bf16-mixed".
        scaler: Scales the loss of "16-mixed"; None for `torch.amp.GradScaler` with its defaults.

    Raises:
        PlanError: Another precision, or a scaler with one that scales no loss.
    """

    def __init__(self, precision: str, scaler: GradScaler | None = None) -> None:
        if precision not in _DTYPES:
            raise PlanError(
                f"FSDPPrecision(precision={precision!r}) is not known. Type one of: {', '.join(_DTYPES)}",
                subject=precision,
            )
        if precision != "16-mixed" and scaler is not None:
            raise PlanError(
                f"{precision!r} scales no loss, got scaler={scaler}. Leave it out, or type precision='16-mixed'",
                subject=scaler,
            )
        super().__init__(scaler)
        self.precision = precision
        self._dtype = _DTYPES[precision]
        self._is_true = precision.endswith("-true")

    @property
    def mixed_precision_policy(self) -> MixedPrecisionPolicy:
        """What `torch.distributed.fsdp.fully_shard` takes as `mp_policy`."""
        from torch.distributed.fsdp import MixedPrecisionPolicy

        return MixedPrecisionPolicy(param_dtype=self._dtype, reduce_dtype=self._dtype)

    @property
    def mixed_precision_config(self) -> MixedPrecisionConfig:
        """What `torch.distributed.fsdp.FullyShardedDataParallel` takes as `mixed_precision`."""
        from torch.distributed.fsdp import MixedPrecision

        return MixedPrecision(param_dtype=self._dtype, reduce_dtype=self._dtype, buffer_dtype=self._dtype)

    def make_scaler(self) -> GradScaler | None:
        """A `GradScaler` with its defaults for "16-mixed"; it looks for overflows in the shards of all processes."""
        return GradScaler(_device_type()) if self.precision == "16-mixed" else None

    def convert_module(self, module: nn.Module) -> nn.Module:
        """The module in the 16-bit type of a "true" precision; a mixed one keeps 32 bit."""
        return module.to(dtype=self._dtype) if self._is_true else module

    def convert_input(self, data: Any) -> Any:
        """The batch in the type of the parameters; the sharded module casts it further by itself."""
        return convert_floats(data, self._dtype if self._is_true else torch.float32)

    def convert_output(self, data: Any) -> Any:
        """What a module gave, with its floating point tensors in torch's default type."""
        return convert_floats(data, torch.get_default_dtype())

    def module_init_context(self) -> AbstractContextManager[Any]:
        """The type of the parameters is the default for new tensors."""
        return self.tensor_init_context()

    def tensor_init_context(self) -> AbstractContextManager[Any]:
        """The type of the parameters is the default for new tensors."""
        return default_dtype(self._dtype) if self._is_true else nullcontext()

    def forward_context(self) -> AbstractContextManager[Any]:
        """Autocast in a mixed precision, so that what runs outside of sharded modules is computed alike."""
        return self.tensor_init_context() if self._is_true else torch.autocast(_device_type(), dtype=self._dtype)


def _device_type() -> str:
    device = torch.accelerator.current_accelerator()
    return "cpu" if device is None else device.type
