"""Hyperparameters: the arguments an object was made with, kept on it, in its checkpoints and in the loggers."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import types
from argparse import Namespace
from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

from fulmen.checkpoint.hyperparameters import (
    AttributeDict,
    dump_hyperparameters,
    is_omegaconf,
    load_hparams_from_tags_csv,
    load_hparams_from_yaml,
    save_hparams_to_tags_csv,
    save_hparams_to_yaml,
)
from fulmen.checkpoint.load import load_datamodule, load_module, restricted_classmethod
from fulmen.ranks import rank_zero_warn

__all__ = [
    "AttributeDict",
    "HyperparametersMixin",
    "arguments_in",
    "clean_namespace",
    "dump_hyperparameters",
    "given_hyperparameters",
    "is_picklable",
    "load_datamodule",
    "load_hparams_from_tags_csv",
    "load_hparams_from_yaml",
    "load_module",
    "restricted_classmethod",
    "save_hparams_to_tags_csv",
    "save_hparams_to_yaml",
    "save_hyperparameters",
]

_PRIMITIVES = (bool, int, float, str)

_given: ContextVar[dict[str, Any] | None] = ContextVar("given_hyperparameters", default=None)


@contextmanager
def given_hyperparameters(hparams: Mapping[str, Any], instantiator: str | None = None) -> Iterator[None]:
    """Makes objects built inside take their hyperparameters from `hparams`, not from the arguments of the call.

    For a command line: its parsed configuration can be saved and read back, the objects built from it may not.

    Args:
        hparams: The hyperparameters.
        instantiator: Name of the function that builds objects from them, kept as `_instantiator`.
    """
    named = {} if instantiator is None else {"_instantiator": instantiator}
    token = _given.set({**hparams, **named})
    try:
        yield
    finally:
        _given.reset(token)


class HyperparametersMixin:
    """Gives a class `save_hyperparameters` and `hparams`."""

    # on the class, so that a subclass that never calls our __init__ has them too
    _log_hyperparams: bool = False
    _hparams_name: str | None = None

    def save_hyperparameters(
        self,
        *args: Any,
        ignore: str | Sequence[str] | None = None,
        frame: types.FrameType | None = None,
        logger: bool = True,
    ) -> None:
        """Keeps the arguments of `__init__` in `self.hparams`; called in `__init__`.

        Without arguments all of them are kept, together with those of the `__init__` of subclasses. What is kept is
        written to checkpoints, where `load_from_checkpoint` takes it from, and handed to the loggers. Calling it again
        adds to what is there.

        Args:
            *args: Names of the arguments to keep; or one dict, Namespace or other mapping whose entries are kept.
            ignore: Names not to keep, also of those kept before.
            frame: The frame of the `__init__` whose arguments are meant; None: of the caller.
            logger: Whether the loggers get them.

        Raises:
            ValueError: A name is no argument, or the object is neither a mapping nor a Namespace.

        Example:
            >>> class Net(LightningModule):
            ...     def __init__(self, width, lr=1e-3):
            ...         super().__init__()
            ...         self.save_hyperparameters()
            ...         self.layer = nn.Linear(self.hparams.width, 1)
        """
        self._log_hyperparams = logger
        if frame is None and (current := inspect.currentframe()) is not None:
            frame = current.f_back
        save_hyperparameters(self, *args, ignore=ignore, frame=frame)

    @property
    def hparams(self) -> Any:
        """The hyperparameters: a dict whose entries are attributes too. Entries changed here go to the checkpoints."""
        hparams = self.__dict__.get("_hparams")
        if hparams is None:
            hparams = self.__dict__["_hparams"] = AttributeDict()
        return hparams

    @property
    def hparams_initial(self) -> Any:
        """A copy of the hyperparameters as they were at the last call of `save_hyperparameters`."""
        return copy.deepcopy(self.__dict__.get("_hparams_initial", AttributeDict()))

    def remove_ignored_hparams(self, ignore_list: list[str]) -> None:
        """Drops the named entries from `hparams` and `hparams_initial`."""
        for hparams in (self.hparams, self.__dict__.get("_hparams_initial", {})):
            for name in ignore_list:
                hparams.pop(name, None)


def save_hyperparameters(
    obj: Any,
    *args: Any,
    ignore: str | Sequence[str] | None = None,
    frame: types.FrameType | None = None,
    given_hparams: dict[str, Any] | None = None,
) -> None:
    """Does what `HyperparametersMixin.save_hyperparameters` says, for `obj`.

    Args:
        obj: The object whose hyperparameters they are.
        *args: As there.
        ignore: As there.
        frame: As there; None: of the caller.
        given_hparams: Values to keep in the place of the arguments of `__init__`.
    """
    if len(args) == 1 and not args[0]:
        return
    if frame is None and (current := inspect.currentframe()) is not None:
        frame = current.f_back
    arguments = _arguments_of(obj, frame, given_hparams if given_hparams is not None else _given.get())
    ignored = [ignore] if isinstance(ignore, str) else list(ignore or ())
    name: str | None
    if objects := [each for each in args if not isinstance(each, str)]:
        hparams, name = _from_object(objects, arguments)
        hparams = hparams if is_omegaconf(hparams) else _without(hparams, ignored)
    else:
        hparams, name = (
            _without(_from_names([each for each in args if isinstance(each, str)], arguments), ignored),
            "kwargs",
        )
    _warn_about_modules(hparams, obj.__dict__.get("_hparams") or {})
    obj._hparams_name = name
    _keep(obj, hparams, ignored)


def _without(hparams: Mapping[str, Any], ignored: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in hparams.items() if key not in ignored}


def _keep(obj: Any, hparams: Any, ignored: list[str]) -> None:
    """Merges `hparams` into those of `obj` and remembers a copy of the result."""
    kept = obj.__dict__.get("_hparams")
    if isinstance(kept, dict) and isinstance(hparams, dict):
        for name in ignored:
            kept.pop(name, None)
        kept.update(hparams)
    else:
        kept = AttributeDict(hparams) if isinstance(hparams, dict) else hparams
    obj._hparams = kept
    obj._hparams_initial = _copied(kept)


def _copied(hparams: Any) -> Any:
    """A deep copy; names the entry that cannot be copied."""
    if not isinstance(hparams, AttributeDict):
        return copy.deepcopy(hparams)
    copied = AttributeDict()
    for name, value in hparams.items():
        try:
            copied[name] = copy.deepcopy(value)
        except (TypeError, pickle.PicklingError, RuntimeError) as error:
            raise TypeError(
                f"The hyperparameter {name!r}, of {type(value).__name__}, cannot be copied: {error}. "
                f"Leave it out: `self.save_hyperparameters(ignore=[{name!r}])`."
            ) from error
    return copied


def _warn_about_modules(hparams: Any, kept: Any) -> None:
    """Says so of each module; not again of one that the `__init__` of a base class has kept already."""
    for name, value in hparams.items():
        if isinstance(value, nn.Module) and kept.get(name) is not value:
            rank_zero_warn(
                f"The hyperparameter {name!r} is an `nn.Module`: its weights are in every checkpoint already, and "
                f"`hparams.yaml` has no form for it. Leave it out: `self.save_hyperparameters(ignore=[{name!r}])`.",
                stacklevel=7,
            )


# ------------------------------------------------------------------------------------------------ where they come from


def _from_names(names: list[str], arguments: dict[str, Any]) -> dict[str, Any]:
    if not names:
        return arguments
    for name in names:
        if name not in arguments:
            raise ValueError(
                f"`save_hyperparameters({name!r})`: `__init__` has no argument of that name. It has: "
                f"{', '.join(arguments) or 'none'}. To keep another value: `save_hyperparameters({{{name!r}: value}})`."
            )
    return {name: arguments[name] for name in names}


def _from_object(objects: list[Any], arguments: dict[str, Any]) -> tuple[Any, str | None]:
    """The content of the one object, and the name of the argument that it is."""
    if len(objects) > 1:
        raise ValueError(
            f"`save_hyperparameters` takes the names of arguments or one object, and was given {len(objects)} objects. "
            f"Give their names: `save_hyperparameters('first', 'second')`."
        )
    content = objects[0]
    same = [name for name, value in arguments.items() if value is content]
    return _as_hparams(content), next(iter(same or _equal_names(content, arguments)), None)


def _equal_names(content: Any, arguments: dict[str, Any]) -> list[str]:
    """Names of arguments equal to `content`, for one that was copied before it was given."""
    return [name for name, value in arguments.items() if type(value) is type(content) and bool(value == content)]


def _as_hparams(content: Any) -> Any:
    if isinstance(content, Namespace):
        return dict(vars(content))
    if is_omegaconf(content):
        return content
    if isinstance(content, Mapping):
        return dict(content)
    if isinstance(content, _PRIMITIVES):
        raise ValueError(
            f"`save_hyperparameters({content!r})` has no name for the value. Give the name of the argument, as a "
            f"string, or `{{'name': {content!r}}}`."
        )
    hint = " Type `save_hyperparameters(dataclasses.asdict(config))`." if dataclasses.is_dataclass(content) else ""
    raise ValueError(
        f"`save_hyperparameters` takes the names of arguments, or a dict, Namespace or other mapping, and was given an "
        f"object of {type(content).__name__}.{hint}"
    )


def _arguments_of(obj: Any, frame: types.FrameType | None, given: dict[str, Any] | None) -> dict[str, Any]:
    """What the object was made with."""
    if given is not None:
        return dict(given)
    if dataclasses.is_dataclass(obj):
        return {field.name: getattr(obj, field.name) for field in dataclasses.fields(obj) if field.init}
    arguments: dict[str, Any] = {}
    while frame is not None:  # from the inside out: the value the user gave to the outermost class wins
        if _is_init_of(obj, frame):
            arguments.update(arguments_in(frame))
        frame = frame.f_back
    return arguments


def _is_init_of(obj: Any, frame: types.FrameType) -> bool:
    code = frame.f_code
    return code.co_name == "__init__" and code.co_argcount > 0 and frame.f_locals.get(code.co_varnames[0]) is obj


def arguments_in(frame: types.FrameType) -> dict[str, Any]:
    """The arguments of the function that runs in `frame`, without the first one and without `*args`."""
    code, values = frame.f_code, frame.f_locals
    num_named = code.co_argcount + code.co_kwonlyargcount
    arguments = {name: values[name] for name in code.co_varnames[1:num_named] if name in values}
    if code.co_flags & inspect.CO_VARKEYWORDS:
        position = num_named + bool(code.co_flags & inspect.CO_VARARGS)
        arguments.update(values.get(code.co_varnames[position], {}))
    return arguments


# ------------------------------------------------------------------------------------------------ what can be saved


def is_picklable(obj: object) -> bool:
    """Whether `obj` can be pickled."""
    try:
        pickle.dumps(obj)
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError):
        return False
    return True


def clean_namespace(hparams: MutableMapping[str, Any]) -> None:
    """Deletes the entries that cannot be pickled, in place, with a warning for each."""
    for name in [name for name, value in hparams.items() if not is_picklable(value)]:
        rank_zero_warn(f"The hyperparameter {name!r} cannot be pickled, and is removed from the hyperparameters.")
        del hparams[name]
