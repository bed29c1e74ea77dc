"""The strategy of docs/own-strategy.md, as it is printed there, on two processes."""

import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from fulmen import Fabric, LightningModule, Trainer
from processes import run_ranks

PAGE = Path(__file__).parents[2] / "docs" / "own-strategy.md"
OFF = dict.fromkeys(
    ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler"), False
)


def code():
    return re.search(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL).group(1)


def strategy(**settings):
    namespace = {"__name__": "own_strategy"}
    exec(compile(code(), PAGE.name, "exec"), namespace)
    return namespace["LocalSGD"](**settings)


class Regression(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self.layer(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(32, 4, generator=generator)
    return TensorDataset(x, x.sum(1, keepdim=True))


def share():
    rank = dist.get_rank()
    return DataLoader(Subset(data(), [8 * batch + 4 * rank + item for batch in range(4) for item in range(4)]), 4)


def fit_on_a_rank(period):
    torch.manual_seed(dist.get_rank())  # the processes begin with different weights
    module = Regression()
    trainer = Trainer(accelerator="cpu", devices=2, strategy=strategy(period=period), max_epochs=1, **OFF)
    trainer.fit(module, share())
    return module.layer.weight.detach()


def test_it_is_short():
    assert len(code().strip().splitlines()) <= 45
    assert len(code().partition("class ")[2].strip().splitlines()) <= 40


def test_averaging_every_step_is_training_on_the_global_batch():
    torch.manual_seed(0)
    module = Regression()
    Trainer(accelerator="cpu", max_epochs=1, **OFF).fit(module, DataLoader(data(), 8))
    for weight in run_ranks(fit_on_a_rank, 2, 1):
        torch.testing.assert_close(weight, module.layer.weight.detach())


@pytest.mark.parametrize(("period", "equal"), [(2, True), (3, False)])
def test_weights_are_equal_after_an_average_and_part_after_it(period, equal):
    first, second = run_ranks(fit_on_a_rank, 2, period)  # four steps
    assert torch.equal(first, second) is equal


def loop_on_a_rank():
    torch.manual_seed(dist.get_rank())
    fabric = Fabric(accelerator="cpu", devices=2, strategy=strategy(period=4))
    fabric.launch()
    module = nn.Linear(4, 1)
    model, optimizer = fabric.setup(module, torch.optim.SGD(module.parameters(), 0.1))
    for x, y in share():
        fabric.backward(nn.functional.mse_loss(model(x), y))
        optimizer.step()
        optimizer.zero_grad()
    return module.weight.detach()


def test_in_a_loop_of_ones_own():
    first, second = run_ranks(loop_on_a_rank, 2)
    assert torch.equal(first, second)
