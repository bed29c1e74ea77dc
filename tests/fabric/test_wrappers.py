"""What Fabric puts around modules, optimizers and loaders."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from fulmen.fabric.precision import DoublePrecision, MixedPrecision, Precision
from fulmen.fabric.strategies import SingleDeviceStrategy
from fulmen.fabric.wrappers import (
    BackwardGuard,
    _FabricDataLoader,
    _FabricModule,
    is_wrapped,
    unwrap,
    wrap_optimizer,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.register_buffer("count", torch.zeros(()))
        self.name = "net"

    def forward(self, x):
        return self.layer(x)

    def training_step(self, x):
        return self(x).sum()

    def generate(self, x):
        return self.layer(x)

    def describe(self):
        return f"a {self.name}"


class Outer(nn.Module):
    """What a strategy may put around a module: counts its calls."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.calls = 0

    def forward(self, *args, **kwargs):
        self.calls += 1
        return self.inner(*args, **kwargs)


def wrap(module, precision=None, outer=None):
    strategy = SingleDeviceStrategy(precision_plugin=precision)
    original = strategy.precision_plugin.convert_module(module)
    return _FabricModule(outer or original, strategy, original, BackwardGuard())


def test_in_32_bit_the_call_is_the_module_itself():
    net = Net()
    wrapped = wrap(net)
    x = torch.ones(1, 2)
    assert wrapped.module is net
    assert wrapped._call is net
    assert torch.equal(wrapped(x), net(x))
    assert wrapped.training_step == net.training_step


def test_attributes_are_the_originals():
    net = Net()
    wrapped = wrap(net)
    assert wrapped.name == "net"
    assert wrapped.describe() == "a net"
    assert wrapped.layer is net.layer
    wrapped.name = "other"
    wrapped.new = 3
    wrapped.head = nn.Linear(1, 1)
    wrapped.count = torch.ones(())
    assert (net.name, net.new, net.count.item()) == ("other", 3, 1.0)
    assert "head.weight" in wrapped.state_dict()
    assert not {"name", "new"} & set(vars(wrapped))
    del wrapped.new
    assert not hasattr(net, "new")
    with pytest.raises(AttributeError, match=r"'Net' object has no attribute 'nothing'"):
        wrapped.nothing  # noqa: B018


def test_it_is_a_module_with_the_parameters_once():
    net = Net()
    wrapped = wrap(net)
    assert [id(p) for p in wrapped.parameters()] == [id(p) for p in net.parameters()]
    wrapped.eval()
    assert not net.layer.training
    assert not wrapped.training
    wrapped.train()
    assert net.training
    net.eval()
    assert not wrap(net).training
    wrapped(torch.ones(1, 2)).sum().backward()
    wrapped.zero_grad()
    assert net.layer.weight.grad is None


def test_the_state_has_no_prefix():
    wrapped, other = wrap(Net()), wrap(Net())
    assert list(wrapped.state_dict()) == ["count", "layer.weight", "layer.bias"]
    other.load_state_dict(wrapped.state_dict())
    assert torch.equal(other.layer.weight, wrapped.layer.weight)
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({})
    other.load_state_dict({}, strict=False)


@pytest.mark.parametrize("precision", [DoublePrecision(), MixedPrecision("bf16-mixed", "cpu")])
def test_arguments_and_results_are_converted(precision):
    seen = []

    class Spy(Net):
        def forward(self, x, scale=None):
            seen.append((x.dtype, scale["by"].dtype, torch.is_autocast_enabled("cpu")))
            return {"out": self.layer(x)}

    wrapped = wrap(Spy(), precision)
    out = wrapped(torch.ones(1, 2, dtype=torch.float16), scale={"by": torch.ones((), dtype=torch.int64)})["out"]
    assert out.dtype is torch.float32
    mixed = precision.precision == "bf16-mixed"
    assert seen == [(torch.float32 if mixed else torch.float64, torch.int64, mixed)]


def test_step_methods_and_marked_methods_run_in_the_precision():
    wrapped = wrap(Net(), MixedPrecision("bf16-mixed", "cpu"))
    x = torch.full((1, 2), 1 / 3)
    with torch.autocast("cpu", torch.bfloat16):
        in_bf16 = wrapped.module(x).float()
    assert not torch.equal(in_bf16, wrapped.module(x))
    assert torch.equal(wrapped.training_step(x), in_bf16.sum())
    assert torch.equal(wrapped.generate(x), wrapped.module(x))
    wrapped.mark_forward_method("generate")
    assert torch.equal(wrapped.generate(x), in_bf16)


