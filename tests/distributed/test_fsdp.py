"""FSDP over real processes: the same numbers as one process on the same global batches."""

import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.amp import GradScaler
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, MixedPrecision, fully_shard
from torch.distributed.fsdp.wrap import wrap
from torch.distributed.tensor import DTensor

from fulmen import LightningModule
from fulmen.fabric.strategies.sharding import gather
from fulmen.plugins import FSDPPrecision
from fulmen.strategies import FSDPStrategy
from processes import RanksFailed, run_ranks
from sharded_runs import Block, Blocks, Evaluated, data, difference, fit_alone, share, trainer_for


def run(name, strategy, arguments):
    """Fits a module of that name, and gives back whole weights, the losses of the global batches, and the units."""
    module = globals()[name]()
    trainer = trainer_for(FSDPStrategy(**strategy), **arguments)
    trainer.fit(module, share(data()))
    assert all(isinstance(parameter, DTensor) for parameter in module.parameters())
    units = [name for name, part in module.named_modules() if isinstance(part, FSDPModule)]
    losses = torch.tensor(module.losses)
    dist.all_reduce(losses)
    return gather(module.state_dict(), keep=True), (losses / dist.get_world_size()).tolist(), units


def check(make, strategy, ranks=2, tolerance=2e-6, **arguments):
    """Compares with one process; returns the names of the units."""
    alone = fit_alone(make, **arguments)
    weights, losses, units = run_ranks(run, ranks, make.__name__, strategy, arguments)[0]
    assert list(weights) == list(alone.lightning_module.state_dict())
    assert difference(dict(alone.lightning_module.state_dict()), dict(weights)) < tolerance
    if len(losses) == len(alone.lightning_module.losses):
        assert difference(alone.lightning_module.losses, losses) < 1e-5
    return units


class Fused(Blocks):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.02, fused=True)


class Foreach(Blocks):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.02, momentum=0.9, foreach=True)


@pytest.mark.parametrize(
    "strategy",
    [
        {},
        {"sharding_strategy": "SHARD_GRAD_OP"},
        {"sharding_strategy": "NO_SHARD"},
        {"cpu_offload": True, "activation_checkpointing_policy": {Block}},
    ],
    ids=["full", "grad_op", "none", "offloaded"],
)
def test_equals_one_process(strategy):
    units = check(Blocks, strategy)
    assert units == ["", "blocks.0", "blocks.1"]


def test_hybrid_on_four_processes():
    check(Blocks, {"sharding_strategy": "HYBRID_SHARD", "device_mesh": (2, 2)}, ranks=4)


@pytest.mark.parametrize("make", [Fused, pytest.param(Foreach, marks=pytest.mark.slow)])
def test_optimizers(make):
    check(make, {})


@pytest.mark.parametrize(
    "arguments",
    [
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    ],
    ids=["accumulated_clipped_by_norm", "clipped_by_value"],
)
def test_windows_and_clipping(arguments):
    check(Blocks, {}, **arguments)


# ------------------------------------------------------------------------------------------------ steps


class CallsItself(Blocks):
    """Uses a parameter, calls itself with what requires a gradient, and again."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        hidden = self.first(x)
        loss = nn.functional.mse_loss(self(hidden), y) + (self(hidden * 2) ** 2).mean()
        self.losses.append(loss.item())
        return {"loss": loss}


class Manual(Blocks):
    """Two optimizers and two forward passes in a step, the second after an update."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            loss = self.loss(batch)
            for each in self.optimizers():
                each.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, 0.5, "norm")
            optimizer.step()
            self.losses.append(loss.item())

    def configure_optimizers(self):
        rest = [*self.first.parameters(), *self.last.parameters()]
        return torch.optim.SGD(self.blocks.parameters(), 0.05), torch.optim.Adam(rest, 0.02)


def test_a_step_may_call_the_module_itself():
    check(CallsItself, {})


@pytest.mark.parametrize("policy", [pytest.param(None, marks=pytest.mark.slow), set()], ids=["blocks", "root_only"])
def test_manual_optimisation(policy):
    check(Manual, {"auto_wrap_policy": policy})


class Fails(Blocks):
    fails = True

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.fails:
            raise KeyError("mine")
        return loss


def fit_after_a_failure(is_old):
    if is_old:
        del FSDPModule.reset_iter_state
    module = Fails()
    with pytest.raises(KeyError):
        trainer_for(FSDPStrategy(sharding_strategy="SHARD_GRAD_OP")).fit(module, share(data()))
    module.fails = False
    module.losses.clear()
    trainer_for(FSDPStrategy(sharding_strategy="SHARD_GRAD_OP")).fit(module, share(data()))
    return gather(module.state_dict(), keep=True)


@pytest.mark.parametrize("is_old", [False, True], ids=["new_torch", "old_torch"])
def test_training_goes_on_after_an_exception_in_a_step(is_old):
    expected = fit_alone().lightning_module.state_dict()
    assert difference(dict(expected), dict(run_ranks(fit_after_a_failure, 1, is_old)[0])) < 2e-6


# ------------------------------------------------------------------------------------------------ modules


class Tied(Blocks):
    def __init__(self):
        super().__init__()
        self.blocks[1].up.weight = self.blocks[0].up.weight


def test_tied_parameters_stay_tied():
    with pytest.raises(RanksFailed, match=r"blocks.0.up.weight', 'blocks.1.up.weight'\] are one and the same"):
        run_ranks(run, 2, "Tied", {}, {})
    assert check(Tied, {"auto_wrap_policy": set()}) == [""]


