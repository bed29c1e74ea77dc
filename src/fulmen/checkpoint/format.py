"""How a checkpoint is laid out: a dict that Lightning 2.6 reads.

Its keys, in this order; the optional ones are there only if they have something to say:

| key | value |
|---|---|
| `epoch`, `global_step` | counters |
| `pytorch-lightning_version` | the version whose layout this is |
| `state_dict` | the module's |
| `loops` | progress of the four loops |
| `callbacks` | `{state_key: state}` |
| `optimizer_states`, `lr_schedulers` | lists of states |
| class name of the precision plugin | its state (optional) |
| `hparams_name`, `hyper_parameters`, `hparams_type` | of the module (optional) |
| `datamodule_hparams_name`, `datamodule_hyper_parameters`, `datamodule_hparams_type` | of the datamodule (optional) |
| class name of the datamodule | its state (optional) |
| `fulmen` | what is ours, at least `{"version": ...}` |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from fulmen.errors import CheckpointError

__all__ = [
    "CALLBACKS",
    "EPOCH",
    "FULMEN",
    "GLOBAL_STEP",
    "LEGACY_VERSION",
    "LIGHTNING_VERSION",
    "LOOPS",
    "LR_SCHEDULERS",
    "OPTIMIZER_STATES",
    "STATE_DICT",
    "VERSION",
    "explain_mismatch",
    "listed",
    "paragraph",
    "versions",
]

EPOCH = "epoch"
GLOBAL_STEP = "global_step"
VERSION = "pytorch-lightning_version"
STATE_DICT = "state_dict"
LOOPS = "loops"
CALLBACKS = "callbacks"
OPTIMIZER_STATES = "optimizer_states"
LR_SCHEDULERS = "lr_schedulers"
FULMEN = "fulmen"
LEGACY_VERSION = "legacy_pytorch-lightning_version"

LIGHTNING_VERSION = "2.6.6"

_SHOWN_KEYS = 5
# what wrappers put in front of every key
_WRAPPERS = ("module.", "_orig_mod.", "_forward_module.", "model.")


def versions() -> dict[str, Any]:
    """The two entries that say who wrote a checkpoint, and in which layout."""
    from fulmen import __version__

    return {VERSION: LIGHTNING_VERSION, FULMEN: {"version": __version__}}


def explain_mismatch(module: nn.Module, state_dict: Mapping[str, Any], error: Exception) -> CheckpointError:
    """Says why a state dict does not fit a module.

    Args:
        module: The module that was to take it.
        state_dict: What it was given.
        error: What `load_state_dict` raised.

    Returns:
        The exception to raise: missing and unexpected keys and differing shapes, the first few of each, and what to do.
    """
    own = module.state_dict()
    missing = [key for key in own if key not in state_dict]
    unexpected = [key for key in state_dict if key not in own]
    differing = [
        f"{key} ({_shape(state_dict[key])} in the checkpoint, {_shape(value)} in the module)"
        for key, value in own.items()
        if key in state_dict and _shape(state_dict[key]) != _shape(value)
    ]
    if not (missing or unexpected or differing):
        return CheckpointError(f"The checkpoint does not fit {type(module).__name__}: {error}")
    lines = [f"The checkpoint does not fit {type(module).__name__}:"]
    lines += paragraph("missing in the checkpoint", [f"{key} {_shape(own[key])}" for key in missing])
    lines += paragraph("unknown to the module", [f"{key} {_shape(state_dict[key])}" for key in unexpected])
    lines += paragraph("of another shape", differing)
    lines.append(_advice(own, state_dict, bool(differing)))
    return CheckpointError("\n".join(lines))


def paragraph(title: str, entries: list[str]) -> list[str]:
    """Lines of a message: a title, and the first few of the entries below it; none without entries."""
    if not entries:
        return []
    more = [f"... and {len(entries) - _SHOWN_KEYS} more"] if len(entries) > _SHOWN_KEYS else []
    return [f"  {title}:"] + [f"    {entry}" for entry in entries[:_SHOWN_KEYS] + more]


def _advice(own: Mapping[str, Any], given: Mapping[str, Any], shapes_differ: bool) -> str:
    for prefix in _WRAPPERS:
        if (
            given
            and all(key.startswith(prefix) for key in given)
            and {key.removeprefix(prefix) for key in given} & {*own}
        ):
            return (
                f"Every key of the checkpoint begins with {prefix!r}. Type `checkpoint['state_dict'] = {{"
                f"key.removeprefix({prefix!r}): value for key, value in checkpoint['state_dict'].items()}}` "
                f"in `on_load_checkpoint`."
            )
    if shapes_differ:
        return (
            "Build the module with the arguments it was saved with: call `self.save_hyperparameters()` in its "
            "`__init__` before training, or pass them to `load_from_checkpoint(path, name=value)`."
        )
    return (
        "Build the class the checkpoint was made from. To load only the keys that fit, set `strict_loading = False` "
        "on the module, or type `load_from_checkpoint(path, strict=False)`."
    )


def _shape(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else str(tuple(shape))


def listed(content: Mapping[str, Any]) -> str:
    """The first few keys of a mapping, for a message."""
    keys = [repr(key) for key in content]
    return ", ".join(keys[:_SHOWN_KEYS]) + (f" and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else "")
