"""Model parallel over real processes: the same numbers as one process, whatever is spread over which dimension."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.utils.data import DataLoader, TensorDataset

import meshes
from fulmen import LightningModule, Trainer
from fulmen.callbacks import EMAWeightAveraging, WeightAveraging
from fulmen.strategies import ModelParallelStrategy
from meshes import QUIET, Classifier, Part, assert_same, data, fit, fit_on_a_rank, loader, weights
from processes import RanksFailed, run_ranks


def alone(arguments=None, settings=None):
    module = Classifier(**arguments or {})
    trainer = fit(module, **settings or {})
    return weights(module), trainer.global_step


ADAM = {"optimizer": torch.optim.AdamW}


@pytest.mark.parametrize(
    ("spread", "sizes", "arguments", "settings"),
    [
        ("tensor", (1, 2), ADAM, {}),
        ("tensor", (), {}, {"gradient_clip_val": 0.05}),
        ("tensor", (1, "auto"), {}, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
        ("tensor", (2, "auto"), ADAM, {"accumulate_grad_batches": 3}),
        ("head", ("auto", 1), {}, {"gradient_clip_val": 0.05}),
        ("head", (2, 1), {}, {"accumulate_grad_batches": 3}),
    ],
)
def test_training_equals_that_of_one_process(spread, sizes, arguments, settings):
    expected, steps = alone(arguments, settings)
    for result, count in run_ranks(fit_on_a_rank, 2, spread, sizes, arguments, settings):
        assert count == steps
        assert_same(result, expected)


@pytest.mark.parametrize(
    ("spread", "sizes", "settings"),
    [
        ("sharded", (2, 2), {"gradient_clip_val": 0.05, "accumulate_grad_batches": 3}),
        pytest.param("sharded", ((2, 1), 2), {"gradient_clip_val": 0.05}, marks=pytest.mark.slow),
        pytest.param("sharded", ((2, 2), 1), {"accumulate_grad_batches": 2}, marks=pytest.mark.slow),
        pytest.param("tensor", (2, 2), {"gradient_clip_val": 0.05}, marks=pytest.mark.slow),
        pytest.param("tensor", ((2, 2), 1), {}, marks=pytest.mark.slow),
    ],
)
def test_training_on_four_processes_equals_that_of_one(spread, sizes, settings):
    expected, steps = alone(ADAM, settings)
    for result, count in run_ranks(fit_on_a_rank, 4, spread, sizes, ADAM, settings):
        assert count == steps
        assert_same(result, expected)


def fit_sequences(optimizer):
    return fit_on_a_rank("sequence", (1, 2), {"optimizer": torch.optim.AdamW, **optimizer}, {"gradient_clip_val": 0.05})


@pytest.mark.parametrize("optimizer", [{}, {"foreach": True}, {"fused": True}])
def test_sequence_parallel(optimizer):
    expected, _ = alone({"sequences": True, **ADAM}, {"gradient_clip_val": 0.05})
    for result, _ in run_ranks(fit_sequences, 2, optimizer):
        assert_same(result, expected)


def fit_with_a_loss_of_shards(manual):
    module = Classifier("classes")
    if manual:
        module.automatic_optimization = False
        module.training_step = manual_step.__get__(module)
    module.validation_step = module.training_step if not manual else lambda batch, batch_idx: None
    module.network.head = nn.Linear(4, 4)
    strategy = ModelParallelStrategy(loss_parallel=True)
    trainer = Trainer(devices=2, strategy=strategy, max_epochs=1, num_sanity_val_steps=1, **QUIET)
    trainer.fit(module, Part(strategy, loader()), Part(strategy, loader()))
    return weights(module)


def manual_step(module, batch, batch_idx):
    x, y = batch
    optimizer = module.optimizers()
    for _ in range(2):
        optimizer.zero_grad()
        module.manual_backward(nn.functional.cross_entropy(module.network(x), y))
        optimizer.step()


@pytest.mark.parametrize("manual", [False, True])
def test_loss_parallel(manual):
    module = Classifier()
    module.network.head = nn.Linear(4, 4)
    if manual:
        module.automatic_optimization = False
        module.training_step = manual_step.__get__(module)
    fit(module, epochs=1)
    for result in run_ranks(fit_with_a_loss_of_shards, 2, manual):
        assert_same(result, weights(module))


def fit_manually(sizes):
    module = Classifier("tensor")
    module.automatic_optimization = False
    module.training_step = manual_step.__get__(module)
    fit(module, ModelParallelStrategy(*sizes), epochs=1)
    return weights(module)


@pytest.mark.parametrize("sizes", [(1, 2), (2, 1)])
def test_manual_optimisation_exchanges_each_backward_pass(sizes):
    module = Classifier()
    module.automatic_optimization = False
    module.training_step = manual_step.__get__(module)
    fit(module, epochs=1)
    for result in run_ranks(fit_manually, 2, sizes):
        assert_same(result, weights(module))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-true"])
def test_precisions(precision):
    settings = {"precision": precision}
    expected, _ = alone({}, settings)
    first, second = (result for result, _ in run_ranks(fit_on_a_rank, 2, "tensor", (1, 2), {}, settings))
    assert_same(first, second, rtol=0, atol=0)
    assert_same(first, expected, rtol=0.05, atol=0.02)


def fit_from_seeds_of_the_ranks(sizes, dropout):
    module = Classifier("tensor", seed=dist.get_rank(), dropout=dropout)
    torch.manual_seed(7 + dist.get_rank())
    fit(module, ModelParallelStrategy(*sizes), epochs=1)
    return weights(module), torch.rand(1).item()


def test_processes_with_the_same_batches_draw_alike():
    (first, number), (second, other) = run_ranks(fit_from_seeds_of_the_ranks, 2, (1, 2), 0.5)
    assert number == other
    assert_same(first, second, rtol=0, atol=0)


def test_copies_start_as_those_of_rank_0():
    module = Classifier()
    fit(module, epochs=1)
    (first, number), (second, other) = run_ranks(fit_from_seeds_of_the_ranks, 2, (2, 1), 0.0)
    assert number != other  # each has batches of its own
    assert_same(first, second, rtol=0, atol=0)
    assert_same(first, weights(module))


def use_only_on_one_rank():
    """A parameter gets a gradient on the first rank only, another one nowhere."""
    module = Classifier("tensor", optimizer=torch.optim.AdamW)
    module.idle, module.extra = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    step = module.training_step

    def training_step(batch, batch_idx):
        loss = step(batch, batch_idx)
        return loss + module.extra.sum() if dist.get_rank() == 0 else loss

    module.training_step = training_step
    seen = []
    module.on_before_optimizer_step = lambda optimizer: seen.append((module.extra.grad, module.idle.grad))
    fit(module, ModelParallelStrategy(2, 1), epochs=1)
    return seen[0]


def test_parameters_used_by_some_processes_only():
    for used, unused in run_ranks(use_only_on_one_rank, 2):
        assert torch.equal(used, torch.full((2,), 0.5))
        assert unused is None


class Itself(LightningModule):
    """Its parameters are its own, and it is sharded itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)
        self.seen = []

    def configure_model(self):
        if not isinstance(self.layer.weight, torch.distributed.tensor.DTensor):
            fully_shard(self, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.seen.append(batch_idx)
        self.layer(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit_itself(manual):
    module = Itself()
    module.automatic_optimization = not manual
    strategy = ModelParallelStrategy(2, 1)
    settings = {"max_epochs": 1, "limit_val_batches": 0, "use_distributed_sampler": False, **QUIET}
    trainer = Trainer(devices=2, strategy=strategy, **settings)
    trainer.fit(module, Part(strategy, loader()), loader())
    trainer.limit_val_batches = 1.0
    # the first rank has a batch more than the other
    trainer.validate(module, DataLoader(data(8 * (2 - dist.get_rank())), 8), verbose=False)
    return weights(module), module.seen


def test_the_module_itself_may_be_sharded():
    module = Itself()
    module.configure_model = lambda: None
    Trainer(max_epochs=1, limit_val_batches=0, **QUIET).fit(module, loader(), loader())
    (first, batches), (second, fewer) = run_ranks(fit_itself, 2, False)
    assert_same(first, weights(module))
    assert_same(first, second, rtol=0, atol=0)
    assert (batches, fewer) == ([0, 1], [0])


def test_a_sharded_module_cannot_compute_gradients_within_its_own_step():
    with pytest.raises(RanksFailed, match="Call it on the networks within instead"):
        run_ranks(fit_itself, 2, True)


def evaluate_unevenly(spread):
    module = Classifier(spread)
    seen = []

    def validation_step(batch, batch_idx):
        seen.append(batch_idx)
        module.log("accuracy", (module.network(batch[0]).argmax(1) == batch[1]).float().mean(), sync_dist=True)

    module.validation_step = validation_step
    trainer = Trainer(devices=2, strategy=ModelParallelStrategy(2, 1), use_distributed_sampler=False, **QUIET)
    trainer.validate(module, DataLoader(data(8 * (1 + dist.get_rank())), 8), verbose=False)
    return seen


@pytest.mark.parametrize("spread", ["sharded", "tensor"])
def test_evaluation_of_uneven_data(spread):
    assert run_ranks(evaluate_unevenly, 2, spread) == [[0], [0, 1]]


def batches_and_sums():
    module = Classifier("tensor")
    seen = []
    module.on_train_batch_start = lambda batch, batch_idx: seen.append(batch[0][:, 0].tolist())
    strategy = ModelParallelStrategy(2, 2)
    trainer = Trainer(devices=4, strategy=strategy, max_epochs=1, **QUIET)
    trainer.fit(module, DataLoader(TensorDataset(*data().tensors), 4))
    ones = torch.ones(())
    return (
        seen,
        strategy.reduce(ones, reduce_op="sum").item(),
        strategy.distributed_sampler_kwargs,
        module.device_mesh.mesh_dim_names,
    )


def test_data_are_divided_along_the_data_dimension():
    results = run_ranks(batches_and_sums, 4)
    assert [share for _, _, share, _ in results] == [{"num_replicas": 2, "rank": rank} for rank in (0, 0, 1, 1)]
    batches = [batches for batches, _, _, _ in results]
    assert batches[0] == batches[1] != batches[2] == batches[3]
    drawn = sorted(x for batch in batches[0] + batches[2] for x in batch)
    assert drawn == sorted(data().tensors[0][:, 0].tolist())
    for _, total, _, names in results:
        assert total == 2
        assert names == ("data_parallel", "tensor_parallel")


def fit_with_both_kinds(optimizer):
    module = Classifier("tensor", optimizer=torch.optim.AdamW, **optimizer)
    trainer = fit(module, ModelParallelStrategy(1, 2), epochs=1)
    group = trainer.optimizers[0].param_groups[0]
    return weights(module), group["foreach"], group["fused"]


@pytest.mark.parametrize("option", ["foreach", "fused"])
def test_shards_and_whole_parameters_are_not_updated_at_once(option):
    with pytest.raises(RanksFailed, match=rf"AdamW\({option}=True\) has both parameters that are spread"):
        run_ranks(fit_with_both_kinds, 2, {option: True})


def test_what_torch_would_choose_is_left_out():
    module = Classifier(**ADAM)
    fit(module, epochs=1)
    for result, foreach, fused in run_ranks(fit_with_both_kinds, 2, {}):
        assert_same(result, weights(module))
        assert foreach is fused is None  # as it is saved


def run_wrongly(kind):
    module = Classifier("tensor")
    settings = {}
    sizes = (1, 2)
    if kind == "not said":
        module = LightningModule()
        module.training_step = lambda batch, batch_idx: None
        module.configure_optimizers = lambda: None
    elif kind == "product":
        sizes = (2, 2)
    elif kind == "fsdp1":
        module.configure_model = lambda: setattr(
            module, "network", FullyShardedDataParallel(module.network, device_id=torch.device("cpu"))
        )
    elif kind == "precision":
        settings = {"precision": "64-true"}
    elif kind == "half":
        sizes = ((2, 1), 1)
        module.configure_model = lambda: fully_shard(module.network, mesh=module.device_mesh["shard"])
    elif kind == "nothing":
        module.configure_model = lambda: None
    fit(module, ModelParallelStrategy(*sizes), **settings)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("not said", r"TypeError: `ModelParallelStrategy` leaves it to the module how it is spread.*configure_model"),
        ("product", "data_parallel=2 x tensor_parallel=2 multiplied have to be the number of processes, which is 2"),
        ("fsdp1", r"TypeError: 'network' is wrapped by FullyShardedDataParallel"),
        ("precision", "precision='64-true'. Type one of: 32-true, bf16-mixed, bf16-true, 16-true"),
        ("half", r'ValueError: `fully_shard` divides .network.*self.device_mesh\["replicate", "shard"\]'),
        ("nothing", "No parameter of Classifier is spread over tensor_parallel"),
    ],
)
def test_what_cannot_work_is_refused(kind, message):
    with pytest.raises(RanksFailed, match=f"(?s){message}"):
        run_ranks(run_wrongly, 2, kind)


