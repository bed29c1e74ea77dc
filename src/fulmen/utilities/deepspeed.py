"""Checkpoints that DeepSpeed has written in pieces, as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fulmen.checkpoint.store import TorchCheckpointIO, read
from fulmen.extras import need

__all__ = [
    "CPU_DEVICE",
    "convert_zero_checkpoint_to_fp32_state_dict",
    "ds_checkpoint_dir",
    "read_zero_checkpoint",
]

CPU_DEVICE = torch.device("cpu")

# what DeepSpeed itself keeps beside the entries of the checkpoint it was given
OF_DEEPSPEED = {
    "module",
    "buffer_names",
    "optimizer",
    "lr_scheduler",
    "param_shapes",
    "frozen_param_shapes",
    "frozen_param_fragments",
    "shared_params",
    "data_sampler",
    "random_ltd",
    "sparse_tensor_module_names",
    "skipped_steps",
    "global_steps",
    "global_samples",
    "checkpoint_parallel_dimensions",
    "dp_world_size",
    "mp_world_size",
    "ds_config",
    "ds_version",
}
# the name under which a wrapper around the module holds it
_PREFIX = "_forward_module."


def ds_checkpoint_dir(checkpoint_dir: str | Path, tag: str | None = None) -> str:
    """The folder in a DeepSpeed checkpoint that holds the pieces.

    Args:
        checkpoint_dir: The checkpoint.
        tag: Name of the folder in it; None: what the file `latest` says.

    Raises:
        ValueError: There is no tag, and no file `latest`.
        FileNotFoundError: There is no such folder.
    """
    if tag is None:
        latest = Path(checkpoint_dir, "latest")
        if not latest.is_file():
            raise ValueError(f"There is no file {str(latest)!r} that tells the tag of the checkpoint. Give it: tag=...")
        tag = latest.read_text(encoding="utf-8").strip()
    folder = Path(checkpoint_dir, tag)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r}, which the tag {tag!r} names.")
    return str(folder)


def convert_zero_checkpoint_to_fp32_state_dict(
    checkpoint_dir: str | Path, output_file: str | Path, tag: str | None = None
) -> dict[str, Any]:
    """Writes a checkpoint of DeepSpeed (ZeRO stage 2 or 3) as one file, for `load_from_checkpoint` and `torch.load`.

    Everything that was in the checkpoint is kept but the state of the optimizers, which is in pieces. The weights are
    put together in 32 bits, in the memory of the CPU.

    Args:
        checkpoint_dir: The checkpoint, a folder.
        output_file: The file to write.
        tag: Name of the folder with the pieces; None: what the file `latest` says.

    Returns:
        What was written.

    Raises:
        ModuleNotFoundError: deepspeed is not installed.
        ValueError: There is no tag, and no file `latest`.
        FileNotFoundError: There is no such folder, or no piece in it.
    """
    checkpoint = read_zero_checkpoint(checkpoint_dir, tag)
    TorchCheckpointIO().save_checkpoint(checkpoint, output_file)
    return checkpoint


def read_zero_checkpoint(checkpoint_dir: str | Path, tag: str | None = None) -> dict[str, Any]:
    """What `convert_zero_checkpoint_to_fp32_state_dict` writes; arguments and errors are those.

    A checkpoint in which nothing is divided (stage 0) can be read, too.
    """
    zero = need("deepspeed.utils.zero_to_fp32")
    pieces = Path(ds_checkpoint_dir(checkpoint_dir, tag))
    state = _state_of_a_rank(pieces)
    if any(pieces.glob("*_optim_states.pt")):
        weights = zero.get_fp32_state_dict_from_zero_checkpoint(str(checkpoint_dir), pieces.name)
    else:
        weights = state["module"]
    checkpoint = {name: value for name, value in state.items() if name not in OF_DEEPSPEED}
    checkpoint["state_dict"] = {name.removeprefix(_PREFIX): value for name, value in weights.items()}
    return checkpoint


def _state_of_a_rank(pieces: Path) -> dict[str, Any]:
    """What one rank wrote beside the weights; it is the same on all."""
    files = sorted(pieces.glob("*mp_rank_*model_states.pt"))
    if not files:
        raise FileNotFoundError(f"There is no file '*mp_rank_*model_states.pt' in {str(pieces)!r}.")
    # DeepSpeed pickles objects of its own, so that nothing less can read them
    state: dict[str, Any] = read(files[0], CPU_DEVICE, weights_only=False)
    return state
