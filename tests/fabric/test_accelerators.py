"""Accelerators: how a setting becomes devices."""

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.errors import MisconfigurationException
from fulmen.extras import available
from fulmen.fabric.accelerators import (
    Accelerator,
    AcceleratorRegistry,
    CPUAccelerator,
    CUDAAccelerator,
    MPSAccelerator,
    XLAAccelerator,
    find_usable_cuda_devices,
    parse_device_ids,
)
from fulmen.fabric.errors import PlanError


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
    for nothing in (0, "0"):
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
