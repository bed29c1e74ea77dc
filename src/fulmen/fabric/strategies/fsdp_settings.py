"""What users type for FSDP, in the terms of FSDP1 or of `fully_shard`, as arguments of `fully_shard`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffload,
    CPUOffloadPolicy,
    MixedPrecision,
    MixedPrecisionPolicy,
    OffloadPolicy,
    ShardingStrategy,
)

from fulmen.fabric.errors import PlanError
from fulmen.ranks import rank_zero_warn
from fulmen.suggest import did_you_mean

__all__ = ["Sharding", "mixed_precision_of", "offload_of", "sharding_of", "split_arguments"]


@dataclass(frozen=True)
class Sharding:
    """A sharding strategy in the terms of `fully_shard`.

    Args:
        name: As FSDP1 calls it.
        is_hybrid: Whether shards are repeated over a second dimension of the mesh.
        is_replicated: Whether every process keeps all parameters.
        reshard_after_forward: Whether parameters are given back between forward and backward; None for all but the
            root, which is needed first in the backward pass.
    """

    name: str
    is_hybrid: bool = False
    is_replicated: bool = False
    reshard_after_forward: bool | None = None

    def mesh(self, given: Any, device_type: str, num_nodes: int) -> DeviceMesh:
        """The mesh over which parameters are sharded; the process group must be there.

        Args:
            given: What the user gave: sizes, a mesh, or None for all processes.
            device_type: "cuda", "cpu", ...
            num_nodes: Number of machines, over which shards are repeated by default where they are repeated.

        Raises:
            PlanError: The sizes do not fit the number of processes.
        """
        if isinstance(given, DeviceMesh):
            return given
        world_size = dist.get_world_size()
        if given is not None:
            sizes = tuple(given)
        elif self.is_replicated:
            sizes = (world_size, 1)
        elif self.is_hybrid:
            sizes = (num_nodes, world_size // num_nodes)
        else:
            sizes = (world_size,)
        if len(sizes) not in (1, 2) or torch.Size(sizes).numel() != world_size:
            raise PlanError(
                f"device_mesh={given!r} does not fit {world_size} processes. Give the number of copies and the number"
                f" of shards in each, e.g. device_mesh=(2, {max(1, world_size // 2)})",
                subject=given,
            )
        return init_device_mesh(device_type, sizes, mesh_dim_names=("replicate", "shard")[-len(sizes) :])


SHARDINGS = (
    Sharding("FULL_SHARD"),
    Sharding("SHARD_GRAD_OP", reshard_after_forward=False),
    Sharding("HYBRID_SHARD", is_hybrid=True),
    Sharding("_HYBRID_SHARD_ZERO2", is_hybrid=True, reshard_after_forward=False),
    Sharding("NO_SHARD", is_replicated=True, reshard_after_forward=False),
)

# What FSDP1 took and FSDP2 does anyway, with the value that says so, or has no use for (None: whatever the value is).
_NEEDLESS: dict[str, Any] = {
    "use_orig_params": True,
    "limit_all_gathers": True,
    "sync_module_states": True,
    "backward_prefetch": None,
    "forward_prefetch": None,
    "device_id": None,
}
_OWN = ("ignored_modules", "ignored_states", "param_init_fn")
_OF_FULLY_SHARD = ("mp_policy", "offload_policy", "reshard_after_forward", "shard_placement_fn")


def sharding_of(given: str | ShardingStrategy) -> Sharding:
    """The sharding strategy of that name, in any case of letters.

    Raises:
        PlanError: It is not known.
    """
    name = given.name if isinstance(given, ShardingStrategy) else str(given).upper()
    for sharding in SHARDINGS:
        if sharding.name == name:
            return sharding
    names = [sharding.name for sharding in SHARDINGS]
    raise PlanError(
        f"sharding_strategy={given!r} is not known.{did_you_mean(given, names)} Type one of: {', '.join(names)}",
        subject=given,
    )


def split_arguments(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Further arguments: those of ours, and those of `fully_shard`; those of FSDP1 without a meaning are left out.

    Raises:
        TypeError: One that nobody knows, or that says what another argument says here.
    """
    ours = {name: value for name, value in given.items() if name in _OWN}
    theirs = {name: value for name, value in given.items() if name in _OF_FULLY_SHARD}
    for name in sorted(set(given) - set(ours) - set(theirs)):
        if name in ("process_group", "mesh"):
            raise TypeError(f"FSDPStrategy({name}=...): type device_mesh=... with sizes or a DeviceMesh instead.")
        if name not in _NEEDLESS:
            known = (*_OWN, *_OF_FULLY_SHARD)
            raise TypeError(
                f"FSDPStrategy has no argument {name!r}.{did_you_mean(name, known)} Further ones are:"
                f" {', '.join(known)}"
            )
        if given[name] != _NEEDLESS[name]:
            rank_zero_warn(
                f"FSDPStrategy({name}={given[name]!r}) is an argument of FSDP1 that has no meaning in FSDP2. Leave it"
                " out."
            )
    return ours, theirs


