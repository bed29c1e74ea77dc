"""Mixed precisions, and the scaled loss."""

import copy

import pytest
import torch
from torch import nn
from torch.amp import GradScaler

from fulmen.errors import MisconfigurationException
from fulmen.fabric.errors import PlanError
from fulmen.fabric.precision import HalfPrecision, MixedPrecision, Precision


def model_and_optimizer(optimizer=torch.optim.SGD, **kwargs):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    return model, optimizer(model.parameters(), **{"lr": 0.1} | kwargs)


def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_unknown_precisions():
    with pytest.raises(PlanError, match="'16-mixed' or 'bf16-mixed'"):
        MixedPrecision("32-true", "cpu")
    with pytest.raises(ValueError, match="'16-true' or 'bf16-true'"):
        HalfPrecision("64-true")
    with pytest.raises(MisconfigurationException, match="scales no loss"):
        MixedPrecision("bf16-mixed", "cpu", scaler=GradScaler("cpu"))


@pytest.mark.parametrize(("name", "dtype"), [("16-mixed", torch.float16), ("bf16-mixed", torch.bfloat16)])
def test_mixed_precision_computes_in_16_bit(name, dtype):
    precision = MixedPrecision(name, "cpu")
    model, _ = model_and_optimizer()
    assert precision.convert_module(model) is model
    assert precision.wrap_forward(model)(torch.ones(1, 3)).dtype is dtype
    assert model(torch.ones(1, 3)).dtype is torch.float32
    batch = torch.ones(1, dtype=torch.float64)
    assert precision.convert_input(batch) is batch
    assert precision.convert_forward_input(batch).dtype is torch.float32
    assert precision.convert_output(torch.ones(1, dtype=dtype)).dtype is torch.float32


@pytest.mark.parametrize("name", ["16-mixed", "bf16-mixed"])
def test_gradients_survive_a_forward_without_gradients_in_the_same_step(name):
    model, _ = model_and_optimizer()
    with MixedPrecision(name, "cpu").forward_context():
        with torch.no_grad():
            model(torch.ones(1, 3))
        model(torch.ones(1, 3)).sum().backward()
    assert model.weight.grad.abs().sum() > 0


def test_bf16_has_no_scaler():
    precision = MixedPrecision("bf16-mixed", "cpu")
    loss = torch.ones((), requires_grad=True)
    assert precision.scaler is None
    assert precision.scale_loss(loss) is loss
    assert precision.state_dict() == {}
    precision.load_state_dict({"scale": 1.0})  # from a run in 16-mixed
    assert precision.scaler is None


def test_a_16_mixed_step_is_the_32_bit_step():
    """Scaling and unscaling by a power of two cancel exactly."""
    (scaled, optimizer), (plain, reference) = model_and_optimizer(), model_and_optimizer()
    precision = MixedPrecision("16-mixed", "cpu")
    x = torch.ones(4, 3)
    for _ in range(3):
        for model, opt in ((scaled, optimizer), (plain, reference)):
            opt.zero_grad()
            loss = model(x).square().mean()
            (precision.scale_loss(loss) if model is scaled else loss).backward()
        assert scaled.bias.grad.item() == 2**16 * plain.bias.grad.item()
        precision.unscale_gradients(optimizer)
        precision.unscale_gradients(optimizer)  # a second time changes nothing
        assert torch.equal(scaled.bias.grad, plain.bias.grad)
        for each in ((precision, optimizer), (Precision(), reference)):
            each[0].clip_gradients(each[1], 0.5)
            each[0].optimizer_step(each[1])
        assert torch.equal(scaled.weight, plain.weight)


def test_an_overflow_skips_the_step_and_lowers_the_scale():
    model, optimizer = model_and_optimizer()
    precision = MixedPrecision("16-mixed", "cpu")
    before = copy.deepcopy(model.state_dict())
    precision.scale_loss(model(torch.full((1, 3), float("inf"))).sum()).backward()
    precision.optimizer_step(optimizer)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert precision.scaler.get_scale() == 2**15


def test_a_closure_runs_before_the_scaled_step():
    model, optimizer = model_and_optimizer()
    precision = MixedPrecision("16-mixed", "cpu")

    def closure():
        loss = model(torch.ones(1, 3)).sum()
        precision.scale_loss(loss).backward()
        return loss

    before = model.bias.item()
    loss = precision.optimizer_step(optimizer, closure=closure)
    assert loss.item() == pytest.approx(model(torch.ones(1, 3)).item() + 0.4)  # lr 0.1 times four gradients of one
    assert model.bias.item() == pytest.approx(before - 0.1)


def test_the_scale_is_kept_while_another_optimizer_holds_unscaled_gradients():
    (first, first_optimizer), (second, second_optimizer) = model_and_optimizer(), model_and_optimizer()
    precision = MixedPrecision("16-mixed", "cpu")
    for model in (first, second):
        precision.scale_loss(model(torch.ones(1, 3)).sum()).backward()
    for optimizer in (first_optimizer, second_optimizer):
        precision.unscale_gradients(optimizer)
    for optimizer in (first_optimizer, second_optimizer):
        precision.optimizer_step(optimizer)
    assert torch.equal(first.weight, second.weight)
    assert second.bias.grad.item() == 1.0


