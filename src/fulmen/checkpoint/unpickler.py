"""Unpickling what Lightning pickled: objects of its classes become objects of ours that have the same name.

Only for ``weights_only=False``, which unpickles anything; a weights-only load knows no classes.
"""

from __future__ import annotations

import pickle
from importlib import import_module
from types import SimpleNamespace
from typing import Any

__all__ = ["REDIRECTING"]

_FOREIGN = ("pytorch_lightning", "lightning", "lightning_fabric")
# where a class of Lightning is, when that is not told by its path
_PLACES = {"AttributeDict": "fulmen.checkpoint.hyperparameters"}


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
    shelf = f"fulmen.{path[0]}" if path else "fulmen"
    for place in (_PLACES.get(global_name, shelf), "fulmen"):
        try:
            return getattr(import_module(place), global_name)
        except (ImportError, AttributeError):
            continue
    return None


REDIRECTING = SimpleNamespace(__name__=__name__, Unpickler=_Unpickler, load=pickle.load, loads=pickle.loads)
"""What ``torch.load`` takes as its ``pickle_module``."""
