"""Clipping over shards: as `torch.nn.utils` does with the whole gradients."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from fulmen.fabric.precision import Precision
from fulmen.fabric.strategies import clipping
from meshes import whole
from processes import RanksFailed, run_ranks

SIZES = [(5, 3), (1, 4), (7,), ()]


def gradients(scale=1.0):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(size, generator=generator) * scale for size in SIZES]


def parameters_on(mesh):
    """One sharded (unevenly, one process has nothing), one replicated, one of summands, one whole; on two meshes."""
    parts = [
        distribute_tensor(torch.zeros(5, 3), mesh["row"], [Shard(0)]),
        distribute_tensor(torch.zeros(1, 4), mesh, [Shard(0), Shard(1)]),
        distribute_tensor(torch.zeros(7), mesh["column"], [Replicate()]),
        torch.zeros(()),
    ]
    parameters = [nn.Parameter(part) for part in parts]
    for parameter, gradient in zip(parameters, gradients(), strict=True):
        if isinstance(parameter, DTensor):
            mesh_of = parameter.device_mesh
            gradient = distribute_tensor(gradient, mesh_of, parameter.placements)
            if parameter.placements == (Replicate(),):
                gradient = DTensor.from_local(gradient.to_local() / mesh_of.size(), mesh_of, [Partial()])
        parameter.grad = gradient
    return parameters


def clip(shape, norm_type, max_norm):
    parameters = parameters_on(init_device_mesh("cpu", shape, mesh_dim_names=("row", "column")))
    norm = clipping.clip_norm(parameters, max_norm, norm_type)
    return norm, [whole(parameter.grad) for parameter in parameters]


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, float("inf")])
@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_by_norm(norm_type, max_norm):
    expected = [nn.Parameter(torch.zeros(size)) for size in SIZES]
    for parameter, gradient in zip(expected, gradients(), strict=True):
        parameter.grad = gradient
    norm = nn.utils.clip_grad_norm_(expected, max_norm, norm_type)
    for result, clipped in run_ranks(clip, 2, (2, 1), norm_type, max_norm):
        torch.testing.assert_close(result, norm)
        torch.testing.assert_close(clipped, [parameter.grad for parameter in expected])


@pytest.mark.slow
def test_by_norm_over_two_dimensions():
    expected = [nn.Parameter(torch.zeros(size)) for size in SIZES]
    for parameter, gradient in zip(expected, gradients(), strict=True):
        parameter.grad = gradient
    norm = nn.utils.clip_grad_norm_(expected, 0.5)
    for result, clipped in run_ranks(clip, 4, (2, 2), 2.0, 0.5):
        torch.testing.assert_close(result, norm)
        torch.testing.assert_close(clipped, [parameter.grad for parameter in expected])


def clip_by_value():
    parameters = parameters_on(init_device_mesh("cpu", (2, 1), mesh_dim_names=("row", "column")))
    precision = Precision()
    clipping.clip_shards(precision)
    precision.clip_gradients(torch.optim.SGD(parameters, 0.1), 0.25, "value")
    return [whole(parameter.grad) for parameter in parameters]


def test_by_value():
    for clipped in run_ranks(clip_by_value, 2):
        torch.testing.assert_close(clipped, [gradient.clamp(-0.25, 0.25) for gradient in gradients()])


def clip_what_is_not_finite():
    parameters = parameters_on(init_device_mesh("cpu", (2, 1), mesh_dim_names=("row", "column")))
    parameters[0].grad.to_local().fill_(float("nan"))
    clipping.clip_norm(parameters, 1.0, error_if_nonfinite=True)


def test_a_norm_that_is_not_finite():
    with pytest.raises(RanksFailed, match="non-finite"):
        run_ranks(clip_what_is_not_finite, 2)


def test_without_gradients():
    assert clipping.clip_norm([nn.Parameter(torch.zeros(2))], 1.0) == 0
    clipping.clip_value([nn.Parameter(torch.zeros(2))], 1.0)
