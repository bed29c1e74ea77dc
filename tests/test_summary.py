from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fulmen.summary import (
    PARAMETER_NUM_UNITS,
    LayerSummary,
    ModelSummary,
    get_formatted_model_size,
    get_human_readable_count,
    parse_batch_shape,
    summarize,
)


class Net(nn.Module):
    def __init__(self, example=None):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 2))
        self.extra = nn.Parameter(torch.zeros(7))
        self.drop = nn.Dropout().eval()
        if example is not None:
            self.example_input_array = example

    def forward(self, x, scale=1.0):
        return self.body(x) * scale


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0  "),
        (123, "123  "),
        (999, "999  "),
        (1000, "1.0 K"),
        (1500, "1.5 K"),
        (12345, "12.3 K"),
        (123456, "123 K"),
        (999999, "999 K"),
        (1234567, "1.2 M"),
        (3 * 10**9, "3.0 B"),
        (10**12, "1.0 T"),
        (10**15, "1,000 T"),
        (10**18, "1,000,000 T"),
    ],
)
def test_counts_have_three_digits_and_a_unit(number, text):
    assert get_human_readable_count(number) == text


@given(st.integers(0, 10**14))
def test_a_count_is_close_to_its_number(number):
    text, unit = get_human_readable_count(number).replace(",", "").split(" ", 1)
    unit = unit.strip() or " "
    value = float(text) * 1000 ** PARAMETER_NUM_UNITS.index(unit)
    assert value == pytest.approx(number, rel=0.051)


def test_a_negative_count_is_refused():
    with pytest.raises(ValueError, match="cannot be negative, got -1"):
        get_human_readable_count(-1)


def test_model_size_has_three_decimals():
    assert get_formatted_model_size(12345.6789) == "12,345.679"
    assert get_formatted_model_size(0) == "0.000"


def test_shapes_of_nested_batches():
    assert parse_batch_shape(torch.zeros(2, 3)) == [2, 3]
    assert parse_batch_shape([torch.zeros(1), (torch.zeros(2, 2), 3)]) == [[1], [[2, 2], "?"]]
    assert parse_batch_shape("text") == "?"


def test_layers_with_example_input():
    summary = ModelSummary(Net(torch.zeros(4, 32)), max_depth=-1)
    assert summary.layer_names == ["body", "body.0", "body.1", "body.2", "drop"]
    assert summary.layer_types == ["Sequential", "Linear", "ReLU", "Linear", "Dropout"]
    assert summary.in_sizes == [[4, 32], [4, 32], [4, 64], [4, 64], "?"]
    assert summary.out_sizes == [[4, 2], [4, 64], [4, 64], [4, 2], "?"]
    assert summary.param_nums == [2242, 2112, 0, 130, 0]
    assert summary.training_modes == [True, True, True, True, False]
    assert summary.total_training_modes == {"train": 4, "eval": 1}
    assert summary.total_parameters == summary.trainable_parameters == 2249
    assert summary.total_layer_params == 2242
    assert summary.model_size == pytest.approx(2249 * 4e-6)
    assert summary.total_flops == 2 * 4 * (32 * 64 + 64 * 2)
    assert sum(summary.flop_counts["body.0"].values()) == 2 * 4 * 32 * 64
    assert summary.flop_counts["drop"] == {}


TABLE = """\
  | Name         | Type       | Params | Mode  | FLOPs  | In sizes | Out sizes
------------------------------------------------------------------------------
0 | body         | Sequential | 2.2 K  | train | 17.4 K | [4, 32]  | [4, 2]
1 | drop         | Dropout    | 0      | eval  | 0      | ?        | ?
  | other params | n/a        | 7      | n/a   | n/a    | n/a      | n/a
------------------------------------------------------------------------------
2.2 K     Trainable params
0         Non-trainable params
2.2 K     Total params
0.009     Total estimated model params size (MB)
4         Modules in train mode
1         Modules in eval mode
17.4 K    Total FLOPs"""


def test_the_table():
    text = str(summarize(Net(torch.zeros(4, 32))))
    assert [line.rstrip() for line in text.splitlines()] == TABLE.splitlines()


def test_without_example_input_there_are_no_sizes():
    summary = summarize(Net())
    assert [header for header, _ in summary.data()] == [" ", "Name", "Type", "Params", "Mode"]
    assert summary.total_flops == 0
    assert summary.in_sizes == ["?", "?"]