class Marked(Blocks):
    """Marks one module in the way of FSDP1, and shards another one itself."""

    def configure_model(self):
        wrap(self.last)
        if not isinstance(self.blocks[0], FSDPModule):
            fully_shard(self.blocks[0])


def units_of_marked():
    module = Marked()
    trainer_for().fit(module, share(data()))
    return [name for name, part in module.named_modules() if isinstance(part, FSDPModule)]


def test_units_may_be_chosen_one_by_one():
    assert run_ranks(units_of_marked, 2) == [["", "blocks.0", "last"]] * 2


def weights_of_unlike_modules():
    module = Blocks()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(dist.get_rank() + 1)
    trainer_for(max_steps=0).fit(module, share(data()))
    return {value.unique().item() for value in gather(module.state_dict(), keep=True).values()}


def test_the_weights_of_rank_0_count():
    assert run_ranks(weights_of_unlike_modules, 2) == [{1.0}] * 2


class MadeLate(Blocks):
    """Is made without data."""

    def __init__(self):
        LightningModule.__init__(self)
        self.losses, self.first = [], None

    def configure_model(self):
        if self.first is not None:
            return
        with torch.device("meta"):
            self.first = nn.Linear(4, 4)
            self.blocks = nn.ModuleList(Block() for _ in range(2))
            self.last = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1))
            self.blocks[1].up.weight = self.blocks[0].up.weight

    def _init_weights(self, module):
        if isinstance(module, nn.BatchNorm1d):
            nn.init.constant_(module.bias, 0.5)


def fit_late(path):
    torch.manual_seed(dist.get_rank())  # what one rank draws counts for all
    module = MadeLate()
    trainer = trainer_for(FSDPStrategy(auto_wrap_policy={nn.BatchNorm1d}))
    trainer.fit(module, share(data()))
    trainer.save_checkpoint(path)
    again = MadeLateEvaluated()
    trainer_for(FSDPStrategy(auto_wrap_policy=set())).validate(again, share(data(8)), ckpt_path=path, verbose=False)
    norm = module.last[0]
    assert norm.bias is not None
    states = [gather(dict(each.state_dict()), keep=True) for each in (module, again)]
    return module.losses, difference(*states), norm.num_batches_tracked.item()


class MadeLateEvaluated(MadeLate, Evaluated):
    pass


def test_modules_without_data_are_filled_unit_by_unit(tmp_path):
    (losses, apart, batches), _ = run_ranks(fit_late, 2, str(tmp_path / "late.ckpt"))
    assert losses[-1] < losses[0]
    assert apart == 0.0
    assert batches == 3


class Unfillable(Blocks):
    def configure_model(self):
        self.scale = nn.Parameter(torch.empty(1, device="meta"))


def test_modules_that_nobody_can_fill_are_named():
    with pytest.raises(RanksFailed, match="Unfillable was made on the meta device, and nothing says how to fill"):
        run_ranks(run, 1, "Unfillable", {}, {})


class FSDP1(Blocks):
    def configure_model(self):
        with warnings.catch_warnings(action="ignore"):
            self.last = FullyShardedDataParallel(self.last, device_id=torch.device("cpu"))


def test_fsdp1_is_refused():
    with pytest.raises(RanksFailed, match="'last' is wrapped by FullyShardedDataParallel"):
        run_ranks(run, 1, "FSDP1", {}, {})


# ------------------------------------------------------------------------------------------------ precision


def fit_in(precision, strategy):
    module = Blocks()
    plugin = FSDPPrecision(precision, GradScaler("cpu", init_scale=2.0**8) if precision == "16-mixed" else None)
    trainer = trainer_for(FSDPStrategy(precision_plugin=plugin, **strategy), gradient_clip_val=5.0)
    trainer.fit(module, share(data()))
    total = torch.tensor(module.losses)
    dist.all_reduce(total)
    scale = plugin.scaler.get_scale() if plugin.scaler else None
    return (total / 2).tolist(), module.last.weight.dtype, scale


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("bf16-mixed", torch.float32),
        ("16-mixed", torch.float32),
        ("bf16-true", torch.bfloat16),
        pytest.param("32-true", torch.float32, marks=pytest.mark.slow),
    ],
)
def test_precisions(precision, dtype):
    expected = fit_alone(gradient_clip_val=5.0).lightning_module.losses
    (losses, found, scale), _ = run_ranks(fit_in, 2, precision, {})
    assert found is dtype
    assert losses == pytest.approx(expected, rel=1e-5 if precision == "32-true" else 0.1)
    assert scale is None or scale == 2.0**8


def dtypes_in_a_step():
    seen = []

    class Watching(Blocks):
        def forward(self, x):
            seen.append((x.dtype, self.last.weight.dtype))
            return super().forward(x)

    precision = MixedPrecision(param_dtype=torch.bfloat16, cast_root_forward_inputs=True)
    trainer = trainer_for(FSDPStrategy(mixed_precision=precision), max_steps=1)
    trainer.fit(Watching(), share(data()))
    by_name = trainer_for("fsdp", precision="bf16-mixed").precision_plugin
    return seen, type(by_name).__name__


def test_precision_by_argument_and_by_name():
    assert run_ranks(dtypes_in_a_step, 1) == [([(torch.bfloat16, torch.bfloat16)], "FSDPPrecision")]
