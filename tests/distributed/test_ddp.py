"""DDP over real processes: the same numbers as one process on the same global batches."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, post_localSGD_hook, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset, TensorDataset

from fulmen import LightningModule, Trainer
from fulmen.strategies import DDPStrategy
from processes import RanksFailed, run_ranks

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Regression(LightningModule):
    def __init__(self, learning_rate=0.1):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)
        self.learning_rate = learning_rate
        self.losses = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.mse_loss(self.layer(x), y)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.learning_rate)


def data(size=32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, 4, generator=generator)
    return TensorDataset(x, x.sum(1, keepdim=True))


def share(dataset, batch_size):
    """The loader of a rank, of which each batch is a part of the global batch of the same number."""
    rank, size = dist.get_rank(), dist.get_world_size()
    indices = [
        index for start in range(0, len(dataset), batch_size * size)
        for index in range(start + rank * batch_size, start + (rank + 1) * batch_size)
    ]  # fmt: skip
    return DataLoader(Subset(dataset, indices), batch_size)


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def fit(strategy="ddp", module=None, **settings):
    module = module or Regression()
    trainer = Trainer(devices=2, strategy=strategy, max_epochs=2, use_distributed_sampler=False, **QUIET, **settings)
    trainer.fit(module, share(data(), 4))
    return trainer, module


def fit_on_a_rank(settings):
    trainer, module = fit(**settings)
    assert trainer.strategy.model is module  # unwrapped
    return weights(module), trainer.global_step


def alone(**settings):
    module = Regression()
    trainer = Trainer(max_epochs=2, **QUIET, **settings)
    trainer.fit(module, DataLoader(data(), 8))
    return weights(module), trainer.global_step


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"accumulate_grad_batches": 3},
        {"gradient_clip_val": 0.01},
        {"strategy": "ddp_find_unused_parameters_true"},
    ],
)
def test_training_equals_that_of_one_process(settings):
    expected, steps = alone(**{name: value for name, value in settings.items() if name != "strategy"})
    for result, count in run_ranks(fit_on_a_rank, 2, settings):
        assert count == steps
        for name, value in expected.items():
            torch.testing.assert_close(result[name], value)


def fit_with_a_hook(settings):
    _, module = fit(DDPStrategy(**settings))
    return weights(module)


@pytest.mark.parametrize(
    "settings",
    [
        {"static_graph": True},
        {"gradient_as_bucket_view": True},
        {"ddp_comm_hook": default_hooks.fp16_compress_hook},
        {"ddp_comm_hook": default_hooks.allreduce_hook, "ddp_comm_wrapper": default_hooks.fp16_compress_wrapper},
    ],
)
def test_arguments_of_ddp_and_its_hooks(settings):
    expected, _ = alone()
    first, second = run_ranks(fit_with_a_hook, 2, settings)
    for name, value in expected.items():
        torch.testing.assert_close(first[name], second[name])
        torch.testing.assert_close(first[name], value, atol=5e-3, rtol=5e-2)


def fit_with_power_sgd():
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)
    return fit_with_a_hook({"ddp_comm_state": state, "ddp_comm_hook": powerSGD_hook.powerSGD_hook})


def test_power_sgd_keeps_the_processes_together():
    first, second = run_ranks(fit_with_power_sgd, 2)
    assert all(torch.equal(first[name], second[name]) for name in first)


def fit_with_local_sgd(period):
    state = post_localSGD_hook.PostLocalSGDState(None, dist.group.WORLD, start_localSGD_iter=2)
    hook = post_localSGD_hook.post_localSGD_hook
    return fit_with_a_hook(
        {"ddp_comm_state": state, "ddp_comm_hook": hook, "model_averaging_period": period}
    )  # 8 steps: the last is one at which models are averaged


def test_local_sgd_averages_the_models():
    first, second = run_ranks(fit_with_local_sgd, 2, 2)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_local_sgd_has_to_know_when():
    with pytest.raises(RanksFailed, match="model_averaging_period=4"):
        run_ranks(fit_with_local_sgd, 2, None)


class CountingBackwards(Regression):
    def on_after_backward(self):
        self.seen = self.layer.weight.grad.clone()


def exchanged_gradients():
    module = CountingBackwards()
    seen = []
    module.on_train_batch_end = lambda *_: seen.append(module.seen)
    fit(module=module, accumulate_grad_batches=2)
    return seen


def test_gradients_are_exchanged_only_where_a_window_closes():
    first, second = run_ranks(exchanged_gradients, 2)
    equal = [torch.equal(one, other) for one, other in zip(first, second, strict=True)]
    assert equal == [False, True] * 4


class Unused(Regression):
    def __init__(self):
        super().__init__()
        self.idle = nn.Linear(4, 4)


def fit_with_unused_parameters():
    fit(module=Unused())


def test_parameters_without_a_gradient_are_named():
    with pytest.raises(RanksFailed, match=r"got no gradient.*: idle\.weight, idle\.bias") as caught:
        run_ranks(fit_with_unused_parameters, 2)
    assert "strategy='ddp_find_unused_parameters_true'" in str(caught.value)


class Manual(Regression):
    """Two backward passes in a step."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        x, y = batch
        optimizer = self.optimizers()
        for _ in range(2):
            optimizer.zero_grad()
            self.manual_backward(nn.functional.mse_loss(self.layer(x), y))
            optimizer.step()


