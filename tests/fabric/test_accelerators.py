"""Accelerators: how a setting becomes devices."""

import logging
import math
import os
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.errors import MisconfigurationException
from fulmen.extras import available
from fulmen.fabric.accelerators import (
    ACCELERATOR_REGISTRY,
    Accelerator,
    AcceleratorRegistry,
    CPUAccelerator,
    CUDAAccelerator,
    HPUAccelerator,
    MPSAccelerator,
    TPUAccelerator,
    XLAAccelerator,
    find_usable_cuda_devices,
    parse_device_ids,
)
from fulmen.fabric.accelerators.cuda import get_nvidia_gpu_stats, is_cuda_available, num_cuda_devices
from fulmen.fabric.accelerators.mps import get_device_stats
from fulmen.fabric.accelerators.registry import call_register_accelerators
from fulmen.fabric.errors import PlanError
from fulmen.fabric.registry import Registry


@pytest.mark.parametrize(
    ("devices", "ids"),
    [(1, [0]), (3, [0, 1, 2]), ("3", [0, 1, 2]), (-1, [0, 1, 2, 3]), ("-1", [0, 1, 2, 3]), ([2], [2]), ((0, 3), [0, 3]),
     ("2,", [2]), ("0, 2", [0, 2])],
)  # fmt: skip
def test_settings_of_devices(devices, ids):
    assert parse_device_ids(devices, 4, "cuda") == ids


@pytest.mark.parametrize("devices", [0, "0", [], "", ",", [1, 1], "1,1", 5, [4], -2, [-1], "two"])
def test_settings_that_name_no_usable_devices(devices):
    with pytest.raises(PlanError) as caught:
        parse_device_ids(devices, 4, "cuda")
    assert caught.value.subject == devices


@pytest.mark.parametrize("devices", [None, 1.5, True, ["0"], [1.0], {0}])
def test_settings_of_a_wrong_type(devices):
    with pytest.raises(TypeError, match="devices"):
        parse_device_ids(devices, 4, "cuda")


def test_no_device_at_all():
    with pytest.raises(MisconfigurationException, match="visible here: none"):
        parse_device_ids(1, 0, "cuda")
    with pytest.raises(MisconfigurationException, match="leaves no cuda device"):
        parse_device_ids(-1, 0, "cuda")


@given(st.lists(st.integers(0, 7), min_size=1, unique=True))
def test_a_list_and_its_text_mean_the_same(ids):
    text = ",".join(map(str, ids)) + ","
    assert parse_device_ids(text, 8, "cuda") == parse_device_ids(ids, 8, "cuda") == ids


def test_cpu():
    cpu = CPUAccelerator()
    assert [cpu.parse_devices(devices) for devices in (1, "3")] == [1, 3]
    assert cpu.get_parallel_devices(2) == [torch.device("cpu")] * 2
    assert cpu.auto_device_count() == 1
    assert cpu.is_available()
    cpu.setup_device(torch.device("cpu"))
    for wrong in (None, -1, [0], "1,2", "x", 1.5):
        with pytest.raises(TypeError, match="int > 0"):
            cpu.parse_devices(wrong)
    for nothing in (0, "0", []):
        with pytest.raises(PlanError, match="no device"):
            cpu.parse_devices(nothing)


@pytest.mark.parametrize("accelerator", [CPUAccelerator(), CUDAAccelerator(), MPSAccelerator()])
def test_a_device_of_another_kind_is_refused(accelerator):
    with pytest.raises(MisconfigurationException, match="meta"):
        accelerator.setup_device(torch.device("meta"))
    with pytest.raises(ValueError, match="meta"):
        accelerator.setup_device(torch.device("meta"))


def test_cpu_stats():
    if available("psutil"):
        assert set(CPUAccelerator().get_device_stats("cpu")) == {"cpu_vm_percent", "cpu_percent", "cpu_swap_percent"}
    else:
        with pytest.raises(ModuleNotFoundError, match=r"fulmen\[stats\]"):
            CPUAccelerator().get_device_stats("cpu")


def test_other_kinds_of_devices():
    assert CUDAAccelerator.get_parallel_devices([0, 2]) == [torch.device("cuda:0"), torch.device("cuda:2")]
    assert MPSAccelerator.parse_devices("0,") == MPSAccelerator.parse_devices(1) == [0]
    assert MPSAccelerator.get_parallel_devices([0]) == [torch.device("mps:0")]
    assert XLAAccelerator.parse_devices([5]) == [5]