def test_a_zero_that_was_not_measured_is_not_shown():
    assert "FLOPs" not in str(summarize(Net()))

    class Copies(Net):
        def forward(self, x):
            return x.clone()

    assert "\n0         Total FLOPs" in str(summarize(Copies(torch.zeros(4, 32))))


@pytest.mark.parametrize(
    ("depth", "names"),
    [(0, []), (1, ["body", "drop"]), (2, ["body", "body.0", "body.1", "body.2", "drop"])],
)
def test_depth(depth, names):
    summary = summarize(Net(), max_depth=depth)
    assert summary.layer_names == names
    assert "other params" in str(summary)


@pytest.mark.parametrize("depth", [-2, 1.5, "all"])
def test_a_wrong_depth_is_refused(depth):
    with pytest.raises(ValueError, match="max_depth"):
        ModelSummary(Net(), max_depth=depth)


def test_frozen_parameters_are_not_trainable():
    net = Net()
    net.body[0].weight.requires_grad = False
    assert summarize(net).trainable_parameters == 2249 - 32 * 64


def test_shared_layers_count_once():
    net = nn.Module()
    net.a = nn.Linear(3, 3)
    net.b = net.a
    net.c = nn.Sequential(net.a)
    summary = summarize(net)
    assert summary.total_parameters == summary.total_layer_params == 12
    assert "other params" not in str(summary)


def test_example_inputs_as_tuple_and_mapping():
    assert summarize(Net((torch.zeros(5, 32), 2.0))).in_sizes[0] == [5, 32]
    assert summarize(Net({"x": torch.zeros(6, 32)})).in_sizes[0] == [6, 32]


def test_a_layer_called_with_keywords_has_an_input_size():
    class Keywords(nn.Module):
        example_input_array = torch.zeros(2, 3)

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x):
            return self.layer(input=x)

    assert summarize(Keywords()).in_sizes == [[2, 3]]


def test_the_run_leaves_modes_random_state_and_hooks_alone():
    class Noisy(Net):
        def forward(self, x):
            assert not self.training
            assert not torch.is_grad_enabled()
            return self.body(x + torch.rand(1))

    net = Noisy(torch.zeros(4, 32))
    before = torch.get_rng_state()
    summarize(net)
    assert torch.equal(torch.get_rng_state(), before)
    assert net.training
    assert not net.drop.training
    assert not any(module._forward_hooks for module in net.modules())


def test_an_example_that_does_not_fit_says_where_it_comes_from():
    net = Net(torch.zeros(4, 31))
    with pytest.raises(RuntimeError) as caught:
        summarize(net)
    assert any("example_input_array" in note for note in caught.value.__notes__)
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy_parameters_count_as_zero_until_an_example_makes_them():
    net = nn.Module()
    net.layer = nn.LazyLinear(3)
    with pytest.warns(UserWarning, match="example_input_array"):
        summary = summarize(net)
    assert summary.total_parameters == 0

    lazy = Net(torch.zeros(4, 8))
    lazy.body = nn.LazyLinear(3)
    assert summarize(lazy).param_nums[0] == 27


class _Trainer:
    def __init__(self, precision):
        self.precision = precision


@pytest.mark.parametrize(("precision", "bytes_"), [("32-true", 4), ("16-mixed", 4), ("bf16-true", 2), ("64-true", 8)])
def test_size_by_precision(precision, bytes_):
    net = Net()
    net.trainer = _Trainer(precision)
    assert summarize(net).model_size == pytest.approx(2249 * bytes_ * 1e-6)


def test_an_unknown_precision_counts_as_32_bit():
    net = Net()
    net.trainer = _Trainer("transformer-engine")
    with pytest.warns(UserWarning, match="transformer-engine"):
        assert summarize(net).model_size == pytest.approx(2249 * 4e-6)


def test_a_layer_summary_takes_its_hook_off():
    layer = nn.Linear(2, 3)
    summary = LayerSummary(layer)
    layer(torch.zeros(1, 2))
    layer(torch.zeros(5, 2))
    assert (summary.in_size, summary.out_size, summary.layer_type) == ([1, 2], [1, 3], "Linear")
    assert not layer._forward_hooks
    summary.detach_hook()
