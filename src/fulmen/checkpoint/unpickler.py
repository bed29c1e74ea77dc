"""Unpickling what Lightning pickled: objects of its classes become objects of ours that have the same name.

``REDIRECTING`` is for a load of ours, ``pl_legacy_patch`` for any load in a ``with``. Only for ``weights_only=False``,
which unpickles anything; a weights-only load knows no classes.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace, TracebackType
from typing import Any

__all__ = ["REDIRECTING", "pl_legacy_patch"]

_FOREIGN = ("pytorch_lightning", "lightning", "lightning_fabric")
# where a class of Lightning is, when that is not told by its path
_PLACES = {"AttributeDict": "fulmen.checkpoint.hyperparameters", "_gpus_arg_default": __name__}


class _Unpickler(pickle.Unpickler):
    """Finds the classes of Lightning here."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """The class of that name: ours if the path is one of Lightning, else the one that is meant."""
        if module_name.partition(".")[0] in _FOREIGN and (ours := _ours(module_name, global_name)) is not None:
            return ours
        return super().find_class(module_name, global_name)


def _ours(module_name: str, global_name: str) -> Any:
    """What we have under the name of something in a module of Lightning, None if there is nothing."""
    path = [part for part in module_name.split(".") if part not in (*_FOREIGN, "pytorch")]
    same, shelf = ".".join(["fulmen", *path]), ".".join(["fulmen", *path[:1]])
    for place in (_PLACES.get(global_name, same), shelf, "fulmen"):
        try:
            return getattr(import_module(place), global_name)
        except (ImportError, AttributeError):
            continue
    return None


REDIRECTING = SimpleNamespace(__name__=__name__, Unpickler=_Unpickler, load=pickle.load, loads=pickle.loads)
"""What ``torch.load`` takes as its ``pickle_module``."""


def _gpus_arg_default(argument: Any) -> Any:
    """The default that hyperparameters of before 1.2 hold where nobody had chosen GPUs."""
    return argument


class pl_legacy_patch:  # noqa: N801 - the name users know
    """Context in which the classes in old pickles are found here, whoever loads them.

    What is still imported from where the pickle says, as it is when Lightning is installed, is left alone. The loads of
    a Trainer and of `load_from_checkpoint` need none of this.

    Example::

        with pl_legacy_patch():
            checkpoint = torch.load("old.ckpt", weights_only=False)
    """

    def __init__(self) -> None:
        self._finder = _Finder()

    def __enter__(self) -> pl_legacy_patch:
        sys.meta_path.append(self._finder)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        exc_traceback: TracebackType | None,
    ) -> None:
        sys.meta_path.remove(self._finder)
        for name in self._finder.made:
            sys.modules.pop(name, None)
        self._finder.made.clear()


class _Finder(MetaPathFinder, Loader):
    """Makes modules that have what we have under their names.

    Attributes:
        made: Their names.
    """

    def __init__(self) -> None:
        self.made: list[str] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Every module of Lightning is here; asked last, so that it is none that can be had otherwise."""
        if fullname.partition(".")[0] not in _FOREIGN:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        """Gives the module its attributes, which are looked up when they are asked for."""
        self.made.append(module.__name__)
        module.__getattr__ = partial(_attribute, module.__name__)  # type: ignore[method-assign]


def _attribute(module_name: str, name: str) -> Any:
    ours = None if name.startswith("__") else _ours(module_name, name)
    if ours is None:
        raise AttributeError(f"fulmen has nothing for {module_name}.{name}")
    return ours
