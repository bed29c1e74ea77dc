"""One training step: what is computed, in which way, and what is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

import fulmen
from fulmen.errors import LossError, MisconfigurationException
from fulmen.loops.step import AutomaticStep, ClosureStep, ManualStep
from fulmen.strategies import SingleDeviceStrategy


def seeded(cls: type[Any], *arguments: Any) -> Any:
    torch.manual_seed(3)
    return cls(*arguments)


def weights(module: torch.nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


class EndOfBatch(fulmen.Callback):
    """Keeps what `on_train_batch_end` got as outputs."""

    def __init__(self) -> None:
        self.outputs: list[Any] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.outputs.append(outputs)


# ---------------------------------------------------------------------------------------------------- which step


def own_optimizer_step(module: Any, strategy: Any) -> None:
    module.optimizer_step = lambda epoch, batch_idx, optimizer, closure: optimizer.step(closure)


def own_strategy_step(module: Any, strategy: Any) -> None:
    strategy.optimizer_step = lambda optimizer, closure, model=None, **kw: optimizer.step(closure)


def own_optimizer(module: Any, strategy: Any) -> None:
    module.configure_optimizers = lambda: CustomSGD(module.parameters(), lr=0.1)


def lbfgs(module: Any, strategy: Any) -> None:
    module.configure_optimizers = lambda: torch.optim.LBFGS(module.parameters())


def manual(module: Any, strategy: Any) -> None:
    module.automatic_optimization = False


class CustomSGD(SGD):
    pass


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda module, strategy: None, AutomaticStep),
        (own_optimizer_step, ClosureStep),
        (own_strategy_step, ClosureStep),
        (own_optimizer, ClosureStep),
        (lbfgs, ClosureStep),
        (manual, ManualStep),
    ],
)
def test_the_kind_of_step_is_chosen_by_what_needs_it(fit: Any, Net: Any, data: Any, change: Any, kind: type) -> None:
    module, strategy = Net(), SingleDeviceStrategy(device="cpu")
    change(module, strategy)
    trainer = fit(module, data(1), strategy=strategy)
    assert type(trainer.fit_loop.step) is kind


def test_a_decorated_method_of_a_strategy_is_an_override(fit: Any, Net: Any, data: Any) -> None:
    calls = []

    class Counting(SingleDeviceStrategy):
        @functools.wraps(SingleDeviceStrategy.training_step)
        def training_step(self, *arguments: Any) -> Any:
            calls.append(arguments[1])
            return super().training_step(*arguments)

    fit(Net(), data(2), strategy=Counting(device="cpu"))
    assert calls == [0, 1]


# ---------------------------------------------------------------------------------------------------- automatic


@pytest.mark.parametrize("needs_closure", [False, True], ids=["plain", "closure"])
@pytest.mark.parametrize("accumulate", [1, 2, 3, 7])
def test_accumulation(fit: Any, Net: Any, data: Any, accumulate: int, needs_closure: bool) -> None:
    module = seeded(Net)
    if needs_closure:
        own_optimizer_step(module, None)
    raw = seeded(Net)
    optimizer = raw.configure_optimizers()
    batches, losses, steps = list(data(5)), [], 0
    for place, batch in enumerate(batches):
        loss = raw.loss(batch) / accumulate
        if place % accumulate == 0:
            optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        if (place + 1) % accumulate == 0 or place == 4:
            optimizer.step()
            steps += 1
    ends = EndOfBatch()
    trainer = fit(module, data(5), accumulate_grad_batches=accumulate, callbacks=[ends])
    assert same(module, raw)
    assert trainer.global_step == steps
    assert [outputs["loss"].item() for outputs in ends.outputs] == losses
    assert not any(outputs["loss"].requires_grad for outputs in ends.outputs)


@pytest.mark.parametrize("needs_closure", [False, True], ids=["plain", "closure"])
@pytest.mark.parametrize(
    ("algorithm", "clip"),
    [
        ("norm", torch.nn.utils.clip_grad_norm_),
        (None, torch.nn.utils.clip_grad_norm_),
        ("VALUE", torch.nn.utils.clip_grad_value_),
    ],
)
def test_clipping(fit: Any, Net: Any, data: Any, algorithm: Any, clip: Callable[..., Any], needs_closure: bool) -> None:
    module, raw = seeded(Net), seeded(Net)
    if needs_closure:
        own_optimizer_step(module, None)
    optimizer = raw.configure_optimizers()
    for batch in data(4):
        optimizer.zero_grad()
        raw.loss(batch).backward()
        clip(raw.parameters(), 0.05)
        optimizer.step()
    fit(module, data(4), gradient_clip_val=0.05, gradient_clip_algorithm=algorithm)
    assert same(module, raw)


def test_clipping_can_be_done_by_the_module(fit: Any, Net: Any, data: Any) -> None:
    class Clips(Net):
        def configure_gradient_clipping(
            self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
        ) -> None:
            self.asked = gradient_clip_val, gradient_clip_algorithm
            self.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="value")

    module = seeded(Clips)
    before = weights(module)
    fit(module, data(3), limit_train_batches=3)
    assert module.asked == (None, None)
    assert all(
        (after - old).abs().max() <= 3 * 0.1 * 0.05 + 1e-6 for after, old in zip(weights(module), before, strict=True)
    )


@pytest.mark.parametrize(
    "call", [{"gradient_clip_val": 0.5}, {"gradient_clip_algorithm": "value"}], ids=["value", "algorithm"]
)
def test_clipping_must_not_contradict_the_trainer(fit: Any, Net: Any, data: Any, call: dict[str, Any]) -> None:
    class Contradicts(Net):
        def configure_gradient_clipping(self, optimizer: Any, *arguments: Any, **keywords: Any) -> None:
            self.clip_gradients(optimizer, **call)

    with pytest.raises(MisconfigurationException, match="Give it in one of the two places"):
        fit(Contradicts(), data(1), gradient_clip_val=1.0, gradient_clip_algorithm="norm")


def test_an_unknown_way_of_clipping_is_refused(fit: Any, Net: Any, data: Any) -> None:
    class Mistypes(Net):
        def configure_gradient_clipping(self, optimizer: Any, *arguments: Any, **keywords: Any) -> None:
            self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norms")

    with pytest.raises(MisconfigurationException, match=r"gradient_clip_algorithm='norms'.*'norm' or 'value'"):
        fit(Mistypes(), data(1))


def test_hooks_may_be_given_by_the_instance(fit: Any, Net: Any, data: Any) -> None:
    module, calls = Net(), []
    module.training_step = lambda batch, batch_idx: calls.append(batch_idx) or module.loss(batch)
    fit(module, data(3))
    assert calls == [0, 1, 2]


def test_a_training_step_may_do_without_the_index(fit: Any, Net: Any, data: Any) -> None:
    class Short(Net):
        def training_step(self, batch: Tensor) -> Tensor:
            return self.loss(batch)

    assert fit(Short(), data(3)).global_step == 3


@pytest.mark.parametrize("needs_closure", [False, True], ids=["plain", "closure"])
def test_zero_grad_and_backward_can_be_overridden(fit: Any, Net: Any, data: Any, needs_closure: bool) -> None:
    calls: list[Any] = []

    class Own(Net):
        def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
            calls.append(("zero_grad", epoch, batch_idx, type(optimizer).__name__))
            optimizer.zero_grad(set_to_none=False)

        def backward(self, loss: Tensor) -> None:
            calls.append(("backward", loss.requires_grad))
            (2 * loss).backward()

    module, raw = seeded(Own), seeded(Net)
    if needs_closure:
        own_optimizer_step(module, None)
    optimizer = raw.configure_optimizers()
    for batch in data(4):
        optimizer.zero_grad()
        (2 * raw.loss(batch)).backward()
        optimizer.step()
    fit(module, data(4), max_epochs=1)
    assert same(module, raw)
    assert calls == [step for place in range(4) for step in (("zero_grad", 0, place, "SGD"), ("backward", True))]


def test_other_entries_of_a_dictionary_reach_the_hooks(fit: Any, Net: Any, data: Any) -> None:
    class Dictionary(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            loss = self.loss(batch)
            return {"loss": loss, "index": batch_idx} if batch_idx != 1 else loss

    module, raw, ends = seeded(Dictionary), seeded(Net), EndOfBatch()
    fit(module, data(3), callbacks=[ends])
    fit(raw, data(3))
    assert same(module, raw)
    assert [outputs.get("index") for outputs in ends.outputs] == [0, None, 2]


@pytest.mark.parametrize("needs_closure", [False, True], ids=["plain", "closure"])
def test_no_loss_no_gradient_but_everything_else(fit: Any, Net: Any, data: Any, needs_closure: bool) -> None:
    class Skips(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
            self.seen = [*getattr(self, "seen", []), self.layer.weight.detach().clone()]
            return None if batch_idx in (1, 3) else self.loss(batch)

    module, ends = seeded(Skips), EndOfBatch()
    if needs_closure:
        own_optimizer_step(module, None)
    with pytest.warns(UserWarning, match="`training_step` returned None: the batch is skipped") as warned:
        trainer = fit(module, data(5), callbacks=[ends])
    assert len(warned) == 1
    assert trainer.global_step == 5
    assert [outputs == {} for outputs in ends.outputs] == [False, True, False, True, False]
    assert [torch.equal(a, b) for a, b in zip(module.seen, module.seen[1:], strict=False)][1::2] == [True, True]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (3.0, "returned float"),
        ("loss", "returned str"),
        ([1.0], "returned list"),
        ({"los": 1}, r"returned a dictionary with keys \['los'\]"),
        ({"loss": None}, r"returned a dictionary with keys \['loss'\]"),
        ({"loss": 0.5}, r"loss: 0.5"),
    ],
    ids=str,
)
def test_what_is_no_loss_is_refused(fit: Any, Net: Any, data: Any, returned: Any, message: str) -> None:
    module = Net()
    module.training_step = lambda batch, batch_idx: returned
    with pytest.raises(LossError, match=message) as caught:
        fit(module, data(1))
    assert caught.value.subject is returned
    assert isinstance(caught.value, MisconfigurationException)


def test_a_loss_without_gradient_says_why(fit: Any, Net: Any, data: Any) -> None:
    module = Net()
    module.training_step = lambda batch, batch_idx: module.loss(batch).detach()
    with pytest.raises(LossError, match=r"batch 0 does not require grad .*cut off by `.detach\(\)`") as caught:
        fit(module, data(1))
    assert isinstance(caught.value, RuntimeError)
    module = Net()
    module.freeze()
    module.train()
    with pytest.raises(LossError, match="Every parameter is frozen"):
        fit(module, data(1))


def test_an_error_of_autograd_surfaces_as_it_is(fit: Any, Net: Any, data: Any) -> None:
    module = Net()
    module.training_step = lambda batch, batch_idx: module.layer(batch.expand(3, 2))
    with pytest.raises(RuntimeError, match="grad can be implicitly created only for scalar outputs"):
        fit(module, data(1))


# ---------------------------------------------------------------------------------------------------- closures


def test_lbfgs_equals_a_raw_loop(fit: Any, Net: Any, data: Any) -> None:
    class Quasi(Net):
        evaluations = 0

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            self.evaluations += 1
            return (self.layer(batch) - 1).pow(2).mean() + self.layer.weight.pow(4).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), lr=0.5, max_iter=4)

    module, raw = seeded(Quasi), seeded(Quasi)
    optimizer = raw.configure_optimizers()
    for batch in data(3):

        def closure(batch: Tensor = batch) -> Tensor:
            loss = raw.training_step(batch, 0)
            optimizer.zero_grad()
            loss.backward()
            return loss

        optimizer.step(closure)
    trainer = fit(module, data(3))
    assert same(module, raw)
    assert module.evaluations == raw.evaluations > 6
    assert trainer.global_step == 3


class Sharpness(Optimizer):
    """Steps with the gradient at a place a little uphill: evaluates the loss twice."""

    def __init__(self, parameters: Any, lr: float = 0.1, rho: float = 0.05) -> None:
        super().__init__(parameters, {"lr": lr, "rho": rho})

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            loss = closure()
        parameters = [p for group in self.param_groups for p in group["params"]]
        group, start = self.param_groups[0], [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for parameter in parameters:
                parameter += group["rho"] * parameter.grad
        with torch.enable_grad():
            closure()
        with torch.no_grad():
            for parameter, place in zip(parameters, start, strict=True):
                parameter.copy_(place - group["lr"] * parameter.grad)
        return loss


def test_an_unknown_optimizer_gets_the_closure(fit: Any, Net: Any, data: Any) -> None:
    class Flat(Net):
        def configure_optimizers(self) -> Any:
            return Sharpness(self.parameters())

    module, raw = seeded(Flat), seeded(Flat)
    optimizer = raw.configure_optimizers()
    for batch in data(4):

        def closure(batch: Tensor = batch) -> Tensor:
            loss = raw.loss(batch)
            optimizer.zero_grad()
            loss.backward()
            return loss

        optimizer.step(closure)
    trainer = fit(module, data(4))
    assert same(module, raw)
    assert trainer.global_step == 4


def test_optimizer_step_can_be_overridden(fit: Any, Net: Any, data: Any) -> None:
    calls = []

    class Warmup(Net):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            calls.append((epoch, batch_idx, type(optimizer).__name__, isinstance(optimizer, SGD)))
            optimizer.param_groups[0]["lr"] = 0.01 * (self.global_step + 1)
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    module, raw = seeded(Warmup), seeded(Net)
    optimizer = raw.configure_optimizers()
    for place, batch in enumerate(data(3)):
        optimizer.param_groups[0]["lr"] = 0.01 * (place + 1)
        optimizer.zero_grad()
        raw.loss(batch).backward()
        optimizer.step()
    fit(module, data(3))
    assert same(module, raw)
    assert calls == [(0, place, "LightningSGD", True) for place in range(3)]


def test_optimizer_step_may_compute_without_stepping(fit: Any, Net: Any, data: Any) -> None:
    class Odd(Net):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            if batch_idx % 2:
                optimizer.step(closure=optimizer_closure)
            else:
                optimizer_closure()

    module, raw = seeded(Odd), seeded(Net)
    optimizer = raw.configure_optimizers()
    for place, batch in enumerate(data(4)):
        optimizer.zero_grad()
        raw.loss(batch).backward()
        if place % 2:
            optimizer.step()
    fit(module, data(4))
    assert same(module, raw)


def test_a_closure_that_is_not_called_is_an_error(fit: Any, Net: Any, data: Any) -> None:
    module = Net()
    module.optimizer_step = lambda epoch, batch_idx, optimizer, optimizer_closure: None
    with pytest.raises(MisconfigurationException, match="did not call the closure"):
        fit(module, data(1))


def test_logging_goes_on_after_the_closure(fit: Any, Net: Any, data: Any) -> None:
    class Logs(Net):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            optimizer.step(closure=optimizer_closure)
            self.log("after", float(batch_idx))

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            self.log("inside", float(batch_idx))
            return self.loss(batch)

        def on_before_zero_grad(self, optimizer: Any) -> None:
            self.log("hook", 2.0)

    metrics = fit(Logs(), data(3)).callback_metrics
    assert {name: float(value) for name, value in metrics.items()} == {"after": 2.0, "inside": 2.0, "hook": 2.0}


# ---------------------------------------------------------------------------------------------------- manual


class TwoPlayers(fulmen.LightningModule):
    """Two halves with an optimizer each, trained in turns."""

    def __init__(self, toggled: bool = False) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.first, self.second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)
        self.toggled = toggled
        self.grads: list[tuple[bool, ...]] = []

    def loss(self, batch: Tensor) -> Tensor:
        return self.second(self.first(batch)).pow(2).mean()

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        for optimizer in self.optimizers():
            if self.toggled:
                self.toggle_optimizer(optimizer)
            loss = self.loss(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.grads.append(tuple(p.requires_grad for p in self.parameters()))
            if self.toggled:
                self.untoggle_optimizer(optimizer)
        return loss

    def configure_optimizers(self) -> Any:
        return SGD(self.first.parameters(), lr=0.1), torch.optim.Adam(self.second.parameters(), lr=0.1)


def test_manual_optimisation_with_two_optimizers(fit: Any, data: Any) -> None:
    module, raw, ends = seeded(TwoPlayers), seeded(TwoPlayers), EndOfBatch()
    optimizers, losses = raw.configure_optimizers(), []
    for batch in data(3):
        for optimizer in optimizers:
            loss = raw.loss(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    trainer = fit(module, data(3), callbacks=[ends])
    assert same(module, raw)
    assert trainer.global_step == 6
    assert [outputs["loss"].item() for outputs in ends.outputs] == losses
    assert not ends.outputs[0]["loss"].requires_grad


def test_toggling(fit: Any, data: Any) -> None:
    module = seeded(TwoPlayers, True)
    module.first.bias.requires_grad = False
    fit(module, data(1))
    assert module.grads == [(True, False, False, False), (False, False, True, True)]
    assert [p.requires_grad for p in module.parameters()] == [True, False, True, True]


def test_toggling_as_a_context(fit: Any, data: Any) -> None:
    class Contexts(TwoPlayers):
        def training_step(self, batch: Tensor, batch_idx: int) -> None:
            first, second = self.optimizers()
            for context in (first.toggle_model(), self.toggled_optimizer(second)):
                with context:
                    self.grads.append(tuple(p.requires_grad for p in self.parameters()))
            self.grads.append(tuple(p.requires_grad for p in self.parameters()))

    module = Contexts()
    fit(module, data(1))
    assert module.grads == [(True, True, False, False), (False, False, True, True), (True,) * 4]


@pytest.mark.parametrize(
    ("returned", "outputs"), [(None, {}), ({"a": 1}, {"a": 1}), ({"loss": None}, {"loss": None}), ({}, {})], ids=str
)
def test_what_a_manual_step_may_return(fit: Any, data: Any, returned: Any, outputs: Any) -> None:
    module, ends = TwoPlayers(), EndOfBatch()
    module.training_step = lambda batch, batch_idx: returned
    fit(module, data(1), callbacks=[ends])
    assert ends.outputs == [outputs]


def test_what_a_manual_step_may_not_return(fit: Any, data: Any) -> None:
    module = TwoPlayers()
    module.training_step = lambda batch, batch_idx: 3
    with pytest.raises(LossError, match="returned int; in manual optimisation"):
        fit(module, data(1))


def test_raw_optimizers_are_not_counted(fit: Any, data: Any) -> None:
    class Raw(TwoPlayers):
        def training_step(self, batch: Tensor, batch_idx: int) -> None:
            self.optimizers(use_pl_optimizer=False)[0].step()
            self.optimizers()[1].step()

    module = Raw()
    assert fit(module, data(3)).global_step == 3
    assert type(module.optimizers(use_pl_optimizer=False)[0]) is SGD


def test_hooks_of_manual_optimisation(fit: Any, data: Any) -> None:
    calls: list[str] = []
    hooks = "on_before_zero_grad optimizer_zero_grad optimizer_step on_before_backward on_after_backward"
    module = TwoPlayers()
    for name in [*hooks.split(), "on_before_optimizer_step"]:
        setattr(module, name, lambda *arguments, name=name: calls.append(name))
    fit(module, data(1))
    assert calls == ["on_before_backward", "on_after_backward", "on_before_optimizer_step"] * 2


def test_a_closure_in_manual_optimisation(fit: Any, data: Any) -> None:
    class Closes(TwoPlayers):
        def training_step(self, batch: Tensor, batch_idx: int) -> None:
            def closure() -> Tensor:
                loss = self.loss(batch)
                self.optimizers()[0].zero_grad()
                self.manual_backward(loss)
                return loss

            self.returned = self.optimizers()[0].step(closure)

    module = seeded(Closes)
    before = weights(module.first)
    assert fit(module, data(2)).global_step == 2
    assert module.returned.dim() == 0
    assert not torch.equal(before[0], module.first.weight)


def test_clipping_by_hand(fit: Any, data: Any) -> None:
    class Clips(TwoPlayers):
        def training_step(self, batch: Tensor, batch_idx: int) -> None:
            optimizer = self.optimizers()[0]
            optimizer.zero_grad()
            self.manual_backward(100 * self.loss(batch))
            self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
            self.norm = torch.nn.utils.get_total_norm([p.grad for p in self.first.parameters()])

    module = Clips()
    fit(module, data(2))
    assert module.norm.item() == pytest.approx(0.5, abs=1e-5)


def test_manual_backward_is_for_manual_optimisation(fit: Any, Net: Any, data: Any) -> None:
    module = Net()
    module.training_step = lambda batch, batch_idx: module.manual_backward(module.loss(batch))
    with pytest.raises(MisconfigurationException, match="`manual_backward` is for manual optimisation"):
        fit(module, data(1))


def test_a_strategy_that_accumulates_by_itself_would_not_weigh(fit: Any, Net: Any, data: Any) -> None:
    class Accumulating(SingleDeviceStrategy):
        handles_gradient_accumulation = True

    module = Net()
    module.training_step = lambda batch, batch_idx: fulmen.Loss(module.loss(batch), 2)
    with pytest.raises(LossError, match="accumulate_grad_batches=1"):
        fit(module, data(2), strategy=Accumulating("cpu"), accumulate_grad_batches=2)
