from __future__ import annotations

import pytest
import torch
from torch import nn

from fulmen import Fabric
from fulmen.fabric.utilities import Throughput, ThroughputMonitor, get_available_flops, measure_flops
from fulmen.fabric.utilities.throughput import compute_dtype


def filled(**arguments):
    throughput = Throughput(**{"window_size": 3, **arguments})
    for n in range(1, 5):
        throughput.update(time=float(n * n), batches=n, samples=n * 4, lengths=n * 40, flops=100 * n)
    return throughput


def test_totals_until_the_window_is_full():
    throughput = Throughput(window_size=3)
    assert throughput.compute() == {}
    for n in (1, 2):
        throughput.update(time=float(n), batches=n, samples=n)
        assert throughput.compute() == {"time": n, "batches": n, "samples": n}
    throughput.update(time=3.0, batches=3, samples=3)
    assert throughput.compute()["device/batches_per_sec"] == 1.0


def test_rates_over_the_window():
    assert filled(available_flops=1000, separator="|").compute() == {
        "time": 16.0,
        "batches": 4,
        "samples": 16,
        "lengths": 160,
        "device|batches_per_sec": pytest.approx(2 / 12),
        "device|samples_per_sec": pytest.approx(8 / 12),
        "device|items_per_sec": pytest.approx(80 / 12),
        "device|flops_per_sec": pytest.approx(700 / 12),
        "device|mfu": pytest.approx(0.7 / 12),
    }


def test_rates_of_several_processes():
    metrics = filled(world_size=2).compute()
    for name in ("batches_per_sec", "samples_per_sec", "items_per_sec", "flops_per_sec"):
        assert metrics[name] == 2 * metrics[f"device/{name}"]
    assert "device/mfu" not in metrics


def test_a_sparse_model_has_a_higher_peak():
    dense, sparse = filled(available_flops=1000), filled(available_flops=1000, using_sparse_model=True)
    assert sparse.compute()["device/mfu"] == dense.compute()["device/mfu"] / 2
    assert Throughput(1000, using_sparse_model=True, sparse_cuda_acceleration_factor=1.5).available_flops == 1500


def test_reset():
    throughput = filled()
    throughput.reset()
    assert throughput.compute() == {}
    throughput.update(time=0.5, batches=1, samples=1)


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"time": 1.0}, "time=1.0.*must grow"),
        ({"batches": 1}, "batches=1.*must grow"),
        ({"samples": 3}, "samples=3.*must grow"),
        ({"batches": 5}, "samples=4, batches=5"),
        ({"lengths": 10}, "lengths=10.*must grow"),
        ({"lengths": 30, "samples": 31}, "lengths=30, samples=31"),
    ],
)
def test_totals_that_cannot_be(update, message):
    throughput = Throughput()
    throughput.update(time=1.0, batches=1, samples=3, lengths=10)
    before = throughput.compute()
    with pytest.raises(ValueError, match=message):
        throughput.update(**{"time": 2.0, "batches": 2, "samples": 4, "lengths": 20, **update})
    assert throughput.compute() == before


@pytest.mark.parametrize("first", [None, 10])
def test_lengths_at_some_updates_only(first):
    throughput = Throughput()
    throughput.update(time=1.0, batches=1, samples=1, lengths=first)
    with pytest.raises(RuntimeError, match="every update or at none"):
        throughput.update(time=2.0, batches=2, samples=2, lengths=None if first else 20)


def test_a_window_of_one():
    with pytest.raises(AssertionError, match="at least 2 updates"):
        Throughput(window_size=1)


class Records:
    """A logger that keeps what it gets."""

    name = "records"

    def __init__(self):
        self.logged = []

    def log_metrics(self, metrics, step=None):
        self.logged.append((metrics, step))


