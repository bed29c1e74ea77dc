"""Matrix products in 8-bit floating point, by the package transformer_engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from fulmen.extras import need
from fulmen.fabric.precision.base import Precision, convert_floats, default_dtype
from fulmen.ranks import rank_zero_info, rank_zero_warn

__all__ = ["TransformerEnginePrecision"]

_ROWS, _COLUMNS = 8, 16  # what has to divide the size of a weight (outputs x inputs) for the 8-bit kernels


class TransformerEnginePrecision(Precision):
    """Computes in fp8 on NVIDIA Hopper and later, with weights of 16 bits.

    Args:
        weights_dtype: Type of the weights and of what is not computed in fp8.
        recipe: How tensors are scaled: a recipe of `transformer_engine.common.recipe`, or the arguments of its
            `DelayedScaling` as a mapping; None for the package's default.
        replace_layers: Whether `nn.Linear` and `nn.LayerNorm` become the package's layers; None: unless the module
            has such layers already.
        fallback_compute_dtype: Type of autocast for what is not computed in fp8; None for `weights_dtype`.

    Raises:
        ModuleNotFoundError: The package transformer_engine is not installed.
    """

    precision = "transformer-engine"

    def __init__(
        self,
        *,
        weights_dtype: torch.dtype,
        recipe: Mapping[str, Any] | Any | None = None,
        replace_layers: bool | None = None,
        fallback_compute_dtype: torch.dtype | None = None,
    ) -> None:
        need("transformer_engine.pytorch")
        self.weights_dtype = weights_dtype
        self.recipe = _make_recipe(recipe) if isinstance(recipe, Mapping) else recipe
        self.replace_layers = replace_layers
        self.fallback_compute_dtype = fallback_compute_dtype or weights_dtype

    def convert_module(self, module: nn.Module) -> nn.Module:
        """The module with the package's layers, and its parameters in `weights_dtype`."""
        has_them = any(type(each).__module__.startswith("transformer_engine.pytorch") for each in module.modules())
        if has_them and self.replace_layers:
            rank_zero_info("The module has layers of transformer_engine; `replace_layers=True` changes nothing.")
        elif not has_them and self.replace_layers in (None, True):
            _replace(module, need("transformer_engine.pytorch"), "", self.weights_dtype)
        return module.to(dtype=self.weights_dtype)

    def convert_input(self, data: Any) -> Any:
        """The batch with its floating point tensors in `weights_dtype`."""
        return convert_floats(data, self.weights_dtype)

    def convert_output(self, data: Any) -> Any:
        """What a module gave, with its floating point tensors in torch's default type."""
        return convert_floats(data, torch.get_default_dtype())

    def module_init_context(self) -> AbstractContextManager[Any]:
        """`weights_dtype` is the default for new tensors; the layers are replaced later, by `convert_module`."""
        return default_dtype(self.weights_dtype)

    def tensor_init_context(self) -> AbstractContextManager[Any]:
        """`weights_dtype` is the default for new tensors."""
        return default_dtype(self.weights_dtype)

    @contextmanager
    def _fp8(self) -> Iterator[None]:
        engine = need("transformer_engine.pytorch")
        with ExitStack() as stack:
            stack.enter_context(default_dtype(self.weights_dtype))
            stack.enter_context(torch.autocast("cuda", dtype=self.fallback_compute_dtype))
            stack.enter_context(engine.fp8_autocast(enabled=True, fp8_recipe=self.recipe))
            yield

    def forward_context(self) -> AbstractContextManager[Any]:
        """Autocast to fp8, and for the rest to `fallback_compute_dtype`."""
        return self._fp8()


def _make_recipe(options: Mapping[str, Any]) -> Any:
    """`DelayedScaling` with these options; the format of the numbers may be given by name."""
    recipes = need("transformer_engine.common.recipe")
    options = dict(options)
    if isinstance(options.get("fp8_format"), str):
        options["fp8_format"] = getattr(recipes.Format, options["fp8_format"])
    return recipes.DelayedScaling(**options)


def _replace(module: nn.Module, engine: Any, prefix: str, dtype: torch.dtype) -> None:
    """Put the package's layers in the place of torch's, with the same parameters."""
    for name, child in module.named_children():
        new: nn.Module | None = None
        if type(child) is nn.Linear:
            if child.in_features % _COLUMNS or child.out_features % _ROWS:
                rank_zero_warn(
                    f"The layer {prefix + name!r} is not computed in fp8: Linear({child.in_features}, "
                    f"{child.out_features}) would need an input size that {_COLUMNS} divides and an output size that "
                    f"{_ROWS} divides."
                )
                continue
            new = engine.Linear(child.in_features, child.out_features, bias=child.bias is not None, params_dtype=dtype)
        elif type(child) is nn.LayerNorm and len(child.normalized_shape) == 1 and child.bias is not None:
            new = engine.LayerNorm(child.normalized_shape[0], eps=child.eps)
        if new is None:
            _replace(child, engine, f"{prefix}{name}.", dtype)
            continue
        with torch.no_grad():
            for target, source in zip(_parameters(new), _parameters(child), strict=True):
                target.copy_(source)
        new.train(child.training)
        setattr(module, name, new)


def _parameters(layer: Any) -> list[nn.Parameter]:
    """Weight and bias, as far as there are."""
    return [parameter for parameter in (layer.weight, layer.bias) if isinstance(parameter, nn.Parameter)]
