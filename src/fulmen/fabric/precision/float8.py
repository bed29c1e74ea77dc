"""Linear layers in 8-bit floating point, by the package torchao."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fulmen.extras import need
from fulmen.fabric.errors import UnavailableError
from fulmen.fabric.precision.mixed import MixedPrecision
from fulmen.ranks import rank_zero_warn

__all__ = ["Float8Precision"]

_MULTIPLE = 16  # has to divide both sizes of a weight for the 8-bit kernels
_CAPABILITY = (8, 9)  # of the first GPUs that multiply in 8 bits: Ada and Hopper


class Float8Precision(MixedPrecision):
    """Linear layers computed in fp8, everything else as in "bf16-mixed"; parameters stay in 32 bit.

    The layers become torchao's `Float8Linear`, with the same parameters under the same names. They are fast only where
    they are compiled: `torch.compile(module)`, or parts of it.

    Args:
        filter: Which linear layers: gets the layer and its name in the module, e.g.
            `lambda layer, name: "head" not in name`. None for all. Those whose sizes 16 does not divide never are.
        config: A `torchao.float8.Float8LinearConfig`, or the name of a recipe: "tensorwise", "rowwise",
            "rowwise_with_gw_hp"; None for torchao's default.
        device: Type of the device.

    Raises:
        ModuleNotFoundError: The package torchao is not installed.
    """

    def __init__(
        self,
        filter: Callable[[nn.Module, str], bool] | None = None,
        config: Any | str | None = None,
        device: str = "cuda",
    ) -> None:
        super().__init__("bf16-mixed", device)
        self.precision = "fp8"
        float8 = need("torchao.float8")
        if isinstance(config, str):
            config = float8.Float8LinearConfig.from_recipe_name(config)
        self.filter, self.config = filter, config

    def check_device(self, device: torch.device) -> None:
        """Refuse a device that cannot multiply in fp8, unless the configuration emulates it.

        Raises:
            UnavailableError: It cannot.
        """
        if getattr(self.config, "emulate", False):
            return
        if device.type != "cuda" or torch.cuda.get_device_capability(device) < _CAPABILITY:
            name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
            raise UnavailableError(
                f"precision='fp8' needs a GPU that multiplies in 8 bits (Ada, Hopper or later), and this is {name}."
                " Type: precision='bf16-mixed'. To try it without: plugins=Float8Precision(device='cpu',"
                " config=Float8LinearConfig(emulate=True))",
                subject=device,
            )

    def convert_module(self, module: nn.Module) -> nn.Module:
        """The module with the chosen linear layers in fp8; in place, but for a module that is itself such a layer."""
        layers = {name: layer for name, layer in module.named_modules() if type(layer) is nn.Linear}
        chosen = {name for name, layer in layers.items() if self._takes(layer, name)}
        if not chosen:
            if layers:
                rank_zero_warn(
                    f"No layer is computed in fp8: of {len(layers)} linear layers, {_MULTIPLE} divides the sizes of"
                    f" {sum(map(_fits, layers.values()))}, and of those the filter takes none."
                )
            return module
        convert = need("torchao.float8").convert_to_float8_training
        converted: nn.Module = convert(module, config=self.config, module_filter_fn=lambda _, name: name in chosen)
        return converted

    def _takes(self, layer: nn.Linear, name: str) -> bool:
        return _fits(layer) and (self.filter is None or self.filter(layer, name))


def _fits(layer: nn.Linear) -> bool:
    return layer.in_features % _MULTIPLE == 0 and layer.out_features % _MULTIPLE == 0