def test_there_is_no_mesh_before_the_processes():
    strategy = ModelParallelStrategy()
    with pytest.raises(RuntimeError, match="no device mesh before the processes have started"):
        strategy.device_mesh  # noqa: B018
    assert LightningModule().device_mesh is None


def test_sizes_are_checked_at_once():
    with pytest.raises(ValueError, match=r"tensor_parallel_size has to be 'auto' or a number of processes; got 0"):
        ModelParallelStrategy(tensor_parallel_size=0)
    with pytest.raises(ValueError, match=r"parallelize_fn=tensor"):
        ModelParallelStrategy(meshes.tensor)


def copy_in_a_run():
    module = Classifier("tensor")
    copies = []
    module.on_train_start = lambda: copies.append(copy.deepcopy(module.network).state_dict())
    fit(module, ModelParallelStrategy(1, 2), epochs=1)
    return list(copies[0]), copy.copy(module).__getstate__()["_device_mesh"] is None


def test_a_module_can_be_copied():
    for names, is_dropped in run_ranks(copy_in_a_run, 2):
        assert names == list(meshes.Network().state_dict())
        assert is_dropped


def share_statistics():
    strategy = ModelParallelStrategy(2, 1)
    trainer = Trainer(devices=2, strategy=strategy, sync_batchnorm=True, max_epochs=1, **QUIET)
    trainer.fit(Classifier("tensor"), Part(strategy, loader()))


