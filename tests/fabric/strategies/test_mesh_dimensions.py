import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.strategies.mesh_dimensions import DIMENSIONS, check_sizes, sizes_for


@pytest.mark.parametrize(
    ("data", "tensor", "world_size", "num_nodes", "expected"),
    [
        ("auto", "auto", 8, 2, {"data_parallel": 2, "tensor_parallel": 4}),
        ("auto", "auto", 1, 1, {"data_parallel": 1, "tensor_parallel": 1}),
        (2, 4, 8, 1, {"data_parallel": 2, "tensor_parallel": 4}),
        (4, "auto", 8, 1, {"data_parallel": 4, "tensor_parallel": 2}),
        ("auto", 2, 8, 1, {"data_parallel": 4, "tensor_parallel": 2}),
        ((2, 2), 2, 8, 1, {"replicate": 2, "shard": 2, "tensor_parallel": 2}),
        ((1, 4), "auto", 8, 1, {"replicate": 1, "shard": 4, "tensor_parallel": 2}),
    ],
)
def test_sizes(data, tensor, world_size, num_nodes, expected):
    sizes = sizes_for({"data_parallel": data, "tensor_parallel": tensor}, world_size, num_nodes)
    assert list(sizes.items()) == list(expected.items())


@given(st.integers(1, 8), st.integers(1, 8), st.sampled_from(["data_parallel", "tensor_parallel"]))
def test_one_size_may_be_left_out(data, tensor, left_out):
    sizes = {"data_parallel": data, "tensor_parallel": tensor}
    assert sizes_for(sizes | {left_out: "auto"}, data * tensor, 1) == sizes


@pytest.mark.parametrize(("data", "tensor"), [(2, 2), (3, "auto"), ((2, 2), 4)])
def test_sizes_that_do_not_fit(data, tensor):
    with pytest.raises(RuntimeError, match="have to be the number of processes, which is 8"):
        sizes_for({"data_parallel": data, "tensor_parallel": tensor}, 8, 1)


@pytest.mark.parametrize("size", [0, -1, 1.0, True, "all", (1,), (1, 2, 3), (1, 0), None])
def test_sizes_that_cannot_be(size):
    with pytest.raises(ValueError, match=r"data_parallel_size has to be 'auto' or a number of processes, or a pair"):
        check_sizes({"data_parallel": size})


def test_only_data_parallel_may_be_a_pair():
    with pytest.raises(ValueError, match=r"tensor_parallel_size .* number of processes; got \(1, 2\)"):
        check_sizes({"data_parallel": (1, 2), "tensor_parallel": (1, 2)})


def test_gradients_are_averaged_where_data_differ():
    assert all(dimension.averages_gradients for dimension in DIMENSIONS if dimension.divides_data)