def test_marking():
    wrapped = wrap(Net())
    wrapped.mark_forward_method(wrapped.generate)
    with pytest.raises(TypeError, match="got 3"):
        wrapped.mark_forward_method(3)
    with pytest.raises(ValueError, match="forward method already"):
        wrapped.mark_forward_method("forward")
    for name in ("nothing", "name"):
        with pytest.raises(AttributeError, match="Net has no method"):
            wrapped.mark_forward_method(name)


def test_a_wrapping_strategy_sees_step_methods_as_forward():
    net = Net()
    outer = Outer(net)
    wrapped = wrap(net, outer=outer)
    x = torch.ones(1, 2)
    assert torch.equal(wrapped.training_step(x), net(x).sum())
    assert outer.calls == 1
    wrapped.mark_forward_method("generate")
    wrapped.generate(x)
    assert outer.calls == 2
    assert "forward" not in vars(net)


def test_the_forward_comes_back_after_an_exception_and_if_set_on_the_instance():
    net = Net()
    replaced = lambda x: x * 0  # noqa: E731
    net.forward = replaced
    wrapped = wrap(net, outer=Outer(net))
    assert wrapped.training_step(torch.ones(1, 2)).item() == 0.0
    with pytest.raises(TypeError):
        wrapped.training_step()
    assert net.forward is replaced


def test_computing_past_the_strategy_is_an_error():
    net = Net()
    wrapped = wrap(net, outer=Outer(net))
    assert wrapped.describe() == "a net"
    with pytest.raises(RuntimeError, match=r"model.mark_forward_method\('generate'\)"):
        wrapped.generate(torch.ones(1, 2))
    assert not net.layer._forward_pre_hooks


def test_a_scaled_loss_needs_the_backward_of_fabric():
    wrapped = wrap(Net(), MixedPrecision("16-mixed", "cpu"))
    with pytest.raises(RuntimeError, match=r"fabric.backward\(loss\)"):
        wrapped(torch.ones(1, 2)).sum().backward()
    wrapped._guard.inside = True
    wrapped(torch.ones(1, 2)).sum().backward()
    with torch.no_grad():
        wrapped(torch.ones(1, 2))


@pytest.mark.parametrize("precision", [Precision(), DoublePrecision()])
def test_a_deep_copy_is_independent_of_the_original(precision):
    wrapped = wrap(Net(), precision)
    wrapped.mark_forward_method("generate")
    twin = copy.deepcopy(wrapped)
    with torch.no_grad():
        wrapped.layer.weight.zero_()
        wrapped.layer.bias.zero_()
    x = torch.ones(1, 2)
    assert wrapped(x).item() == 0.0
    assert twin(x).item() != 0.0
    assert twin.generate(x).item() == twin(x).item()


# Optimizers


def wrapped_optimizer(optimizer_class=torch.optim.SGD, strategy=None, callbacks=(), **kwargs):
    parameter = nn.Parameter(torch.ones(2))
    optimizer = optimizer_class([parameter], **{"lr": 0.5} | kwargs)
    return parameter, optimizer, wrap_optimizer(optimizer, strategy or SingleDeviceStrategy(), list(callbacks))


def test_an_optimizer_keeps_its_kind_and_its_state():
    parameter, optimizer, wrapped = wrapped_optimizer(torch.optim.Adam)
    assert type(wrapped).__name__ == "FabricAdam"
    assert isinstance(wrapped, torch.optim.Adam)
    assert type(wrapped) is type(wrapped_optimizer(torch.optim.Adam)[2])
    assert wrapped.optimizer is optimizer
    assert wrapped.param_groups is optimizer.param_groups
    parameter.grad = torch.ones(2)
    wrapped.step()
    assert wrapped.state is optimizer.state
    assert wrapped.state[parameter]["step"] == 1
    assert wrapped.state_dict()["state"][0]["step"] == 1
    wrapped.zero_grad()
    assert parameter.grad is None
    wrapped.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    assert len(optimizer.param_groups) == 2
    assert "FabricAdam" in repr(wrapped)


def test_loading_a_state_reaches_the_original():
    parameter, _, wrapped = wrapped_optimizer(momentum=0.9)
    parameter.grad = torch.ones(2)
    wrapped.step()
    _, fresh, other = wrapped_optimizer(momentum=0.9)
    other.load_state_dict(wrapped.state_dict())
    assert fresh.state[fresh.param_groups[0]["params"][0]]["momentum_buffer"].tolist() == [1.0, 1.0]
    assert other.param_groups is fresh.param_groups