def test_mps_can_be_hidden(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert MPSAccelerator.is_available()
    monkeypatch.setenv("DISABLE_MPS", "1")
    assert not MPSAccelerator.is_available()


@pytest.mark.skipif(available("torch_xla"), reason="torch_xla is here")
def test_xla_needs_its_package():
    assert not XLAAccelerator.is_available()
    with pytest.raises(ModuleNotFoundError, match="torch_xla"):
        AcceleratorRegistry.get("tpu")


def test_the_registry():
    assert AcceleratorRegistry.available_accelerators() == ["cpu", "cuda", "mps", "tpu"]
    assert isinstance(AcceleratorRegistry.get("cpu"), CPUAccelerator)

    class Quiet(CPUAccelerator):
        @staticmethod
        def name():
            return "quiet"

    Quiet.register_accelerators(AcceleratorRegistry)
    try:
        assert isinstance(AcceleratorRegistry.get("quiet"), Quiet)
    finally:
        AcceleratorRegistry.remove("quiet")


def test_an_accelerator_without_stats_says_so():
    class Bare(CPUAccelerator):
        get_device_stats = Accelerator.get_device_stats

    with pytest.raises(NotImplementedError, match="Bare"):
        Bare().get_device_stats("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_usable_devices_where_there_are_none():
    assert find_usable_cuda_devices(0) == []
    with pytest.raises(ValueError, match="none is visible"):
        find_usable_cuda_devices(1)


@pytest.mark.gpu
def test_cuda_devices(caplog):
    assert find_usable_cuda_devices(1) == [0]
    assert find_usable_cuda_devices()[0] == 0
    with pytest.raises(ValueError, match="are visible"):
        find_usable_cuda_devices(99)
    with caplog.at_level(logging.INFO, logger="fulmen"):
        CUDAAccelerator().setup_device(torch.device("cuda", 0))
    if torch.cuda.get_device_capability(0) >= (8, 0):
        assert "Tensor Cores" in caplog.text
    held = torch.ones(1, device="cuda")
    assert CUDAAccelerator().get_device_stats(0)["allocated_bytes.all.current"] >= held.nbytes
    CUDAAccelerator().teardown()


# ------------------------------------------------------------------------------------------------ what devices tell

ANSWER = "10, 20, 30, 40, [N/A], 60, 70"


@pytest.fixture
def nvidia_smi(monkeypatch, tmp_path):
    """Puts a program of this name onto the path, which notes its arguments; returns the file with them."""

    def install(body):
        program = tmp_path / "nvidia-smi"
        program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\n{body}\n', encoding="utf-8")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        return tmp_path / "arguments"

    return install


@pytest.mark.parametrize(
    ("visible", "device", "asked"),
    [
        (None, torch.device("cuda", 0), "0"),
        (None, "cuda:3", "3"),
        ("2,3", 1, "3"),
        ("GPU-abc, GPU-def", torch.device("cuda", 1), "GPU-def"),
    ],
)
def test_gpu_stats(nvidia_smi, monkeypatch, visible, device, asked):
    arguments = nvidia_smi(f"echo '{ANSWER}'")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    stats = get_nvidia_gpu_stats(device)
    assert math.isnan(stats.pop("fan.speed (%)"))
    assert stats == {
        "utilization.gpu (%)": 10,
        "memory.used (MB)": 20,
        "memory.free (MB)": 30,
        "utilization.memory (%)": 40,
        "temperature.gpu (°C)": 60,
        "temperature.memory (°C)": 70,
    }
    names = ",".join(name.partition(" ")[0] for name in [*list(stats)[:4], "fan.speed", *list(stats)[4:]])
    assert arguments.read_text().split() == [f"--query-gpu={names}", "--format=csv,nounits,noheader", f"--id={asked}"]


def test_gpu_stats_that_cannot_be_had(nvidia_smi, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    with monkeypatch.context() as context:
        context.setenv("PATH", str(tmp_path))
        with pytest.raises(FileNotFoundError, match="nvidia-smi"):
            get_nvidia_gpu_stats(0)
    nvidia_smi("echo 'no driver' >&2; exit 9")
    with pytest.raises(RuntimeError, match="--id=2` failed: no driver"):
        get_nvidia_gpu_stats(0)
    with pytest.raises(ValueError, match=r"no cuda:1: CUDA_VISIBLE_DEVICES='2' shows 1 device"):
        get_nvidia_gpu_stats(1)
    with pytest.raises(ValueError, match="'cuda' has no index"):
        get_nvidia_gpu_stats(torch.device("cuda"))


@pytest.fixture
def psutil(monkeypatch):
    """A psutil with known numbers, so that these tests need no package."""
    module = ModuleType("psutil")
    module.virtual_memory = lambda: SimpleNamespace(percent=4.0)
    module.cpu_percent = lambda: 50.0
    module.swap_memory = lambda: SimpleNamespace(percent=1.0)
    monkeypatch.setitem(sys.modules, "psutil", module)


def test_stats_of_apple_silicon(psutil, monkeypatch):
    assert get_device_stats() == {"M1_vm_percent": 4.0, "M1_percent": 50.0, "M1_swap_percent": 1.0}
    monkeypatch.setattr("torch.mps.current_allocated_memory", lambda: 7)
    monkeypatch.setattr("torch.mps.driver_allocated_memory", lambda: 9)
    memory = {"mps_current_allocated_memory": 7, "mps_driver_allocated_memory": 9}
    assert MPSAccelerator().get_device_stats("mps") == get_device_stats() | memory
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert MPSAccelerator().get_device_stats("mps") == memory
    with pytest.raises(ModuleNotFoundError, match=r"fulmen\[stats\]"):
        get_device_stats()


def test_what_a_cpu_tells(psutil):
    expected = {"cpu_vm_percent": 4.0, "cpu_percent": 50.0, "cpu_swap_percent": 1.0}
    assert CPUAccelerator().get_device_stats("cpu") == expected


def test_the_order_of_cuda_devices(monkeypatch, caplog):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "to be replaced")
    monkeypatch.delenv("CUDA_DEVICE_ORDER")
    with caplog.at_level(logging.INFO, logger="fulmen"):
        CUDAAccelerator().setup(SimpleNamespace(local_rank=1))
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert "LOCAL_RANK: 1 - CUDA_VISIBLE_DEVICES: [2,3]" in caplog.text


def test_the_number_of_cuda_devices(monkeypatch):
    for count in (0, 3):
        monkeypatch.setattr("torch.cuda.device_count", lambda count=count: count)
        assert num_cuda_devices() == CUDAAccelerator.auto_device_count() == count
        assert is_cuda_available() is CUDAAccelerator.is_available() is (count > 0)


def test_tensor_cores_that_are_not_used_are_mentioned(monkeypatch, caplog):
    monkeypatch.setattr("torch.cuda.set_device", lambda device: None)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "A100")
    for capability, precision, told in (((8, 0), "highest", 1), ((7, 5), "highest", 1), ((8, 0), "high", 1)):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device, capability=capability: capability)
        monkeypatch.setattr("torch.get_float32_matmul_precision", lambda precision=precision: precision)
        with caplog.at_level(logging.INFO, logger="fulmen"):
            CUDAAccelerator().setup_device(torch.device("cuda", 0))
        assert caplog.text.count("A100 has Tensor Cores") == told


