"""Fabric in one process: a loop of the user's own."""

import os
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.utils.data import DataLoader, TensorDataset

from fulmen import Fabric, LightningModule, seed_everything
from fulmen.errors import LightningDeprecationWarning, PossibleUserWarning
from fulmen.fabric import is_wrapped
from fulmen.fabric.fabric import _warn_of_several_devices
from fulmen.fabric.precision import MixedPrecision
from fulmen.fabric.seed import isolate_rng, pl_worker_init_function
from fulmen.fabric.strategies import SingleDeviceStrategy


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    with isolate_rng():
        yield


def fabric(**kwargs):
    return Fabric(**{"accelerator": "cpu"} | kwargs)


def model_and_optimizer(optimizer=torch.optim.SGD, lr=0.1):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    return model, optimizer(model.parameters(), lr=lr)


def loader():
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8)


def raw_losses():
    model, optimizer = model_and_optimizer()
    losses = []
    for x, y in loader():
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def fabric_losses(run):
    model, optimizer = run.setup(*model_and_optimizer())
    losses = []
    for x, y in run.setup_dataloaders(loader()):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        run.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_loop_gives_exactly_what_the_raw_loop_gives():
    assert fabric_losses(fabric()) == raw_losses()


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true"])
def test_other_precisions_come_close(precision):
    assert fabric_losses(fabric(precision=precision)) == pytest.approx(raw_losses(), rel=0.05)


def test_16_mixed_comes_close_and_scales():
    run = fabric(plugins=MixedPrecision("16-mixed", "cpu", scaler=GradScaler("cpu", init_scale=2.0**8)))
    assert fabric_losses(run) == pytest.approx(raw_losses(), rel=0.05)


def test_our_own_calls_per_step_are_few():
    run = fabric()
    model, optimizer = run.setup(*model_and_optimizer())
    batches = iter(run.setup_dataloaders(loader()))
    next(batches)
    calls = []

    def profile(frame, event, arg):
        if event == "call" and "/fulmen/" in frame.f_code.co_filename:
            calls.append(frame.f_code.co_qualname)

    sys.setprofile(profile)
    try:
        x, y = next(batches)
        optimizer.zero_grad()
        run.backward(nn.functional.mse_loss(model(x), y))
        optimizer.step()
    finally:
        sys.setprofile(None)
    assert len(calls) <= 16, calls


def test_properties():
    run = fabric(loggers=["first", "second"])
    assert run.device == torch.device("cpu")
    assert (run.global_rank, run.local_rank, run.node_rank, run.world_size) == (0, 0, 0, 1)
    assert run.is_global_zero
    assert run.accelerator.name() == "cpu"
    assert isinstance(run.strategy, SingleDeviceStrategy)
    assert (run.logger, run.loggers) == ("first", ["first", "second"])
    with pytest.raises(IndexError):
        fabric().logger  # noqa: B018


def test_settings_that_cannot_work():
    with pytest.raises(ValueError, match="Did you mean 'ddp'"):
        fabric(strategy="dpp")
    with pytest.raises(TypeError, match="fits nowhere"):
        fabric(plugins=3)
    with pytest.raises(TypeError, match="positional"):
        Fabric("cpu")


# The environment and the command line


def test_the_environment_wins(monkeypatch):
    monkeypatch.setenv("LT_ACCELERATOR", "cpu")
    monkeypatch.setenv("LT_PRECISION", "bf16-true")
    monkeypatch.setenv("LT_DEVICES", "1")
    monkeypatch.setenv("LT_NUM_NODES", "1")
    monkeypatch.setenv("LT_STRATEGY", "single_device")
    run = Fabric(accelerator="cuda", precision="64-true", strategy="ddp", devices=3, num_nodes=2)
    assert run.plan.precision.precision == "bf16-true"


def test_the_command_line_does_not_accept_a_contradiction(monkeypatch):
    monkeypatch.setenv("LT_CLI_USED", "1")
    monkeypatch.setenv("LT_ACCELERATOR", "cpu")
    monkeypatch.setenv("LT_DEVICES", "1")
    assert Fabric(devices=1).device.type == "cpu"
    with pytest.raises(ValueError, match="--accelerator=cpu"):
        Fabric(accelerator="cuda")
    with pytest.raises(RuntimeError, match=r"Remove the call of `fabric\.launch`"):
        Fabric().launch()


