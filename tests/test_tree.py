import collections
import dataclasses
from collections import OrderedDict, UserDict, defaultdict
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from fulmen import tree as tree_module
from fulmen.tree import _copy_together, batch_size_of, map_tensors, move, to_scalars

META = torch.device("meta")
CPU = torch.device("cpu")


class Pair(NamedTuple):
    x: Any
    y: Any


@dataclasses.dataclass
class Sample:
    image: Any
    label: Any


@dataclasses.dataclass(frozen=True)
class FrozenSample:
    image: Any
    cache: Any = dataclasses.field(init=False, default=None)


class Graph:
    """Moves itself, like the batches of graph libraries."""

    def __init__(self, nodes: Tensor) -> None:
        self.nodes = nodes

    def to(self, device: torch.device) -> "Graph":
        return Graph(self.nodes.to(device))


class InPlace:
    """Moves itself in place and returns nothing."""

    device: torch.device | None = None

    def to(self, device: torch.device) -> None:
        self.device = device


@pytest.fixture(autouse=True)
def _forget_warnings():
    tree_module._warned.clear()


def leaves_of(tree):
    leaves = []
    map_tensors(leaves.append, tree)
    return leaves


containers = st.recursive(
    st.one_of(st.integers(1, 5).map(torch.zeros), st.text(), st.none(), st.floats(allow_nan=False)),
    lambda children: st.one_of(
        st.lists(children),
        st.lists(children).map(tuple),
        st.dictionaries(st.text(), children),
        st.builds(Pair, children, children),
        st.builds(Sample, children, children),
        st.builds(FrozenSample, children),
    ),
    max_leaves=8,
)


@given(containers)
def test_mapping_keeps_the_structure_and_maps_every_tensor(tree):
    doubled = map_tensors(lambda t: t + 1, tree)
    assert type(doubled) is type(tree)
    assert [t.sum().item() for t in leaves_of(doubled)] == [float(t.numel()) for t in leaves_of(tree)]
    assert repr(map_tensors(lambda t: t - 1, doubled)) == repr(tree)


@given(containers)
def test_moving_reaches_every_tensor(tree):
    moved = move(tree, META)
    assert type(moved) is type(tree)
    assert all(t.device == META for t in leaves_of(moved))
    assert [t.shape for t in leaves_of(moved)] == [t.shape for t in leaves_of(tree)]


@given(containers)
def test_what_is_there_is_not_copied(tree):
    assert list(map(id, leaves_of(move(tree, CPU)))) == list(map(id, leaves_of(tree)))


@pytest.mark.parametrize(
    "tree",
    [
        OrderedDict(a=torch.ones(2)),
        UserDict(a=torch.ones(2)),
        defaultdict(list, a=torch.ones(2)),
        Pair(torch.ones(2), "label"),
        Sample(torch.ones(2), "label"),
        FrozenSample([torch.ones(2)]),
        [{"a": (torch.ones(2), None)}],
    ],
)
def test_types_of_containers_are_kept(tree):
    moved = move(tree, META)
    assert type(moved) is type(tree)
    assert [t.device for t in leaves_of(moved)] == [META]
    assert [t.device for t in leaves_of(tree)] == [CPU]


def test_a_defaultdict_keeps_its_factory():
    assert move(defaultdict(list, a=torch.ones(2)), META).default_factory is list


def test_containers_are_new_and_leaves_are_not():
    label = object()
    batch = {"x": [torch.ones(2), label]}
    moved = move(batch, CPU)
    assert moved is not batch
    assert moved["x"] is not batch["x"]
    assert moved["x"][1] is label


def test_classes_are_leaves():
    assert move([Sample, Pair], META) == [Sample, Pair]
    assert batch_size_of([Sample, Pair]) is None


@pytest.mark.parametrize("device", ["meta", META, torch.device("meta", 0)])
def test_devices_can_be_named(device):
    assert move(torch.ones(2), device).device.type == "meta"
    assert move((torch.ones(2),), device)[0].device.type == "meta"


def test_objects_that_move_themselves():
    packed = pack_sequence([torch.ones(3, 1), torch.ones(2, 1)])
    moved = move({"graph": Graph(torch.ones(2)), "packed": packed}, META)
    assert moved["graph"].nodes.device == META
    assert isinstance(moved["packed"], PackedSequence)
    assert moved["packed"].data.device == META


