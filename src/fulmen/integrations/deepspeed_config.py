"""From the arguments of `DeepSpeedStrategy` to the configuration of DeepSpeed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fulmen.fabric.errors import PlanError

__all__ = ["complete", "from_arguments", "read"]

PATH_VARIABLE = "PL_DEEPSPEED_CONFIG_PATH"

_ZERO = (
    "stage",
    "contiguous_gradients",
    "overlap_comm",
    "allgather_partitions",
    "reduce_scatter",
    "allgather_bucket_size",
    "reduce_bucket_size",
    "sub_group_size",
)
_ASYNCHRONOUS_IO = ("block_size", "queue_depth", "single_submit", "overlap_events", "thread_count")
_ACTIVATIONS = (
    "partition_activations",
    "cpu_checkpointing",
    "contiguous_memory_optimization",
    "synchronize_checkpoint_boundary",
)
LOSS_SCALE = ("loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis", "min_loss_scale")


def read(config: Mapping[str, Any] | str | Path | None) -> dict[str, Any] | None:
    """The configuration as a user wrote it; None if there is none.

    Args:
        config: The configuration, or the path of its JSON file; None for the file that PL_DEEPSPEED_CONFIG_PATH names.

    Raises:
        PlanError: There is no such file, or it holds no JSON object.
    """
    if config is None:
        config = os.environ.get(PATH_VARIABLE)
    if config is None or isinstance(config, Mapping):
        return None if config is None else dict(config)
    if not Path(config).is_file():
        raise PlanError(
            f"There is no DeepSpeed configuration at {str(config)!r}. Give the path of a JSON file, or a dict:"
            " DeepSpeedStrategy(config=...)",
            subject=config,
        )
    try:
        content = json.loads(Path(config).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise PlanError(f"The DeepSpeed configuration {str(config)!r} is no JSON: {error}", subject=config) from error
    if not isinstance(content, dict):
        raise PlanError(f"The DeepSpeed configuration {str(config)!r} has to be a JSON object.", subject=config)
    return content


def from_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that the arguments of `DeepSpeedStrategy` stand for."""
    config: dict[str, Any] = {
        "activation_checkpointing": {name: given[name] for name in _ACTIVATIONS},
        "aio": {name: given[name] for name in _ASYNCHRONOUS_IO},
    }
    if not given["zero_optimization"]:
        return config
    zero: dict[str, Any] = {name: given[name] for name in _ZERO}
    if given["offload_optimizer"]:
        zero["offload_optimizer"] = {
            "device": given["offload_optimizer_device"],
            "nvme_path": given["nvme_path"],
            "buffer_count": given["optimizer_buffer_count"],
            "pin_memory": given["pin_memory"],
        }
    if given["offload_parameters"]:
        zero["offload_param"] = {
            "device": given["offload_params_device"],
            "nvme_path": given["nvme_path"],
            "buffer_count": given["params_buffer_count"],
            "buffer_size": given["params_buffer_size"],
            "max_in_cpu": given["max_in_cpu"],
            "pin_memory": given["pin_memory"],
        }
    return {
        **config,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": given["zero_allow_untested_optimizer"],
        "zero_force_ds_cpu_optimizer": False,
    }


def complete(config: dict[str, Any], precision: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with what every engine needs; what it holds already stays.

    Args:
        config: The configuration.
        precision: Its part about floating point numbers, as `DeepSpeedPrecision.engine_config` gives it.
        given: Holds the arguments about the scale of the loss.
    """
    result = {**config}
    for name, part in precision.items():
        result.setdefault(name, {**part, **{key: given[key] for key in LOSS_SCALE}} if name == "fp16" else dict(part))
    result.setdefault("train_micro_batch_size_per_gpu", 1)
    result.setdefault("gradient_clipping", 0.0)  # DeepSpeed would clip to a norm of 1
    return result