# Launch


def test_launch():
    run = fabric()
    assert run.launch() is None
    assert run.launch(lambda f, x, y=0: (f is run, x, y), 1, y=2) == (True, 1, 2)
    with pytest.raises(TypeError, match=r"not `fabric.launch\(fn\(\)\)`"):
        run.launch(3)
    with pytest.raises(TypeError, match="at least one argument"):
        run.launch(lambda: 3)


def test_an_overridden_run_launches(monkeypatch):
    class Mine(Fabric):
        launched = False

        def launch(self, *args, **kwargs):
            self.launched = True
            return super().launch(*args, **kwargs)

        def run(self, x, y):
            return (self.launched, x, y)

    assert Mine(accelerator="cpu").run(1, y=2) == (True, 1, 2)
    assert fabric().run(1) is None
    monkeypatch.setenv("LT_CLI_USED", "1")
    with pytest.raises(TypeError, match="overrides `run`"):
        Mine(accelerator="cpu")


# Set-up


def test_what_setup_returns():
    run = fabric()
    model, optimizer = model_and_optimizer()
    other = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert is_wrapped(run.setup(nn.Linear(1, 1)))
    result = run.setup(model, optimizer, other, scheduler=scheduler)
    assert [is_wrapped(part) for part in result] == [True, True, True, False]
    assert result[-1] is scheduler
    assert is_wrapped(run.setup_module(nn.Linear(1, 1)))
    assert is_wrapped(run.setup_optimizers(torch.optim.SGD(model.parameters(), 0.1)))
    pair = run.setup_optimizers(*(torch.optim.SGD(model.parameters(), 0.1) for _ in range(2)))
    assert isinstance(pair, tuple)
    assert len(pair) == 2


def test_nothing_is_set_up_twice():
    run = fabric()
    raw_model, raw_optimizer = model_and_optimizer()
    model, optimizer = run.setup(raw_model, raw_optimizer)
    for call in (
        lambda: run.setup(model),
        lambda: run.setup_module(model),
        lambda: run.setup(raw_model, optimizer),
        lambda: run.setup_optimizers(optimizer),
        lambda: run.setup_optimizers(raw_optimizer, raw_optimizer),
    ):
        with pytest.raises(ValueError, match="only once"):
            call()
    with pytest.raises(ValueError, match="at least one optimizer"):
        run.setup_optimizers()


@pytest.mark.parametrize("given", [3, {"lr": 0.1}, nn.Linear(1, 1)], ids=lambda given: type(given).__name__)
def test_what_is_no_optimizer(given):
    message = f"takes optimizers, got {type(given).__name__}"
    with pytest.raises(TypeError, match=f"`setup` {message}"):
        fabric().setup(nn.Linear(1, 1), given)
    with pytest.raises(TypeError, match=f"`setup_optimizers` {message}"):
        fabric().setup_optimizers(given)


def test_parameters_without_data():
    run = fabric()
    model = nn.Linear(1, 1, device="meta")
    with pytest.raises(RuntimeError, match="to_empty"):
        run.setup(model)
    with pytest.raises(RuntimeError, match="to_empty"):
        run.setup_optimizers(torch.optim.SGD(model.parameters(), 0.1))


def test_parameters_on_several_devices_warn():
    with pytest.warns(PossibleUserWarning, match="'0.bias' on cpu and '1.bias' on meta"):
        _warn_of_several_devices(nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1, device="meta")]))


def test_a_module_may_stay_where_it_is():
    model = run_model = nn.Linear(1, 1, device="meta")
    wrapped = fabric().setup(run_model, move_to_device=False)
    assert wrapped.weight is model.weight


def test_lbfgs_is_refused_in_16_mixed():
    with pytest.raises(Exception, match="LBFGS"):
        fabric(plugins=MixedPrecision("16-mixed", "cpu")).setup(*model_and_optimizer(torch.optim.LBFGS))


class Outer(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args):
        return self.inner(*args)


class Wrapping(SingleDeviceStrategy):
    def setup_module(self, module, move_to_device=True):
        return Outer(super().setup_module(module, move_to_device))


