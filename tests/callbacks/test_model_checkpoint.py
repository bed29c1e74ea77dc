from __future__ import annotations

import os
import weakref
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

import fulmen
from fulmen.callbacks import Checkpoint, ModelCheckpoint
from fulmen.callbacks.model_checkpoint import _link
from fulmen.errors import MisconfigurationException

SCORES = [3.0, 1.0, 2.0, 0.5, 4.0]


def files(directory: object) -> list[str]:
    root = Path(str(directory))
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir() or path.is_symlink())


# -------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"save_top_k": -2}, "save_top_k=-2"),
        ({"every_n_train_steps": -1}, "every_n_train_steps=-1"),
        ({"every_n_epochs": -1}, "every_n_epochs=-1"),
        ({"every_n_train_steps": 1, "every_n_epochs": 1}, "every_n_train_steps=1, every_n_epochs=1.*only one"),
        ({"every_n_train_steps": 1, "train_time_interval": timedelta(1)}, "only one"),
        ({"save_top_k": 2}, r"save_top_k=2.*monitor='val_loss'"),
        ({"mode": "low"}, "mode='low'"),
        ({"save_last": "copy"}, "save_last='copy'"),
    ],
)
def test_arguments_that_cannot_work(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        ModelCheckpoint(**arguments)


@pytest.mark.parametrize(
    ("arguments", "epochs"),
    [
        ({}, 1),
        ({"every_n_epochs": 0}, 0),
        ({"every_n_train_steps": 5}, 0),
        ({"train_time_interval": timedelta(1)}, 0),
        ({"every_n_epochs": 3, "every_n_train_steps": 0}, 3),
    ],
)
def test_epochs_are_the_default_trigger(arguments: dict[str, Any], epochs: int) -> None:
    assert ModelCheckpoint(**arguments).every_n_epochs == epochs


def test_state_key() -> None:
    assert ModelCheckpoint().state_key == (
        "ModelCheckpoint{'monitor': None, 'mode': 'min', 'every_n_train_steps': 0, 'every_n_epochs': 1,"
        " 'train_time_interval': None}"
    )
    assert "'monitor': 'x', 'mode': 'max', 'every_n_train_steps': 3, 'every_n_epochs': 0" in (
        ModelCheckpoint(monitor="x", mode="max", every_n_train_steps=3).state_key
    )


def test_checkpoint_names() -> None:
    metrics = {"epoch": torch.tensor(3), "step": torch.tensor(17), "val/acc": torch.tensor(0.5)}
    name = ModelCheckpoint().format_checkpoint_name
    assert name(metrics) == name(metrics, "") == "epoch=3-step=17.ckpt"
    assert name({}) == "epoch=0-step=0.ckpt"
    assert name(metrics, "x-{epoch}", ver=2) == "x-epoch=3-v2.ckpt"
    assert name(metrics, "plain", prefix="pre") == "pre-plain.ckpt"
    assert name(metrics, "{val/acc:.1f}") == "val/acc=0.5.ckpt"
    plain = ModelCheckpoint(filename="{epoch}-{val/acc:.1f}", auto_insert_metric_name=False)
    assert plain.format_checkpoint_name(metrics) == "3-0.5.ckpt"


def test_checkpoint_names_have_the_directory_once_there_is_one(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, filename="{epoch}")
    assert checkpoint.format_checkpoint_name({"epoch": 1}) == os.path.join(os.path.realpath(tmp_path), "epoch=1.ckpt")


def test_a_subclass_may_choose_other_characters() -> None:
    class Other(ModelCheckpoint):
        CHECKPOINT_JOIN_CHAR = "_"
        CHECKPOINT_EQUALS_CHAR = ":"
        FILE_EXTENSION = ".pt"

    assert Other().format_checkpoint_name({"epoch": 1, "step": 2}, ver=3) == "epoch:1_step:2_v3.pt"


def test_dirpath_is_made_real() -> None:
    assert ModelCheckpoint("~/q").dirpath == os.path.realpath(os.path.expanduser("~/q"))
    assert ModelCheckpoint("memory://q").dirpath == "memory://q"


def test_it_is_a_checkpoint_and_comes_last() -> None:
    assert issubclass(ModelCheckpoint, Checkpoint)
    assert Checkpoint.order == 1
    assert "on_train_epoch_end" in Checkpoint.after_module


@pytest.mark.parametrize(
    ("arguments", "listens"),
    [({}, False), ({"every_n_train_steps": 2}, True), ({"train_time_interval": timedelta(1)}, True)],
)
def test_the_batch_loop_knows_it_only_when_steps_or_time_matter(fit, scripted, tmp_path, arguments, listens) -> None:
    trainer = fit(scripted(), ModelCheckpoint(tmp_path, **arguments), max_epochs=1)
    assert bool(trainer.hooks.on_train_batch_end) == listens


# ---------------------------------------------------------------------------------------------------- what is on disk


def epochs(*numbers: int) -> list[str]:
    return [f"epoch={number}-step={4 * number + 4}.ckpt" for number in numbers]


def steps(*numbers: int) -> list[str]:
    return [f"epoch={(number - 1) // 4}-step={number}.ckpt" for number in numbers]


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "the newest by default": ({}, {}, epochs(2)),
    "without validation": ({}, {"validate": False}, epochs(2)),
    "the best": ({"monitor": "score"}, {}, epochs(1)),
    "the best two": ({"monitor": "score", "save_top_k": 2}, {"max_epochs": 5}, epochs(1, 3)),
    "the highest two": ({"monitor": "score", "save_top_k": 2, "mode": "max"}, {"max_epochs": 5}, epochs(0, 4)),
    "all with monitor": ({"monitor": "score", "save_top_k": -1}, {}, epochs(0, 1, 2)),
    "all without": ({"save_top_k": -1}, {}, epochs(0, 1, 2)),
    "none": ({"save_top_k": 0}, {}, []),
    "none with monitor": ({"save_top_k": 0, "monitor": "score"}, {}, []),
    "last with the newest": ({"save_last": True}, {}, [*epochs(2), "last.ckpt"]),
    "last with the best": ({"save_last": True, "monitor": "score"}, {}, [*epochs(1), "last.ckpt"]),
    "only last": ({"save_last": True, "save_top_k": 0}, {}, ["last.ckpt"]),
    "last without triggers": ({"save_last": True, "every_n_epochs": 0}, {}, ["last.ckpt"]),
    "no triggers": ({"every_n_epochs": 0}, {}, []),
    "every other epoch": ({"every_n_epochs": 2, "save_top_k": -1}, {"max_epochs": 5}, epochs(1, 3)),
    "every third step": ({"every_n_train_steps": 3, "save_top_k": -1}, {}, steps(3, 6, 12, 9)),
    "the newest step": ({"every_n_train_steps": 3}, {}, steps(12)),
    "accumulated steps": (
        {"every_n_train_steps": 1, "save_top_k": -1},
        {"accumulate_grad_batches": 2, "max_epochs": 2},
        ["epoch=0-step=1.ckpt", "epoch=0-step=2.ckpt", "epoch=1-step=3.ckpt", "epoch=1-step=4.ckpt"],
    ),
    "a training metric": (
        {"every_n_train_steps": 2, "monitor": "count", "mode": "max", "save_top_k": 2},
        {},
        steps(10, 12),
    ),
    "any time": ({"train_time_interval": timedelta(0), "save_top_k": -1}, {"max_epochs": 1}, steps(1, 2, 3, 4)),
    "no time yet": ({"train_time_interval": timedelta(1)}, {}, []),
    "each validation": ({"save_top_k": -1}, {"val_check_interval": 0.5, "max_epochs": 1}, steps(2, 4)),
    "epoch end despite validations inside": (
        {"save_top_k": -1, "save_on_train_epoch_end": True},
        {"val_check_interval": 0.5},
        epochs(0, 1, 2),
    ),
    "validation every other epoch": (
        {"save_top_k": -1, "monitor": "score"},
        {"check_val_every_n_epoch": 2, "max_epochs": 4},
        epochs(1, 3),
    ),
    "validation every other epoch, but none": (
        {"save_top_k": -1},
        {"check_val_every_n_epoch": 2, "validate": False},
        epochs(0, 1, 2),
    ),
    "max_steps inside an epoch": ({"save_last": True}, {"max_steps": 3}, ["epoch=0-step=3.ckpt", "last.ckpt"]),
    "a fixed name, the best": ({"filename": "x", "monitor": "score"}, {}, ["x.ckpt"]),
    "a fixed name, all": (
        {"filename": "x", "monitor": "score", "save_top_k": -1},
        {},
        ["x-v1.ckpt", "x-v2.ckpt", "x.ckpt"],
    ),
    "a fixed name, all without monitor": (
        {"filename": "x", "save_top_k": -1},
        {},
        ["x-v1.ckpt", "x-v2.ckpt", "x.ckpt"],
    ),
    "a fixed name, no versions": (
        {"filename": "x", "monitor": "score", "save_top_k": -1, "enable_version_counter": False},
        {},
        ["x.ckpt"],
    ),
    "a name with a directory": ({"filename": "{epoch}-{val/x:.1f}"}, {"max_epochs": 1}, ["epoch=0-val/x=0.0.ckpt"]),
    "no names of metrics": (
        {"filename": "{epoch}-{score:.1f}", "auto_insert_metric_name": False, "monitor": "score"},
        {},
        ["1-1.0.ckpt"],
    ),
    "the sanity check counts for nothing": ({"monitor": "score"}, {"num_sanity_val_steps": 2}, epochs(1)),
    "a fast dev run": ({"save_last": True}, {"fast_dev_run": 2}, []),
    "no epochs": ({"save_last": True}, {"max_epochs": 0}, []),
}