def test_modules_that_are_spread_are_not_replaced():
    with pytest.raises(RanksFailed, match=r"convert_sync_batchnorm\(self.network\)"):
        run_ranks(share_statistics, 2)


def fit_without_data_at_first(spread, sizes):
    module = Classifier(spread)
    with torch.device("meta"):
        module.network = meshes.Network()
    torch.manual_seed(3 + dist.get_rank())
    fit(module, ModelParallelStrategy(*sizes), epochs=1)
    return weights(module)


@pytest.mark.parametrize(("spread", "sizes"), [("tensor", (1, 2)), ("sharded", (2, 1))])
def test_modules_made_without_data(spread, sizes):
    module = Classifier()
    torch.manual_seed(3)
    for part in module.network.modules():
        getattr(part, "reset_parameters", lambda: None)()
    fit(module, epochs=1)
    for result in run_ranks(fit_without_data_at_first, 2, spread, sizes):
        assert_same(result, weights(module))


AVERAGES = {"exponential": lambda: EMAWeightAveraging(decay=0.5), "mean": WeightAveraging}


def fit_with_an_average(spread, sizes, kind):
    module = Classifier(spread)
    fit(module, ModelParallelStrategy(*sizes), callbacks=[AVERAGES[kind]()])
    return weights(module)


