"""Quantised linear layers, against a stand-in of bitsandbytes."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from fulmen.fabric.errors import UnavailableError
from fulmen.fabric.plan import resolve
from fulmen.fabric.precision import BitsandbytesPrecision


class Quantised(nn.Parameter):
    """Remembers how it was to be quantised."""

    def __new__(cls, data, requires_grad=True, **options):
        self = super().__new__(cls, data, requires_grad)
        self.options = options
        return self


class Params4bit(Quantised):
    pass


class Int8Params(Quantised):
    pass


class Linear(nn.Linear):
    def __init__(self, inputs, outputs, bias, **options):
        super().__init__(inputs, outputs, bias)
        self.options = options


class Linear4bit(Linear):
    pass


class Linear8bitLt(Linear):
    pass


@pytest.fixture
def package(monkeypatch):
    package = ModuleType("bitsandbytes")
    package.nn = SimpleNamespace(
        Linear4bit=Linear4bit, Linear8bitLt=Linear8bitLt, Params4bit=Params4bit, Int8Params=Int8Params
    )
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)


def model():
    return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Sequential(nn.Linear(4, 2, bias=False)))


def test_the_package_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModuleNotFoundError, match="pip install bitsandbytes"):
        BitsandbytesPrecision("nf4")


@pytest.mark.parametrize(
    ("mode", "kind", "doubly"), [("nf4", "nf4", False), ("nf4-dq", "nf4", True), ("fp4-dq", "fp4", True)]
)
def test_4_bits(package, mode, kind, doubly):
    original = model()
    converted = BitsandbytesPrecision(mode, dtype=torch.bfloat16).convert_module(original)
    assert converted is original
    layer = converted[2][0]
    assert type(layer) is Linear4bit
    assert type(layer.weight) is Params4bit
    assert layer.weight.options == {"compress_statistics": doubly, "quant_type": kind}
    assert layer.options == {"compute_dtype": torch.bfloat16, **layer.weight.options}
    assert not layer.weight.requires_grad
    assert layer.bias is None
    assert converted[0].bias.dtype is converted[1].weight.dtype is torch.bfloat16


@pytest.mark.parametrize(("mode", "trains"), [("int8", False), ("int8-training", True)])
def test_8_bits(package, mode, trains):
    layer = BitsandbytesPrecision(mode).convert_module(model())[0]
    assert type(layer) is Linear8bitLt
    assert layer.options == {"has_fp16_weights": trains, "threshold": 6.0}
    assert type(layer.weight) is Int8Params
    assert layer.weight.requires_grad is trains
    assert layer.weight.dtype is torch.float16


def test_weights_are_those_of_the_model(package):
    original = model().eval()
    weight = original[0].weight.detach().clone()
    layer = BitsandbytesPrecision("nf4", dtype=torch.float32).convert_module(original)[0]
    assert torch.equal(layer.weight.data, weight)
    assert not layer.training


def test_ignored_modules_stay_what_they_are(package):
    converted = BitsandbytesPrecision("nf4", ignore_modules={"2"}).convert_module(model())
    assert [type(converted[0]), type(converted[2][0])] == [Linear4bit, nn.Linear]
    assert converted[2][0].weight.dtype is torch.float16  # this machine, as far as tested, has no bfloat16 on CUDA


def test_a_module_with_such_layers_keeps_them(package):
    own = nn.Sequential(Linear4bit(2, 2, True), nn.Linear(2, 2))
    first = own[0]
    converted = BitsandbytesPrecision("nf4").convert_module(own)
    assert converted[0] is first
    assert type(converted[1]) is nn.Linear


def test_types_and_contexts(package):
    plugin = BitsandbytesPrecision("fp4", dtype=torch.float16)
    assert plugin.convert_input(torch.ones(1)).dtype is torch.float16
    assert plugin.convert_output(torch.ones(1, dtype=torch.float16)).dtype is torch.float32
    for context in (plugin.forward_context, plugin.module_init_context, plugin.tensor_init_context):
        with context():
            assert torch.ones(1).dtype is torch.float16


def test_what_cannot_work(package):
    with pytest.raises(ValueError, match="Type one of: nf4, nf4-dq"):
        BitsandbytesPrecision("int4")
    with pytest.raises(ValueError, match="8-bit layers compute in float16"):
        BitsandbytesPrecision("int8", dtype=torch.bfloat16)
    with pytest.raises(UnavailableError, match="CUDA devices only") as caught:
        resolve(accelerator="cpu", plugins=BitsandbytesPrecision("nf4"))
    assert isinstance(caught.value, RuntimeError)
    BitsandbytesPrecision("nf4").check_device(torch.device("cuda", 0))