@pytest.mark.filterwarnings("ignore:.*never comes due")
@pytest.mark.parametrize("case", CASES)
def test_files(fit, scripted, tmp_path: Path, case: str) -> None:
    arguments, settings, expected = CASES[case]
    fit(scripted(SCORES), ModelCheckpoint(tmp_path / "here", **arguments), **settings)
    assert files(tmp_path / "here") == expected


def test_attributes_after_ranking(fit, scripted, tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="score", save_top_k=2)
    fit(scripted(SCORES), checkpoint, max_epochs=5)
    second, best = (str(tmp_path.resolve() / name) for name in epochs(1, 3))
    assert checkpoint.best_model_path == best
    assert checkpoint.best_model_score == 0.5
    assert checkpoint.kth_best_model_path == second
    assert checkpoint.kth_value == 1.0
    assert checkpoint.best_k_models == {second: torch.tensor(1.0), best: torch.tensor(0.5)}
    assert checkpoint.current_score == 0.5
    assert checkpoint.last_model_path == ""


def test_attributes_while_there_is_room(fit, scripted, tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="score", save_top_k=3, mode="max")
    fit(scripted(SCORES), checkpoint, max_epochs=2)
    assert checkpoint.best_model_score == 3.0
    assert checkpoint.kth_best_model_path == ""
    assert checkpoint.kth_value == -torch.inf


