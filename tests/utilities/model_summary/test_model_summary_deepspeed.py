"""Summaries of modules whose parameters are shared out: they carry what DeepSpeed writes onto them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fulmen.utilities.model_summary import DeepSpeedSummary, ModelSummary
from fulmen.utilities.model_summary.model_summary_deepspeed import DeepSpeedLayerSummary, deepspeed_param_size


def shared_out(module: nn.Module, devices: int) -> nn.Module:
    """As DeepSpeed leaves a module: nothing in the parameters, their sizes beside them."""
    for parameter in module.parameters():
        size: Any = parameter.numel()
        parameter.ds_numel = size  # type: ignore[attr-defined]
        parameter.partition_numel = lambda size=size: -(-size // devices)  # type: ignore[attr-defined]
        parameter.data = torch.empty(0)
    return module


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 4), nn.Linear(4, 2, bias=False)
        self.scale = nn.Parameter(torch.ones(10))


@pytest.fixture
def module() -> nn.Module:
    return shared_out(Net(), devices=4)


def test_counts_are_those_of_the_whole_module(module: nn.Module) -> None:
    summary, whole = DeepSpeedSummary(module), ModelSummary(Net())
    assert summary.param_nums == whole.param_nums == [36, 8]
    assert summary.total_parameters == summary.trainable_parameters == whole.total_parameters == 54
    assert summary.total_layer_params == 44
    assert summary.model_size == whole.model_size
    assert summary.parameters_per_layer == [9, 2]
    assert ModelSummary(module).total_parameters == 0


def test_the_table_says_what_a_device_has(module: nn.Module) -> None:
    columns = dict(DeepSpeedSummary(module).data())
    assert list(columns)[:5] == [" ", "Name", "Type", "Params", "Params per Device"]
    assert columns["Name"] == ["first", "second", "other params"]
    assert [cell.split()[0] for cell in columns["Params per Device"]] == ["9", "2", "n/a"]
    assert "Params per Device" in str(DeepSpeedSummary(module))
    module.scale = None  # type: ignore[assignment]
    assert len(dict(DeepSpeedSummary(module).data())["Params per Device"]) == 2


def test_what_is_not_shared_out_counts_as_it_is() -> None:
    layer = DeepSpeedLayerSummary(nn.Linear(8, 4))
    assert (layer.num_parameters, layer.average_shard_parameters) == (36, 36)
    assert deepspeed_param_size(torch.ones(3)) == 3


def test_uninitialised_parameters_count_nothing() -> None:
    layer = DeepSpeedLayerSummary(nn.LazyLinear(4))
    assert (layer.num_parameters, layer.average_shard_parameters) == (0, 0)
