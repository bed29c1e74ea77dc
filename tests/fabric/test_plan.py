"""The plan as a table: flags, environment and machine in, a plan or one error out. No hardware is touched."""

import warnings

import pytest
import torch

from fulmen.errors import MisconfigurationException, PossibleUserWarning
from fulmen.fabric.accelerators import AcceleratorRegistry, CPUAccelerator, CUDAAccelerator
from fulmen.fabric.environments import LightningEnvironment
from fulmen.fabric.errors import PlanError, PluginTypeError, UnavailableError
from fulmen.fabric.plan import Machine, resolve
from fulmen.fabric.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from fulmen.fabric.strategies import SingleDeviceStrategy, StrategyRegistry

CPU = Machine(cpus=8)
GPU = Machine(cuda_count=1)
GPUS = Machine(cuda_count=4)
MAC = Machine(mps=True)


class Disk:
    """Looks like a checkpoint IO."""

    def save_checkpoint(self, checkpoint, path, storage_options=None): ...
    def load_checkpoint(self, path, map_location=None, weights_only=None): ...
    def remove_checkpoint(self, path): ...


class Sync:
    """Looks like a layer sync."""

    def apply(self, model): ...
    def revert(self, model): ...


def plan(machine=CPU, environment=(), **flags):
    return resolve(machine=machine, environment=dict(environment), **flags)


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
        (CPU, {"devices": 2}, PlanError, "2 devices; this version runs one process"),
        (GPUS, {"devices": 2}, PlanError, "devices=1"),
        (GPUS, {"devices": -1}, PlanError, "4 devices"),
        (GPUS, {"devices": [0, 0]}, PlanError, "twice"),
        (GPUS, {"devices": [4]}, PlanError, "cuda:0 to cuda:3"),
        (GPUS, {"devices": []}, PlanError, "no cuda device"),
        (MAC, {"devices": [1]}, PlanError, "mps:1"),
        (CPU, {"num_nodes": 0}, PlanError, "int >= 1"),
        (CPU, {"num_nodes": "2"}, PlanError, "int >= 1"),
        (CPU, {"num_nodes": 2}, PlanError, "num_nodes=1"),
        (CPU, {"strategy": "ddp"}, PlanError, "not part of this version"),
        (CPU, {"strategy": "DDP_spawn"}, PlanError, "not part of this version"),
        (CPU, {"strategy": "fsdp"}, PlanError, "Type one of: auto, single_device"),
        (CPU, {"strategy": "deepspeed_stage_3"}, PlanError, "not part of this version"),
        (CPU, {"strategy": "xla_fsdp"}, PlanError, "not part of this version"),
        (CPU, {"strategy": "dp"}, PlanError, "not part of this version"),
        (CPU, {"strategy": "foo"}, PlanError, "strategy='foo' is not known"),
        (CPU, {"strategy": None}, PlanError, "strategy=None is not known"),
        (CPU, {"strategy": 3}, PlanError, "strategy=3 is not known"),
        (CPU, {"precision": "foo"}, PlanError, "64-true"),
        (CPU, {"precision": 64.0}, PlanError, "precision=64.0"),
        (CPU, {"precision": True}, PlanError, "precision=True"),
        (CPU, {"precision": "transformer-engine"}, PlanError, "not part of this version"),
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
        plan(strategy="ddp")
    assert caught.value.subject == "ddp"


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


def test_the_first_of_several_gpus_is_used_and_that_is_said():
    with pytest.warns(PossibleUserWarning, match="4 cuda devices"):
        assert plan(GPUS).devices == (torch.device("cuda:0"),)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan(GPUS, devices=1)


@pytest.mark.parametrize(
    "environment",
    [
        {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2"},
        {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train"},
    ],
)
def test_several_processes_would_each_train_for_themselves(environment):
    with pytest.raises(PlanError, match="Start the script once"):
        plan(environment=environment)


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "2"},
        {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "1"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "interactive"},
    ],
)
def test_environments_of_one_process(environment):
    assert plan(environment=environment).devices == (torch.device("cpu"),)


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