def ignored_parameters(module: nn.Module, ours: Mapping[str, Any]) -> set[nn.Parameter]:
    """The parameters that are not sharded, by `ignored_modules` and `ignored_states`."""
    found: set[nn.Parameter] = set()
    for part in (*(ours.get("ignored_modules") or ()), *(ours.get("ignored_states") or ())):
        found |= set(part.parameters()) if isinstance(part, nn.Module) else {part}
    return found & set(module.parameters())


def mixed_precision_of(given: Any, default: MixedPrecisionPolicy) -> MixedPrecisionPolicy:
    """The policy of `fully_shard`.

    Args:
        given: A `MixedPrecisionPolicy`, FSDP1's `MixedPrecision`, or None.
        default: What is used for None.

    Raises:
        TypeError: Something else.
    """
    if given is None:
        return default
    if isinstance(given, MixedPrecisionPolicy):
        return given
    if not isinstance(given, MixedPrecision):
        raise TypeError(
            f"mixed_precision={given!r} is not known. Type: MixedPrecisionPolicy(param_dtype=torch.bfloat16), from"
            " torch.distributed.fsdp"
        )
    if given.buffer_dtype not in (None, given.param_dtype):
        rank_zero_warn(f"MixedPrecision(buffer_dtype={given.buffer_dtype}): buffers keep their type in FSDP2.")
    return MixedPrecisionPolicy(
        param_dtype=given.param_dtype,
        reduce_dtype=given.reduce_dtype or given.param_dtype,
        cast_forward_inputs=given.cast_root_forward_inputs,
    )


def offload_of(given: Any, device: torch.device) -> OffloadPolicy:
    """Where parameters are between steps.

    Args:
        given: Whether on the CPU (bool or FSDP1's `CPUOffload`), or an `OffloadPolicy`; None for the device.
        device: Of this process.

    Raises:
        TypeError: Something else.
    """
    if isinstance(given, CPUOffload):
        given = given.offload_params
    if given is None or given is False:
        return OffloadPolicy()
    if given is True or isinstance(given, CPUOffloadPolicy):
        pin = given is True or given.pin_memory
        return CPUOffloadPolicy(pin_memory=pin and device.type != "cpu")  # pinned for a device there must be
    if isinstance(given, OffloadPolicy):
        return given
    raise TypeError(f"cpu_offload={given!r} is not known. Type: cpu_offload=True")


def checkpointing_policy_of(policy: Any, classes: Any) -> Any:
    """Which modules compute their activations again in the backward pass.

    Args:
        policy: `activation_checkpointing_policy`.
        classes: `activation_checkpointing`, the former name: a class or several.

    Raises:
        ValueError: Both were given.
    """
    if classes is None:
        return policy
    if policy is not None:
        raise ValueError(
            "activation_checkpointing and activation_checkpointing_policy say the same. Give only the latter."
        )
    return {classes} if isinstance(classes, type) else set(classes) if isinstance(classes, Iterable) else classes
