"""Helpers under the names that users of Lightning know; what they do lives in the lower rooms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.lazy import importing

if TYPE_CHECKING:
    from fulmen.data.combined import CombinedLoader
    from fulmen.data.loaders import suggested_max_num_workers
    from fulmen.fabric.utilities.apply_func import move_data_to_device
    from fulmen.fabric.utilities.distributed import is_shared_filesystem
    from fulmen.fabric.utilities.enums import LightningEnum
    from fulmen.fabric.utilities.throughput import measure_flops
    from fulmen.hparams import AttributeDict, is_picklable
    from fulmen.ranks import (
        disable_possible_user_warnings,
        rank_zero_deprecation,
        rank_zero_info,
        rank_zero_only,
        rank_zero_warn,
    )
    from fulmen.types import GradClipAlgorithmType
    from fulmen.utilities.grads import grad_norm
    from fulmen.utilities.parameter_tying import find_shared_parameters, set_shared_parameters

__all__ = [
    "FLOAT16_EPSILON",
    "FLOAT32_EPSILON",
    "FLOAT64_EPSILON",
    "AttributeDict",
    "CombinedLoader",
    "GradClipAlgorithmType",
    "LightningEnum",
    "disable_possible_user_warnings",
    "find_shared_parameters",
    "grad_norm",
    "is_picklable",
    "is_shared_filesystem",
    "measure_flops",
    "move_data_to_device",
    "rank_zero_deprecation",
    "rank_zero_info",
    "rank_zero_only",
    "rank_zero_warn",
    "set_shared_parameters",
    "suggested_max_num_workers",
]

# what torch.finfo says, without torch
FLOAT16_EPSILON = 2.0**-10
FLOAT32_EPSILON = 2.0**-23
FLOAT64_EPSILON = 2.0**-52

_MODULE_OF = {
    "AttributeDict": "fulmen.hparams",
    "CombinedLoader": "fulmen.data.combined",
    "GradClipAlgorithmType": "fulmen.types",
    "LightningEnum": "fulmen.fabric.utilities.enums",
    "disable_possible_user_warnings": "fulmen.ranks",
    "find_shared_parameters": "fulmen.utilities.parameter_tying",
    "grad_norm": "fulmen.utilities.grads",
    "is_picklable": "fulmen.hparams",
    "is_shared_filesystem": "fulmen.fabric.utilities.distributed",
    "measure_flops": "fulmen.fabric.utilities.throughput",
    "move_data_to_device": "fulmen.fabric.utilities.apply_func",
    "rank_zero_deprecation": "fulmen.ranks",
    "rank_zero_info": "fulmen.ranks",
    "rank_zero_only": "fulmen.ranks",
    "rank_zero_warn": "fulmen.ranks",
    "set_shared_parameters": "fulmen.utilities.parameter_tying",
    "suggested_max_num_workers": "fulmen.data.loaders",
}

__getattr__ = importing(__name__, _MODULE_OF)


def __dir__() -> list[str]:
    return sorted(__all__)
