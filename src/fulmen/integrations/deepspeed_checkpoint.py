"""Checkpoints of an engine of DeepSpeed: a folder with a part of each process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fulmen.checkpoint.store import make_way, sync_directory, temporary_name
from fulmen.errors import CheckpointError
from fulmen.extras import need
from fulmen.utilities.deepspeed import OF_DEEPSPEED, read_zero_checkpoint

__all__ = ["is_one", "load", "load_whole", "read", "save"]

TAG = "checkpoint"
_CLASHING = "fulmen_clashing"


def is_one(path: Any) -> bool:
    """Whether there is a checkpoint of an engine at `path`."""
    return Path(path, TAG).is_dir()


def save(strategy: Any, engine: Any, checkpoint: Mapping[str, Any], path: Path, exclude_frozen: bool) -> None:
    """Write the state of an engine and what else is in a checkpoint; it gets its name when all have written.

    Args:
        strategy: For the exchanges.
        engine: The engine.
        checkpoint: What a Trainer or a Fabric saves. Weights and optimizer states are left out: the engine has them.
        path: The folder.
        exclude_frozen: Whether parameters that are not trained are left out.
    """
    temporary = path.with_name(strategy.broadcast(temporary_name()))
    others: dict[str, Any] = {_CLASHING: {}}  # names that DeepSpeed has a use for itself
    for name, value in checkpoint.items():
        if name not in ("state_dict", "optimizer_states"):
            (others[_CLASHING] if name in OF_DEEPSPEED else others)[name] = value
    # `latest`, which DeepSpeed writes beside, names the tag; its own tools look for it
    engine.save_checkpoint(str(temporary), client_state=others, tag=TAG, exclude_frozen_parameters=exclude_frozen)
    strategy.barrier("all parts of the checkpoint are written")
    if strategy.is_global_zero:
        with make_way(path):
            os.rename(temporary, path)
        sync_directory(path.parent)
    strategy.barrier("the checkpoint is complete")


def load(engine: Any, path: Any, weights_only: bool | None, strict: bool) -> dict[str, Any]:
    """Give an engine that trains its state back.

    Args:
        engine: The engine.
        path: The folder.
        weights_only: True is refused.
        strict: Whether the names of the weights have to fit.

    Returns:
        What else was saved.

    Raises:
        ValueError: `weights_only`.
        CheckpointError: The engine found nothing that it can load.
    """
    _refuse_weights_only(weights_only)
    found, others = engine.load_checkpoint(
        str(path), tag=TAG, load_module_strict=strict, load_lr_scheduler_states=False
    )
    if found is None:
        raise CheckpointError(
            f"DeepSpeed could not load {str(path)!r}. The number of processes and the stage of ZeRO have to be those of"
            " the run that saved it.",
            path=path,
        )
    return _ours(others)


def read(path: Any, weights_only: bool | None) -> dict[str, Any]:
    """Everything but the optimizer's state, with the weights whole, in the memory of the host.

    Args:
        path: The folder.
        weights_only: True is refused.

    Raises:
        ValueError: `weights_only`.
    """
    _refuse_weights_only(weights_only)
    return _ours(read_zero_checkpoint(path, TAG))


def _ours(content: dict[str, Any]) -> dict[str, Any]:
    """What was saved beside the state of the engine."""
    clashing: dict[str, Any] = content.pop(_CLASHING, {})
    return {name: value for name, value in content.items() if name not in OF_DEEPSPEED} | clashing


def _refuse_weights_only(weights_only: bool | None) -> None:
    if weights_only:
        raise ValueError(
            "DeepSpeed keeps objects of its own in its checkpoints, which `weights_only=True` refuses. If you trust"
            " the checkpoint, leave `weights_only` out."
        )


def load_whole(engine: Any, module: nn.Module, state: Mapping[str, Any], strict: bool) -> None:
    """Load whole tensors into a module whose parameters may be divided; each module's are gathered for themselves.

    Raises:
        RuntimeError: Names or shapes do not fit.
    """
    gathered = need("deepspeed").zero.GatheredParameters
    missing: list[str] = []
    errors: list[str] = []

    def fill(part: nn.Module, prefix: str) -> None:
        own = list(part.parameters(recurse=False))
        with gathered(own, modifier_rank=0, enabled=any(hasattr(parameter, "ds_id") for parameter in own)):
            part._load_from_state_dict(dict(state), prefix, {}, strict, missing, [], errors)
        for name, child in part.named_children():
            fill(child, f"{prefix}{name}.")

    fill(module, "")
    surplus = [name for name in state if name not in set(_names(module))]
    if strict and (missing or surplus):
        errors.append(f"Missing: {missing}. Not in the module: {surplus}.")
    if errors:
        raise RuntimeError(f"The weights do not fit {type(module).__name__}. " + " ".join(errors))
    refresh = getattr(getattr(engine, "optimizer", None), "refresh_fp32_params", None)
    if refresh is not None:  # the optimizer has a copy of its own
        refresh()


def _names(module: nn.Module) -> list[str]:
    return [name for name, _ in (*module.named_parameters(remove_duplicate=False), *module.named_buffers())]
