"""Data on real ranks: one order, whoever draws it; evaluation without repetition; positions for any number of ranks."""

import random

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Sampler, WeightedRandomSampler

from fulmen import LightningModule, Trainer
from fulmen.fabric import Fabric
from processes import RanksFailed, run_ranks

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:The .* loader (has . workers|shuffles):fulmen.errors.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:There is a `validation_step` but no val:fulmen.errors.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:`self.log:fulmen.errors.PossibleUserWarning"),
]


class Numbers(Dataset):
    def __init__(self, size):
        self.size = size

    def __getitem__(self, index):
        return torch.tensor([float(index)])

    def __len__(self):
        return self.size


class Notes(LightningModule):
    """Notes what it is given, and draws random numbers meanwhile."""

    def __init__(self, draws=True):
        super().__init__()
        self.draws = draws
        self.layer = torch.nn.Linear(1, 1)
        self.train_seen, self.val_seen, self.epochs = [], [], []

    def training_step(self, batch, batch_idx):
        if self.draws:
            torch.rand(1 + self.global_rank)
        self.train_seen.append(batch.flatten().int().tolist())
        return self.layer(batch).mean()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.val_seen.append(batch.flatten().int().tolist())

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return batch.flatten().int().tolist()

    def on_train_epoch_end(self):
        self.epochs.append(self.train_seen)
        self.train_seen = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def my_rank():
    return dist.get_rank() if dist.is_initialized() else 0


def seeded_by_rank():
    """Each rank has random numbers of its own; those of rank 0 are the ones of one process."""
    torch.manual_seed(my_rank())
    random.seed(my_rank())


def trainer_for(devices, **settings):
    return Trainer(devices=devices, **{"max_epochs": 2, "num_sanity_val_steps": 0, **QUIET, **settings})


class Drawn(Sampler):
    """Of the user's own: draws from Python's generator, which only rank 0 has in the right state."""

    def __iter__(self):
        return iter(random.sample(range(11), 11))

    def __len__(self):
        return 11


def loader_of(kind, batch_size):
    data = Numbers(11)
    return {
        "shuffled": lambda: DataLoader(data, batch_size, shuffle=True),
        "generator": lambda: DataLoader(data, batch_size, shuffle=True, generator=torch.Generator()),
        "tensors": lambda: DataLoader(
            torch.utils.data.TensorDataset(torch.arange(11.0)[:, None]), batch_size, shuffle=True, collate_fn=first
        ),
        "weighted": lambda: DataLoader(data, batch_size, sampler=WeightedRandomSampler([1.0] * 11, 11)),
        "custom": lambda: DataLoader(data, batch_size, sampler=Drawn()),
        "in order": lambda: DataLoader(data, batch_size),
    }[kind]()


def first(samples):
    return torch.stack([sample[0] for sample in samples])


def fit(devices, kind, batch_size):
    seeded_by_rank()
    module = Notes()
    trainer = trainer_for(devices)
    trainer.fit(module, loader_of(kind, batch_size))
    assert isinstance(trainer.train_dataloader.sampler, DistributedSampler) or devices == 1
    return module.epochs


def dealt(shares):
    """The samples in the order of one process, from the batches of the ranks in one epoch."""
    rows = zip(*[[index for batch in share for index in batch] for share in shares], strict=True)
    return [index for row in rows for index in row]


@pytest.mark.parametrize("kind", ["shuffled", "generator", "tensors", "weighted", "custom", "in order"])
def test_the_order_is_that_of_rank_0_alone(kind):
    expected = fit(1, kind, 4)
    shares = run_ranks(fit, 2, 2, kind, 2)
    for epoch in range(2):
        order = [index for batch in expected[epoch] for index in batch]
        assert dealt([share[epoch] for share in shares]) == [*order, order[0]]
        for number, batch in enumerate(expected[epoch][:-1]):
            assert sorted(index for share in shares for index in share[epoch][number]) == sorted(batch)


def evaluate(devices, size):
    seeded_by_rank()
    module, trainer = Notes(), trainer_for(devices)
    trainer.validate(module, DataLoader(Numbers(size), 2), verbose=False)
    validated, module.val_seen = module.val_seen, []
    trainer.test(module, [DataLoader(Numbers(size), 2, shuffle=True), DataLoader(Numbers(3), 2)], verbose=False)
    return validated, module.val_seen, trainer.predict(module, DataLoader(Numbers(size), 2, drop_last=True))


@pytest.mark.parametrize("size", [1, 7])
def test_evaluation_and_prediction_see_each_sample_once(size):
    results = run_ranks(evaluate, 3, 3, size)
    for once, number in ((0, size), (1, size + 3), (2, size)):
        seen = [index for result in results for batch in result[once] or [] for index in batch]
        assert len(seen) == number
        assert set(seen) == set(range(max(size, 3 if once == 1 else 0)))


class Interrupted(Notes):
    """Ends the run by an exception after some batches of the second epoch."""

    def __init__(self, after):
        super().__init__(draws=False)  # as the number of batches differs, so would what is drawn in them
        self.after = after

    def on_train_batch_start(self, batch, batch_idx):
        if self.current_epoch == 1 and batch_idx == self.after:
            self.trainer.save_checkpoint("middle.ckpt")
            self.trainer.should_stop = True


def begin(devices, batch_size, after):
    seeded_by_rank()
    trainer_for(devices, min_epochs=0).fit(Interrupted(after), DataLoader(Numbers(13), batch_size, shuffle=True))


def go_on(devices, batch_size):
    torch.manual_seed(99 + my_rank())
    module = Notes(draws=False)
    trainer_for(devices, max_epochs=3).fit(
        module, DataLoader(Numbers(13), batch_size, shuffle=True), ckpt_path="middle.ckpt"
    )
    return module.epochs


@pytest.mark.parametrize(("before", "after"), [(2, 1), (2, 3), (1, 2), (2, 2)])
def test_a_run_goes_on_with_another_number_of_ranks(before, after, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seeded_by_rank()
    module = Notes(draws=False)
    trainer_for(1, max_epochs=3).fit(module, DataLoader(Numbers(13), 4, shuffle=True))
    expected = [[index for batch in epoch for index in batch] for epoch in module.epochs]

    if before == 1:
        begin(1, 2, 3)
    else:
        run_ranks(begin, before, before, 2, 3)
    consumed = before * 2 * 3  # the batch under way is given again
    shares = [go_on(1, 2)] if after == 1 else run_ranks(go_on, after, after, 2)
    left = expected[1][consumed:]
    assert dealt([share[0] for share in shares]) == left + (expected[1] * after)[: -len(left) % after]
    assert dealt([share[1] for share in shares])[:13] == expected[2]


def fit_uneven(sizes, settings):
    rank = my_rank()
    module = Notes()
    trainer = trainer_for(2, max_epochs=1, use_distributed_sampler=False, **settings)
    trainer.fit(module, DataLoader(Numbers(sizes[rank]), 2))
    return module.epochs


def test_uneven_training_data_are_refused_at_the_start():
    with pytest.raises(RanksFailed, match=r"3 on rank 1, 5 on rank 0.*limit_train_batches=3"):
        run_ranks(fit_uneven, 2, (10, 6), {})
    assert run_ranks(fit_uneven, 2, (10, 6), {"limit_train_batches": 3}) == [[[[0, 1], [2, 3], [4, 5]]]] * 2


def test_a_rank_without_training_data_is_refused():
    with pytest.raises(RanksFailed, match="no batches on this rank, but 2 on others"):
        run_ranks(fit_uneven, 2, (4, 0), {})


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.full((4, 1), float(my_rank())))


def loaders_left_alone():
    trainer, module = trainer_for(2, max_epochs=1), Notes()
    data = Numbers(8)
    own = DistributedSampler(data, shuffle=False)
    loaders = [DataLoader(Stream(), 2), DataLoader(data, 2, sampler=own)]
    module.training_step = lambda batch, batch_idx: module.layer(batch[1]).mean()
    trainer.fit(module, loaders)
    fed = trainer.train_dataloader
    return [new is old for new, old in zip(fed, loaders, strict=True)]


def test_streams_and_shared_data_are_left_alone():
    assert run_ranks(loaders_left_alone, 2) == [[True, True]] * 2


def loop_of_the_users():
    seeded_by_rank()
    fabric = Fabric(accelerator="cpu", devices=2)
    fabric.launch()
    data = Numbers(7)
    shuffled, in_order = fabric.setup_dataloaders(DataLoader(data, 2, shuffle=True), DataLoader(data, 2))
    plain = fabric.setup_dataloaders(DataLoader(data, 2), use_distributed_sampler=False)
    return [[batch.flatten().int().tolist() for batch in loader] for loader in (shuffled, in_order, plain)]


def test_fabric_shares_loaders_out_evenly():
    seeded_by_rank()
    order = [index for batch in DataLoader(Numbers(7), 2, shuffle=True) for index in batch.flatten().int().tolist()]
    first, second = run_ranks(loop_of_the_users, 2)
    assert dealt([first[0], second[0]]) == [*order, order[0]]
    assert dealt([first[1], second[1]]) == [0, 1, 2, 3, 4, 5, 6, 0]
    assert first[2] == second[2] == [[0, 1], [2, 3], [4, 5], [6]]