def test_unscaled_gradients_that_were_never_applied_are_not_mixed_with_new_ones():
    model, optimizer = model_and_optimizer()
    precision = MixedPrecision("16-mixed", "cpu")
    precision.scale_loss(model(torch.ones(1, 3)).sum()).backward()
    precision.unscale_gradients(optimizer)
    precision.scale_loss(model(torch.ones(1, 3)).sum()).backward()
    with pytest.raises(RuntimeError, match="already been called"):
        precision.unscale_gradients(optimizer)


def test_the_scaler_is_made_when_it_is_needed():
    precision = MixedPrecision("16-mixed", "cuda")  # on a machine without a GPU, making it would warn
    assert precision.precision == "16-mixed"
    precision.scaler = GradScaler("cpu", init_scale=4.0)
    assert precision.scale_loss(torch.ones(())).item() == 4.0


def test_fused_optimizers_unscale_inside_their_step():
    (fused, optimizer), (plain, reference) = model_and_optimizer(fused=True), model_and_optimizer(fused=False)
    precision = MixedPrecision("16-mixed", "cpu")
    for model, opt in ((fused, optimizer), (plain, reference)):
        precision.scale_loss(model(torch.ones(1, 3)).sum()).backward()
        precision.unscale_gradients(opt)
    assert fused.bias.grad.item() == 2**16
    assert plain.bias.grad.item() == 1.0
    with pytest.raises(RuntimeError, match="fused=False"):
        precision.clip_gradients(optimizer, 1.0)
    precision.clip_gradients(optimizer, 0.0)
    precision.optimizer_step(optimizer)
    precision.optimizer_step(reference)
    assert torch.allclose(fused.weight, plain.weight)


def test_fused_optimizers_may_be_clipped_without_a_scaler():
    model, optimizer = model_and_optimizer(fused=True)
    model(torch.ones(1, 3)).sum().backward()
    MixedPrecision("bf16-mixed", "cpu").clip_gradients(optimizer, 1.0)
    assert torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients(model)])).item() == pytest.approx(1.0)


def test_lbfgs_cannot_have_a_scaled_loss():
    _, optimizer = model_and_optimizer(torch.optim.LBFGS)
    Precision().check_optimizer(optimizer)
    MixedPrecision("bf16-mixed", "cpu").check_optimizer(optimizer)
    with pytest.raises(MisconfigurationException, match="LBFGS") as caught:
        MixedPrecision("16-mixed", "cpu").check_optimizer(optimizer)
    assert caught.value.subject is optimizer


def test_the_scale_is_saved_under_the_name_of_the_class():
    precision = MixedPrecision("16-mixed", "cpu", scaler=GradScaler("cpu", init_scale=8.0))
    assert type(precision).__qualname__ == "MixedPrecision"
    model, _ = model_and_optimizer()
    precision.scale_loss(model(torch.ones(1, 3)).sum())
    other = MixedPrecision("16-mixed", "cpu")
    other.load_state_dict(precision.state_dict())
    assert other.scaler.get_scale() == 8.0


@pytest.mark.gpu
def test_a_scaled_step_on_a_gpu_waits_for_the_device_only_where_torch_does():
    model, optimizer = model_and_optimizer()
    model.cuda()
    precision = MixedPrecision("16-mixed", "cuda")
    x = torch.ones(4, 3, device="cuda")
    forward = precision.wrap_forward(model)
    precision.scale_loss(forward(x).sum()).backward()
    precision.optimizer_step(optimizer)
    torch.cuda.set_sync_debug_mode("error")
    try:
        precision.scale_loss(forward(x).float().sum()).backward()
        precision.unscale_gradients(optimizer)
        precision.clip_gradients(optimizer, 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    precision.optimizer_step(optimizer)
    assert model.weight.isfinite().all()


def test_no_loss_in_automatic_optimisation_is_no_step():
    model, optimizer = model_and_optimizer()
    precision = MixedPrecision("16-mixed", "cpu")
    model.automatic_optimization = True
    precision.scale_loss(model(torch.ones(1, 3)).sum()).backward()
    before = model.bias.item()
    assert precision.optimizer_step(optimizer, model, lambda: None) is None
    assert model.bias.item() == before
    model.automatic_optimization = False
    assert precision.optimizer_step(optimizer, model, lambda: None) is None
    assert model.bias.item() < before


def test_autocast():
    with MixedPrecision("bf16-mixed", "cpu").autocast_context_manager():
        assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype is torch.bfloat16


def test_a_conversion_of_the_users_own_holds_in_every_loop():
    class Shifted(MixedPrecision):
        def convert_input(self, data):
            return data + 1

    assert Shifted("bf16-mixed", "cpu").convert_forward_input(torch.zeros(1, dtype=torch.float64)).item() == 1
