"""The dimensions along which processes work together, and the mesh that they make.

A dimension is a row of the table: what it is called, and what its processes have in common. Everything else that has to
do with dimensions (who gets which data, over whom gradients are averaged, who has to draw the same random numbers)
follows from the table and the sizes by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from fulmen.fabric.errors import PlanError, UnavailableError

__all__ = ["DIMENSIONS", "Dimension", "Mesh", "Size", "check_sizes", "sizes_for"]

Size = int | Literal["auto"] | Sequence[int]


@dataclass(frozen=True)
class Dimension:
    """A dimension of the mesh.

    Args:
        name: Its name, by which its part of the mesh is found: `device_mesh["tensor_parallel"]`.
        divides_data: Whether its processes get different batches. Those of all other dimensions get the same ones and
            draw the same random numbers.
        averages_gradients: Whether the gradient of a parameter that its processes have as a whole is the mean over
            them: so where each sees another part of the data.
    """

    name: str
    divides_data: bool
    averages_gradients: bool


DATA, TENSOR = "data_parallel", "tensor_parallel"
REPLICATE, SHARD = "replicate", "shard"

# Processes that exchange most stand last: those are neighbours, on one machine.
DIMENSIONS = (
    Dimension(REPLICATE, divides_data=True, averages_gradients=True),
    Dimension(SHARD, divides_data=True, averages_gradients=True),
    Dimension(DATA, divides_data=True, averages_gradients=True),
    Dimension(TENSOR, divides_data=False, averages_gradients=False),
)
_PARTS = {DATA: (REPLICATE, SHARD)}  # what a pair of sizes stands for


def check_sizes(given: Mapping[str, Size]) -> None:
    """Refuse sizes that cannot be.

    Args:
        given: The size of each dimension, "auto", or for data parallel a pair: how many copies, of how many shards.

    Raises:
        PlanError: Neither of these.
    """
    for name, size in given.items():
        is_pair = isinstance(size, Sequence) and len(size) == 2 and name in _PARTS
        numbers: Sequence[Any] = size if is_pair else [size]  # type: ignore[assignment]
        if size == "auto" or all(type(number) is int and number >= 1 for number in numbers):
            continue
        pair = ", or a pair: the number of copies and of shards in each" if name in _PARTS else ""
        argument = f" Type: parallelize_fn={getattr(size, '__name__', 'parallelize')}" if callable(size) else ""
        raise PlanError(
            f"{name}_size has to be 'auto' or a number of processes{pair}; got {size!r}.{argument}", subject=size
        )


def sizes_for(given: Mapping[str, Size], world_size: int, num_nodes: int) -> dict[str, int]:
    """The size of each dimension, in the order of the mesh.

    Where all are "auto", data parallel is the number of machines; a single "auto" is what the others leave.

    Args:
        given: As for `check_sizes`.
        world_size: Number of processes.
        num_nodes: Number of machines.

    Raises:
        UnavailableError: They need another number of processes.
    """
    flat: dict[str, int | Literal["auto"]] = {}
    for name, size in given.items():
        if isinstance(size, Sequence) and not isinstance(size, str):
            flat |= dict(zip(_PARTS[name], size, strict=True))
        else:
            flat[name] = size
    order = [dimension.name for dimension in DIMENSIONS if dimension.name in flat]
    if all(size == "auto" for size in flat.values()):
        flat[DATA] = num_nodes
    known = prod(size for size in flat.values() if size != "auto")
    sizes = {name: world_size // known if size == "auto" else size for name in order for size in (flat[name],)}
    if prod(sizes.values()) != world_size:
        product = " x ".join(f"{name}={size}" for name, size in flat.items())
        raise UnavailableError(
            f"The sizes {product} multiplied have to be the number of processes, which is {world_size}. Change the"
            " sizes, devices or num_nodes; or leave one size 'auto'.",
            subject=dict(given),
        )
    return sizes


class Mesh:
    """The processes of a run as a mesh, and what follows from the place of this one in it.

    Args:
        sizes: As `sizes_for` gave them.
        device_type: Of the devices: "cpu", "cuda", ...
    """

    def __init__(self, sizes: Mapping[str, int], device_type: str) -> None:
        self.dimensions = [dimension for dimension in DIMENSIONS if dimension.name in sizes]
        self.device_mesh = init_device_mesh(device_type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
        shared = [dimension.name for dimension in self.dimensions if dimension.divides_data]
        self.data = self._flat(shared)

    def _flat(self, names: Sequence[str]) -> DeviceMesh:
        """One dimension of several."""
        mesh = self.device_mesh[tuple(names)]
        return mesh if len(names) == 1 else mesh._flatten(DATA)

    def along(self, dimension: Dimension) -> DeviceMesh:
        """The processes that differ from this one in one dimension only."""
        return self.device_mesh[dimension.name]

    def split(self) -> Iterator[Dimension]:
        """The dimensions with several processes."""
        return (dimension for dimension in self.dimensions if self.along(dimension).size() > 1)

    @cached_property
    def same_data(self) -> list[dist.ProcessGroup]:
        """The groups of this process within which all have the same batches."""
        return [self.along(dimension).get_group() for dimension in self.split() if not dimension.divides_data]

    def missing_in(self, tensor: torch.Tensor) -> list[Dimension]:
        """The dimensions along which each process has a tensor, or its part of it, for itself.

        Raises:
            ValueError: It is a `DTensor` on a mesh that is no part of this one.
        """
        ranks = _ranks_of(tensor)
        missing = []
        for dimension in self.split():
            peers = set(self.along(dimension).mesh.flatten().tolist())
            if len(peers & ranks) == 1:
                missing.append(dimension)
            elif not peers <= ranks:
                raise ValueError(
                    f"A parameter is spread over the processes {sorted(ranks)}, which is no part of the mesh"
                    f" {self.device_mesh}. Parallelise with `self.device_mesh`, or a part of it."
                )
        return missing


def _ranks_of(tensor: torch.Tensor) -> set[int]:
    """The ranks of the processes that have a part of a tensor."""
    mesh = getattr(tensor, "device_mesh", None)
    return {dist.get_rank()} if mesh is None else set(mesh.mesh.flatten().tolist())
