"""A CombinedLoader in each loop, in each mode, with and without a limit; and what it does to the arguments."""

from __future__ import annotations

from typing import Any

import pytest

from fulmen.data import CombinedLoader

pytestmark = pytest.mark.filterwarnings("ignore:There is a `validation_step` but no val dataloader")

AT_ONCE = ["min_size", "max_size", "max_size_cycle"]
EVALUATED = {  # (dataloader_idx, batch_idx, batches as numbers)
    "min_size": [(0, 0, [0, 0]), (0, 1, [1, 1])],
    "max_size": [(0, 0, [0, 0]), (0, 1, [1, 1]), (0, 2, [None, 2])],
    "max_size_cycle": [(0, 0, [0, 0]), (0, 1, [1, 1]), (0, 2, [0, 2])],
    "sequential": [(0, 0, 0), (0, 1, 1), (1, 0, 0), (1, 1, 1), (1, 2, 2)],
}


def numbers(batch: Any) -> Any:
    if isinstance(batch, list):
        return [numbers(part) for part in batch]
    return None if batch is None else int(batch.mean())


@pytest.fixture
def seen() -> list[Any]:
    return []


@pytest.fixture
def Watching(Net: Any, seen: list[Any]) -> Any:
    def look(self: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        seen.append((dataloader_idx, batch_idx, numbers(batch)))
        return numbers(batch)

    class Watching(Net):
        validation_step = test_step = predict_step = look

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            look(self, batch, batch_idx)
            return self.layer(batch[1]).mean()

    return Watching


@pytest.mark.parametrize("mode", EVALUATED)
@pytest.mark.parametrize("stage", ["validate", "test"])
def test_evaluation(quiet: Any, data: Any, Watching: Any, seen: list[Any], mode: str, stage: str) -> None:
    getattr(quiet(), stage)(Watching(), CombinedLoader([data(2), data(3)], mode), verbose=False)
    assert seen == EVALUATED[mode]


@pytest.mark.parametrize("mode", EVALUATED)
def test_the_validation_of_a_fit(quiet: Any, data: Any, Watching: Any, seen: list[Any], mode: str) -> None:
    trainer = quiet()
    trainer.fit(Watching(), [data(1), data(1)], CombinedLoader([data(2), data(3)], mode))
    assert seen[1:] == EVALUATED[mode]
    assert trainer.num_val_batches == ([2, 3] if mode == "sequential" else [len(EVALUATED[mode])])


@pytest.mark.parametrize("mode", AT_ONCE)
def test_fit(quiet: Any, data: Any, Watching: Any, seen: list[Any], mode: str) -> None:
    trainer = quiet()
    trainer.fit(Watching(), CombinedLoader([data(2), data(3)], mode))
    assert seen == EVALUATED[mode]
    assert trainer.num_training_batches == len(EVALUATED[mode])


@pytest.mark.parametrize(
    ("mode", "limit", "batches"),
    [
        ("min_size", 3, 2),
        ("min_size", 1, 1),
        ("min_size", 0.5, 1),
        ("max_size", 3, 3),
        ("max_size", 0.5, 2),
        ("max_size_cycle", 3, 3),
        ("max_size_cycle", 0.5, 2),
        ("max_size_cycle", 1.0, 5),
    ],
)
def test_a_limit_counts_for_each_loader(
    quiet: Any, data: Any, Watching: Any, seen: list[Any], mode: str, limit: float, batches: int
) -> None:
    quiet(limit_train_batches=limit).fit(Watching(), CombinedLoader([data(2), data(5)], mode))
    assert len(seen) == batches


def test_a_limit_in_sequence(quiet: Any, data: Any, Watching: Any, seen: list[Any]) -> None:
    loaders = CombinedLoader([data(2), data(5)], "sequential")
    quiet(limit_val_batches=3).validate(Watching(), loaders, verbose=False)
    assert [(loader, batch) for loader, batch, _ in seen] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]


def test_fit_refuses_one_after_the_other(quiet: Any, data: Any, Watching: Any) -> None:
    with pytest.raises(ValueError, match=r"of mode 'sequential'. Use 'min_size'"):
        quiet().fit(Watching(), CombinedLoader([data(2)], "sequential"))


@pytest.mark.parametrize("mode", AT_ONCE)
def test_predict_refuses_at_once(quiet: Any, data: Any, Watching: Any, mode: str) -> None:
    with pytest.raises(ValueError, match="only of mode 'sequential'"):
        quiet().predict(Watching(), CombinedLoader([data(2), data(3)], mode))


@pytest.mark.parametrize("nested", [lambda a, b: [a, b], lambda a, b: {"x": a, "y": {"z": b}}], ids=["list", "dict"])
def test_predict_gives_a_list_for_each_loader(quiet: Any, data: Any, Watching: Any, nested: Any) -> None:
    for loaders in (nested(data(2), data(3)), CombinedLoader(nested(data(2), data(3)), "sequential")):
        assert quiet().predict(Watching(), loaders) == [[0, 1], [0, 1, 2]]


def test_overfitting_puts_every_loader_in_order(quiet: Any, data: Any, Watching: Any, seen: list[Any]) -> None:
    loaders = CombinedLoader([data(6, shuffle=True), data(8, shuffle=True)], "max_size_cycle")
    with pytest.warns(UserWarning, match="are replaced"):
        quiet(overfit_batches=2, max_epochs=2).fit(Watching(), loaders)
    assert seen == [(0, 0, [0, 0]), (0, 1, [1, 1])] * 2


def test_they_are_asked_for_again(quiet: Any, data: Any, Watching: Any, seen: list[Any]) -> None:
    class Source(Watching):
        def train_dataloader(self) -> Any:
            size = self.trainer.current_epoch + 1
            return CombinedLoader([data(size), data(2 * size)], "min_size")

    trainer = quiet(max_epochs=3, reload_dataloaders_every_n_epochs=1)
    trainer.fit(Source())
    assert [batch for _, batch, _ in seen] == [0, 0, 1, 0, 1, 2]
