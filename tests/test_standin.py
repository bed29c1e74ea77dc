"""A LightningModule in a loop of Fabric: what it finds at `self.trainer`, and its methods that ask a trainer."""

import copy

import pytest
import torch
from torch import nn

import fulmen


class Net(fulmen.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def loss(self):
        return self.layer(torch.full((1, 2), 9.0)).sum()


class Logger:
    def log_metrics(self, metrics, step=None):
        raise NotImplementedError


@pytest.fixture
def fabric():
    return fulmen.Fabric(accelerator="cpu", loggers=Logger())


def set_up(fabric, num_optimizers=1):
    module = Net()
    optimizers = [torch.optim.SGD([parameter], lr=0.1) for parameter in module.parameters()][:num_optimizers]
    fabric.setup(module, *optimizers)
    return module, optimizers


@pytest.mark.parametrize("name", ["world_size", "global_rank", "is_global_zero", "device", "strategy", "logger"])
def test_it_answers_with_the_attributes_of_fabric(fabric, name):
    module, _ = set_up(fabric)
    assert getattr(module.trainer, name) == getattr(fabric, name)


@pytest.mark.parametrize("name", ["current_epoch", "callback_metrics", "fit"])
def test_what_fabric_has_not_is_named(fabric, name):
    module, _ = set_up(fabric)
    with pytest.raises(AttributeError, match=rf"`self.trainer.{name}`: Fabric runs this module") as caught:
        getattr(module.trainer, name)
    assert (caught.value.name, caught.value.obj.fabric) == (name, fabric)


def test_without_fabric_there_is_no_trainer():
    with pytest.raises(RuntimeError, match="`Net` is not attached to a `Trainer`"):
        _ = Net().trainer


def test_a_trainer_comes_first(fabric, tmp_path):
    module, _ = set_up(fabric)
    module.trainer = trainer = fulmen.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    assert module.trainer is trainer
    assert module.loggers == []


def test_ranks_counters_and_loggers(fabric):
    module, _ = set_up(fabric)
    assert (module.global_rank, module.local_rank, module.current_epoch, module.global_step) == (0, 0, 0, 0)
    assert module.loggers is fabric.loggers
    assert module.logger is fabric.logger
    fulmen.Fabric(accelerator="cpu").setup(module)
    assert module.logger is None


@pytest.mark.parametrize("number", [0, 1, 2])
def test_optimizers_are_those_that_were_set_up_with_the_module(fabric, number):
    module, plain = set_up(fabric, number)
    found = module.optimizers()
    assert [type(each).__name__ for each in (found if number != 1 else [found])] == ["FabricSGD"] * number
    own = module.optimizers(use_pl_optimizer=False)
    assert (own if number != 1 else [own]) == plain


def test_modules_inside_have_the_same_fabric(fabric):
    outer = Net()
    outer.inner = Net()
    fabric.setup(outer)
    assert outer.inner.fabric is fabric


def test_manual_backward_is_the_backward_of_fabric(fabric):
    module, _ = set_up(fabric)
    module.manual_backward(module.loss())
    assert module.layer.weight.grad.tolist() == [[9.0, 9.0]]


@pytest.mark.parametrize(
    ("algorithm", "gradient"),
    [("value", [1, 1]), ("norm", [2**-0.5] * 2), (None, [2**-0.5] * 2)],
)
def test_gradients_are_clipped_by_fabric(fabric, algorithm, gradient):
    module, _ = set_up(fabric)
    module.manual_backward(module.loss())
    module.clip_gradients(module.optimizers(), 1.0, algorithm)
    assert module.layer.weight.grad.flatten().tolist() == pytest.approx(gradient, abs=1e-5)


def test_clipping_needs_a_limit(fabric):
    module, _ = set_up(fabric)
    with pytest.raises(ValueError, match=r"exactly one of `clip_val`.*and `max_norm`"):
        module.clip_gradients(module.optimizers())


def test_all_gather_and_print(fabric, capsys):
    module, _ = set_up(fabric)
    gathered = module.all_gather({"a": 2, "b": [torch.ones(1)], "c": "text"})
    assert torch.equal(gathered["a"], torch.tensor(2))
    assert (gathered["b"], gathered["c"]) == ([torch.ones(1)], "text")
    module.print("heard")
    assert capsys.readouterr().out == "heard\n"


def test_toggling_works_on_the_optimizers_of_fabric(fabric):
    module, _ = set_up(fabric, 2)
    weights, _ = module.optimizers()
    with module.toggled_optimizer(weights):
        assert [parameter.requires_grad for parameter in module.parameters()] == [True, False]
    assert [parameter.requires_grad for parameter in module.parameters()] == [True, True]


def test_a_copy_belongs_to_nobody(fabric):
    module, _ = set_up(fabric)
    twin = copy.deepcopy(module)
    assert (twin.fabric, twin._fabric_optimizers) == (None, [])
