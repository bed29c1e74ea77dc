from __future__ import annotations

import inspect
from typing import Any

import pytest

from fulmen import LightningDataModule, LightningModule, Trainer
from fulmen.utilities.parsing import (
    collect_init_args,
    get_init_args,
    lightning_getattr,
    lightning_hasattr,
    lightning_setattr,
    parse_class_init_keys,
)


class Net(LightningModule):
    pass


class Data(LightningDataModule):
    pass


@pytest.fixture
def parts():
    """Module, its hyperparameters, datamodule, its hyperparameters: attached to a trainer."""
    module, data = Net(), Data()
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.trainer._datamodule = data
    return module, module.hparams, data, data.hparams


def test_nobody_has_it(parts):
    module = parts[0]
    assert not lightning_hasattr(module, "size")
    for call in (lambda: lightning_getattr(module, "size"), lambda: lightning_setattr(module, "size", 1)):
        with pytest.raises(AttributeError, match=r"'size' is neither in the module Net.*`self.size = ...`"):
            call()


@pytest.mark.parametrize("place", range(4))
def test_one_has_it(parts, place):
    module, holder = parts[0], parts[place]
    holder.size = place
    assert lightning_hasattr(module, "size")
    assert lightning_getattr(module, "size") == place
    lightning_setattr(module, "size", 9)
    assert holder.size == 9
    assert [hasattr(part, "size") for part in parts] == [other == place for other in range(4)]


def test_all_have_it_and_the_last_one_is_read(parts):
    for place, holder in enumerate(parts):
        holder.size = place
    assert lightning_getattr(parts[0], "size") == 3
    lightning_setattr(parts[0], "size", 9)
    assert [holder.size for holder in parts] == [9] * 4


def test_without_a_trainer():
    module = Net()
    module.size = 2
    assert lightning_getattr(module, "size") == 2


class Outer:
    def __init__(self, a: int, *, lr: float = 0.1, **kwargs: Any) -> None:
        super().__init__()
        self.found = (
            get_init_args(inspect.currentframe()),  # type: ignore[arg-type]
            collect_init_args(inspect.currentframe(), []),
        )


class Inner(Outer):
    def __init__(self, width: int, *args: Any) -> None:
        super().__init__(1, depth=width)


class Silent:
    def __init__(self, a: int) -> None:
        self.found = get_init_args(inspect.currentframe())  # type: ignore[arg-type]


def test_arguments_of_init() -> None:
    own, around = Inner(5, 6).found
    assert own == {"a": 1, "lr": 0.1, "depth": 5}
    assert around == [own, {"width": 5}]
    assert Silent(1).found == {}  # without `super()` there is no telling whose method it is


def test_arguments_of_some_classes_only() -> None:
    class Asks(Inner):
        def __init__(self) -> None:
            super().__init__(2)
            self.found = collect_init_args(inspect.currentframe(), [{"first": 1}], classes=Asks)  # type: ignore[assignment]

    assert Asks().found == [{"first": 1}, {}]  # type: ignore[comparison-overlap]


def test_names_in_init() -> None:
    assert parse_class_init_keys(Outer) == ("self", None, "kwargs")
    assert parse_class_init_keys(Inner) == ("self", "args", None)