def test_compiled_modules():
    compiled_graphs = []

    def backend(graph, example_inputs):
        compiled_graphs.append(graph)
        return graph.forward

    model = nn.Linear(2, 1)
    compiled = torch.compile(model, backend=backend)
    wrapped = fabric().setup(compiled)
    assert wrapped.module is model
    assert wrapped._forward_module is compiled
    assert torch.equal(wrapped(torch.ones(1, 2)), model(torch.ones(1, 2)))
    assert len(compiled_graphs) == 1
    assert list(wrapped.state_dict()) == ["weight", "bias"]

    outer = fabric(strategy=Wrapping()).setup(torch.compile(nn.Linear(2, 1), backend=backend))
    assert isinstance(outer._forward_module._orig_mod, Outer)
    outer(torch.ones(1, 2))
    assert len(compiled_graphs) == 2
    bare = fabric(strategy=Wrapping()).setup(torch.compile(nn.Linear(2, 1), backend=backend), _reapply_compile=False)
    assert isinstance(bare._forward_module, Outer)


def test_loaders():
    run = fabric()
    assert len(run.setup_dataloaders(loader())) == 4
    both = run.setup_dataloaders(loader(), loader(), move_to_device=False)
    assert [each.device for each in both] == [None, None]
    one = loader()
    for twice in (lambda: run.setup_dataloaders(both[0]), lambda: run.setup_dataloaders(one, one)):
        with pytest.raises(ValueError, match="only once"):
            twice()
    with pytest.raises(ValueError, match="at least one"):
        run.setup_dataloaders()
    with pytest.raises(TypeError, match="got list"):
        run.setup_dataloaders([1])


def test_workers_get_seeds_where_that_was_asked_for():
    run = fabric()
    assert run.setup_dataloaders(loader()).worker_init_fn is None
    run.seed_everything(1, verbose=False)
    assert run.setup_dataloaders(loader()).worker_init_fn.func is pl_worker_init_function
    own = DataLoader(range(2), worker_init_fn=print)
    assert run.setup_dataloaders(own).worker_init_fn is print
    seed_everything(1, verbose=False)
    assert run.setup_dataloaders(loader()).worker_init_fn is None


# The step


def test_backward_takes_the_arguments_of_torch():
    x = torch.ones(2, requires_grad=True)
    run = fabric()
    run.backward(x * 2, torch.tensor([1.0, 3.0]), retain_graph=True, model=None)
    assert x.grad.tolist() == [2.0, 6.0]


def test_clipping():
    run = fabric(plugins=MixedPrecision("16-mixed", "cpu", scaler=GradScaler("cpu", init_scale=2.0**8)))
    model, optimizer = run.setup(*model_and_optimizer())
    run.backward(model(torch.ones(1, 4)).sum() * 10)
    norm = run.clip_gradients(model, optimizer, max_norm=1.0)
    assert 10 < norm.item() < 100
    assert run.clip_gradients(model, optimizer, max_norm=10.0).item() == pytest.approx(1.0, rel=1e-3)
    assert run.clip_gradients(model, optimizer, clip_val=0.01) is None
    assert max(parameter.grad.abs().max() for parameter in model.parameters()).item() == pytest.approx(0.01)
    for wrong in ({}, {"clip_val": 1.0, "max_norm": 1.0}):
        with pytest.raises(ValueError, match="exactly one"):
            run.clip_gradients(model, optimizer, **wrong)


def test_an_overflow_of_a_scaled_loss_is_no_error():
    run = fabric(plugins=MixedPrecision("16-mixed", "cpu"))
    model, optimizer = run.setup(*model_and_optimizer())
    before = [parameter.clone() for parameter in model.parameters()]
    run.backward(model(torch.ones(1, 4)).sum() * 100)
    assert not run.clip_gradients(model, optimizer, max_norm=1.0).isfinite()
    optimizer.step()
    assert all(map(torch.equal, model.parameters(), before))
    assert run.plan.precision.scaler.get_scale() == 2**15


def test_gradients_that_are_not_finite():
    run = fabric()
    model, optimizer = run.setup(*model_and_optimizer())
    run.backward(model(torch.full((1, 4), float("nan"))).sum())
    with pytest.raises(RuntimeError, match="non-finite"):
        run.clip_gradients(model, optimizer, max_norm=1.0)
    assert run.clip_gradients(model, optimizer, max_norm=1.0, error_if_nonfinite=False).isnan()


