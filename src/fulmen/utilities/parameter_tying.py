"""Parameters that a module has under several names."""

from __future__ import annotations

from operator import attrgetter
from typing import TypeVar

from torch import nn

__all__ = ["find_shared_parameters", "set_shared_parameters"]

M = TypeVar("M", bound=nn.Module)


def find_shared_parameters(module: nn.Module) -> list[list[str]]:
    """The names of each parameter that has more than one, in the order of the module."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return [shared for shared in names.values() if len(shared) > 1]


def set_shared_parameters(module: M, shared_params: list[list[str]]) -> M:
    """Ties parameters again, after something has made copies of them.

    Args:
        module: The module, changed in place.
        shared_params: What `find_shared_parameters` gave; the parameter of the first name gets the others, too.

    Returns:
        The module.
    """
    for first, *others in shared_params:
        parameter = attrgetter(first)(module)
        for name in others:
            owner, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(owner), attribute, parameter)
    return module
