"""Which modules are sharded each by itself: its parameters are gathered when it runs, and given back after it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from typing import Any

from torch import nn

from fulmen.ranks import rank_zero_warn

__all__ = ["bottom_up", "choose", "choose_units"]

Policy = Any  # a collection of module classes, or what FSDP1 took as `auto_wrap_policy`


def choose_units(root: nn.Module, policy: Policy | None, marked: Collection[nn.Module] = ()) -> list[nn.Module]:
    """The modules that are sharded each by itself, inner ones before those around them; the root is not among them.

    Args:
        root: The module around all.
        policy: Classes of modules; or a policy of FSDP1: an object of `torch.distributed.fsdp.wrap`, or a function
            `(module, recurse, nonwrapped_numel) -> bool`. None for the repeated blocks of the root.
        marked: Modules that the user chose one by one.

    Raises:
        TypeError: A policy of another kind.
    """
    chosen = set(marked) if policy is None and marked else {*marked, *choose(root, policy)}
    chosen = _keep_tied(root, {unit for unit in chosen if unit is not root and _can_be_sharded(unit)})
    return [module for module in bottom_up(root) if module in chosen]


def choose(root: nn.Module, policy: Policy | None) -> set[nn.Module]:
    """The modules that a policy means; see `choose_units`."""
    if policy is None:
        return set(_repeated_blocks(root))
    if isinstance(policy, Collection) and all(isinstance(kind, type) for kind in policy):
        return {module for module in root.modules() if isinstance(module, tuple(policy))}
    if hasattr(policy, "_run_policy"):  # the objects of torch.distributed.fsdp.wrap
        return set(policy._run_policy(root, ignored_modules=set(), root_kwargs={}))
    if callable(policy):
        return set(_asked(root, policy)[0])
    raise TypeError(
        "A policy is a set of module classes, or a function (module, recurse, nonwrapped_numel) -> bool; got"
        f" {policy!r}. Type: {{nn.TransformerEncoderLayer}}"
    )


def bottom_up(module: nn.Module) -> Iterator[nn.Module]:
    """All modules within one, each after those within itself, and the module itself at the end."""
    seen: set[nn.Module] = set()

    def visit(node: nn.Module) -> Iterator[nn.Module]:
        seen.add(node)
        for child in node.children():
            if child not in seen:
                yield from visit(child)
        yield node

    return visit(module)


def _can_be_sharded(module: nn.Module) -> bool:
    """Containers that are not called have no moment to gather, and without parameters there is nothing to."""
    return type(module).forward is not nn.Module.forward and next(module.parameters(), None) is not None


def _repeated_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Members of lists that hold a class several times; what is in a block stays in it."""
    for child in module.children():
        kinds = [type(block) for block in child] if isinstance(child, nn.ModuleList) else []
        if len(kinds) > len(set(kinds)) and all(_can_be_sharded(block) for block in child.children()):
            yield from child.children()
        else:
            yield from _repeated_blocks(child)


def _asked(module: nn.Module, policy: Callable[..., bool], is_root: bool = True) -> tuple[list[nn.Module], int]:
    """What a function of FSDP1 chooses, and how many numbers the parameters in there have.

    It is asked whether to look into a module, and then whether to take it, given how much nobody within it has taken.
    """
    numel = sum(parameter.numel() for parameter in module.parameters())
    if not policy(module=module, recurse=True, nonwrapped_numel=numel):
        return [], 0
    chosen: list[nn.Module] = []
    taken = 0
    for child in module.children():
        more, numel_of_child = _asked(child, policy, is_root=False)
        chosen += more
        taken += numel_of_child
    if not is_root and policy(module=module, recurse=False, nonwrapped_numel=numel - taken):
        return [*chosen, module], numel
    return chosen, taken


def _keep_tied(root: nn.Module, units: set[nn.Module]) -> set[nn.Module]:
    """The units without those that would part a parameter which several modules share: each would train its own."""
    places: dict[nn.Parameter, list[tuple[str, frozenset[nn.Module]]]] = defaultdict(list)

    def visit(module: nn.Module, name: str, around: frozenset[nn.Module]) -> None:
        if module in units:
            around |= {module}
        for own, parameter in module._parameters.items():
            if parameter is not None:
                places[parameter].append((f"{name}{own}", around))
        for own, child in module.named_children():
            visit(child, f"{name}{own}.", around)

    visit(root, "", frozenset())
    left = set(units)
    for found in places.values():
        around = [units_around for _, units_around in found]
        parting = frozenset[nn.Module]().union(*around) - around[0].intersection(*around[1:])
        if parting & left:
            rank_zero_warn(
                f"The parameters {[name for name, _ in found]} are one and the same, so"
                f" {sorted({type(unit).__name__ for unit in parting})} is not sharded by itself but with the module"
                " around it. Choose other modules in `auto_wrap_policy`."
            )
        left -= parting
    return left
