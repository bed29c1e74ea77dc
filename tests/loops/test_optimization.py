"""What a training step gives back, and the closure around it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from fulmen import Loss
from fulmen.errors import LossError, MisconfigurationException
from fulmen.loops.optimization.automatic import Closure, ClosureResult, split_output
from fulmen.loops.optimization.closure import AbstractClosure, OutputResult
from fulmen.loops.optimization.manual import ManualResult
from fulmen.loops.utilities import check_finite_loss


def doubled() -> Tensor:
    return (torch.ones(1, requires_grad=True) * 2).sum()


# ---------------------------------------------------------------------------------------------------- automatic


@pytest.mark.parametrize("wrap", [lambda loss: loss, lambda loss: {"loss": loss, "a": 1}], ids=["tensor", "mapping"])
def test_the_result_of_an_automatic_step(wrap: Any) -> None:
    output = wrap(doubled())
    result = ClosureResult.from_training_step_output(output, normalize=4)
    assert result.closure_loss is not None
    assert (result.closure_loss.item(), result.closure_loss.requires_grad) == (0.5, True)
    assert result.asdict() == {"loss": torch.tensor(0.5), **({"a": 1} if isinstance(output, Mapping) else {})}
    assert not result.asdict()["loss"].requires_grad
    with torch.no_grad():
        result.closure_loss.mul_(3)
    assert result.asdict()["loss"].item() == 0.5


def test_a_skipped_batch_has_no_result() -> None:
    result = ClosureResult.from_training_step_output(None)
    assert (result.closure_loss, result.loss, result.asdict()) == (None, None, {})


def test_a_weighted_loss_counts_by_its_mean() -> None:
    result = ClosureResult.from_training_step_output(Loss(torch.tensor(6.0), 3), normalize=2)
    assert result.asdict() == {"loss": torch.tensor(1.0)}


@pytest.mark.parametrize(
    ("output", "given"), [({"a": 1}, r"keys \['a'\]"), ({"loss": 3}, "loss: 3"), ({"loss": None}, "keys"), (3, "int")]
)
def test_what_is_no_loss_is_refused(output: Any, given: str) -> None:
    with pytest.raises(MisconfigurationException, match=f"`Net.training_step` returned .*{given}") as caught:
        split_output(output, "Net.training_step")
    assert isinstance(caught.value, LossError)
    assert caught.value.subject is output


def test_a_closure_does_forward_clear_backward() -> None:
    order: list[str] = []

    def step() -> ClosureResult:
        order.append("forward")
        return ClosureResult(doubled(), {"a": 1})

    closure = Closure(step, lambda loss: order.append(f"backward {loss.item()}"), lambda: order.append("clear"))
    loss = closure()
    assert loss is not None
    assert (loss.item(), loss.requires_grad) == (2.0, False)
    assert order == ["forward", "clear", "backward 2.0"]
    assert closure.consume_result().asdict() == {"loss": torch.tensor(2.0), "a": 1}


def test_a_closure_of_a_skipped_batch() -> None:
    Closure.warning_cache.clear()
    closure = Closure(lambda: ClosureResult(None), lambda loss: pytest.fail("went backward"))
    with pytest.warns(UserWarning, match="no loss to go backward from"):
        assert closure() is None
    assert closure.consume_result().asdict() == {}
    assert Closure(lambda: ClosureResult(None))() is None


def test_a_result_is_consumed_once() -> None:
    closure = Closure(lambda: ClosureResult(doubled()))
    for _ in range(2):
        with pytest.raises(MisconfigurationException, match="did not call the closure"):
            closure.consume_result()
        closure()
        closure()
        closure.consume_result()


def test_a_closure_of_ones_own() -> None:
    class Constant(AbstractClosure[ManualResult]):
        def closure(self, *args: Any, **kwargs: Any) -> ManualResult:
            return ManualResult({"args": args, **kwargs})

        def __call__(self, *args: Any, **kwargs: Any) -> None:
            self._result = self.closure(*args, **kwargs)

    closure = Constant()
    closure(1, b=2)
    assert closure.consume_result().asdict() == {"args": (1,), "b": 2}
    with pytest.raises(NotImplementedError):
        OutputResult().asdict()


def test_an_optimizer_step_of_ones_own_gets_the_closure(fit: Any, Net: Any, data: Any) -> None:
    class Keeps(Net):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            assert isinstance(optimizer_closure, Closure)
            loss = optimizer_closure()
            assert not loss.requires_grad
            assert optimizer_closure._result.loss is loss
            optimizer.step()

    assert fit(Keeps(), data(2)).global_step == 2


# ---------------------------------------------------------------------------------------------------- manual


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (doubled(), {"loss": 2.0}),
        (None, {}),
        ({"loss": doubled(), "b": 1}, {"loss": 2.0, "b": 1}),
        ({"b": 1}, {"b": 1}),
    ],
)
def test_the_result_of_a_manual_step(output: Any, expected: dict[str, Any]) -> None:
    result = ManualResult.from_training_step_output(output)
    assert result.extra is result.asdict()
    assert result.asdict() == expected
    assert not any(isinstance(value, Tensor) and value.requires_grad for value in result.extra.values())


def test_what_a_manual_step_cannot_hand_on() -> None:
    with pytest.raises(LossError, match="returned int; in manual optimisation"):
        ManualResult.from_training_step_output(3)


# ---------------------------------------------------------------------------------------------------- helpers


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, [1.0, math.nan]])
def test_a_loss_that_is_not_finite(value: Any) -> None:
    with pytest.raises(ValueError, match=r"The loss returned in `training_step` is .*(nan|inf)"):
        check_finite_loss(torch.tensor(value))


@pytest.mark.parametrize("loss", [None, torch.tensor(1.0), torch.ones(2)])
def test_a_finite_loss(loss: Tensor | None) -> None:
    assert check_finite_loss(loss) is None  # type: ignore[func-returns-value]
