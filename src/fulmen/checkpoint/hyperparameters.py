"""Hyperparameters outside of the objects they belong to: in memory, in a checkpoint, in a YAML or CSV file."""

from __future__ import annotations

import ast
import csv
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

from torch import nn

from fulmen.extras import available, need
from fulmen.ranks import rank_zero_warn

__all__ = [
    "AttributeDict",
    "convert",
    "dump_hyperparameters",
    "load_hparams_from_tags_csv",
    "load_hparams_from_yaml",
    "save_hparams_to_tags_csv",
    "save_hparams_to_yaml",
    "update_hparams",
]


class AttributeDict(dict[Any, Any]):
    """A dict whose entries are attributes as well.

    Example:
        >>> hparams = AttributeDict(lr=0.1)
        >>> hparams.lr
        0.1
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self
            ) from error

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError as error:
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self
            ) from error

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(key for key in self if isinstance(key, str))})

    def __repr__(self) -> str:
        """One entry a line, sorted by key, the values below each other."""
        names = {key: f'"{key}":' for key in self}
        width = max(map(len, names.values()), default=0)
        return "\n".join(f"{names[key]:<{width}} {self[key]}" for key in sorted(self, key=str))


#: Whether the user has been told of modules among the hyperparameters that are being written.
_modules_are_known: ContextVar[bool] = ContextVar("modules_are_known", default=False)


@contextmanager
def modules_known() -> Iterator[None]:
    """Context in which nothing is said of an `nn.Module` that is left out of a file: it was when it was saved."""
    token = _modules_are_known.set(True)
    try:
        yield
    finally:
        _modules_are_known.reset(token)


def is_omegaconf(value: Any) -> bool:
    """Whether `value` is a container of OmegaConf; that package is not imported for it."""
    return type(value).__module__.partition(".")[0] == "omegaconf"


def dump_hyperparameters(owner: Any) -> dict[str, Any]:
    """The entries of a checkpoint for the hyperparameters of a module or datamodule; empty if it has none.

    Args:
        owner: An object with `hparams` and the names of its keys in `CHECKPOINT_HYPER_PARAMS_*`.
    """
    hparams = owner.hparams
    if not hparams:
        return {}
    entries: dict[str, Any] = {}
    if (name := getattr(owner, "_hparams_name", None)) is not None:
        entries[owner.CHECKPOINT_HYPER_PARAMS_NAME] = name
    if is_omegaconf(hparams):
        entries[owner.CHECKPOINT_HYPER_PARAMS_KEY] = hparams
        entries[owner.CHECKPOINT_HYPER_PARAMS_TYPE] = type(hparams)
    else:
        entries[owner.CHECKPOINT_HYPER_PARAMS_KEY] = dict(hparams)
    return entries


def update_hparams(hparams: MutableMapping[str, Any], updates: Mapping[str, Any]) -> None:
    """Puts `updates` into `hparams` in place; mappings that both have are merged."""
    for key, value in updates.items():
        if isinstance(value, Mapping) and isinstance(hparams.get(key), MutableMapping):
            update_hparams(hparams[key], value)
        else:
            hparams[key] = value


def _as_mapping(hparams: Any) -> Mapping[str, Any]:
    if isinstance(hparams, Namespace):
        return vars(hparams)
    if not isinstance(hparams, Mapping):
        raise TypeError(f"Hyperparameters are a dict or an argparse.Namespace, and {type(hparams).__name__} was given.")
    return hparams


# ------------------------------------------------------------------------------------------------ files


def _open(path: str | Path, mode: str) -> AbstractContextManager[Any]:
    if "://" in str(path):
        return need("fsspec").open(str(path), mode, newline="")  # type: ignore[no-any-return]
    return open(path, mode, newline="", encoding="utf-8")


def _exists(path: str | Path) -> bool:
    if "://" in str(path):
        filesystem, location = need("fsspec.core").url_to_fs(str(path))
        return bool(filesystem.isfile(location))
    return os.path.isfile(path)


def _require_folder(path: str | Path) -> None:
    folder = os.path.dirname(os.fspath(path))
    if "://" not in str(path) and folder and not os.path.isdir(folder):
        raise RuntimeError(f"The folder {folder!r} does not exist. Make it first: `os.makedirs({folder!r})`.")


def _is_missing(path: str | Path) -> bool:
    if _exists(path):
        return False
    rank_zero_warn(f"There is no file of hyperparameters {str(path)!r}.", category=RuntimeWarning)
    return True


def save_hparams_to_yaml(
    config_yaml: str | Path, hparams: Mapping[str, Any] | Namespace, use_omegaconf: bool = True
) -> None:
    """Writes hyperparameters to a YAML file.

    Enums are written by name, paths as strings. A value that YAML has no safe form for is skipped with a warning.

    Args:
        config_yaml: The file; its folder must exist.
        hparams: The hyperparameters.
        use_omegaconf: Whether a container of OmegaConf is written by OmegaConf.

    Raises:
        RuntimeError: The folder does not exist.
        TypeError: `hparams` is neither a mapping nor a Namespace.
    """
    _require_folder(config_yaml)
    if use_omegaconf and is_omegaconf(hparams):
        with _open(config_yaml, "w") as file:
            need("omegaconf").OmegaConf.save(hparams, file)
        return
    import yaml

    dumper = _dumper()
    writable, left_out = {}, []
    for key, value in _as_mapping(hparams).items():
        try:
            yaml.dump({key: value}, Dumper=dumper)
        except (yaml.YAMLError, TypeError):
            if not (_modules_are_known.get() and isinstance(value, nn.Module)):
                left_out.append(repr(key))
        else:
            writable[key] = value
    if left_out:
        names = ", ".join(left_out)
        rank_zero_warn(f"Not written to {config_yaml}, as YAML has no safe form for it: hyperparameter {names}.")
    with _open(config_yaml, "w") as file:
        yaml.dump(writable, file, Dumper=dumper)


def load_hparams_from_yaml(config_yaml: str | Path, use_omegaconf: bool = True) -> Any:
    """Reads hyperparameters from a YAML file; tags that would run code are refused.

    Args:
        config_yaml: The file.
        use_omegaconf: Whether a container of OmegaConf is returned, if that is installed.

    Returns:
        A dict, or a container of OmegaConf; an empty dict, with a RuntimeWarning, if there is no such file.
    """
    if _is_missing(config_yaml):
        return {}
    import yaml

    with _open(config_yaml, "r") as file:
        hparams = yaml.load(file, Loader=_loader()) or {}
    if use_omegaconf and available("omegaconf"):
        omegaconf = need("omegaconf")
        try:
            return omegaconf.OmegaConf.create(hparams)
        except omegaconf.errors.UnsupportedValueType:
            return hparams
    return hparams


_TUPLE = "tag:yaml.org,2002:python/tuple"


def _dumper() -> Any:
    """PyYAML's safe dumper, which also knows tuples, enums, paths, numpy scalars and subclasses of the basic types."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:  # two parameters may share a value; each is written out
            return True

        def represent_undefined(self, data: Any) -> Any:
            if hasattr(data, "item") and getattr(data, "ndim", None) == 0:
                return self.represent_data(data.item())
            return super().represent_undefined(data)

    safe = yaml.representer.SafeRepresenter
    Dumper.add_representer(tuple, lambda dumper, data: dumper.represent_sequence(_TUPLE, data))
    Dumper.add_multi_representer(Namespace, lambda dumper, data: dumper.represent_dict(vars(data)))
    Dumper.add_multi_representer(dict, safe.represent_dict)
    Dumper.add_multi_representer(PurePath, lambda dumper, data: dumper.represent_str(str(data)))
    Dumper.add_multi_representer(Enum, lambda dumper, data: dumper.represent_str(data.name))
    Dumper.add_multi_representer(str, lambda dumper, data: dumper.represent_str(str(data)))
    Dumper.add_representer(None, Dumper.represent_undefined)  # type: ignore[arg-type]  # for all other types
    return Dumper