def test_an_object_whose_to_returns_nothing_is_kept():
    thing = InPlace()
    assert move([thing], META)[0] is thing
    assert thing.device == META


@pytest.mark.parametrize(
    ("device", "asked", "used"),
    [("cpu", None, False), ("mps", None, False), ("cuda", None, True), ("cuda", False, False), ("cpu", True, True)],
)
def test_only_devices_that_can_wait_for_data_are_copied_to_asynchronously(device, asked, used):
    calls = []

    class Recording(Tensor):
        def to(self, device, non_blocking):
            calls.append((device.type, non_blocking))
            return self

    # on the meta device, so that it has to move
    move([torch.empty(2, device=META).as_subclass(Recording)], device, non_blocking=asked)
    assert calls == [(device, used)]


@pytest.mark.parametrize(
    ("tree", "size"),
    [
        (torch.zeros(3, 4), 3),
        (tensor(1.0), 1),
        ((torch.zeros(3), torch.zeros(3, 2)), 3),
        ({"name": "abc", "x": torch.zeros(5)}, 5),
        ([[{"a": ["text", torch.zeros(2)]}]], 2),
        (Sample(torch.zeros(6), None), 6),
        (collections.deque([torch.zeros(4)]), 4),
        (MappingProxyType({"x": torch.zeros(4)}), 4),
        ("text", None),
        (b"bytes", None),
        (None, None),
        (3.5, None),
        ([], None),
        ({"a": ["text", 1]}, None),
    ],
)
def test_batch_size(tree, size):
    assert batch_size_of(tree) == size


def test_arrays_are_unknown_leaves():
    numpy = pytest.importorskip("numpy")
    assert batch_size_of([numpy.zeros((3, 2)), torch.zeros(2)]) == 2


def test_an_iterator_is_not_used_up():
    batch = iter([torch.zeros(3)])
    assert batch_size_of([batch]) is None
    assert len(list(batch)) == 1


def test_an_ambiguous_batch_warns_once_and_takes_the_first():
    batch = {"x": torch.zeros(3), "lengths": torch.zeros(7)}
    with pytest.warns(UserWarning, match=r"first dimensions \[3, 7\].*batch_size=batch_size"):
        assert batch_size_of(batch) == 3
    assert batch_size_of(batch) == 3  # no second warning, which would be an error here


def test_endless_nesting_is_a_recursion_error():
    batch: list[Any] = []
    batch.append(batch)
    with pytest.raises(RecursionError):
        batch_size_of(batch)


def test_scalars_keep_their_kind_and_order():
    metrics = {
        "loss": tensor([0.5]),
        "n": tensor(2**60 + 1),
        "done": tensor(True),
        "lr": 0.1,
        "half": tensor(1.5).half(),
    }
    scalars = to_scalars(metrics)
    assert list(scalars.items()) == [("loss", 0.5), ("n", 2**60 + 1), ("done", True), ("lr", 0.1), ("half", 1.5)]
    assert [type(value) for value in scalars.values()] == [float, int, bool, float, float]


def test_scalars_of_tensors_with_a_graph():
    assert to_scalars({"loss": torch.ones((), requires_grad=True) * 2}) == {"loss": 2.0}


@pytest.mark.parametrize("value", [torch.zeros(2), torch.zeros(0)])
def test_only_single_elements_become_scalars(value):
    with pytest.raises(ValueError, match="'loss' is a tensor of shape"):
        to_scalars({"loss": value})


@given(st.lists(st.floats(width=32, allow_nan=False)))
def test_copying_together_gives_what_item_gives(values):
    group = {str(i): torch.full((1,) * (i % 3), value) for i, value in enumerate(values)}
    if group:
        assert _copy_together(group) == {key: value.item() for key, value in group.items()}


@pytest.mark.gpu
def test_scalars_on_a_gpu_cost_one_copy_per_dtype():
    metrics = {f"m{i}": torch.full((), float(i), device="cuda") for i in range(10)}
    with torch.profiler.profile() as profile:
        scalars = to_scalars(metrics)
    assert scalars == {f"m{i}": float(i) for i in range(10)}
    assert sum(event.name == "aten::_local_scalar_dense" for event in profile.events()) == 0
