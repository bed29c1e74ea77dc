"""A precision of the user's own: everything it overrides is called, at its place, by every kind of step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler

import fulmen
from fulmen.fabric import Fabric
from fulmen.plugins import MixedPrecision, Precision


class Traced(Precision):
    """Notes every call, as (name, kinds of the arguments, names of the keyword arguments)."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def state_dict(self) -> dict[str, Any]:
        return {"a": 1}


def note(name: str) -> Any:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((name, *(type(arg).__name__ for arg in args), *kwargs))
        return getattr(Precision, name)(self, *args, **kwargs)

    return method


NAMES = (
    *("connect", "convert_module", "convert_input", "pre_backward", "backward", "post_backward", "optimizer_step"),
    *("clip_gradients", "clip_grad_by_norm", "main_params", "unscale_gradients", "teardown"),
    *("train_step_context", "val_step_context", "test_step_context", "predict_step_context"),
    *("load_state_dict", "on_save_checkpoint", "on_load_checkpoint"),
)
for name in NAMES:
    setattr(Traced, name, note(name))


class Net(fulmen.LightningModule):
    def __init__(self, calls: list[Any], *, manual: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.calls = calls
        self.automatic_optimization = not manual

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        self.calls.append("training_step")
        loss = self.layer(batch).square().mean()
        if not self.automatic_optimization:
            self.manual_backward(loss)
            optimizer = self.optimizers()
            self.clip_gradients(optimizer, 1.0, "norm")
            optimizer.step()
        return loss

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.calls.append("on_before_zero_grad")

    def on_before_backward(self, loss: Tensor) -> None:
        self.calls.append("on_before_backward")

    def on_after_backward(self) -> None:
        self.calls.append("on_after_backward")

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.calls.append("on_before_optimizer_step")

    def configure_optimizers(self) -> Any:
        self.calls.append("configure_optimizers")
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Evaluated(Net):
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.calls.append("validation_step")

    def test_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.calls.append("test_step")
        return batch

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.calls.append("predict_step")
        return batch


FORWARD = [("train_step_context",), "training_step"]
BACKWARD = [
    ("pre_backward", "Tensor", "Net"),
    "on_before_backward",
    ("backward", "Tensor", "Net", "SGD"),
    ("post_backward", "Tensor", "Net"),
    "on_after_backward",
    ("unscale_gradients", "SGD"),
    "on_before_optimizer_step",
]
CLIP = [("clip_gradients", "SGD", "float", "str"), ("clip_grad_by_norm", "SGD", "float"), ("main_params", "SGD")]


def test_a_fit(fit: Any, data: Any) -> None:
    precision = Traced()
    backward = [
        tuple(word.replace("Net", "Evaluated") for word in call) if type(call) is tuple else call for call in BACKWARD
    ]
    fit(Evaluated(precision.calls), data(1), data(1), plugins=[precision], gradient_clip_val=1.0)
    assert precision.calls == [
        ("convert_module", "Evaluated"),
        "configure_optimizers",
        ("connect", "Evaluated", "list", "list"),
        ("convert_input", "Tensor"),
        ("optimizer_step", "SGD", "model", "closure"),
        *FORWARD,
        "on_before_zero_grad",
        *backward,
        *CLIP,
        ("convert_input", "Tensor"),
        ("val_step_context",),
        "validation_step",
        ("teardown",),
    ]


def test_manual_optimisation(fit: Any, data: Any) -> None:
    precision = Traced()
    trainer = fit(Net(precision.calls, manual=True), data(1), plugins=[precision])
    without_optimizer = [
        ("backward", "Tensor", "Net", "NoneType") if call[0] == "backward" else call for call in BACKWARD
    ]
    assert precision.calls[4:-1] == [
        *FORWARD,
        *without_optimizer[:5],
        *CLIP,
        ("optimizer_step", "SGD", "model", "closure"),
        *without_optimizer[5:],
    ]
    assert trainer.global_step == 1


@pytest.mark.parametrize("stage", ["test", "predict"])
def test_evaluation(quiet: Any, data: Any, stage: str) -> None:
    precision = Traced()
    getattr(quiet(plugins=[precision]), stage)(Evaluated(precision.calls), data(1))
    assert precision.calls == [
        ("convert_module", "Evaluated"),
        ("connect", "Evaluated", "list", "list"),
        ("convert_input", "Tensor"),
        (f"{stage}_step_context",),
        f"{stage}_step",
        ("teardown",),
    ]


def test_checkpoints(fit: Any, data: Any, quiet: Any, tmp_path: Any) -> None:
    precision = Traced()
    trainer = fit(Net([]), data(1), plugins=[precision])
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    assert precision.calls[-1] == ("on_save_checkpoint", "dict")
    assert torch.load(tmp_path / "x.ckpt")["Traced"] == {"a": 1}
    resumed = Traced()
    quiet(plugins=[resumed], max_epochs=2).fit(Net([]), data(1), ckpt_path=tmp_path / "x.ckpt")
    loads = [call for call in resumed.calls if "load" in call[0]]
    assert loads == [("on_load_checkpoint", "dict"), ("load_state_dict", "dict")]


def test_the_backward_of_the_module_is_called_through_that_of_the_precision(fit: Any, data: Any) -> None:
    class Logs(Net):
        def backward(self, loss: Tensor) -> None:
            self.log("in_backward", 1.0)
            loss.backward()

    module = Logs([])
    trainer = fit(module, data(2), plugins=[Traced()])
    assert trainer.callback_metrics["in_backward"] == 1.0
    assert module.layer.weight.grad is not None


def test_only_what_is_overridden_is_called(fit: Any, data: Any) -> None:
    class Doubles(Precision):
        def pre_backward(self, tensor: Tensor, module: nn.Module) -> Tensor:
            return tensor * 2

    class Gradients(Net):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.calls.append(self.layer.bias.grad.item())

    found: list[list[Any]] = []
    for precision in (Precision(), Doubles()):
        torch.manual_seed(0)
        module = Gradients([])
        trainer = fit(module, data(1), plugins=[precision])
        assert type(trainer.fit_loop.step).__name__ == "AutomaticStep"
        found.append([call for call in module.calls if isinstance(call, float)])
    assert found[1] == [2 * found[0][0]]


@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
def test_a_scaled_step_of_the_users_own(fit: Any, data: Any, manual: bool) -> None:
    class Own(MixedPrecision):
        def optimizer_step(self, optimizer: Any, model: Any, closure: Any, **kwargs: Any) -> Any:
            seen.append("own")
            return super().optimizer_step(optimizer, model=model, closure=closure, **kwargs)

    class Gradients(Net):
        def on_after_backward(self) -> None:
            seen.append(self.layer.bias.grad.item())

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            seen.append(self.layer.bias.grad.item())

    seen: list[Any] = []
    module = Gradients([], manual=manual)
    module.clip_gradients = lambda *_: None
    fit(module, data(1), plugins=[Own("16-mixed", "cpu", GradScaler("cpu", init_scale=4.0))])
    scaled, true = [value for value in seen if value != "own"]
    assert "own" in seen
    assert scaled == 4 * true != 0


def test_fabric() -> None:
    precision = Traced()
    fabric = Fabric(accelerator="cpu", plugins=precision)
    layer = nn.Linear(2, 1)
    model, optimizer = fabric.setup(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    loss = model(torch.ones(1, 2)).sum()
    with pytest.raises(RuntimeError, match=r"fabric.backward\(loss\)"):
        loss.backward(retain_graph=True)
    fabric.backward(loss, model=model)
    fabric.clip_gradients(model, optimizer, max_norm=1.0)
    optimizer.step()
    optimizer.step(lambda: None)
    assert precision.calls == [
        ("convert_module", "Linear"),
        ("convert_input", "tuple"),
        ("pre_backward", "Tensor", "Linear"),
        ("backward", "Tensor", "Linear", "NoneType"),
        ("post_backward", "Tensor", "Linear"),
        ("unscale_gradients", "SGD"),
        ("main_params", "SGD"),
        ("optimizer_step", "SGD"),
        ("optimizer_step", "SGD", "closure"),
    ]