def test_clipping_fused_optimizers_in_16_mixed():
    run = fabric(plugins=MixedPrecision("16-mixed", "cpu"))
    raw = nn.Linear(1, 1)
    model, optimizer = run.setup(raw, torch.optim.SGD(raw.parameters(), 0.1, fused=True))
    run.backward(model(torch.ones(1, 1)).sum())
    with pytest.raises(RuntimeError, match="fused=False"):
        run.clip_gradients(model, optimizer, max_norm=1.0)


def test_autocast_and_no_backward_sync():
    run = fabric(precision="bf16-mixed")
    with run.autocast():
        assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype is torch.bfloat16
    with run.no_backward_sync(run.setup(nn.Linear(1, 1)), enabled=False):
        pass
    with pytest.raises(TypeError, match=r"fabric.setup\(model"):
        run.no_backward_sync(nn.Linear(1, 1))


def test_init_contexts():
    run = fabric(precision="64-true")
    with run.init_tensor():
        assert torch.ones(1).dtype is torch.float64
    with run.init_module(empty_init=True):
        assert nn.Linear(2, 2).weight.dtype is torch.float64
    with pytest.warns(LightningDeprecationWarning, match="init_module"), run.sharded_model():
        pass


# State


def test_save_and_load(tmp_path):
    run = fabric()
    model, optimizer = run.setup(*model_and_optimizer(torch.optim.Adam))
    run.backward(model(torch.ones(1, 4)).sum())
    optimizer.step()
    run.save(tmp_path / "deep" / "x.ckpt", {"model": model, "optimizer": optimizer, "epoch": 4, "extra": [1]})

    fresh, fresh_optimizer = run.setup(*model_and_optimizer(torch.optim.Adam))
    state = {"model": fresh, "optimizer": fresh_optimizer, "epoch": 0}
    assert run.load(tmp_path / "deep" / "x.ckpt", state) == {"extra": [1]}
    assert state["epoch"] == 4
    assert all(map(torch.equal, fresh.parameters(), model.parameters()))
    assert fresh_optimizer.state_dict()["state"][0]["step"] == 1
    assert set(run.load(tmp_path / "deep" / "x.ckpt")) == {"model", "optimizer", "epoch", "extra"}
    with pytest.raises(KeyError, match="'more'"):
        run.load(tmp_path / "deep" / "x.ckpt", {"more": 1})
    assert "model" in run.load(tmp_path / "deep" / "x.ckpt", {"more": 1}, strict=False)


def test_save_a_part(tmp_path):
    run = fabric()
    model = run.setup(nn.Linear(1, 1))
    run.save(tmp_path / "x.ckpt", {"model": model}, filter={"model": lambda key, value: key == "bias"})
    assert list(torch.load(tmp_path / "x.ckpt")["model"]) == ["bias"]
    with pytest.raises(ValueError, match="names"):
        run.save(tmp_path / "y.ckpt", {"model": model}, filter={"x": lambda key, value: True})
    assert not (tmp_path / "y.ckpt").exists()


def test_load_raw(tmp_path):
    run = fabric()
    source = nn.Linear(1, 1)
    torch.save(source.state_dict(), tmp_path / "raw.pt")
    for load in (run.load_raw, run.load):
        target = run.setup(nn.Linear(1, 1))
        load(tmp_path / "raw.pt", target)
        assert torch.equal(target.weight, source.weight)
    with pytest.raises(TypeError, match="got int"):
        run.load_raw(tmp_path / "raw.pt", 3)
    with pytest.raises(FileNotFoundError):
        run.load_raw(tmp_path / "nothing.pt", source)
    torch.save({"weight": source.weight.data}, tmp_path / "raw.pt")
    run.load_raw(tmp_path / "raw.pt", source, strict=False)


def test_seed_everything():
    assert Fabric.seed_everything(3, verbose=False) == 3
    assert os.environ["PL_SEED_WORKERS"] == "1"
    fabric().seed_everything(3, workers=False, verbose=False)
    assert os.environ["PL_SEED_WORKERS"] == "0"


# Callbacks and loggers


class Recorder:
    value = 3

    def __init__(self):
        self.calls = []

    def on_something(self, a, b=0):
        self.calls.append((a, b))

    def on_anything(self, *args, **kwargs):
        self.calls.append((args, kwargs))

    def on_after_setup(self, fabric, module):
        self.calls.append(type(module.module).__name__)

    def on_after_optimizer_step(self, strategy, optimizer):
        self.calls.append(type(optimizer).__name__)


