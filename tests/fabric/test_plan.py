"""The plan as a table: flags, environment and machine in, a plan or one error out. No hardware is touched."""

import pytest
import torch

from fulmen.checkpoint.asynchronous import AsyncCheckpointIO
from fulmen.checkpoint.store import TorchCheckpointIO
from fulmen.errors import MisconfigurationException
from fulmen.fabric.accelerators import AcceleratorRegistry, CPUAccelerator, CUDAAccelerator
from fulmen.fabric.environments import (
    KubeflowEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from fulmen.fabric.errors import PlanError, PluginTypeError, UnavailableError
from fulmen.fabric.layer_sync import LayerSync, TorchSyncBatchNorm
from fulmen.fabric.plan import Machine, resolve
from fulmen.fabric.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from fulmen.fabric.strategies import DDPStrategy, SingleDeviceStrategy, StrategyRegistry

CPU = Machine(cpus=8)
GPU = Machine(cuda_count=1)
GPUS = Machine(cuda_count=4)
NOTEBOOK = Machine(interactive=True)
MAC = Machine(mps=True)


class Disk:
    """Looks like a checkpoint IO."""

    def save_checkpoint(self, checkpoint, path, storage_options=None): ...
    def load_checkpoint(self, path, map_location=None, weights_only=None): ...
    def remove_checkpoint(self, path): ...


class Sync(LayerSync):
    """Changes nothing."""

    def apply(self, model): ...
    def revert(self, model): ...


def plan(machine=CPU, **flags):
    return resolve(machine=machine, environment=LightningEnvironment(), **flags)


def plan_in(variables, monkeypatch, **flags):
    """The plan of a process that has these environment variables and no others that name a cluster."""
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "SLURM_JOB_NAME", "LSB_JOBID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return resolve(machine=CPU, **flags)


@pytest.mark.parametrize(
    ("machine", "flags", "devices"),
    [
        (CPU, {}, ["cpu"]),
        (GPU, {}, ["cuda:0"]),
        (MAC, {}, ["mps:0"]),
        (Machine(cuda_count=1, mps=True), {}, ["mps:0"]),
        (GPU, {"accelerator": "cpu"}, ["cpu"]),
        (GPU, {"accelerator": "gpu"}, ["cuda:0"]),
        (MAC, {"accelerator": "gpu"}, ["mps:0"]),
        (GPU, {"accelerator": "cuda", "devices": -1}, ["cuda:0"]),
        (GPUS, {"accelerator": "gpu", "devices": 1}, ["cuda:0"]),
        (GPUS, {"devices": [2]}, ["cuda:2"]),
        (GPUS, {"devices": "3,"}, ["cuda:3"]),
        (GPUS, {"devices": "1"}, ["cuda:0"]),
        (MAC, {"devices": [0]}, ["mps:0"]),
        (CPU, {"devices": "1"}, ["cpu"]),
        (CPU, {"accelerator": CPUAccelerator()}, ["cpu"]),
        (CPU, {"strategy": "Single_Device"}, ["cpu"]),
        (GPU, {"strategy": "single_device"}, ["cuda:0"]),
        (GPU, {"strategy": SingleDeviceStrategy("cpu")}, ["cpu"]),
        (CPU, {"strategy": SingleDeviceStrategy("cuda:1")}, ["cuda:1"]),
    ],
)
def test_devices(machine, flags, devices):
    result = plan(machine, **flags)
    assert result.devices == tuple(map(torch.device, devices))
    assert result.strategy.root_device == result.devices[0]
    assert result.strategy.accelerator is result.accelerator
    assert result.accelerator.name() == result.devices[0].type


@pytest.mark.parametrize(
    ("machine", "flags", "error", "message"),
    [
        (CPU, {"accelerator": "gpu"}, UnavailableError, "accelerator='auto'"),
        (CPU, {"accelerator": "cuda"}, UnavailableError, "Available: cpu"),
        (GPU, {"accelerator": "mps"}, UnavailableError, "Available: cpu, cuda"),
        (CPU, {"accelerator": "tpu"}, ModuleNotFoundError, "torch_xla"),
        (CPU, {"accelerator": "foo"}, PlanError, "auto, gpu, cpu, cuda, mps, tpu"),
        (CPU, {"accelerator": "CPU"}, PlanError, "not known"),
        (CPU, {"accelerator": None}, PlanError, "accelerator=None"),
        (CPU, {"devices": 0}, PlanError, "devices=1"),
        (CPU, {"devices": "0"}, PlanError, "devices=1"),
        (CPU, {"devices": None}, TypeError, "int > 0"),
        (CPU, {"devices": -1}, TypeError, "int > 0"),
        (CPU, {"devices": [0]}, TypeError, "int > 0"),
        (GPUS, {"devices": [0, 0]}, PlanError, "twice"),
        (GPUS, {"devices": [4]}, PlanError, "cuda:0 to cuda:3"),
        (GPUS, {"devices": []}, PlanError, "no cuda device"),
        (MAC, {"devices": [1]}, PlanError, "mps:1"),
        (CPU, {"num_nodes": 0}, PlanError, "int >= 1"),
        (CPU, {"num_nodes": "2"}, PlanError, "int >= 1"),
        (GPUS, {"devices": 2, "strategy": "single_device"}, PlanError, "strategy='ddp'"),
        (CPU, {"devices": 2, "strategy": SingleDeviceStrategy("cpu")}, PlanError, "one of 2"),
        (CPU, {"num_nodes": 2, "strategy": "single_device"}, PlanError, "one of 2"),
        (NOTEBOOK, {"devices": 2, "strategy": "ddp"}, PlanError, "strategy='ddp_notebook'"),
        (MAC, {"strategy": "ddp"}, PlanError, "Apple GPU"),
        (CPU, {"strategy": "dpp"}, PlanError, "Did you mean 'ddp'"),
        (CPU, {"strategy": "foo"}, PlanError, "strategy='foo' is not known"),
        (CPU, {"strategy": None}, PlanError, "strategy=None is not known"),
        (CPU, {"strategy": 3}, PlanError, "strategy=3 is not known"),
        (CPU, {"precision": "foo"}, PlanError, "64-true"),
        (CPU, {"precision": 64.0}, PlanError, "precision=64.0"),
        (CPU, {"precision": True}, PlanError, "precision=True"),
        (CPU, {"plugins": [TorchSyncBatchNorm(), Sync()]}, PlanError, "two of the kind layer_sync"),
        (CPU, {"plugins": [Disk(), Disk()]}, PlanError, "two of the kind checkpoint_io"),
        (CPU, {"precision": "64", "plugins": DoublePrecision()}, PlanError, "Choose one"),
        (CPU, {"plugins": [DoublePrecision(), HalfPrecision()]}, PlanError, "two of the kind precision"),
        (CPU, {"plugins": 3}, PluginTypeError, "fits nowhere"),
        (CPU, {"plugins": "16-mixed"}, PluginTypeError, "Did you mean precision='16-mixed'"),
        (CPU, {"plugins": Sync(), "sync_batchnorm": True}, PlanError, "sync_batchnorm"),
        (CPU, {"strategy": SingleDeviceStrategy(accelerator=CPUAccelerator()), "accelerator": "cpu"}, PlanError, "twice"),  # noqa: E501
        (CPU, {"strategy": SingleDeviceStrategy(precision_plugin=Precision()), "precision": 64}, PlanError, "twice"),
        (CPU, {"strategy": SingleDeviceStrategy(checkpoint_io=Disk()), "plugins": Disk()}, PlanError, "checkpoint_io"),
        (GPU, {"strategy": SingleDeviceStrategy("cpu"), "accelerator": "cuda", "devices": 1}, PlanError, "runs on cpu"),
    ],
)  # fmt: skip
def test_errors(machine, flags, error, message):
    with pytest.raises(error, match=message):
        plan(machine, **flags)


def test_one_error_serves_the_trainer_and_fabric():
    for kind, builtin in ((PlanError, ValueError), (UnavailableError, RuntimeError), (PluginTypeError, TypeError)):
        assert issubclass(kind, builtin)
        assert issubclass(kind, MisconfigurationException)
    with pytest.raises(PlanError) as caught:
        plan(strategy="foo")
    assert caught.value.subject == "foo"


@pytest.mark.parametrize(
    ("precision", "kind", "name"),
    [
        (None, Precision, "32-true"),
        (32, Precision, "32-true"),
        ("32", Precision, "32-true"),
        ("32-true", Precision, "32-true"),
        (64, DoublePrecision, "64-true"),
        ("64-true", DoublePrecision, "64-true"),
        ("16-true", HalfPrecision, "16-true"),
        ("bf16-true", HalfPrecision, "bf16-true"),
        ("16-mixed", MixedPrecision, "16-mixed"),
        ("bf16-mixed", MixedPrecision, "bf16-mixed"),
    ],
)
def test_precisions(precision, kind, name):
    result = plan(GPU, precision=precision)
    assert type(result.precision) is kind
    assert result.precision.precision == name
    assert result.strategy.precision_plugin is result.precision


@pytest.mark.parametrize(("precision", "name"), [(16, "16-mixed"), ("16", "16-mixed"), ("bf16", "bf16-mixed")])
def test_short_names_of_mixed_precisions_warn(precision, name):
    with pytest.warns(UserWarning, match=f"short for precision='{name}'"):
        assert plan(GPU, precision=precision).precision.precision == name


def test_16_mixed_is_not_for_the_cpu():
    with pytest.warns(UserWarning, match="bf16-mixed"):
        assert plan(precision="16-mixed").precision.precision == "bf16-mixed"
    explicit = MixedPrecision("16-mixed", "cpu")
    assert plan(plugins=explicit).precision is explicit


@pytest.mark.parametrize(
    ("machine", "flags", "kind", "start_method", "devices"),
    [
        (CPU, {"devices": 2}, DDPStrategy, "popen", 2),
        (CPU, {"strategy": "ddp"}, DDPStrategy, "popen", 1),
        (CPU, {"strategy": "DDP_spawn", "devices": 3}, DDPStrategy, "spawn", 3),
        (CPU, {"strategy": "ddp_fork", "devices": "2"}, DDPStrategy, "fork", 2),
        (GPUS, {}, DDPStrategy, "popen", 4),
        (GPUS, {"devices": -1}, DDPStrategy, "popen", 4),
        (GPUS, {"strategy": "single_device"}, SingleDeviceStrategy, None, 1),
        (NOTEBOOK, {"devices": 2}, DDPStrategy, "fork", 2),
        (NOTEBOOK, {"devices": 2, "strategy": "ddp_notebook"}, DDPStrategy, "fork", 2),
        (CPU, {"devices": 2, "strategy": DDPStrategy(static_graph=True)}, DDPStrategy, "popen", 2),
        (CPU, {"strategy": DDPStrategy(parallel_devices=[torch.device("cpu")] * 3)}, DDPStrategy, "popen", 3),
    ],
)
def test_several_devices(machine, flags, kind, start_method, devices):
    result = plan(machine, **flags)
    assert type(result.strategy) is kind
    assert len(result.devices) == devices
    assert result.strategy.world_size == devices
    assert result.strategy.root_device == result.devices[0]
    assert result.strategy.is_global_zero
    if start_method is not None:
        assert result.strategy._start_method == start_method
        assert result.strategy.parallel_devices == list(result.devices)
        assert result.strategy.launcher is not None


def test_names_of_ddp_hold_its_arguments():
    made = plan(strategy="ddp_spawn_find_unused_parameters_true", devices=2).strategy
    assert (made._start_method, made._ddp_kwargs) == ("spawn", {"find_unused_parameters": True})
    assert plan(strategy="ddp_find_unused_parameters_false").strategy._ddp_kwargs == {"find_unused_parameters": False}


def test_several_machines():
    result = plan(devices=2, num_nodes=3)
    assert (result.num_nodes, result.strategy.num_nodes, result.strategy.world_size) == (3, 3, 6)


def test_processes_that_a_cluster_started_are_counted(monkeypatch):
    torchrun = {
        "TORCHELASTIC_RUN_ID": "x",
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "2",
        "RANK": "3",
        "LOCAL_RANK": "1",
        "GROUP_RANK": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }
    result = plan_in(torchrun, monkeypatch)
    strategy = result.strategy
    assert type(strategy) is DDPStrategy
    assert (len(result.devices), result.num_nodes, strategy.world_size) == (2, 2, 4)
    assert (strategy.global_rank, strategy.local_rank, strategy.node_rank) == (3, 1, 1)
    assert not strategy.is_global_zero
    with pytest.raises(ValueError, match="torchrun started 4"):
        plan_in(torchrun, monkeypatch, devices=3)
    with pytest.raises(PlanError, match="one of 4"):
        plan_in(torchrun, monkeypatch, strategy="single_device", devices=1)


@pytest.mark.parametrize(
    ("variables", "who"),
    [
        ({"WORLD_SIZE": "2"}, LightningEnvironment),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "1"}, TorchElasticEnvironment),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, SLURMEnvironment),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "interactive"}, LightningEnvironment),
    ],
)
def test_environments_of_one_process(variables, who, monkeypatch):
    result = plan_in(variables, monkeypatch)
    assert result.devices == (torch.device("cpu"),)
    assert type(result.cluster_environment) is who