@pytest.mark.parametrize(
    ("spread", "sizes", "kind"),
    [("tensor", (1, 2), "exponential"), ("tensor", (1, 2), "mean"), ("sharded", (2, 1), "exponential")],
)
def test_averages_of_weights(spread, sizes, kind):
    module = Classifier()
    fit(module, callbacks=[AVERAGES[kind]()])
    for result in run_ranks(fit_with_an_average, 2, spread, sizes, kind):
        assert_same(result, weights(module))


class Normalised(LightningModule):
    def __init__(self):
        super().__init__()
        self.norm, self.layer = nn.BatchNorm1d(4), nn.Linear(4, 3)

    def configure_model(self):
        pass

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.layer(self.norm(batch[0])), batch[1])

    def validation_step(self, batch, batch_idx):
        self.seen = self.norm.running_mean.clone()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def validate_with_buffers():
    module = Normalised()
    strategy = ModelParallelStrategy(2, 1)
    trainer = Trainer(devices=2, strategy=strategy, max_epochs=1, num_sanity_val_steps=0, **QUIET)
    trainer.fit(module, Part(strategy, loader()), loader())
    return module.seen


def test_validation_sees_the_buffers_of_rank_0():
    first, second = run_ranks(validate_with_buffers, 2)
    assert torch.equal(first, second)