def _loader() -> Any:
    """PyYAML's safe loader, which also knows tuples."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_tuple(self, node: Any) -> tuple[Any, ...]:
            return tuple(self.construct_sequence(node, deep=True))

    Loader.add_constructor(_TUPLE, Loader.construct_tuple)
    return Loader


def save_hparams_to_tags_csv(tags_csv: str | Path, hparams: Mapping[str, Any] | Namespace) -> None:
    """Writes hyperparameters to a CSV file with the columns key and value.

    Raises:
        RuntimeError: The folder of the file does not exist.
        TypeError: `hparams` is neither a mapping nor a Namespace.
    """
    _require_folder(tags_csv)
    with _open(tags_csv, "w") as file:
        writer = csv.writer(file)
        writer.writerow(("key", "value"))
        writer.writerows(_as_mapping(hparams).items())


def load_hparams_from_tags_csv(tags_csv: str | Path) -> dict[str, Any]:
    """Reads what `save_hparams_to_tags_csv` wrote; an empty dict, with a RuntimeWarning, if there is no such file."""
    if _is_missing(tags_csv):
        return {}
    with _open(tags_csv, "r") as file:
        return {row["key"]: convert(row["value"]) for row in csv.DictReader(file)}


def convert(val: str) -> Any:
    """The value of a Python literal (a number, a list, None, ...); any other text as it is."""
    try:
        return ast.literal_eval(val)
    except (ValueError, SyntaxError):
        return val