class WithEnvironment(SingleDeviceStrategy):
    """A strategy that was told what it runs in."""

    def __init__(self):
        super().__init__("cpu")
        self.cluster_environment = KubeflowEnvironment()


def test_the_environment_is_the_plugins_then_the_strategys_then_what_is_found(monkeypatch):
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "1"}
    plugin, strategy = LightningEnvironment(), WithEnvironment()
    assert plan_in(torchrun, monkeypatch, plugins=plugin).cluster_environment is plugin
    assert plan_in(torchrun, monkeypatch, strategy=strategy).cluster_environment is strategy.cluster_environment
    assert isinstance(plan_in(torchrun, monkeypatch).cluster_environment, TorchElasticEnvironment)


def test_the_environment_is_given_once():
    with pytest.raises(PlanError, match="cluster_environment was given twice"):
        plan(strategy=WithEnvironment(), plugins=LightningEnvironment())


def test_plugins_find_their_places():
    precision, disk, environment, sync = DoublePrecision(), Disk(), LightningEnvironment(), Sync()
    result = plan(plugins=[precision, disk, environment, sync])
    assert result.precision is result.strategy.precision_plugin is precision
    assert result.checkpoint_io is result.strategy.checkpoint_io is disk
    assert result.cluster_environment is environment
    assert result.layer_sync is sync
    assert isinstance(plan().cluster_environment, LightningEnvironment)