def fit_manually():
    _, module = fit(module=Manual())
    return weights(module)


def test_manual_optimisation_exchanges_each_backward_pass():
    module = Manual()
    Trainer(max_epochs=2, **QUIET).fit(module, DataLoader(data(), 8))
    for result in run_ranks(fit_manually, 2):
        for name, value in module.state_dict().items():
            torch.testing.assert_close(result[name], value)


class Normalised(Regression):
    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))

    def validation_step(self, batch, batch_idx):
        self.seen = self.layer[1].running_mean.clone()


def fit_with_batch_norm(sync_batchnorm):
    module = Normalised()
    trainer = Trainer(
        devices=2,
        max_epochs=1,
        sync_batchnorm=sync_batchnorm,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **QUIET,
    )
    trainer.fit(module, share(data(), 4), DataLoader(data(), 8))
    assert type(module.layer[1]) is nn.BatchNorm1d
    return weights(module), module.seen


def test_batch_norms_share_their_statistics_on_gpus_only():
    with pytest.raises(RanksFailed, match="On a CPU type: sync_batchnorm=False"):
        run_ranks(fit_with_batch_norm, 2, True)


def test_validation_sees_the_buffers_of_rank_0():
    (_, first), (_, second) = run_ranks(fit_with_batch_norm, 2, False)
    assert torch.equal(first, second)


def wrapped_during_fit():
    module = Regression()
    kinds = []
    module.on_train_start = lambda: kinds.append(type(module.trainer.strategy.model))
    trainer, _ = fit(module=module)
    strategy = trainer.strategy
    return kinds, strategy.is_distributed, strategy.world_size, strategy.global_rank, strategy.num_processes


def test_what_a_strategy_says_of_itself():
    for rank, said in enumerate(run_ranks(wrapped_during_fit, 2)):
        assert said == ([DistributedDataParallel], True, 2, rank, 2)


def evaluate_with_other_weights():
    module = Regression()
    with torch.no_grad():
        module.layer.weight.fill_(dist.get_rank())
    module.validation_step = lambda batch, batch_idx: None
    Trainer(devices=2, **QUIET).validate(module, DataLoader(data(), 8), verbose=False)
    return weights(module)["layer.weight"]


def test_an_evaluation_starts_from_the_weights_of_rank_0():
    for weight in run_ranks(evaluate_with_other_weights, 2):
        assert torch.equal(weight, torch.zeros(1, 4))


def train_a_frozen_module():
    module = Regression()
    module.freeze()
    fit(module=module)


def test_nothing_to_train():
    with pytest.raises(RanksFailed, match="no parameter that requires a gradient"):
        run_ranks(train_a_frozen_module, 2)


def test_an_unknown_start_method():
    with pytest.raises(ValueError, match="'popen', 'spawn', 'fork', 'forkserver'"):
        DDPStrategy(start_method="thread")


def test_a_strategy_can_be_copied():
    assert copy.deepcopy(DDPStrategy(static_graph=True))._ddp_kwargs == {"static_graph": True}
