"""Collectives over `torch.distributed`; each gives back what it gets where no process group exists.

The arguments called `name` do nothing but stand in the frame: the watch (`watch.py`) reads there what a process that
does not go on is waiting for, so that saying it costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fulmen.fabric.rendezvous import store_of_attempt, tell_of_waiting
from fulmen.ranks import rank_zero_info

__all__ = [
    "DEFAULT_TIMEOUT",
    "all_gather",
    "all_gather_object",
    "alone",
    "barrier",
    "broadcast",
    "current_backend",
    "decide",
    "destroy",
    "gather_object",
    "host_group",
    "initialise",
    "is_alone",
    "is_initialised",
    "reduce",
    "scatter_object",
    "wait_long",
]

DEFAULT_TIMEOUT = timedelta(minutes=30)

_A_YEAR = timedelta(days=365)

T = TypeVar("T")

_HOST_GROUP: tuple[Any, Any] | None = None


def is_initialised() -> bool:
    """Whether there is a process group."""
    return dist.is_available() and dist.is_initialized()


_is_alone = False


def _together() -> bool:
    """Whether there are other processes to exchange with."""
    return not _is_alone and is_initialised()


@contextmanager
def alone() -> Iterator[None]:
    """Context in which what is here gives back what it gets: after a failure nobody may wait for the others."""
    global _is_alone
    before, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = before


def is_alone() -> bool:
    """Whether this process takes part in no exchange, because its run has failed."""
    return _is_alone


def current_backend() -> str | None:
    """What carries the exchanges; None without a process group."""
    return str(dist.get_backend()) if is_initialised() else None


def default_backend(device: torch.device) -> str:
    """The backend that torch has for tensors of a device."""
    return dist.get_default_backend_for_device(device) if device.type != "cpu" else "gloo"


def initialise(
    backend: str | None,
    rank: int,
    world_size: int,
    address: str,
    port: int,
    device: torch.device,
    timeout: timedelta | None = DEFAULT_TIMEOUT,
) -> bool:
    """Make the process group, unless there is one.

    Args:
        backend: "gloo", "nccl", ...; None for the default of the device.
        rank: Of this process.
        world_size: Number of processes.
        address: Host of rank 0.
        port: Port of rank 0.
        device: Of this process.
        timeout: After which a collective fails.

    Returns:
        Whether it was made here.
    """
    if not dist.is_available():
        raise RuntimeError(
            "This build of torch has no `torch.distributed`, which several processes need. Install one that has it, or"
            " type: devices=1, num_nodes=1"
        )
    if dist.is_initialized():
        return False
    backend = backend or default_backend(device)
    on_device: dict[str, Any] = {} if device.type == "cpu" or backend == "gloo" else {"device_id": device}
    host = f"[{address}]" if ":" in address else address
    store = store_of_attempt(rank, world_size, address, port, timeout or DEFAULT_TIMEOUT)
    meeting: dict[str, Any] = {"init_method": f"tcp://{host}:{port}"} if store is None else {"store": store}
    with tell_of_waiting(rank, world_size, address, port):
        dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=timeout, **meeting, **on_device)
    rank_zero_info(f"{world_size} processes train together, over {backend}.")
    return True


def destroy() -> None:
    """End the process group, if there is one."""
    if is_initialised():
        dist.destroy_process_group()


def barrier(name: str | None = None, device: torch.device | None = None) -> None:
    """Wait until all processes are here.

    Args:
        name: What for, in reports of processes that part.
        device: Of this process.
    """
    if not _together():
        return
    if dist.get_backend() == "nccl" and device is not None:
        dist.barrier(device_ids=[device.index])
    else:
        dist.barrier()


def wait_long(name: str | None = None) -> None:
    """Wait until all processes are here, however long it takes."""
    if _together():
        group = dist.new_group(backend="gloo", timeout=_A_YEAR)
        dist.monitored_barrier(group, timeout=_A_YEAR)
        dist.destroy_process_group(group)


def broadcast(obj: T, src: int = 0, group: Any = None, device: torch.device | None = None, name: str = "") -> T:
    """The object of the process of rank `src`."""
    if not _together():
        return obj
    objects = [obj]
    dist.broadcast_object_list(objects, src, group=group, device=_for_objects(device))
    return objects[0]


def all_gather_object(obj: T, group: Any = None, name: str = "") -> list[T]:
    """The objects of all processes, in the order of their ranks."""
    if not _together():
        return [obj]
    objects: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(objects, obj, group=group)
    return objects


def gather_object(obj: T, group: Any = None, name: str = "") -> list[T] | None:
    """The objects of all processes, in the order of their ranks, on the first one; None on the others."""
    if not _together():
        return [obj]
    objects: list[Any] | None = [None] * dist.get_world_size(group) if dist.get_rank(group) == 0 else None
    dist.gather_object(obj, objects, group=group, group_dst=0)
    return objects


def scatter_object(objects: list[T] | None, group: Any = None, name: str = "") -> T:
    """What the first process has for this one: it gives one object for each, the others None."""
    if not _together():
        assert objects is not None
        return objects[0]
    received: list[Any] = [None]
    dist.scatter_object_list(received, objects, group=group, group_src=0)
    mine: T = received[0]
    return mine


def host_group() -> Any:
    """A group of all processes that exchanges objects without a device, and may be used in a thread; made once.

    All processes must call it; None without a process group.
    """
    global _HOST_GROUP
    if not _together():
        return None
    if _HOST_GROUP is None or _HOST_GROUP[0] is not dist.group.WORLD:
        _HOST_GROUP = dist.group.WORLD, dist.new_group(backend="gloo")
    return _HOST_GROUP[1]


def reduce(tensor: T, group: Any = None, reduce_op: Any = "mean", name: str = "") -> T:
    """A tensor reduced over all processes; anything else is given back.

    Args:
        tensor: On the device of this process. It is not changed.
        group: Which processes; None for all.
        reduce_op: "mean" (also "avg"), "sum", "min", "max", "product", or a `ReduceOp`; None for "sum".
        name: What it is, in reports of processes that part.

    Returns:
        A new tensor; for the mean of integers one of floats.
    """
    if not isinstance(tensor, Tensor) or not _together():
        return tensor
    given: Tensor = tensor
    is_mean = isinstance(reduce_op, str) and reduce_op.lower() in ("mean", "avg")
    is_integer = not (given.is_floating_point() or given.is_complex())
    result: Any = given.float() if is_mean and is_integer else given.detach().clone()
    group = dist.group.WORLD if group is None else group
    dist.all_reduce(result, op=_operation(reduce_op), group=group)
    return result.div_(dist.get_world_size(group)) if is_mean else result  # type: ignore[no-any-return]


def all_gather(tensor: Tensor, group: Any = None, sync_grads: bool = False, name: str = "") -> Tensor:
    """The tensors of all processes, of one shape, stacked along a new first dimension.

    Args:
        tensor: On the device of this process.
        group: Which processes; None for all.
        sync_grads: Whether gradients flow back to the process that each came from.
        name: What it is, in reports of processes that part.
    """
    if not _together():
        return tensor
    group = dist.group.WORLD if group is None else group
    tensor = tensor.contiguous()
    if sync_grads:
        gathered: Tensor = _Gather.apply(tensor, group)  # type: ignore[no-untyped-call]
        return gathered
    return _stacked(tensor, group)


def _stacked(tensor: Tensor, group: Any) -> Tensor:
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, tensor.detach(), group=group)
    return torch.stack(parts)


class _Gather(torch.autograd.Function):
    """Gathering through which each process gets the gradient that all of them have of its tensor, summed."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        """The tensors of all processes."""
        ctx.group = group
        return _stacked(tensor, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """This process's part of the sum of all gradients."""
        gradient = gradient.clone()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient[dist.get_rank(ctx.group)], None


def decide(decision: bool, all: bool = True, device: torch.device | None = None, name: str = "") -> bool:
    """Whether all (or any) of the processes decided for it."""
    if not _together():
        return decision
    votes = torch.tensor(int(decision), device=_for_objects(device))
    dist.all_reduce(votes)
    count = int(votes.item())
    return count == dist.get_world_size() if all else count > 0


def _for_objects(device: torch.device | None) -> torch.device | None:
    """Where what is exchanged has to be: on the device only if the backend knows nothing else."""
    return device if dist.get_backend() == "nccl" else None


def _operation(name: Any) -> Any:
    if name is None:
        return dist.ReduceOp.SUM
    if not isinstance(name, str):
        return name
    operation = "SUM" if name.lower() in ("mean", "avg") else name.upper()
    if not hasattr(dist.ReduceOp, operation):
        raise ValueError(f"reduce_op={name!r} is not known. Type one of: mean, sum, min, max, product")
    return getattr(dist.ReduceOp, operation)