def test_a_strategy_object_keeps_what_it_was_given():
    accelerator, precision, disk = CPUAccelerator(), DoublePrecision(), Disk()
    strategy = SingleDeviceStrategy("cpu", accelerator, disk, precision)
    result = plan(GPU, strategy=strategy)
    assert result.strategy is strategy
    assert (result.accelerator, result.precision, result.checkpoint_io) == (accelerator, precision, disk)
    assert plan(strategy=strategy).strategy is strategy  # a second time as well


def test_registered_strategies_and_accelerators():
    class Mine(SingleDeviceStrategy):
        strategy_name = "mine"

    class Npu(CPUAccelerator):
        @staticmethod
        def name():
            return "npu"

    StrategyRegistry.register("mine", Mine)
    AcceleratorRegistry.register("npu", Npu)
    try:
        result = plan(strategy="mine", accelerator="npu")
        assert (type(result.strategy), type(result.accelerator)) == (Mine, Npu)
    finally:
        StrategyRegistry.remove("mine")
        AcceleratorRegistry.remove("npu")


def test_an_accelerator_object_is_used_as_it_is():
    accelerator = CUDAAccelerator()
    assert plan(GPU, accelerator=accelerator).accelerator is accelerator


def test_describe():
    assert plan(GPU, precision="bf16-mixed").describe() == (
        "accelerator  cuda\ndevices      cuda:0\nnodes        1\nstrategy     single_device\nprecision    bf16-mixed"
    )


def test_a_plan_is_frozen():
    with pytest.raises(AttributeError):
        plan().num_nodes = 2


def test_probing_this_machine_starts_no_device():
    machine = Machine.probe()
    assert machine.cpus >= 1
    assert machine.cuda_count == torch.cuda.device_count()
    assert not machine.interactive


def test_sync_batchnorm_is_a_layer_sync():
    result = plan(sync_batchnorm=True)
    assert type(result.layer_sync) is type(result.strategy.layer_sync) is TorchSyncBatchNorm


def test_a_checkpoint_io_that_wraps_another_wraps_that_of_the_strategy():
    inner = Disk()
    strategy, wrapper = SingleDeviceStrategy(), AsyncCheckpointIO()
    strategy.checkpoint_io = inner
    strategy.checkpoint_io = wrapper
    assert (strategy.checkpoint_io, wrapper.checkpoint_io) == (wrapper, inner)
    alone = AsyncCheckpointIO()
    plan(plugins=alone)
    assert type(alone.checkpoint_io) is TorchCheckpointIO
