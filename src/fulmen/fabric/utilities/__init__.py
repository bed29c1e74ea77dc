"""Small helpers that need no Trainer. Each is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulmen.lazy import importing

if TYPE_CHECKING:
    from fulmen.checkpoint.hyperparameters import AttributeDict
    from fulmen.data.loaders import suggested_max_num_workers
    from fulmen.fabric.utilities.apply_func import move_data_to_device
    from fulmen.fabric.utilities.distributed import is_shared_filesystem
    from fulmen.fabric.utilities.enums import LightningEnum
    from fulmen.fabric.utilities.spike import SpikeDetection
    from fulmen.fabric.utilities.throughput import Throughput, ThroughputMonitor, get_available_flops, measure_flops
    from fulmen.ranks import (
        disable_possible_user_warnings,
        rank_zero_deprecation,
        rank_zero_info,
        rank_zero_only,
        rank_zero_warn,
    )

__all__ = [
    "AttributeDict",
    "LightningEnum",
    "SpikeDetection",
    "Throughput",
    "ThroughputMonitor",
    "disable_possible_user_warnings",
    "get_available_flops",
    "is_shared_filesystem",
    "measure_flops",
    "move_data_to_device",
    "rank_zero_deprecation",
    "rank_zero_info",
    "rank_zero_only",
    "rank_zero_warn",
    "suggested_max_num_workers",
]

_MODULE_OF = {
    "AttributeDict": "fulmen.checkpoint.hyperparameters",
    "LightningEnum": "fulmen.fabric.utilities.enums",
    "SpikeDetection": "fulmen.fabric.utilities.spike",
    "Throughput": "fulmen.fabric.utilities.throughput",
    "ThroughputMonitor": "fulmen.fabric.utilities.throughput",
    "disable_possible_user_warnings": "fulmen.ranks",
    "get_available_flops": "fulmen.fabric.utilities.throughput",
    "is_shared_filesystem": "fulmen.fabric.utilities.distributed",
    "measure_flops": "fulmen.fabric.utilities.throughput",
    "move_data_to_device": "fulmen.fabric.utilities.apply_func",
    "rank_zero_deprecation": "fulmen.ranks",
    "rank_zero_info": "fulmen.ranks",
    "rank_zero_only": "fulmen.ranks",
    "rank_zero_warn": "fulmen.ranks",
    "suggested_max_num_workers": "fulmen.data.loaders",
}

__getattr__ = importing(__name__, _MODULE_OF)


def __dir__() -> list[str]:
    return sorted(__all__)
