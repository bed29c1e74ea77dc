"""Averages, pruning and throughput on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import fulmen
from fulmen.callbacks import EMAWeightAveraging, ModelPruning, SpikeDetection, StochasticWeightAveraging
from fulmen.fabric.utilities import ThroughputMonitor, get_available_flops

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:.*has 0 workers")]

DATA = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


class Net(fulmen.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.body = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
        self.starts: list[torch.Tensor] = []

    def on_train_epoch_start(self) -> None:
        self.starts.append(self.body[0].weight.detach().clone())

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.body(batch).pow(2).mean()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val", self.body(batch).pow(2).mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


@pytest.fixture
def fit(tmp_path):
    def run(callback: Any, model: Net, epochs: int, ckpt_path: Any = None) -> fulmen.Trainer:
        trainer = fulmen.Trainer(
            accelerator="gpu",
            devices=1,
            max_epochs=epochs,
            logger=False,
            callbacks=callback,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            deterministic=True,
            default_root_dir=tmp_path,
        )
        loader = DataLoader(DATA, batch_size=2)
        trainer.fit(model, loader, loader, ckpt_path=ckpt_path)
        return trainer

    return run


@pytest.mark.parametrize("device", [None, "cpu"])
def test_an_average_on_either_device_is_resumed_exactly(fit, tmp_path, device):
    whole, resumed = Net(), Net()
    fit(EMAWeightAveraging(device, decay=0.8), whole, 3)
    fit(EMAWeightAveraging(device, decay=0.8), Net(), 1).save_checkpoint(tmp_path / "after.ckpt")
    fit(EMAWeightAveraging(device, decay=0.8), resumed, 3, tmp_path / "after.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("device", [None, "cpu"])
def test_stochastic_averaging(fit, device):
    model = Net()
    fit(StochasticWeightAveraging(0.01, swa_epoch_start=0.5, device=device), model, 4)
    mean = torch.stack(model.starts[1:4]).mean(0).cpu()
    torch.testing.assert_close(model.body[0].weight.detach().cpu(), mean)
    assert model.body[1].num_batches_tracked == 4


def test_pruning_is_resumed_exactly(fit, tmp_path):
    class Saves(Net):
        def on_train_epoch_end(self) -> None:
            if self.current_epoch == 0:
                self.trainer.save_checkpoint(tmp_path / "first.ckpt")

    whole, resumed = Saves(), Net()
    fit(ModelPruning("l1_unstructured", amount=0.3), whole, 3)
    fit(ModelPruning("l1_unstructured", amount=0.3), resumed, 3, tmp_path / "first.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_spikes_and_the_peak_of_the_device(fit):
    detection = SpikeDetection(rtol=1000.0)
    fit(detection, Net(), 1)
    assert isinstance(detection.last_val, float)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
        monitor = ThroughputMonitor(fulmen.Fabric(accelerator="gpu", devices=1, precision="bf16-mixed"))
    assert monitor.available_flops == 989_400_000_000_000
    assert get_available_flops(torch.device("cuda", 0), torch.float16) != 0