@pytest.mark.parametrize(
    ("number", "occupied", "expected"), [(-1, [], [0, 1, 2]), (2, [0], [1, 2]), (1, [0, 1], [2]), (0, [], [])]
)
def test_usable_devices(monkeypatch, number, occupied, expected):
    put_devices(monkeypatch, 3, occupied)
    assert find_usable_cuda_devices(number) == expected


@pytest.mark.parametrize(
    ("number", "occupied", "kind", "message"),
    [
        (4, [], ValueError, "4 CUDA devices were asked for and 3 are visible"),
        (3, [1], RuntimeError, r"of the 3 visible ones only \[0, 2\] are not occupied"),
    ],
)
def test_too_few_usable_devices(monkeypatch, number, occupied, kind, message):
    put_devices(monkeypatch, 3, occupied)
    with pytest.raises(kind, match=message):
        find_usable_cuda_devices(number)


def put_devices(monkeypatch, count, occupied):
    """Makes torch believe in so many CUDA devices, of which some let nothing be allocated."""

    def allocate(size, device):
        if device.index in occupied:
            raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")

    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.setattr("torch.empty", allocate)


# ------------------------------------------------------------------------------------------------ names


def test_old_names():
    assert TPUAccelerator is XLAAccelerator
    assert ACCELERATOR_REGISTRY is AcceleratorRegistry


def test_hpus_are_known_by_name_only():
    with pytest.raises(NotImplementedError, match="register"):
        HPUAccelerator()


def test_a_module_registers_its_accelerators(monkeypatch):
    package, module = ModuleType("devices"), ModuleType("devices.npu")
    for place in (package, module):
        monkeypatch.setitem(sys.modules, place.__name__, place)

    class NPU(CPUAccelerator):
        __module__ = "devices.npu"

        @classmethod
        def register_accelerators(cls, accelerator_registry):
            accelerator_registry.register("npu", cls, description="its own words")

    class Abstract(Accelerator):
        __module__ = "devices.npu"

    module.NPU, module.Abstract, module.CPUAccelerator, module.number = NPU, Abstract, CPUAccelerator, 1
    package.NPU = NPU
    for place in (package, module):
        registry = Registry("accelerator")
        call_register_accelerators(registry, place.__name__)
        assert registry.names() == ["npu"]
        assert registry.entry("npu").description == "its own words"
    with pytest.raises(ValueError, match="'npu' is registered already"):
        call_register_accelerators(registry, "devices")
    with pytest.raises(ModuleNotFoundError, match="not_there"):
        call_register_accelerators(registry, "not_there")
