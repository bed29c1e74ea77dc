from __future__ import annotations

import functools
import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from torch import nn

import fulmen
from fulmen.utilities.model_helpers import get_torchvision_model, is_overridden


class Net(fulmen.LightningModule):
    def training_step(self, batch: Any, batch_idx: int) -> None: ...


def test_what_a_class_overrides() -> None:
    assert is_overridden("training_step", Net())
    assert not is_overridden("validation_step", Net())


@pytest.mark.parametrize(
    ("instance", "hook"),
    [(fulmen.LightningModule(), "test_step"), (fulmen.LightningDataModule(), "setup"), (fulmen.Callback(), "setup")],
)
def test_what_an_instance_overrides(instance: Any, hook: str) -> None:
    assert not is_overridden(hook, instance)
    setattr(instance, hook, lambda *arguments: None)
    assert is_overridden(hook, instance)


def test_what_only_wraps_the_method_does_not_override_it() -> None:
    net = fulmen.LightningModule()
    base = net.test_step
    for wrapper in (functools.partial(base), functools.wraps(base)(lambda *a: base(*a)), Mock(wraps=base)):
        net.test_step = wrapper  # type: ignore[method-assign]
        assert not is_overridden("test_step", net)
    net.test_step = Mock()  # type: ignore[method-assign]
    assert is_overridden("test_step", net)
    net.test_step = functools.partial(Net.training_step, net)  # type: ignore[method-assign]
    assert is_overridden("test_step", net)


def test_compared_with_another_class() -> None:
    class Child(Net):
        pass

    assert is_overridden("training_step", Child())
    assert not is_overridden("training_step", Child(), parent=Net)
    assert is_overridden("forward", nn.Linear(1, 1), parent=nn.Module)


def test_nothing_overrides_nothing() -> None:
    assert not is_overridden("training_step")
    assert not is_overridden("no_such_hook", Net())


def test_without_something_to_compare_with() -> None:
    with pytest.raises(ValueError, match="given a object and no class to compare with"):
        is_overridden("setup", object())
    with pytest.raises(ValueError, match="`Linear` has no such method"):
        is_overridden("training_step", Net(), parent=nn.Linear)


def test_models_of_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    models = SimpleNamespace(get_model=lambda name, **arguments: (name, arguments))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=models))
    assert get_torchvision_model("resnet18", weights=None) == ("resnet18", {"weights": None})
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "torchvision.models")
    with pytest.raises(ModuleNotFoundError, match="pip install torchvision"):
        get_torchvision_model("resnet18")