def test_the_monitor_logs_through_fabric():
    logger = Records()
    monitor = ThroughputMonitor(Fabric(accelerator="cpu", loggers=logger), window_size=2)
    assert (monitor.available_flops, monitor.step) == (None, -1)
    monitor.update(time=1.0, batches=1, samples=1)
    totals = {"time": 1.0, "batches": 1, "samples": 1}
    assert monitor.compute_and_log() == totals
    monitor.compute_and_log(step=7)
    monitor.compute_and_log()
    assert logger.logged == [(totals, 0), (totals, 7), (totals, 8)]


def test_a_peak_of_the_users_own():
    assert ThroughputMonitor(Fabric(accelerator="cpu"), available_flops=5).available_flops == 5


def test_operations_are_counted_without_touching_gradients():
    model, batch = nn.Linear(4, 3), torch.randn(2, 4)
    assert measure_flops(model, lambda: model(batch)) == 2 * 2 * 4 * 3
    assert measure_flops(model, lambda: model(batch), lambda output: output.sum()) == 2 * (2 * 2 * 4 * 3)
    assert model.weight.grad is None
    with torch.device("meta"):
        large, inputs = nn.Linear(40_000, 30_000), torch.randn(2, 40_000)
    assert measure_flops(large, lambda: large(inputs)) == 2 * 2 * 40_000 * 30_000


@pytest.fixture
def gpu(monkeypatch):
    """Makes torch say that there is a GPU of some name."""
    return lambda name: monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)


@pytest.mark.parametrize(
    ("name", "dtype", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989.4),
        ("NVIDIA H100 80GB HBM3", torch.int8, 1978.9),
        ("NVIDIA H100 80GB HBM3", torch.float64, 33.5),
        ("NVIDIA H100 PCIe", torch.bfloat16, 756),
        ("NVIDIA H100 NVL", torch.bfloat16, 835.5),
        ("NVIDIA H200", torch.float16, 989.4),
        ("NVIDIA A100-SXM4-80GB", torch.bfloat16, 312),
        ("NVIDIA A10G", torch.bfloat16, 70),
        ("NVIDIA L4", torch.float16, 121),
        ("NVIDIA L40S", torch.float16, 362),
        ("Tesla V100-SXM2-16GB", torch.float16, 125),
        ("Tesla V100-PCIE-16GB", torch.float16, 112),
        ("Tesla T4", torch.float16, 65),
        ("NVIDIA GeForce RTX 3090 Ti", torch.float32, 40),
        ("NVIDIA GeForce RTX 3090", torch.float32, 35.6),
    ],
)
def test_peaks_of_chips(gpu, name, dtype, tera):
    gpu(name)
    assert get_available_flops(torch.device("cuda"), dtype) == round(tera * 1e12)


def test_the_peak_for_float32_depends_on_what_matrices_may_use(gpu, monkeypatch):
    gpu("NVIDIA A100-SXM4-40GB")
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "highest")
    assert get_available_flops(torch.device("cuda"), torch.float32) == 19_500_000_000_000
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert get_available_flops(torch.device("cuda"), torch.float32) == 156_000_000_000_000


@pytest.mark.parametrize(
    "name", ["Foo", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA H20", "NVIDIA A100-SXM4-40GB MIG 1g.5gb"]
)
def test_a_chip_that_is_not_known(gpu, name):
    gpu(name)
    with pytest.warns(UserWarning, match=f"{name}.*is not known.*available_flops="):
        assert get_available_flops(torch.device("cuda"), torch.float32) is None


def test_a_type_that_a_chip_does_not_have(gpu):
    gpu("Tesla T4")
    with pytest.warns(UserWarning, match=r"Tesla T4.*no peak for torch\.bfloat16"):
        assert get_available_flops(torch.device("cuda"), torch.bfloat16) is None


def test_the_cpu_has_no_known_peak():
    assert get_available_flops(torch.device("cpu"), torch.float32) is None


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("32-true", torch.float32),
        ("16-mixed", torch.float16),
        ("bf16-true", torch.bfloat16),
        ("64-true", torch.float64),
    ],
)
def test_the_type_of_a_precision(precision, dtype):
    assert compute_dtype(precision) is dtype
