"""Linear layers with weights of 4 or 8 bits, by the package bitsandbytes."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import nn

from fulmen.extras import need
from fulmen.fabric.errors import PlanError, UnavailableError
from fulmen.fabric.precision.base import Precision, convert_floats, default_dtype

__all__ = ["BitsandbytesPrecision"]

_MODES = ("nf4", "nf4-dq", "fp4", "fp4-dq", "int8", "int8-training")


class BitsandbytesPrecision(Precision):
    """Replaces linear layers by quantised ones; their weights are quantised on the way to the CUDA device.

    The formats of 4 bits are those of QLoRA (arXiv:2305.14314), int8 is LLM.int8() (arXiv:2208.07339).

    Args:
        mode: "nf4" or "fp4" for 4 bits, with "-dq" if the scales are quantised once more; "int8" for inference,
            "int8-training" to keep 16-bit weights and compute in 8 bits.
        dtype: In which the rest computes; None for bfloat16 where the device has it, and float16 with int8 or without.
        ignore_modules: Names of modules, as in `named_modules`, in which no layer is replaced, such as {"lm_head"}.

    Raises:
        PlanError: Another mode, or a type that int8 cannot work with.
        ModuleNotFoundError: The package bitsandbytes is not installed.
    """

    def __init__(
        self, mode: str, dtype: torch.dtype | None = None, ignore_modules: Iterable[str] | None = None
    ) -> None:
        need("bitsandbytes")
        if mode not in _MODES:
            raise PlanError(
                f"BitsandbytesPrecision(mode={mode!r}) is not known. Type one of: {', '.join(_MODES)}", subject=mode
            )
        if dtype is None:
            has_bfloat16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
            dtype = torch.bfloat16 if has_bfloat16 and not mode.startswith("int8") else torch.float16
        if mode.startswith("int8") and dtype is not torch.float16:
            raise PlanError(
                f"BitsandbytesPrecision(mode={mode!r}, dtype={dtype}): 8-bit layers compute in float16. "
                "Leave `dtype` out.",
                subject=dtype,
            )
        self.mode = mode
        self.dtype = dtype
        self.ignore_modules = set(ignore_modules or ())

    def check_device(self, device: torch.device) -> None:
        """Refuse everything but CUDA.

        Raises:
            UnavailableError: Another device.
        """
        if device.type != "cuda":
            raise UnavailableError(
                f"Bitsandbytes runs on CUDA devices only, and the device is {device}. Type: accelerator='cuda'",
                subject=device,
            )

    def convert_module(self, module: nn.Module) -> nn.Module:
        """The module with its linear layers replaced, and everything else in `dtype`.

        A module that has such layers already keeps them and gets no others.
        """
        layers = need("bitsandbytes").nn
        if not any(isinstance(each, (layers.Linear4bit, layers.Linear8bitLt)) for each in module.modules()):
            _replace(module, partial(self._quantised, layers), "", self.ignore_modules)
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point() and not isinstance(tensor, (layers.Params4bit, layers.Int8Params)):
                tensor.data = tensor.data.to(self.dtype)
        return module

    def _quantised(self, layers: Any, linear: nn.Linear) -> nn.Module:
        """The quantised layer with the parameters of `linear`."""
        has_bias = linear.bias is not None
        if self.mode.startswith("int8"):
            keeps_16_bit = self.mode == "int8-training"
            new = layers.Linear8bitLt(
                linear.in_features, linear.out_features, has_bias, has_fp16_weights=keeps_16_bit, threshold=6.0
            )
            new.weight = layers.Int8Params(
                linear.weight.data.to(self.dtype), requires_grad=keeps_16_bit, has_fp16_weights=keeps_16_bit
            )
        else:
            kind, _, doubly = self.mode.partition("-")
            options = {"compress_statistics": doubly == "dq", "quant_type": kind}
            new = layers.Linear4bit(
                linear.in_features, linear.out_features, has_bias, compute_dtype=self.dtype, **options
            )
            new.weight = layers.Params4bit(linear.weight.data.to(self.dtype), requires_grad=False, **options)
        new.bias = linear.bias
        new.train(linear.training)
        return new  # type: ignore[no-any-return]

    def convert_input(self, data: Any) -> Any:
        """The batch with its floating point tensors in `dtype`."""
        return convert_floats(data, self.dtype)

    def convert_output(self, data: Any) -> Any:
        """What a module gave, with its floating point tensors in torch's default type."""
        return convert_floats(data, torch.get_default_dtype())

    def module_init_context(self) -> AbstractContextManager[Any]:
        """`dtype` is the default for new tensors; the layers are replaced later, by `convert_module`."""
        return default_dtype(self.dtype)

    def tensor_init_context(self) -> AbstractContextManager[Any]:
        """`dtype` is the default for new tensors."""
        return default_dtype(self.dtype)

    def forward_context(self) -> AbstractContextManager[Any]:
        """`dtype` is the default for new tensors."""
        return default_dtype(self.dtype)


def _replace(module: nn.Module, make: Any, prefix: str, ignored: set[str]) -> None:
    """Put `make(layer)` in the place of each linear layer below `module`, past the ignored names."""
    for name, child in module.named_children():
        full_name = f"{prefix}{name}"
        if full_name in ignored:
            continue
        if type(child) is nn.Linear:
            setattr(module, name, make(child))
        else:
            _replace(child, make, f"{full_name}.", ignored)