def test_a_closure_and_its_result_go_through():
    parameter, _, wrapped = wrapped_optimizer()

    def closure():
        parameter.grad = torch.ones(2)
        return 7

    assert wrapped.step(closure) == 7
    assert parameter.tolist() == [0.5, 0.5]
    assert wrapped.step(closure=closure) == 7


def test_lbfgs_gets_its_closure():
    parameter, _, wrapped = wrapped_optimizer(torch.optim.LBFGS, lr=1.0)

    def closure():
        wrapped.zero_grad()
        loss = (parameter - 3).square().sum()
        loss.backward()
        return loss

    wrapped.step(closure)
    assert parameter.tolist() == pytest.approx([3.0, 3.0], abs=1e-4)


@pytest.mark.parametrize("of", ["wrapped", "original"])
def test_schedulers_work_on_either_side(of):
    parameter, optimizer, wrapped = wrapped_optimizer()
    scheduler = torch.optim.lr_scheduler.StepLR(wrapped if of == "wrapped" else optimizer, step_size=1, gamma=0.1)
    for lr in (0.5, 0.05):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(lr)
        before = parameter[0].item()
        parameter.grad = torch.ones(2)
        wrapped.step()
        scheduler.step()
        assert parameter[0].item() == pytest.approx(before - lr)


def test_the_step_goes_through_the_strategy_and_tells_the_callbacks():
    calls = []

    class Mine(SingleDeviceStrategy):
        def optimizer_step(self, optimizer, closure=None, model=None, **kwargs):
            calls.append("strategy")
            return super().optimizer_step(optimizer, closure, model, **kwargs)

    class Told:
        def on_after_optimizer_step(self, strategy, optimizer):
            calls.append((type(strategy).__name__, type(optimizer).__name__))

    parameter, _, wrapped = wrapped_optimizer(strategy=Mine(), callbacks=[Told(), object()])
    parameter.grad = torch.ones(2)
    wrapped.step()
    assert calls == ["strategy", ("Mine", "SGD")]
    assert parameter.tolist() == [0.5, 0.5]


def test_methods_of_an_optimizer_of_the_users_own_run_on_it():
    class Switching(torch.optim.SGD):
        mode = "train"

        def eval(self):
            self.mode = "eval"

    _, optimizer, wrapped = wrapped_optimizer(Switching)
    wrapped.eval()
    assert optimizer.mode == wrapped.mode == "eval"
    assert "mode" not in vars(wrapped)
    wrapped.extra = 1
    assert optimizer.extra == 1
    with pytest.raises(AttributeError, match="nothing"):
        wrapped.nothing  # noqa: B018


# Loaders


class Epochs(RandomSampler):
    def __init__(self, data):
        super().__init__(data)
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


def test_batches_are_moved():
    loader = DataLoader([(torch.ones(1), "a"), (torch.ones(1), "b")], batch_size=2)
    wrapped = _FabricDataLoader(loader, torch.device("meta"))
    ((tensor, names),) = list(wrapped)
    assert tensor.device.type == wrapped.device.type == "meta"
    assert tuple(names) == ("a", "b")
    assert next(iter(_FabricDataLoader(loader)))[0].device.type == "cpu"


def test_a_loader_is_the_original_otherwise():
    loader = DataLoader(range(5), batch_size=2)
    wrapped = _FabricDataLoader(loader)
    assert len(wrapped) == 3
    assert (wrapped.batch_size, wrapped.dataset) == (2, range(5))
    with pytest.raises(AttributeError):
        wrapped.nothing  # noqa: B018
    copy.copy(wrapped)


def test_samplers_hear_of_the_epoch_at_each_iteration():
    sampler, inner = Epochs(range(4)), Epochs(range(4))
    plain = _FabricDataLoader(DataLoader(range(4), sampler=sampler))
    batched = _FabricDataLoader(DataLoader(range(4), batch_sampler=BatchSampler(inner, 2, drop_last=False)))
    for _ in range(3):
        list(plain), list(batched)
    assert sampler.epochs == inner.epochs == [0, 1, 2]
    list(_FabricDataLoader(DataLoader(range(2), sampler=SequentialSampler(range(2)))))


def test_is_wrapped_and_unwrap():
    net, (_, optimizer, wrapped), loader = Net(), wrapped_optimizer(), DataLoader(range(2))
    pairs = [(net, wrap(net)), (optimizer, wrapped), (loader, _FabricDataLoader(loader))]
    for original, outer in pairs:
        assert is_wrapped(outer)
        assert not is_wrapped(original)
        assert unwrap(outer) is original
        assert unwrap(original) is original
    assert not is_wrapped(3)
