"""torchmetrics objects over real ranks bring their states together themselves: in one order, on all ranks."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import CatMetric, MeanMetric, SumMetric

from fulmen import LightningModule, Trainer
from processes import run_ranks

pytestmark = [
    pytest.mark.filterwarnings("ignore:The .* loader (has . workers|shuffles):fulmen.errors.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:The ``compute`` method of metric"),
]


class Metrics(LightningModule):
    def __init__(self):
        super().__init__()
        self.mean, self.total, self.all = MeanMetric(), SumMetric(), CatMetric()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        (x,) = batch
        first, second = ("mean", "total") if (batch_idx + self.global_rank) % 2 else ("total", "mean")
        for name in (first, second):  # first logged in an order of its own on each rank
            metric = getattr(self, name)
            metric.update(x)
            self.log(name, metric)
        self.all.update(x)

    def on_validation_epoch_end(self):
        self.log("all", self.all.compute().sum(), sync_dist=True)


class Sums(Metrics):
    """Without the metric that keeps a list, which torchmetrics cannot bring together where a rank has nothing."""

    def on_validation_epoch_end(self):
        pass


def loader(size):
    return DataLoader(TensorDataset(torch.arange(float(size))[:, None] / 8 + 1), 2)


def validate(devices, kind, *sizes):
    trainer = Trainer(
        accelerator="cpu", devices=devices, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    return trainer.validate(kind(), list(map(loader, sizes)), verbose=False)


@pytest.mark.parametrize(("ranks", "kind", "sizes"), [(2, Metrics, [11]), (3, Sums, [1]), (2, Sums, [11, 1, 7])])
def test_metrics_equal_those_of_one_process(ranks, kind, sizes):
    expected = validate(1, kind, *sizes)
    assert run_ranks(validate, ranks, ranks, kind, *sizes) == [expected] * ranks
