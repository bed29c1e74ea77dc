"""Training steps in other types than float32, and under a scaled loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import SGD

import fulmen
from fulmen.plugins import MixedPrecision


def own_optimizer_step(module: Any) -> None:
    module.optimizer_step = lambda epoch, batch_idx, optimizer, closure: optimizer.step(closure)


class Types(fulmen.LightningModule):
    """Notes the types that the layer, the batch and the loss have in a step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.types: tuple[torch.dtype, ...] = ()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        output = self.layer(batch)
        self.types = (self.layer.weight.dtype, batch.dtype, output.dtype, torch.zeros(1).dtype)
        return output.pow(2).mean()

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.01)


HALF, SINGLE, DOUBLE = torch.bfloat16, torch.float32, torch.float64


@pytest.mark.parametrize(
    ("precision", "types"),
    [
        ("32-true", (SINGLE, SINGLE, SINGLE, SINGLE)),
        ("64-true", (DOUBLE, DOUBLE, DOUBLE, DOUBLE)),
        ("bf16-true", (HALF, HALF, HALF, HALF)),
        ("bf16-mixed", (SINGLE, SINGLE, HALF, SINGLE)),
    ],
)
def test_precision(fit: Any, data: Any, precision: str, types: tuple[torch.dtype, ...]) -> None:
    module = Types()
    trainer = fit(module, data(3), precision=precision)
    assert module.types == types
    assert (trainer.precision, trainer.global_step) == (precision, 3)
    assert torch.get_default_dtype() == SINGLE
    assert module.layer.weight.isfinite().all()


def test_16_mixed_on_the_cpu_is_bf16_mixed(fit: Any, data: Any) -> None:
    module = Types()
    with pytest.warns(UserWarning, match="bf16-mixed"):
        trainer = fit(module, data(1), precision="16-mixed")
    assert (trainer.precision, trainer.scaler, module.types[2]) == ("bf16-mixed", None, HALF)


class Scaled(fulmen.LightningModule):
    """Trains under a scaled loss; the gradient of batch 1 overflows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.seen: list[tuple[str, float]] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.weight * (batch + 1)).sum() * (float("inf") if batch_idx == 1 else 1.0)

    def on_before_backward(self, loss: Tensor) -> None:
        self.seen.append(("loss", loss.item()))

    def on_after_backward(self) -> None:
        self.seen.append(("scaled", self.weight.grad[0].item()))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.seen.append(("true", self.weight.grad[0].item()))

    def configure_optimizers(self) -> Any:
        return SGD([self.weight], lr=0.1)


@pytest.mark.parametrize("needs_closure", [False, True], ids=["plain", "closure"])
def test_a_scaled_loss(fit: Any, data: Any, needs_closure: bool) -> None:
    module = Scaled()
    if needs_closure:
        own_optimizer_step(module)
    precision = MixedPrecision("16-mixed", "cpu", GradScaler("cpu", init_scale=4.0))
    trainer = fit(module, data(3), plugins=[precision], gradient_clip_val=1.5, gradient_clip_algorithm="value")
    # batch 0: gradient 1, batch 1: no step and half the scale, batch 2: gradient 3, clipped to 1.5
    assert module.seen[:3] == [("loss", 8.0), ("scaled", 4.0), ("true", 1.0)]
    assert module.seen[-2:] == [("scaled", 6.0), ("true", 3.0)]
    assert module.weight[0].item() == pytest.approx(1 - 0.1 * 1.0 - 0.1 * 1.5)
    assert trainer.scaler.get_scale() == 2.0
    assert trainer.global_step == 3


def test_a_scaled_loss_in_manual_optimisation(fit: Any, data: Any) -> None:
    class ManuallyScaled(Scaled):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Tensor, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    module = ManuallyScaled()
    trainer = fit(module, data(3), plugins=[MixedPrecision("16-mixed", "cpu", GradScaler("cpu", init_scale=4.0))])
    assert module.weight[0].item() == pytest.approx(1 - 0.1 * 1.0 - 0.1 * 3.0)
    assert (trainer.scaler.get_scale(), trainer.global_step) == (2.0, 3)


@pytest.mark.parametrize("needs_closure", [False, True], ids=["plain", "closure"])
def test_no_loss_under_a_scaler_steps_nothing(fit: Any, data: Any, needs_closure: bool) -> None:
    module = Scaled()
    if needs_closure:
        own_optimizer_step(module)
    module.training_step = lambda batch, batch_idx: None
    module.on_before_optimizer_step = lambda optimizer: None
    precision = MixedPrecision("16-mixed", "cpu", GradScaler("cpu", init_scale=4.0))
    with pytest.warns(UserWarning, match="returned None"):
        trainer = fit(module, data(2), plugins=[precision])
    assert (trainer.global_step, module.weight[0].item(), trainer.scaler.get_scale()) == (2, 1.0, 4.0)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_fused_optimizer_is_clipped(fit: Any, data: Any, precision: str) -> None:
    module = Scaled()
    module.training_step = lambda batch, batch_idx: 8 * module.weight.sum()
    module.configure_optimizers = lambda: SGD([module.weight], lr=0.1, fused=True)
    module.on_before_optimizer_step = lambda optimizer: None
    fit(module, data(2), precision=precision, gradient_clip_val=0.5, gradient_clip_algorithm="value")
    assert module.weight[0].item() == pytest.approx(1 - 2 * 0.1 * 0.5)