def test_call():
    recorder = Recorder()
    run = fabric(callbacks=[recorder, object()])
    run.call("on_something", 1, b=2, c=3)
    run.call("on_anything", 1, b=2, c=3)
    run.call("on_nothing")
    assert recorder.calls == [(1, 2), ((1,), {"b": 2, "c": 3})]
    with pytest.warns(UserWarning, match=r"`Recorder.value` is not a method"):
        run.call("value")


def test_callbacks_hear_of_setup_and_steps():
    recorder = Recorder()
    _, optimizer = fabric(callbacks=recorder).setup(*model_and_optimizer())
    optimizer.step()
    assert recorder.calls == ["Sequential", "SGD"]


def test_setup_module_is_heard_of_too():
    recorder = Recorder()
    fabric(callbacks=recorder).setup_module(nn.Linear(1, 1))
    assert recorder.calls == ["Linear"]


class Logger:
    def __init__(self):
        self.lines = []

    def log_metrics(self, metrics, step=None):
        self.lines.append((metrics, step))


def test_log():
    loggers = [Logger(), Logger()]
    run = fabric(loggers=loggers)
    run.log("loss", torch.tensor(0.5), step=2)
    run.log_dict({"a": 1, "b": torch.tensor([2])})
    for logger in loggers:
        assert logger.lines == [({"loss": 0.5}, 2), ({"a": 1, "b": 2}, None)]
    run.log_dict({"a": {"b": torch.tensor(3.0), "c": 1}})
    assert loggers[0].lines[-1] == ({"a": {"b": 3.0, "c": 1}}, None)
    assert type(loggers[0].lines[-1][0]["a"]["b"]) is float
    fabric().log("loss", 1.0)
    for value in (torch.ones(2), {"deep": torch.ones(2)}):
        with pytest.raises(ValueError, match=r"is a tensor of shape \(2,\)"):
            run.log("loss", value)


def test_a_lightning_module_keeps_its_abilities():
    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1)
            self.heard = []

        def training_step(self, batch, batch_idx):
            self.log("seen", batch_idx)
            return self.layer(batch).sum()

        def on_something(self):
            self.heard.append("something")

    logger = Logger()
    run = fabric(loggers=logger)
    module = Module()
    wrapped = run.setup(module)
    assert module.fabric is run
    wrapped.training_step(torch.ones(1, 1), 7)
    assert logger.lines == [({"seen": 7}, None)]
    run.call("on_something")
    assert module.heard == ["something"]


def test_callbacks_of_installed_packages(monkeypatch):
    recorder = Recorder()
    entry_point = SimpleNamespace(load=lambda: lambda: [recorder])
    found = {"lightning.fabric.callbacks_factory": [entry_point]}
    monkeypatch.setattr("fulmen.fabric.fabric.entry_points", lambda group: found[group])
    fabric().call("on_something", 1)
    assert recorder.calls == [(1, 0)]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed", "bf16-true"])
def test_a_loop_on_a_gpu(precision, tmp_path):
    run = Fabric(accelerator="gpu", devices=1, precision=precision)
    assert run.device == torch.device("cuda:0")
    losses = fabric_losses(run)
    if precision != "16-mixed":  # whose first steps may be skipped, until the scale fits
        assert losses == pytest.approx(raw_losses(), rel=0.05)
    model = run.setup(nn.Linear(1, 1))
    run.save(tmp_path / "x.ckpt", {"model": model})
    assert run.load(tmp_path / "x.ckpt")["model"]["weight"].device.type == "cpu"
    run.load(tmp_path / "x.ckpt", {"model": model})
    assert model.weight.is_cuda


@pytest.mark.gpu
def test_a_step_on_a_gpu_never_waits_for_the_device():
    run = Fabric(accelerator="gpu", devices=1)
    model, optimizer = run.setup(*model_and_optimizer())
    batches = [tuple(part.pin_memory() for part in batch) for batch in loader()]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            x, y = run.to_device(batch)
            optimizer.zero_grad()
            run.backward(nn.functional.mse_loss(model(x), y))
            run.clip_gradients(model, optimizer, max_norm=1.0, error_if_nonfinite=False)
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
