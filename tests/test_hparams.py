from __future__ import annotations

import dataclasses
import functools
import inspect
import threading
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fulmen import LightningModule, Trainer
from fulmen.hparams import HyperparametersMixin, clean_namespace, given_hyperparameters, is_picklable
from fulmen.loggers import CSVLogger, TensorBoardLogger


class Everything(HyperparametersMixin):
    def __init__(self, a, b=2, *rest, c=3, **others):
        self.save_hyperparameters()


class Outer(Everything):
    def __init__(self, a, width=1):
        super().__init__(a + 1, extra=4)


def test_all_arguments_but_self_and_star_args():
    net = Everything(1, 2, 9, 9, c=5, more=7)
    assert net.hparams == {"a": 1, "b": 2, "c": 5, "more": 7}
    assert net._hparams_name == "kwargs"
    assert net._log_hyperparams


def test_the_arguments_of_subclasses_are_kept_and_the_outermost_value_wins():
    assert Outer(10).hparams == {"a": 10, "b": 2, "c": 3, "extra": 4, "width": 1}


def test_an_object_made_inside_of_another_keeps_to_itself():
    class Owner(HyperparametersMixin):
        def __init__(self, depth):
            self.inner = Everything(7)
            self.save_hyperparameters()

    owner = Owner(1)
    assert owner.inner.hparams == {"a": 7, "b": 2, "c": 3}
    assert owner.hparams == {"depth": 1}


def test_through_decorators_helpers_and_a_given_frame():
    def decorated(init):
        @functools.wraps(init)
        def wrapper(self, *args, **kwargs):
            init(self, *args, **kwargs)

        return wrapper

    class Decorated(Everything):
        @decorated
        def __init__(self, a, d=4):
            super().__init__(a)

    class Helped(HyperparametersMixin):
        def __init__(self, a, b=2):
            self.helper()

        def helper(self):
            self.save_hyperparameters()

    class Framed(HyperparametersMixin):
        def __init__(self, a):
            self.helper(inspect.currentframe())

        def helper(self, frame):
            self.save_hyperparameters("a", frame=frame)

    assert Decorated(1).hparams == {"a": 1, "b": 2, "c": 3, "d": 4}
    assert Helped(1).hparams == {"a": 1, "b": 2}
    assert Framed(5).hparams == {"a": 5}


def test_arguments_that_closures_use():
    class Closing(HyperparametersMixin):
        def __init__(self, a, b=2):
            self.get = lambda: (self, a)
            self.save_hyperparameters()

    assert Closing(1).hparams == {"a": 1, "b": 2}


def test_a_module_may_save_before_it_is_initialised():
    class Net(HyperparametersMixin, nn.Module):
        def __init__(self, a):
            self.save_hyperparameters()
            super().__init__()

    assert Net(1).hparams == {"a": 1}


def test_a_dataclass_keeps_its_init_fields():
    @dataclasses.dataclass
    class Data(HyperparametersMixin):
        x: int = 1
        y: int = dataclasses.field(default=2, init=False)

        def __post_init__(self):
            self.save_hyperparameters()

    assert Data(5).hparams == {"x": 5}


class Named(HyperparametersMixin):
    def __init__(self, a, b=2, names=("a",)):
        self.save_hyperparameters(*names)


def test_names():
    assert Named(1).hparams == {"a": 1}
    assert Named(1, names=("b", "a")).hparams == {"b": 2, "a": 1}


def test_an_unknown_name_is_an_error_that_lists_the_arguments():
    with pytest.raises(ValueError, match=r"no argument of that name. It has: a, b, names"):
        Named(1, names=("nope",))


class One(HyperparametersMixin):
    def __init__(self, conf, other=None):
        self.save_hyperparameters(conf)


@pytest.mark.parametrize("conf", [{"x": 1}, Namespace(x=1), OrderedDict(x=1), MappingProxyType({"x": 1})])
def test_one_object_gives_its_content_and_its_name(conf):
    net = One(conf)
    assert net.hparams == {"x": 1}
    assert net.hparams.x == 1
    assert net._hparams_name == "conf"


def test_a_mapping_of_the_users_own():
    class Own(Mapping):
        def __getitem__(self, key):
            return {"x": 1}[key]

        def __iter__(self):
            return iter(["x"])

        def __len__(self):
            return 1

    assert One(Own()).hparams == {"x": 1}


def test_a_copied_object_is_found_by_its_value_and_an_unknown_one_has_no_name():
    class Copying(HyperparametersMixin):
        def __init__(self, first, conf):
            self.save_hyperparameters(dict(conf))

    class Anonymous(HyperparametersMixin):
        def __init__(self, conf):
            self.save_hyperparameters({"z": 1})

    assert Copying({"y": 1}, {"x": 1})._hparams_name == "conf"
    assert Anonymous({"x": 1})._hparams_name is None


@pytest.mark.parametrize("conf", [3, 2.5, True])
def test_a_primitive_has_no_name(conf):
    with pytest.raises(ValueError, match="has no name for the value"):
        One(conf)


@pytest.mark.parametrize("conf", [[1], (1,), object(), nn.Linear(1, 1)])
def test_other_objects_are_refused(conf):
    with pytest.raises(ValueError, match=f"object of {type(conf).__name__}"):
        One(conf)


