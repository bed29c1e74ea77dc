"""Modules and datamodules made from checkpoints. Nothing that a file names is imported or called."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from fulmen.checkpoint.format import STATE_DICT, explain_mismatch
from fulmen.checkpoint.hyperparameters import AttributeDict, load_hparams_from_tags_csv, load_hparams_from_yaml
from fulmen.checkpoint.migration import migrate
from fulmen.checkpoint.store import read
from fulmen.extras import need
from fulmen.ranks import rank_zero_warn

__all__ = ["load_datamodule", "load_module", "restricted_classmethod"]

CHECKPOINT_PAST_HPARAMS_KEYS = ("hparams", "module_arguments")
# who the command line says has built the object; only the name is compared, we build it ourselves
_INSTANTIATORS = tuple(
    f"{package}.cli.instantiate_module" for package in ("lightning.pytorch", "pytorch_lightning", "fulmen")
)
_SHOWN_KEYS = 10

if TYPE_CHECKING:
    restricted_classmethod = classmethod
else:

    class restricted_classmethod(classmethod):  # noqa: N801
        """A class method that refuses to be called on an instance, where its result would be taken for the instance."""

        def __get__(self, instance: Any, owner: type | None = None) -> Callable[..., Any]:
            """The method of the class; of an instance, a function that raises."""
            if instance is None:
                return super().__get__(None, owner)
            name = f"{type(instance).__name__}.{self.__func__.__name__}"

            @functools.wraps(self.__func__)
            def refuse(*args: Any, **kwargs: Any) -> NoReturn:
                raise TypeError(
                    f"`{name}` makes a new object and cannot be called on an instance. "
                    f"Type `loaded = {name}(...)`, with the class, and use what it returns."
                )

            return refuse


def load_module(
    cls: type[Any],
    checkpoint_path: str | Path | IO[bytes],
    map_location: Any = None,
    hparams_file: str | Path | None = None,
    strict: bool | None = None,
    weights_only: bool | None = None,
    **kwargs: Any,
) -> Any:
    """Builds a LightningModule from a checkpoint: its saved hyperparameters, then its weights.

    Args:
        cls: The class to build.
        checkpoint_path: Path, URL or open binary file.
        map_location: Where tensors go, as for `torch.load`; None: as saved, or on the CPU if there is no such device.
        hparams_file: A .yaml, .yml or .csv file whose values replace the saved hyperparameters.
        strict: Whether keys must match; None: as the module's `strict_loading` says.
        weights_only: As for `torch.load`; False unpickles anything, so only for files you trust.
        **kwargs: Arguments of the class, over the saved ones.

    Returns:
        The module, on the device of the first tensor of the loaded state.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It cannot be read, or does not fit the module.
        ValueError: `strict` contradicts what the module sets, or `hparams_file` has another extension.
    """
    checkpoint = _read_checkpoint(checkpoint_path, map_location, weights_only)
    module = _build(cls, checkpoint, hparams_file, kwargs)
    strict = _resolve_strict(module, strict)
    module.configure_model()
    module.on_load_checkpoint(checkpoint)
    state = checkpoint[STATE_DICT]
    if not state:
        rank_zero_warn(f"The state dict of {_name(checkpoint_path)!r} is empty; nothing is loaded into the module.")
    _load_state(module, state, strict, _name(checkpoint_path))
    first = next((value for value in state.values() if isinstance(value, Tensor)), None)
    return module if first is None else module.to(first.device)


def load_datamodule(
    cls: type[Any],
    checkpoint_path: str | Path | IO[bytes],
    map_location: Any = None,
    hparams_file: str | Path | None = None,
    weights_only: bool | None = None,
    **kwargs: Any,
) -> Any:
    """Builds a LightningDataModule from a checkpoint: its saved hyperparameters, then its state if there is one.

    Arguments and exceptions are those of `load_module`.
    """
    checkpoint = _read_checkpoint(checkpoint_path, map_location, weights_only)
    datamodule = _build(cls, checkpoint, hparams_file, kwargs)
    if (state := checkpoint.get(cls.__qualname__)) is not None:
        datamodule.load_state_dict(state)
    return datamodule


def _name(checkpoint_path: Any) -> str:
    is_path = isinstance(checkpoint_path, (str, Path))
    return str(checkpoint_path if is_path else getattr(checkpoint_path, "name", checkpoint_path))


def _read_checkpoint(path: Any, map_location: Any, weights_only: bool | None) -> dict[str, Any]:
    """The migrated checkpoint, as a dict whose top level the hooks may change."""
    content = read(path, _where_possible if map_location is None else map_location, weights_only)
    return dict(migrate(content))


def _where_possible(storage: Any, location: str) -> Any:
    """Keeps a storage on the CPU if its device does not exist here; None lets torch put it where it was."""
    device = torch.device(location)
    if device.type in ("cpu", "meta"):
        return None
    backend = getattr(torch, device.type, None)
    if backend is None or not backend.is_available() or (device.index or 0) >= backend.device_count():
        return storage
    return None


# ------------------------------------------------------------------------------------------------ constructor arguments


def _build(cls: type[Any], checkpoint: dict[str, Any], hparams_file: str | Path | None, kwargs: dict[str, Any]) -> Any:
    """Calls the class with the saved hyperparameters and, over them, `kwargs`."""
    if hparams_file is not None:
        checkpoint[cls.CHECKPOINT_HYPER_PARAMS_KEY] = _read_hparams_file(hparams_file)
    hparams = _saved_hparams(cls, checkpoint)
    if (instantiator := hparams.pop("_instantiator", None)) is not None:
        cls = _class_for(cls, instantiator, hparams.pop("_class_path", None))
    hparams.update(kwargs)
    parameters = inspect.signature(cls.__init__).parameters
    named = {name for name, each in parameters.items() if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
    packed_as = checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_NAME)
    if packed_as in named:
        hparams.pop(packed_as, None)
        arguments = {packed_as: _pack(hparams, checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_TYPE)), **kwargs}
    else:
        arguments = hparams
    if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        arguments = {name: value for name, value in arguments.items() if name in named}
    return cls(**arguments)


def _read_hparams_file(hparams_file: str | Path) -> Any:
    extension = str(hparams_file).rpartition(".")[2].lower()
    if extension in ("yaml", "yml"):
        return load_hparams_from_yaml(hparams_file)
    if extension == "csv":
        return load_hparams_from_tags_csv(hparams_file)
    raise ValueError(f"`hparams_file` is a .yaml, .yml or .csv file, and {str(hparams_file)!r} was given.")


def _saved_hparams(cls: type[Any], checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    hparams: dict[str, Any] = {}
    for key in (*CHECKPOINT_PAST_HPARAMS_KEYS, cls.CHECKPOINT_HYPER_PARAMS_KEY):
        hparams.update(checkpoint.get(key) or {})
    return hparams


def _class_for(cls: type[Any], instantiator: str, class_path: str | None) -> type[Any]:
    """The class a command line has built: `cls`, or the subclass of it that the checkpoint names.

    The subclass is looked for among those that exist already; a name in a file is no reason to import anything.
    """
    if instantiator not in _INSTANTIATORS:
        raise ValueError(
            f"The checkpoint wants to be built by {instantiator!r}, which could be any code. Only the names "
            f"{', '.join(_INSTANTIATORS)} are accepted."
        )
    if class_path is None:
        return cls
    waiting = [cls]
    while waiting:
        candidate = waiting.pop()
        if class_path == f"{candidate.__module__}.{candidate.__qualname__}":
            return candidate
        waiting += candidate.__subclasses__()
    raise ValueError(
        f"The checkpoint was made from {class_path!r}, which is not an imported subclass of {cls.__name__}. "
        f"Import it and type `{class_path.rpartition('.')[2]}.load_from_checkpoint(...)`."
    )


def _pack(hparams: dict[str, Any], kind: Any) -> Any:
    """All hyperparameters as the one argument they came from; those of a Namespace are read as its attributes were."""
    if kind is not None and getattr(kind, "__module__", "").partition(".")[0] == "omegaconf":
        return need("omegaconf").OmegaConf.create(hparams)
    return AttributeDict(hparams)


# ------------------------------------------------------------------------------------------------ state


def _resolve_strict(module: Any, strict: bool | None) -> bool:
    """What the caller says, else what the module says; a contradiction of the two is an error."""
    set_by_module = getattr(module, "_strict_loading", None)
    if strict is not None and set_by_module is not None and strict != set_by_module:
        raise ValueError(
            f"`load_from_checkpoint(strict={strict})` contradicts `{type(module).__name__}.strict_loading = "
            f"{set_by_module}`. Give both the same value, or leave one out."
        )
    return bool(module.strict_loading if strict is None else strict)


def _load_state(module: Any, state: Mapping[str, Any], strict: bool, name: str) -> None:
    try:
        keys = module.load_state_dict(state, strict=strict)
    except RuntimeError as error:
        explained = explain_mismatch(module, state, error)
        explained.path = name
        raise explained from error
    if strict or keys is None:
        return
    if keys.missing_keys:
        rank_zero_warn(f"Keys of the module that the checkpoint lacks: {_listed(keys.missing_keys)}")
    if keys.unexpected_keys:
        rank_zero_warn(f"Keys of the checkpoint that the module lacks: {_listed(keys.unexpected_keys)}")


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else ""
    return ", ".join(keys[:_SHOWN_KEYS]) + more
