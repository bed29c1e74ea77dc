"""ZeRO with the real package, on CPUs with gloo: the same numbers as one process. Skipped where it is not installed."""

import importlib.util
import os

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from fulmen import LightningModule, Trainer
from fulmen.fabric import Fabric
from processes import RanksFailed, run_ranks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@pytest.fixture(autouse=True)
def on_cpus(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


class Regression(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 8)
        self.head = nn.Linear(8, 1)
        self.hook_calls = []

    def forward(self, x):
        return self.head(self.body(x).tanh())

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("loss", nn.functional.mse_loss(self(x), y), sync_dist=True)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), 0.05)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


class Sharded(Regression):
    """Its layers are made in `configure_model`, where stage 3 divides them at once."""

    def configure_model(self):
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 1)
        assert self.head.weight.numel() == 0  # on each process only the parts


def data(size=32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, 4, generator=generator)
    return TensorDataset(x, x.sum(1, keepdim=True))


def loader(batch_size=4):
    rank, size = dist.get_rank(), dist.get_world_size()
    indices = [
        index for start in range(0, 32, batch_size * size)
        for index in range(start + rank * batch_size, start + (rank + 1) * batch_size)
    ]  # fmt: skip
    return DataLoader(Subset(data(), indices), batch_size)


def trainer_of(strategy, **settings):
    settings = {"max_epochs": 2, "use_distributed_sampler": False, **QUIET, **settings}
    return Trainer(devices=2, strategy=strategy, **settings)


def whole(module):
    """The parameters, gathered where they are divided."""
    import deepspeed

    parameters = dict(module.named_parameters())
    with deepspeed.zero.GatheredParameters(list(parameters.values()), enabled="ds_id" in vars(module.head.weight)):
        return {name: value.detach().clone() for name, value in parameters.items()}


class Keeps(Regression):
    def on_train_end(self):
        self.kept = whole(self)


class KeepsSharded(Sharded):
    def on_train_end(self):
        self.kept = whole(self)


def fit_on_a_rank(strategy, settings, in_configure_model=False):
    module = KeepsSharded() if in_configure_model else Keeps()
    trainer = trainer_of(strategy, **settings)
    trainer.fit(module, loader())
    assert "forward" not in vars(module)
    return module.kept, trainer.global_step


def alone(**settings):
    module = Regression()
    trainer = Trainer(max_epochs=2, **(QUIET | settings))
    trainer.fit(module, DataLoader(data(), 8))
    return {name: value.detach() for name, value in module.named_parameters()}, trainer.global_step


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 3}, {"gradient_clip_val": 0.01}])
def test_training_equals_that_of_one_process(stage, settings):
    expected, steps = alone(**settings)
    for weights, count in run_ranks(fit_on_a_rank, 2, f"deepspeed_stage_{stage}", settings):
        assert count == steps
        for name, value in expected.items():
            torch.testing.assert_close(weights[name], value, atol=1e-4, rtol=1e-4)


def test_parameters_are_divided_as_they_are_made():
    first, second = run_ranks(fit_on_a_rank, 2, "deepspeed_stage_3", {}, True)
    for name, value in first[0].items():
        torch.testing.assert_close(value, second[0][name])
        torch.testing.assert_close(value, alone()[0][name], atol=1e-4, rtol=1e-4)


def fit_in_16_bits(precision):
    weights, _ = fit_on_a_rank("deepspeed", {"precision": precision})
    return weights


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_16_bits(precision):
    first, second = run_ranks(fit_in_16_bits, 2, precision)
    for name, value in first.items():
        assert value.dtype == torch.bfloat16
        torch.testing.assert_close(value, second[name])
        torch.testing.assert_close(value.float(), alone()[0][name], atol=0.05, rtol=0.1)


def fit_and_resume(stage, directory):
    strategy = f"deepspeed_stage_{stage}"
    path = os.path.join(directory, "half")
    trainer = trainer_of(strategy, max_epochs=1)
    trainer.fit(Keeps(), loader())
    trainer = trainer_of(strategy, max_epochs=1)
    module = Keeps()

    class Saves(Keeps):
        def on_train_epoch_end(self):
            self.trainer.save_checkpoint(path)

    trainer.fit(Saves(), loader())
    resumed = Keeps()
    trainer = trainer_of(strategy, max_epochs=2)
    trainer.fit(resumed, loader(), ckpt_path=path)
    del module
    evaluated = trainer_of(strategy).validate(Regression(), loader(), ckpt_path=path, verbose=False)
    return resumed.kept, sorted(os.listdir(directory)), evaluated[0]["loss"]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_run_that_goes_on_equals_one_that_never_stopped(stage, tmp_path):
    expected, _ = alone()
    for weights, files, loss in run_ranks(fit_and_resume, 2, stage, str(tmp_path)):
        assert files == ["half"]
        assert 0 < loss < 100
        for name, value in expected.items():
            torch.testing.assert_close(weights[name], value, atol=1e-4, rtol=1e-4)


def load_a_file(stage, path):
    from fulmen.strategies import DeepSpeedStrategy

    def validate(**settings):
        trainer = trainer_of(DeepSpeedStrategy(stage=stage, **settings))
        return trainer.validate(Regression(), loader(), ckpt_path=path, verbose=False)[0]["loss"]

    with pytest.raises(RuntimeError, match="load_full_weights=True"):
        validate()
    return validate(load_full_weights=True)


@pytest.mark.parametrize("stage", [2, 3])
def test_the_weights_of_a_single_file(stage, tmp_path):
    module, trainer = Regression(), Trainer(max_epochs=1, **QUIET)
    trainer.fit(module, DataLoader(data(), 8))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    expected = trainer.validate(module, DataLoader(data(), 8), verbose=False)[0]["loss"]
    for loss in run_ranks(load_a_file, 2, stage, str(tmp_path / "one.ckpt")):
        assert loss == pytest.approx(expected, rel=1e-5)


def evaluate_unequal():
    size = 4 + 4 * dist.get_rank()
    trainer_of("deepspeed_stage_3").validate(Regression(), DataLoader(data(size), 4), verbose=False)


def test_unequal_batches_are_refused_in_stage_3():
    with pytest.raises(RanksFailed, match=r"equally many batches, and theirs are \[1, 2\]"):
        run_ranks(evaluate_unequal, 2)


def raw_loop(stage, directory):
    fabric = Fabric(accelerator="cpu", devices=2, strategy=f"deepspeed_stage_{stage}")
    fabric.launch()
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 1))
    model, optimizer = fabric.setup(module, torch.optim.SGD(module.parameters(), 0.1))
    for x, y in loader():
        loss = nn.functional.mse_loss(model(x), y)
        fabric.backward(loss, model=model)
        optimizer.step()
        optimizer.zero_grad()
    path = os.path.join(directory, "raw")
    fabric.save(path, {"model": model, "optimizer": optimizer, "step": 4})
    left = fabric.load(path, state := {"model": model, "optimizer": optimizer, "step": 0})
    assert "step" not in left
    return loss.item(), state["step"]


@pytest.mark.parametrize("stage", [2, 3])
def test_a_loop_of_ones_own(stage, tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 1))
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for x, y in DataLoader(data(), 8):
        loss = nn.functional.mse_loss(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    results = run_ranks(raw_loop, 2, stage, str(tmp_path))
    assert sum(value for value, _ in results) / 2 == pytest.approx(loss.item(), rel=1e-4)
    assert {step for _, step in results} == {4}