def test_a_dataclass_as_the_object_is_refused_with_what_to_type():
    @dataclasses.dataclass
    class Config:
        x: int = 1

    with pytest.raises(ValueError, match=r"dataclasses.asdict\(config\)"):
        One(Config())


@pytest.mark.parametrize("conf", [{}, None, 0, (), ""])
def test_a_falsy_object_does_nothing(conf):
    net = One(conf)
    assert net.hparams == {}
    assert net.hparams_initial == {}


def test_two_objects_are_refused():
    class Two(HyperparametersMixin):
        def __init__(self, a, b):
            self.save_hyperparameters(a, b)

    with pytest.raises(ValueError, match="was given 2 objects"):
        Two({"x": 1}, {"y": 1})


def test_repeated_calls_merge_and_ignore_removes_what_was_saved_before():
    class Repeating(HyperparametersMixin):
        def __init__(self, a, b=2, c=3):
            self.save_hyperparameters("a", "b")
            self.save_hyperparameters({"c": c, "d": 4}, ignore=["a", "d"])

    assert Repeating(1).hparams == {"b": 2, "c": 3}
    assert Repeating(1).hparams_initial == {"b": 2, "c": 3}


@pytest.mark.parametrize("ignore", ["b", ["b"], ("b", "unknown"), {"b"}])
def test_ignore(ignore):
    class Ignoring(HyperparametersMixin):
        def __init__(self, a, b=2):
            self.save_hyperparameters(ignore=ignore)

    assert Ignoring(1).hparams == {"a": 1}


def test_a_name_that_is_asked_for_and_ignored():
    class Both(HyperparametersMixin):
        def __init__(self, a, b=2):
            self.save_hyperparameters("a", "b", ignore="b")

    assert Both(1).hparams == {"a": 1}


def test_remove_ignored_hparams():
    net = Everything(1)
    net.remove_ignored_hparams(["a", "unknown"])
    assert net.hparams == net.hparams_initial == {"b": 2, "c": 3}


def test_the_initial_ones_are_a_deep_copy_and_stay():
    shared = [1]
    net = Everything(shared)
    net.hparams.a.append(2)
    net.hparams["new"] = 1
    net.hparams_initial["also"] = 1
    assert net.hparams_initial == {"a": [1], "b": 2, "c": 3}
    assert shared == [1, 2]


def test_hparams_is_an_empty_attribute_dict_before_and_read_only():
    net = HyperparametersMixin()
    assert net.hparams == net.hparams_initial == {}
    net.hparams.lr = 0.1
    assert net.hparams == {"lr": 0.1}
    assert not net._log_hyperparams
    with pytest.raises(AttributeError):
        net.hparams = {}


def test_logger_false_is_remembered():
    class Silent(HyperparametersMixin):
        def __init__(self, a):
            self.save_hyperparameters(logger=False)

    assert not Silent(1)._log_hyperparams


def test_a_module_among_them_is_a_warning_at_the_line_of_the_call():
    with pytest.warns(UserWarning, match=r"'a' is an `nn.Module`.*ignore=\['a'\]") as caught:
        Everything(nn.Linear(1, 1))
    assert caught[0].filename == __file__


def test_a_module_is_told_of_once(tmp_path):
    class Base(LightningModule):
        def __init__(self, net):
            super().__init__()
            self.save_hyperparameters()
            self.net = net

    class Derived(Base):
        def __init__(self, net, width=1):
            super().__init__(net)
            self.save_hyperparameters()

        def training_step(self, batch, batch_idx):
            return self.net(batch).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.warns(UserWarning, match="hyperparameter 'net' is an `nn.Module`") as caught:
        module = Derived(nn.Linear(2, 1))
    assert len(caught) == 1
    Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=[CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "events")],
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, DataLoader(torch.ones(1, 2)))
    assert (tmp_path / "csv" / "version_0" / "hparams.yaml").read_text() == "width: 1\n"


def test_a_module_that_only_a_logger_is_given_is_told_of(tmp_path):
    with pytest.warns(UserWarning, match="no safe form for it: hyperparameter 'net'"):
        CSVLogger(tmp_path).log_hyperparams({"net": nn.Linear(1, 1)})


def test_what_cannot_be_copied_is_named():
    with pytest.raises(TypeError, match=r"'a', of lock, cannot be copied.*ignore=\['a'\]"):
        Everything(threading.Lock())


def test_given_hyperparameters_replace_the_arguments():
    with given_hyperparameters({"a": {"class_path": "x.Y"}}, "fulmen.cli.instantiate_module"):
        inside = Everything(torch.zeros(1))
    assert inside.hparams == {"a": {"class_path": "x.Y"}, "_instantiator": "fulmen.cli.instantiate_module"}
    assert Everything(5).hparams["a"] == 5


def test_clean_namespace_removes_what_cannot_be_pickled():
    hparams = {"a": 1, "f": lambda: None}
    assert is_picklable(1)
    assert not is_picklable(hparams["f"])
    with pytest.warns(UserWarning, match="'f' cannot be pickled"):
        clean_namespace(hparams)
    assert hparams == {"a": 1}
