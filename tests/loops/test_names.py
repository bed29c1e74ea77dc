"""What users of Lightning read and set on the loops; the values are recorded from the reference (lightning 2.6.6)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fulmen.data import CombinedLoader


def test_counts_and_limits_in_a_fit(quiet: Any, ValNet: Any, data: Any) -> None:
    seen: list[Any] = []

    class Reads(ValNet):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            fit = self.trainer.fit_loop
            steps = fit.epoch_loop.automatic_optimization.optim_progress
            by_hand = fit.epoch_loop.manual_optimization.optim_step_progress
            seen.append(
                (
                    (fit.done, fit.skip, fit.restarting, fit._should_accumulate()),
                    (fit.max_batches, fit.epoch_loop.val_loop.max_batches, fit.epoch_loop.batch_progress.is_last_batch),
                    (steps.optimizer_steps, steps.optimizer.step.total.ready, steps.optimizer.step.current.completed),
                    (by_hand.total.completed, fit.epoch_loop._batches_that_stepped, fit.epoch_loop.global_step),
                )
            )
            return super().training_step(batch, batch_idx)

    trainer = quiet(max_epochs=2, accumulate_grad_batches=2)
    trainer.fit(Reads(), data(3), data(2))
    off = (False, False, False)
    assert seen == [
        ((*off, True), (3, [2], False), (0, 0, 0), (0, 0, 0)),
        ((*off, False), (3, [2], False), (0, 0, 0), (0, 0, 0)),
        ((*off, False), (3, [2], True), (1, 1, 1), (0, 1, 1)),
        ((*off, True), (3, [2], False), (2, 2, 0), (0, 2, 2)),
        ((*off, False), (3, [2], False), (2, 2, 0), (0, 2, 2)),
        ((*off, False), (3, [2], True), (3, 3, 1), (0, 3, 3)),
    ]
    fit = trainer.fit_loop
    assert (fit.done, fit.skip, fit.max_batches, fit.epoch_progress.current.completed) == (True, True, 3, 2)
    assert fit.epoch_loop.val_loop.num_dataloaders == 1


def test_counts_can_be_set_before_training(quiet: Any, Net: Any, data: Any, diary: Any) -> None:
    module = Net()

    def set_counts() -> None:
        fit = module.trainer.fit_loop
        fit.epoch_loop._batches_that_stepped = 10
        fit.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = 20
        fit.epoch_progress.current.completed = fit.epoch_progress.current.processed = 3

    module.on_fit_start = set_counts
    trainer = quiet(max_epochs=5, callbacks=[diary])
    trainer.fit(module, data(2))
    assert diary.text == "3.0 3.1 end 4.0 4.1 end"
    assert (trainer.global_step, trainer.fit_loop.epoch_loop._batches_that_stepped) == (24, 14)


def test_steps_of_manual_optimisation_can_be_set(fit: Any, Net: Any, data: Any) -> None:
    module = Net()
    module.automatic_optimization = False
    module.training_step = lambda batch, batch_idx: module.optimizers().step()

    def count_twice(*_: Any) -> None:
        module.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total.completed += 1

    module.on_train_batch_end = count_twice
    trainer = fit(module, data(2))
    automatic = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress
    automatic.optimizer.step.total.completed = 9  # none is counted there
    assert (trainer.global_step, automatic.optimizer_steps) == (4, 0)


def test_limits_can_be_raised_between_fits(quiet: Any, Net: Any, data: Any) -> None:
    trainer, module = quiet(max_epochs=1), Net()
    trainer.fit(module, data(2))
    trainer.fit_loop.max_epochs, trainer.fit_loop.epoch_loop.max_steps = 2, 3
    trainer.fit_loop.min_epochs, trainer.fit_loop.epoch_loop.min_steps = 1, 2
    trainer.fit(module, data(2))
    assert (trainer.current_epoch, trainer.global_step) == (2, 3)
    assert (trainer.max_epochs, trainer.max_steps, trainer.min_epochs, trainer.min_steps) == (2, 3, 1, 2)


# ---------------------------------------------------------------------------------------------------- data


def test_where_the_loaders_come_from(quiet: Any, ValNet: Any, data: Any) -> None:
    trainer, module, train, val = quiet(), ValNet(), data(1), data(1)
    assert trainer.fit_loop._data_source.instance is None
    assert not trainer.fit_loop._data_source.is_defined()
    trainer.fit(module, train, val)
    loops = (trainer.fit_loop, trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop)
    found = [loop._data_source for loop in (*loops, trainer.predict_loop)]
    names = ["train_dataloader", "val_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"]
    assert [source.name for source in found] == names
    assert all(source.instance is given for source, given in zip(found, (train, val, val, module, module), strict=True))
    assert [source.is_defined() for source in found] == [True, True, True, False, False]
    assert [source.is_module() for source in found] == [False, False, False, True, True]
    assert found[0].dataloader() is train


def test_the_loaders_as_they_are_combined(quiet: Any, ValNet: Any, data: Any) -> None:
    trainer, module, train, val = quiet(), ValNet(), {"a": data(2), "b": data(3)}, data(1)
    assert trainer.fit_loop._combined_loader is None
    module.training_step = lambda batch, batch_idx: module.loss(batch["a"])
    trainer.fit(module, train, val)
    combined = trainer.fit_loop._combined_loader
    assert (combined.mode, combined.flattened, combined.iterables) == ("max_size_cycle", list(train.values()), train)
    combined = trainer.fit_loop.epoch_loop.val_loop._combined_loader
    assert (combined.mode, combined.flattened) == ("sequential", [val])
    own = CombinedLoader(train, "min_size")
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, own, val)
    assert trainer.fit_loop._combined_loader is own


def asking(base: type[Any], data: Any) -> Any:
    """A module that makes its loaders, of as many training batches as the number of the epoch and two."""
    module: Any = base()
    module.asked = []

    def make(stage: str) -> Any:
        module.asked.append(f"{stage} {module.current_epoch}")
        return data(2 + module.current_epoch if stage == "train" else 1)

    module.train_dataloader, module.val_dataloader = lambda: make("train"), lambda: make("val")
    return module


@pytest.mark.parametrize("at_once", [True, False])
def test_the_loaders_can_be_asked_for_again(fit: Any, ValNet: Any, data: Any, diary: Any, at_once: bool) -> None:
    module = asking(ValNet, data)

    def ask_again() -> None:
        for loop in (module.trainer.fit_loop, module.trainer.fit_loop.epoch_loop.val_loop):
            loop._combined_loader = None
            assert loop._combined_loader is None
            if at_once:
                loop.setup_data()
                assert loop._combined_loader is not None

    module.on_train_epoch_end = ask_again
    fit(module, max_epochs=3, callbacks=[diary])
    if at_once:
        assert module.asked == ["train 0", "val 0", "train 0", "val 0", "train 1", "val 1", "train 2", "val 2"]
        assert diary.text == "0.0 0.1 val end 1.0 1.1 val end 2.0 2.1 2.2 val end"
    else:
        assert module.asked == ["train 0", "val 0", "train 1", "val 1", "train 2", "val 2"]
        assert diary.text == "0.0 0.1 val end 1.0 1.1 1.2 val end 2.0 2.1 2.2 2.3 val end"


def test_an_epoch_under_way_keeps_its_loaders(fit: Any, ValNet: Any, data: Any, diary: Any) -> None:
    module = asking(ValNet, data)

    def ask_again(*_: Any) -> None:
        for loop in (module.trainer.fit_loop, module.trainer.fit_loop.epoch_loop.val_loop):
            loop._combined_loader = None
            loop.setup_data()

    module.on_train_batch_end = module.on_validation_batch_end = ask_again
    trainer = fit(module, max_epochs=2, callbacks=[diary])
    assert diary.text == "0.0 0.1 val end 1.0 1.1 1.2 val end"
    assert module.asked == ["train 0", "val 0", "val 0", "val 0", "train 1", *["val 1"] * 3]
    assert trainer.is_last_batch


def test_a_plateau_is_seen_though_the_loaders_were_asked_for_again(fit: Any, ValNet: Any, data: Any) -> None:
    module, steps = asking(ValNet, data), []

    def configure_optimizers() -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val"}}

    def ask_again() -> None:
        module.trainer.fit_loop._combined_loader = None
        module.trainer.fit_loop.setup_data()

    module.configure_optimizers, module.on_train_epoch_end = configure_optimizers, ask_again
    module.lr_scheduler_step = lambda scheduler, metric: steps.append(module.current_epoch)
    fit(module, max_epochs=2)
    assert steps == [0, 1]


def test_loaders_are_not_set_on_a_loop(quiet: Any, data: Any) -> None:
    with pytest.raises(AttributeError, match=r"`_combined_loader` can be set to None.*given was a DataLoader"):
        quiet().fit_loop._combined_loader = data(1)


def test_the_datamodule_can_be_set(quiet: Any) -> None:
    trainer, datamodule = quiet(), object()
    trainer.datamodule = datamodule
    assert trainer.datamodule is datamodule


# ---------------------------------------------------------------------------------------------------- what was logged


def test_what_was_logged_in_the_loop_under_way(quiet: Any, Net: Any, data: Any) -> None:
    seen: list[Any] = []

    class Logs(Net):
        def note(self) -> None:
            found = self.trainer._results
            seen.append((sorted(found), len(found), found.training, found.dataloader_idx, found.batch is not None))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("loss", 2.0)
            self.note()
            return self.loss(batch)

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
            self.log("val", 1.0, batch_size=3)
            self.note()

    trainer = quiet()
    trainer.fit(Logs(), data(1), [data(1), data(1)])
    assert seen == [
        (["training_step.loss"], 1, True, None, True),
        (["validation_step.val.0"], 1, False, 0, True),
        (["validation_step.val.0", "validation_step.val.1"], 2, False, 1, True),
    ]
    assert trainer._results is None


def test_the_entries_of_what_was_logged(fit: Any, Net: Any, data: Any) -> None:
    module, seen = Net(), []

    def training_step(batch: Any, batch_idx: int) -> Any:
        module.log("loss", 2.0, on_epoch=True)
        found = module.trainer._results
        seen.extend([found["training_step.loss"].value, found.result_metrics[0].value, found.batch_size])
        return module.loss(batch)

    module.training_step = training_step
    fit(module, data(1))
    assert seen == [2.0, 2.0, 1]
