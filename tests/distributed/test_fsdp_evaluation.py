"""Evaluation of sharded modules: no sample twice, and ranks with fewer batches take part in the steps of others."""

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, IterableDataset, Subset

from fulmen.fabric.strategies.sharding import has_shards
from fulmen.strategies import FSDPStrategy
from processes import RanksFailed, run_ranks
from sharded_runs import Evaluated, data, fit_alone, share, trainer_for


class Counting(Evaluated):
    """Notes for how many samples it was called."""

    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_validation_batch_end(self, outputs, batch, batch_idx):
        self.seen.append(len(batch[0]))
        assert has_shards(dict(self.named_parameters()))  # whole parameters are there in a step only

    def on_test_batch_end(self, outputs, batch, batch_idx):
        self.seen.append(len(batch[0]))


class Stream(IterableDataset):
    def __init__(self, indices):
        self.indices = list(indices)

    def __iter__(self):
        return (data(16)[index] for index in self.indices)


def parts(lengths):
    start = sum(lengths[: dist.get_rank()])
    return range(start, start + lengths[dist.get_rank()])


def evaluate(lengths, settings):
    module = Counting()
    trainer = trainer_for(FSDPStrategy(**settings))
    own = parts(lengths)
    [validated] = trainer.validate(module, DataLoader(Subset(data(16), own), 2), verbose=False)
    seen, module.seen = module.seen, []
    [tested] = trainer.test(module, DataLoader(Stream(own), 2), verbose=False)
    assert module.seen == seen
    predictions = trainer.predict(module, DataLoader(Subset(data(16), own), 2)) or []
    trainer.fit(module, share(data()), share(data()))  # what was evaluated can be trained
    return sum(seen), validated["val_loss"], tested["test_loss"], torch.cat([torch.zeros(0, 1), *predictions])


@pytest.mark.parametrize(
    ("lengths", "settings"),
    [((6, 1), {}), ((0, 5), {"sharding_strategy": "SHARD_GRAD_OP"}), ((2, 7, 4, 0), {})],
    ids=["few", "none", "four"],
)
@pytest.mark.filterwarnings("ignore:.*(zero|no batches|length|0).*")
def test_uneven_shards_give_the_values_of_one_process(lengths, settings):
    count = sum(lengths)
    alone = fit_alone(Evaluated, max_epochs=0)
    module = Evaluated()
    [expected] = alone.validate(module, DataLoader(data(16).__class__(*data(16)[:count]), 2), verbose=False)
    predicted = torch.cat(alone.predict(module, DataLoader(Subset(data(16), range(count)), 2)))

    results = run_ranks(evaluate, len(lengths), lengths, settings)
    assert [seen for seen, *_ in results] == list(lengths)
    assert [tested for _, _, tested, _ in results] == pytest.approx([expected["val_loss"]] * len(lengths), rel=1e-5)
    assert [validated for _, validated, _, _ in results] == pytest.approx(
        [expected["val_loss"]] * len(lengths), rel=1e-5
    )
    assert torch.allclose(torch.cat([prediction for *_, prediction in results]), predicted, atol=1e-6)


class Parting(Evaluated):
    """Runs other modules on one rank than on the others."""

    allow_zero_length_dataloader_with_multiple_devices = True

    def validation_step(self, batch, batch_idx):
        parts = self.blocks if dist.get_rank() else reversed(self.blocks)
        for part in parts:
            part(batch[0])


def evaluate_parting():
    trainer_for().validate(Parting(), DataLoader(Subset(data(8), range([4, 4, 0][dist.get_rank()])), 4), verbose=False)


@pytest.mark.filterwarnings("ignore:.*(zero|no batches|length|0).*")
def test_ranks_that_part_are_told():
    with pytest.raises(
        RanksFailed, match=r"do not run the same sharded modules: others are at blocks\.1, rank 1 at blocks\.0"
    ):
        run_ranks(evaluate_parting, 3)


class Lying(Stream):
    def __init__(self, indices, length):
        super().__init__(indices)
        self.length = length

    def __len__(self):
        return self.length


def evaluate_lying():
    data = Lying(range(2), length=4) if dist.get_rank() else Lying(range(3), length=3)
    trainer_for().validate(Evaluated(), DataLoader(data, 1), verbose=False)


@pytest.mark.filterwarnings("ignore:The `IterableDataset`")
def test_lengths_have_to_be_true():
    with pytest.raises(RanksFailed, match="data of rank 1 have 4 batches by their length, and ended before"):
        run_ranks(evaluate_lying, 2)


def evaluate_within_fit(path):
    """Validation with fewer batches on a rank, within a fit, and again after."""
    module = Counting()
    trainer = trainer_for(max_epochs=2, num_sanity_val_steps=2)
    loader = DataLoader(Subset(data(16), parts((5, 2))), 2)
    trainer.fit(module, share(data()), loader)
    return len(module.seen), trainer.callback_metrics["val_loss"].item()


def test_validation_within_a_fit(tmp_path):
    (first, loss), (second, same) = run_ranks(evaluate_within_fit, 2, str(tmp_path))
    assert (first, second) == (2 + 3 * 2, 1 + 1 * 2)
    assert loss == same