def test_attributes_without_monitor(fit, scripted, tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    fit(scripted(), checkpoint)
    assert checkpoint.best_model_path == str(tmp_path.resolve() / epochs(2)[0])
    assert checkpoint.last_model_path == str(tmp_path.resolve() / "last.ckpt")
    assert checkpoint.best_model_score is checkpoint.current_score is None
    assert checkpoint.best_k_models == {}


def test_nan_is_the_worst(fit, scripted, tmp_path: Path) -> None:
    nan = float("nan")
    checkpoint = ModelCheckpoint(tmp_path, monitor="score", save_top_k=2)
    fit(scripted([nan, 2.0, nan, 1.0]), checkpoint, max_epochs=4)
    assert files(tmp_path) == epochs(1, 3)


def test_epoch_and_step_can_be_logged_and_monitored(fit, scripted, tmp_path: Path) -> None:
    class Counting(scripted):
        def validation_step(self, batch, batch_idx):
            self.log("epoch", torch.tensor(40.0))

    fit(Counting(), ModelCheckpoint(tmp_path / "logged"), max_epochs=1)
    assert files(tmp_path / "logged") == ["epoch=40-step=4.ckpt"]
    fit(scripted(), ModelCheckpoint(tmp_path / "own", monitor="step", mode="max", save_top_k=2))
    assert files(tmp_path / "own") == epochs(1, 2)


# ---------------------------------------------------------------------------------------------------- order and safety


def test_a_checkpoint_due_with_a_validation_sees_its_metrics(fit, scripted, tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1, monitor="score")
    fit(scripted(SCORES), checkpoint, val_check_interval=2, max_epochs=2)
    assert [score.item() for score in checkpoint.best_k_models.values()] == [3.0, 1.0, 2.0, 0.5]
    assert files(tmp_path) == steps(2, 4, 6, 8)


def test_before_the_first_validation_a_step_is_put_off(fit, scripted, tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1, monitor="score")
    fit(scripted(SCORES), checkpoint, max_epochs=2)
    assert files(tmp_path) == steps(4, 6)
    assert [score.item() for score in checkpoint.best_k_models.values()] == [3.0, 3.0]


def test_a_step_waits_for_a_metric_of_the_epoch_end(fit, scripted, tmp_path: Path) -> None:
    class Late(scripted):
        def on_train_epoch_end(self) -> None:
            self.log("late", 1.0)

    fit(Late(), ModelCheckpoint(tmp_path, every_n_train_steps=3, monitor="late"), max_epochs=1)
    assert files(tmp_path) == steps(4)


class Journal(ModelCheckpoint):
    """Notes, while a file is written and right after, which attributes name it."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.notes: list[tuple[str, str, str]] = []

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        self.notes.append(
            (os.path.basename(state["best_model_path"]), os.path.basename(self.best_model_path), files(self.dirpath))
        )
        return state


def test_a_path_is_public_only_when_it_is_written(fit, scripted, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "here")
    fit(scripted(), journal, max_epochs=2)
    first, second = epochs(0, 1)
    assert journal.notes == [(first, "", []), (second, first, [first])]


def test_the_file_knows_itself(fit, scripted, tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="score", save_last=True)
    fit(scripted(SCORES), checkpoint)
    saved = torch.load(checkpoint.best_model_path, weights_only=True)
    state = saved["callbacks"][checkpoint.state_key]
    assert list(state) == [
        "monitor",
        "best_model_score",
        "best_model_path",
        "current_score",
        "dirpath",
        "best_k_models",
        "kth_best_model_path",
        "kth_value",
        "last_model_path",
    ]
    assert state["best_model_path"] == checkpoint.best_model_path
    assert state["best_model_score"] == 1.0


def test_a_failed_write_changes_nothing(fit, scripted, tmp_path: Path) -> None:
    class Spoilt(scripted):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            if self.current_epoch == 1:
                raise OSError("disk full")

    checkpoint = ModelCheckpoint(tmp_path, monitor="count", mode="max")
    with pytest.raises(OSError, match="disk full"):
        fit(Spoilt(), checkpoint)
    assert files(tmp_path) == epochs(0)
    assert checkpoint.best_model_path == str(tmp_path.resolve() / epochs(0)[0])
    assert checkpoint.best_model_score == 3.0
    assert checkpoint.state_dict()["best_model_path"] == checkpoint.best_model_path


def test_foreign_files_are_neither_overwritten_nor_removed(fit, scripted, tmp_path: Path) -> None:
    for name in ("x.ckpt", "last.ckpt"):
        (tmp_path / name).write_text("mine")
    with pytest.warns(UserWarning, match="exists and is not empty"):
        fit(scripted(), ModelCheckpoint(tmp_path, filename="x", save_last=True))
    assert files(tmp_path) == ["last-v1.ckpt", "last.ckpt", "x-v1.ckpt", "x.ckpt"]
    assert (tmp_path / "x.ckpt").read_text() == (tmp_path / "last.ckpt").read_text() == "mine"


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_the_file_a_run_started_from_is_kept(fit, scripted, tmp_path: Path) -> None:
    first = ModelCheckpoint(tmp_path, monitor="score")
    fit(scripted([1.0]), first, max_epochs=1)
    second = ModelCheckpoint(tmp_path, monitor="score")
    fit(scripted([0.5, 0.4]), second, ckpt_path=first.best_model_path)
    assert files(tmp_path) == epochs(0, 2)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_resumed_run_goes_on_with_its_last_file(fit, scripted, tmp_path: Path) -> None:
    fit(scripted(), ModelCheckpoint(tmp_path, save_last=True), max_epochs=1)
    fit(scripted(), ModelCheckpoint(tmp_path, save_last=True), max_epochs=2, ckpt_path=tmp_path / "last.ckpt")
    assert files(tmp_path) == [*epochs(1), "last.ckpt"]


def test_files_of_another_directory_are_kept(fit, scripted, tmp_path: Path) -> None:
    first = ModelCheckpoint(tmp_path / "a")
    fit(scripted(), first, max_epochs=1)
    second = ModelCheckpoint(tmp_path / "b")
    with pytest.warns(UserWarning, match=r"dirpath .*a'.*b': only `best_model_path`"):
        fit(scripted(), second, max_epochs=2, ckpt_path=first.best_model_path)
    assert files(tmp_path / "a") == epochs(0)
    assert files(tmp_path / "b") == epochs(1)


def test_state_of_the_same_directory_is_taken_over(tmp_path: Path) -> None:
    path = str(tmp_path / "a.ckpt")
    state = {
        "monitor": "score",
        "best_model_score": torch.tensor(1.0),
        "best_model_path": path,
        "current_score": torch.tensor(2.0),
        "dirpath": os.path.realpath(tmp_path),
        "best_k_models": {path: torch.tensor(1.0)},
        "kth_best_model_path": path,
        "kth_value": torch.tensor(1.0),
        "last_model_path": "last",
    }
    checkpoint = ModelCheckpoint(tmp_path, monitor="score")
    checkpoint.load_state_dict(state)
    assert checkpoint.state_dict() == state


def test_a_directory_that_cannot_be_written_to_is_found_before_training(fit, scripted, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    module = scripted()
    with pytest.raises(MisconfigurationException, match=r"cannot write to .*file/deep.*Not a directory.*dirpath="):
        fit(module, ModelCheckpoint(tmp_path / "file" / "deep"))
    assert module.steps == 0


def test_looking_for_a_place_leaves_nothing_behind(fit, scripted, tmp_path: Path) -> None:
    fit(scripted(), ModelCheckpoint(tmp_path / "here" / "deep", every_n_epochs=0))
    assert not (tmp_path / "here").exists()


# ---------------------------------------------------------------------------------------------------- links


def test_last_is_a_relative_link(fit, scripted, tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="score", save_last="link")
    fit(scripted(SCORES), checkpoint)
    assert files(tmp_path) == [*epochs(1), "last.ckpt"]
    assert os.readlink(tmp_path / "last.ckpt") == epochs(1)[0]
    assert checkpoint.last_model_path == str(tmp_path.resolve() / "last.ckpt")


def test_last_is_a_file_when_there_is_nothing_to_link_to(fit, scripted, tmp_path: Path) -> None:
    fit(scripted(), ModelCheckpoint(tmp_path, save_last="link", save_top_k=0))
    assert files(tmp_path) == ["last.ckpt"]
    assert not (tmp_path / "last.ckpt").is_symlink()


@pytest.mark.parametrize("is_directory", [False, True])
def test_a_link_becomes_a_copy_where_there_are_none(tmp_path: Path, monkeypatch, is_directory: bool) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    target = tmp_path / "target"
    content = target / "shard" if is_directory else target
    content.parent.mkdir(exist_ok=True)
    content.write_text("weights")
    monkeypatch.setattr(os, "symlink", refuse)
    for _ in range(2):  # a copy replaces a copy
        _link(str(tmp_path / "last"), str(target))
    copied = tmp_path / "last" / "shard" if is_directory else tmp_path / "last"
    assert copied.read_text() == "weights"


def test_a_remote_directory_has_no_links(fit, scripted) -> None:
    with pytest.raises(ValueError, match=r"save_last='link'.*save_last=True"):
        fit(scripted(), ModelCheckpoint("memory://links", save_last="link"))


def test_a_formatted_last_name_replaces_the_one_before(fit, scripted, tmp_path: Path) -> None:
    class Named(ModelCheckpoint):
        CHECKPOINT_NAME_LAST = "{epoch}-last"

    fit(scripted(), Named(tmp_path / "file", save_last=True), max_epochs=2)
    assert files(tmp_path / "file") == ["epoch=1-last.ckpt", *epochs(1)]
    fit(scripted(), Named(tmp_path / "link", save_last="link", save_top_k=-1), max_epochs=2)
    assert files(tmp_path / "link") == [*epochs(0), "epoch=1-last.ckpt", *epochs(1)]


# ---------------------------------------------------------------------------------------------------- a missing metric


def test_a_monitor_that_no_validation_logged_is_an_error(fit, scripted, tmp_path: Path) -> None:
    with pytest.raises(
        MisconfigurationException, match=r"monitor='scor'.*Did you mean 'score'.*self\.log\('scor', value\)"
    ):
        fit(scripted(), ModelCheckpoint(tmp_path, monitor="scor"))


def test_a_monitor_that_no_validation_logged_is_an_error_with_steps_too(fit, scripted, tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="monitor='nonsense'"):
        fit(scripted(), ModelCheckpoint(tmp_path, monitor="nonsense", every_n_train_steps=2))


def test_without_validation_a_missing_monitor_is_one_warning(fit, scripted, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no metric of this name") as caught:
        fit(scripted(), ModelCheckpoint(tmp_path, monitor="nonsense"), validate=False)
    assert len(caught) == 1
    assert files(tmp_path) == []


# ---------------------------------------------------------------------------------------------------- exceptions


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, steps(4, 6)),
        ({"save_last": True}, [*steps(4, 6), "last.ckpt"]),
        ({"monitor": "score"}, steps(4, 6)),
        ({"save_top_k": 0}, steps(6)),
        ({"every_n_train_steps": 6}, steps(6)),
    ],
)
def test_an_exception_leaves_a_checkpoint(fit, scripted, tmp_path: Path, arguments, expected) -> None:
    class Failing(scripted):
        def training_step(self, batch, batch_idx):
            if self.steps == 6:
                raise ValueError("boom")
            return super().training_step(batch, batch_idx)

    checkpoint = ModelCheckpoint(tmp_path, save_on_exception=True, **arguments)
    with pytest.raises(ValueError, match="boom"):
        fit(Failing(), checkpoint)
    assert files(tmp_path) == expected
    kept = steps(6) if "every_n_train_steps" in arguments else [] if "save_top_k" in arguments else steps(4)
    assert [os.path.basename(path) for path in [checkpoint.best_model_path] if path] == kept


# -------------------------------------------------------------------------------------------------- places


def test_without_logger_the_root_directory_is_used(fit, scripted, tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint()
    fit(scripted(), checkpoint)
    assert files(tmp_path / "checkpoints") == epochs(2)
    assert checkpoint.dirpath == os.path.join(tmp_path, "checkpoints")


class Logger:
    """A logger as far as checkpoints need one."""

    log_dir = root_dir = None
    group_separator = "/"
    experiment = None

    def __init__(self, save_dir: Path | None, name: str | None, version: int | str) -> None:
        self.save_dir, self.name, self.version = None if save_dir is None else str(save_dir), name, version
        self.saved: list[str] = []

    def after_save_checkpoint(self, checkpoint: ModelCheckpoint) -> None:
        self.saved.append(os.path.basename(checkpoint.last_model_path or checkpoint.best_model_path))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *_, **__: None


@pytest.mark.parametrize(
    ("logger", "place"),
    [
        (("logs", "name", 7), "logs/name/version_7/checkpoints"),
        (("logs", "name", "seven"), "logs/name/seven/checkpoints"),
        (("logs", "", 0), "logs/version_0/checkpoints"),
        ((None, "name", 0), "name/version_0/checkpoints"),
    ],
)
def test_the_first_logger_says_where(fit, scripted, tmp_path: Path, logger, place: str) -> None:
    save_dir, name, version = logger
    first = Logger(save_dir and tmp_path / save_dir, name, version)
    fit(scripted(), ModelCheckpoint(), logger=[first, Logger(tmp_path / "other", "other", 1)], max_epochs=1)
    assert files(tmp_path / place) == epochs(0)


def test_loggers_hear_of_each_file(fit, scripted, tmp_path: Path) -> None:
    logger = Logger(tmp_path, "name", 0)
    fit(scripted(), ModelCheckpoint(save_last=True), logger=logger, max_epochs=2)
    assert logger.saved == [epochs(0)[0], "last.ckpt", "last.ckpt", "last.ckpt"]


def test_a_remote_directory(fit, scripted, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    checkpoint = ModelCheckpoint(f"memory://{tmp_path.name}/a", save_last=True)
    fit(scripted(), checkpoint, max_epochs=2)
    names = fsspec.filesystem("memory").ls(f"/{tmp_path.name}/a", detail=False)
    assert sorted(os.path.basename(name) for name in names) == [*epochs(1), "last.ckpt"]
    assert checkpoint.best_model_path == f"memory://{tmp_path.name}/a/{epochs(1)[0]}"


def test_a_run_without_training_makes_no_directory(tmp_path: Path, scripted, fit) -> None:
    checkpoint = ModelCheckpoint()
    trainer = fulmen.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[checkpoint],
    )
    trainer.validate(scripted(), torch.ones(1, 1, 2), verbose=False)
    assert files(tmp_path) == []
    assert checkpoint.dirpath == os.path.join(tmp_path, "checkpoints")


def test_to_yaml(fit, scripted, tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path / "here", monitor="score", save_top_k=2)
    fit(scripted([3.0, 1.0]), checkpoint, max_epochs=2)
    checkpoint.to_yaml()
    expected = "".join(f"{path}: {score}\n" for path, score in checkpoint.best_k_models.items())
    assert (tmp_path / "here" / "best_k_models.yaml").read_text() == expected
    checkpoint.to_yaml(tmp_path / "elsewhere.yaml")
    assert (tmp_path / "elsewhere.yaml").read_text() == expected


def test_verbose_reports_what_is_saved(fit, scripted, tmp_path: Path, info) -> None:
    fit(scripted([2.0, 1.0, 3.0]), ModelCheckpoint(tmp_path, monitor="score", verbose=True))
    directory = tmp_path.resolve()
    assert [line for line in info() if "'score'" in line] == [
        f"Epoch 0, global step 4: 'score' reached 2.00000 (best 2.00000), saving model to '{directory / epochs(0)[0]}'"
        " as top 1",
        f"Epoch 1, global step 8: 'score' reached 1.00000 (best 1.00000), saving model to '{directory / epochs(1)[0]}'"
        " as top 1",
        "Epoch 2, global step 12: 'score' was not in top 1",
    ]


def test_weights_only(fit, scripted, tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, save_weights_only=True)
    fit(scripted(), checkpoint, max_epochs=1)
    assert "optimizer_states" not in torch.load(checkpoint.best_model_path, weights_only=True)


def test_a_second_fit_goes_on(fit, scripted, tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    module = scripted()
    trainer = fit(module, checkpoint, max_epochs=1)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, torch.ones(4, 1, 2), torch.ones(1, 1, 2))
    assert files(tmp_path) == [*epochs(1), "last.ckpt"]


def test_the_same_callback_in_another_run_saves_at_the_same_step(fit, scripted, tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=4, filename="x", save_top_k=-1)
    for _ in range(2):
        fit(scripted(), checkpoint, max_epochs=1)
    assert files(tmp_path) == ["x-v1.ckpt", "x.ckpt"]


# -------------------------------------------------------------------------------------------------- smaller facts


def test_time_counts_from_the_start_of_training_and_then_from_each_save(fit, scripted, tmp_path, monkeypatch) -> None:
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr("fulmen.clock.time", clock)

    class Ticking(scripted):
        def on_fit_start(self) -> None:
            clock.now += 50

        def training_step(self, batch, batch_idx):
            clock.now += 1 if self.steps else 2.5
            return super().training_step(batch, batch_idx)

    checkpoint = ModelCheckpoint(tmp_path, train_time_interval=timedelta(seconds=2), save_top_k=-1)
    fit(Ticking(), checkpoint, max_epochs=2)
    assert files(tmp_path) == steps(1, 3, 5, 7)


def test_nan_is_the_worst_where_more_is_better(fit, scripted, tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="score", mode="max")
    fit(scripted([float("nan"), -5.0]), checkpoint, max_epochs=1)
    assert checkpoint.best_model_score == -torch.inf
    fit(scripted([-5.0]), checkpoint, max_epochs=1)
    assert checkpoint.best_model_score == -5


class Failing:
    """Fails in the second batch."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            raise ValueError("boom")


@pytest.mark.parametrize("settings", [{"fast_dev_run": 2}, {"num_sanity_val_steps": 1}], ids=str)
def test_an_exception_in_a_trial_or_sanity_check_saves_nothing(fit, scripted, tmp_path: Path, settings) -> None:
    class Fails(Failing, scripted):
        def validation_step(self, batch, batch_idx):
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        fit(Fails(), ModelCheckpoint(tmp_path / "here", save_on_exception=True, save_last=True), **settings)
    assert files(tmp_path / "here") == []


def test_an_exception_at_a_step_that_is_saved_saves_no_second_file(fit, scripted, tmp_path: Path) -> None:
    class Fails(Failing, scripted):
        pass

    with pytest.raises(ValueError, match="boom"):
        fit(Fails(), ModelCheckpoint(tmp_path, save_on_exception=True, every_n_train_steps=1, filename="x"))
    assert files(tmp_path) == ["x.ckpt"]


def test_in_manual_optimisation_a_checkpoint_has_the_weights_after_the_step(fit, scripted, tmp_path: Path) -> None:
    class Manual(scripted):
        automatic_optimization = False
        after: ClassVar[list[torch.Tensor]] = []

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()
            self.after.append(self.layer.weight.detach().clone())

    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    fit(Manual(), checkpoint, max_epochs=1)
    saved = [torch.load(tmp_path / name, weights_only=True)["state_dict"]["layer.weight"] for name in steps(1, 2, 3, 4)]
    assert all(torch.equal(*pair) for pair in zip(saved, Manual.after, strict=True))


def test_loggers_get_a_proxy_that_keeps_nothing_alive(fit, scripted, tmp_path: Path) -> None:
    class Keeps(Logger):
        def after_save_checkpoint(self, checkpoint: ModelCheckpoint) -> None:
            self.saved.append(checkpoint)

    logger, checkpoint = Keeps(tmp_path, "name", 0), ModelCheckpoint()
    fit(scripted(), checkpoint, logger=logger, max_epochs=1)
    assert [type(saved) for saved in logger.saved] == [weakref.ProxyType]
    assert logger.saved[0].best_model_path == checkpoint.best_model_path


def test_a_file_or_a_folder_exists(tmp_path: Path) -> None:
    trainer = fulmen.Trainer(accelerator="cpu", logger=False)
    (tmp_path / "folder").mkdir()
    exists = [ModelCheckpoint().file_exists(tmp_path / name, trainer) for name in ("folder", "file")]
    assert exists == [True, False]
