"""Layers and autocast in fp8, against a stand-in of transformer_engine."""

import sys
import warnings
from contextlib import contextmanager
from enum import Enum
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from fulmen.fabric.plan import Machine, resolve
from fulmen.fabric.precision import TransformerEnginePrecision


class Linear(nn.Linear):
    def __init__(self, inputs, outputs, bias, params_dtype):
        super().__init__(inputs, outputs, bias, dtype=params_dtype)
        if not bias:
            self.__dict__["bias"] = torch.empty(0)  # as in the package, where it is no parameter then


class LayerNorm(nn.LayerNorm):
    def __init__(self, size, eps):
        super().__init__(size, eps=eps)


class Format(Enum):
    HYBRID = "hybrid"


@pytest.fixture
def entered(monkeypatch):
    """The arguments with which fp8 autocast was entered."""
    found = []

    @contextmanager
    def fp8_autocast(**kwargs):
        found.append(kwargs)
        yield

    names = ("transformer_engine", "transformer_engine.pytorch", "transformer_engine.common")
    modules = {name: ModuleType(name) for name in (*names, "transformer_engine.common.recipe")}
    for name, value in {"Linear": Linear, "LayerNorm": LayerNorm, "fp8_autocast": fp8_autocast}.items():
        setattr(modules["transformer_engine.pytorch"], name, value)
    modules["transformer_engine.common.recipe"].Format = Format
    modules["transformer_engine.common.recipe"].DelayedScaling = lambda **options: SimpleNamespace(**options)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    for kind in (Linear, LayerNorm):
        monkeypatch.setattr(kind, "__module__", "transformer_engine.pytorch.module")
    return found


def model():
    return nn.Sequential(nn.Linear(16, 8), nn.LayerNorm(8), nn.Sequential(nn.Linear(32, 16, bias=False)), nn.ReLU())


@pytest.mark.parametrize("precision", ["transformer-engine", "transformer-engine-float16"])
def test_the_package_is_named_where_it_is_missing(monkeypatch, precision):
    monkeypatch.setitem(sys.modules, "transformer_engine", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "transformer-engine\[pytorch\]"'):
        resolve(precision=precision)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("transformer-engine", torch.bfloat16), ("transformer-engine-float16", torch.float16)],
)
def test_by_name(entered, precision, dtype):
    plugin = resolve(precision=precision, machine=Machine()).precision
    assert (type(plugin), plugin.weights_dtype) == (TransformerEnginePrecision, dtype)
    assert plugin.fallback_compute_dtype is dtype
    assert plugin.precision == "transformer-engine"


def test_layers_are_replaced_with_their_parameters(entered):
    original = model().eval()
    weights = [original[0].weight.detach().clone(), original[2][0].weight.detach().clone()]
    converted = TransformerEnginePrecision(weights_dtype=torch.bfloat16).convert_module(original)
    kinds = [type(converted[0]), type(converted[1]), type(converted[2][0]), type(converted[3])]
    assert kinds == [Linear, LayerNorm, Linear, nn.ReLU]
    assert torch.equal(converted[0].weight, weights[0].bfloat16())
    assert torch.equal(converted[2][0].weight, weights[1].bfloat16())
    assert not converted[0].training


def test_layers_of_other_sizes_stay(entered):
    plugin = TransformerEnginePrecision(weights_dtype=torch.float16)
    with pytest.warns(
        UserWarning, match=r"'0' is not computed in fp8: Linear\(15, 8\) would need an input size that 16"
    ):
        converted = plugin.convert_module(nn.Sequential(nn.Linear(15, 8)))
    assert type(converted[0]) is nn.Linear
    assert converted[0].weight.dtype is torch.float16


@pytest.mark.parametrize("replace_layers", [None, True, False])
def test_a_module_with_such_layers_keeps_them(entered, replace_layers):
    plugin = TransformerEnginePrecision(weights_dtype=torch.bfloat16, replace_layers=replace_layers)
    own = nn.Sequential(LayerNorm(8, 1e-5), nn.Linear(16, 16))
    assert type(plugin.convert_module(own)[1]) is nn.Linear
    replaced = plugin.convert_module(nn.Sequential(nn.Linear(16, 16)))
    assert (type(replaced[0]) is Linear) is (replace_layers is not False)


def test_autocast(entered):
    plugin = TransformerEnginePrecision(
        weights_dtype=torch.bfloat16, recipe={"fp8_format": "HYBRID", "margin": 1}, fallback_compute_dtype=torch.float16
    )
    assert (plugin.recipe.fp8_format, plugin.recipe.margin) == (Format.HYBRID, 1)
    with warnings.catch_warnings(action="ignore"), plugin.forward_context():  # a machine without CUDA has no autocast
        assert torch.ones(1).dtype is torch.bfloat16
        assert torch.get_autocast_dtype("cuda") is torch.float16
    assert entered == [{"enabled": True, "fp8_recipe": plugin.recipe}]


def test_types(entered):
    recipe = object()
    plugin = TransformerEnginePrecision(weights_dtype=torch.bfloat16, recipe=recipe)
    assert plugin.recipe is recipe
    assert plugin.convert_input(torch.ones(1)).dtype is torch.bfloat16
    assert plugin.convert_output(torch.ones(1, dtype=torch.bfloat16)).dtype is torch.float32
    for context in (plugin.module_init_context, plugin.tensor_init_context):
        with context():
            assert torch.ones(1).dtype is torch.bfloat16
