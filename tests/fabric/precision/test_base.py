"""The base of precisions: nothing in 32 bit, and clipping."""

import pytest
import torch
from torch import nn

from fulmen.fabric.overriding import overrides
from fulmen.fabric.precision import Precision
from fulmen.types import GradClipAlgorithmType


def model_and_optimizer(optimizer=torch.optim.SGD, **kwargs):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    return model, optimizer(model.parameters(), **{"lr": 0.1} | kwargs)


def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_32_bit_is_the_identity_everywhere():
    precision = Precision()
    model, optimizer = model_and_optimizer()
    data = {"x": torch.ones(2, dtype=torch.float64)}

    assert precision.precision == "32-true"
    assert precision.scaler is None
    assert precision.convert_module(model) is model
    assert precision.convert_input(data) is data
    assert precision.convert_forward_input(data) is data
    assert precision.convert_output(data) is data
    assert precision.wrap_forward(model.forward) == model.forward
    step = lambda: 1  # noqa: E731
    assert precision.wrap_forward(step) is step
    assert precision.scale_loss(data["x"]) is data["x"]
    assert precision.state_dict() == {}
    assert list(precision.main_params(optimizer)) == list(model.parameters())


def test_a_subclass_with_a_context_of_its_own_is_wrapped():
    class Anomaly(Precision):
        def forward_context(self):
            return torch.autograd.set_detect_anomaly(True)

    assert not torch.is_anomaly_enabled()
    assert Anomaly().wrap_forward(torch.is_anomaly_enabled)()
    assert not torch.is_anomaly_enabled()


def test_clipping():
    precision = Precision()
    model, optimizer = model_and_optimizer()
    model(torch.tensor([[3.0, -4.0, 0.5]])).sum().backward()
    original = gradients(model)
    for nothing in (0, None, -1.0):
        precision.clip_gradients(optimizer, nothing)
        assert all(map(torch.equal, gradients(model), original))
    precision.clip_gradients(optimizer, 2.0, "value")
    assert model.weight.grad.tolist() == [[2.0, -2.0, 0.5]]
    precision.clip_gradients(optimizer, 0.1, "norm")
    assert torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients(model)])).item() == pytest.approx(0.1)


def test_no_hook_of_the_base_has_to_be_called():
    precision = Precision()
    contexts = [f"{name}_context" for name in ("forward", "train_step", "val_step", "test_step", "predict_step")]
    around = ["pre_backward", "scale_loss", "backward", "post_backward", "unscale_gradients"]
    assert not any(overrides(precision, name) for name in [*contexts, *around, "optimizer_step", "clip_gradients"])
    assert not precision.scales_loss
    assert not precision.changes_backward


@pytest.mark.parametrize("stage", ["train", "val", "test", "predict"])
def test_a_stage_with_a_context_of_its_own(stage):
    entered = []

    class Counts(Precision):
        pass

    def context(self):
        entered.append(stage)
        return torch.no_grad()

    setattr(Counts, f"{stage}_step_context", context)
    wrapped = Counts().wrap_forward(torch.is_grad_enabled, f"{stage}_step_context")
    assert (wrapped(), wrapped(), entered) == (False, False, [stage, stage])
    step = lambda: 1  # noqa: E731
    assert Counts().wrap_forward(step) is step


class Traced(Precision):
    """Notes which of its hooks are called."""

    def __init__(self):
        self.calls = []

    def pre_backward(self, tensor, module):
        self.calls.append(("pre", tensor.item(), module))

    def scale_loss(self, loss):
        return loss * 2

    def backward(self, tensor, model, *args, **kwargs):
        self.calls.append(("backward", tensor.item(), model))
        super().backward(tensor, model, *args, **kwargs)

    def post_backward(self, tensor, module):
        self.calls.append(("post", tensor.item(), module))


def test_a_backward_pass_with_all_its_hooks():
    precision, model = Traced(), nn.Linear(1, 1)
    weight = torch.tensor(3.0, requires_grad=True)
    precision.run_backward(weight * 1, model, None, retain_graph=True)
    assert precision.calls == [("pre", 3.0, model), ("backward", 6.0, model), ("post", 6.0, model)]
    assert weight.grad.item() == 2.0
    assert precision.scales_loss
    assert precision.changes_backward


def test_what_pre_backward_returns_takes_the_place_of_the_loss():
    class Halved(Precision):
        def pre_backward(self, tensor, module):
            return tensor / 2

    weight = torch.tensor(3.0, requires_grad=True)
    Halved().run_backward(weight * 1, None, None)
    assert weight.grad.item() == 0.5


def test_a_model_with_a_backward_of_its_own_computes_the_gradients():
    class Model(nn.Module):
        def backward(self, loss, factor):
            (loss * factor).backward()

    weight = torch.tensor(3.0, requires_grad=True)
    Precision().backward(weight * 1, Model(), None, 5)
    assert weight.grad.item() == 5.0


def test_an_optimizer_gets_its_closure_and_nothing_else():
    model, optimizer = model_and_optimizer()
    model(torch.ones(1, 3)).sum().backward()
    before = model.bias.item()
    assert Precision().optimizer_step(optimizer, model=model) is None
    assert model.bias.item() == pytest.approx(before - 0.1)
    assert Precision().optimizer_step(optimizer, model, lambda: 7) == 7


def test_connect_gives_back_what_it_gets():
    model, optimizer = model_and_optimizer()
    assert Precision().connect(model, [optimizer], []) == (model, [optimizer], [])


def test_clipping_takes_names_and_the_enumeration():
    model, optimizer = model_and_optimizer()
    model(torch.tensor([[3.0, -4.0, 0.5]])).sum().backward()
    Precision().clip_gradients(optimizer, 2.0, gradient_clip_algorithm=GradClipAlgorithmType.VALUE)
    assert model.weight.grad.abs().max() == 2.0
