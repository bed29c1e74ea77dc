"""Checkpoints of older layouts: each rule by itself, and files that old versions have written."""

from __future__ import annotations

import importlib.util
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import fulmen
from fulmen.callbacks import EarlyStopping, ModelCheckpoint
from fulmen.checkpoint.migration import RULES, migrate
from fulmen.checkpoint.store import read
from fulmen.errors import CheckpointError, PossibleUserWarning

OLD = Path(__file__).parent / "old"


def checkpoint(version: str, **entries: Any) -> dict[str, Any]:
    return {"epoch": 3, "global_step": 12, "pytorch-lightning_version": version, "state_dict": {}, **entries}


def migrated(version: str, **entries: Any) -> dict[str, Any]:
    """What has become of the entries; the given checkpoint must not have changed."""
    given = checkpoint(version, **entries)
    before = deepcopy(given)
    result = migrate(given)
    assert given == before
    assert result.pop("legacy_pytorch-lightning_version") == version
    assert result.pop("pytorch-lightning_version") == "2.6.6"
    return {key: value for key, value in result.items() if key not in ("epoch", "global_step", "state_dict")}


# ---------------------------------------------------------------------------------------------------- versions


@pytest.mark.parametrize("version", ["2.6.6", "2.1.0", "2.6.6.dev0", "2.1.0rc1"])
def test_the_present_layout_passes_unchanged(version: str) -> None:
    given = checkpoint(version)
    assert migrate(given) is given
    assert given == checkpoint(version)


def test_a_newer_one_is_a_warning() -> None:
    given = checkpoint("2.10.0")
    with pytest.warns(PossibleUserWarning, match=r"2\.10\.0, which is newer"):
        assert migrate(given) is given


def test_rules_are_in_the_order_of_versions() -> None:
    versions = [below for below, _ in RULES]
    assert versions == sorted(versions)


def test_upgraded_once_is_upgraded() -> None:
    once = migrate(checkpoint("1.4.0", callbacks={ModelCheckpoint: {"best_model_path": "x"}}))
    assert migrate(once) is once


def test_it_is_told_how_to_keep_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        migrate(checkpoint("1.9.0"))
    assert "of version 1.9.0" in caplog.text
    assert "python -m fulmen.utilities.upgrade_checkpoint PATH" in caplog.text


def test_what_is_no_checkpoint() -> None:
    with pytest.raises(CheckpointError, match="holds an object of list"):
        migrate([1])  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"missing among 'a', 'b', 'c', 'd', 'e' and 1 more\.$"):
        migrate(dict.fromkeys("abcdef", 1))
    with pytest.raises(CheckpointError, match=r"plain state dict; type `model.load_state_dict\("):
        migrate({"weight": torch.zeros(1)})


# ---------------------------------------------------------------------------------------------------- the rules


def test_before_0_10_callbacks_had_entries_of_their_own() -> None:
    flat = {
        "checkpoint_callback_best_model_score": 0.3,
        "checkpoint_callback_best_model_path": "a.ckpt",
        "early_stop_callback_wait": 2,
        "early_stop_callback_patience": 4,
    }
    result = migrated("0.9.0", **flat, callbacks={"Timer": {"a": 1}})
    assert result.keys() == {"callbacks", "loops"}
    assert result["callbacks"] == {
        "Timer": {"a": 1},
        "ModelCheckpoint": {"best_model_score": 0.3, "best_model_path": "a.ckpt"},
        "EarlyStopping": {"wait_count": 2, "patience": 4},
    }
    older = migrated("0.7.1", checkpoint_callback_best=0.3)
    assert older["callbacks"] == {"ModelCheckpoint": {"best_model_score": 0.3}}
    assert "callbacks" not in migrated("0.9.0")


def test_before_1_5_the_class_was_the_key() -> None:
    result = migrated("1.4.9", callbacks={ModelCheckpoint: {"a": 1}, "EarlyStopping{'monitor': 'x'}": {"b": 2}})
    assert result["callbacks"] == {"ModelCheckpoint": {"a": 1}, "EarlyStopping{'monitor': 'x'}": {"b": 2}}


def test_before_1_6_there_were_but_two_counters() -> None:
    fit_loop = migrated("1.5.0")["loops"]["fit_loop"]
    assert fit_loop["epoch_progress"]["current"] == {"ready": 3, "completed": 3, "started": 3, "processed": 3}
    done = {"total": {"ready": 12, "completed": 12}, "current": {"ready": 0, "completed": 0}}
    assert fit_loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"] == done
    assert fit_loop["epoch_loop.manual_optimization.optim_step_progress"] == done
    assert fit_loop["epoch_loop.state_dict"] == {"_batches_that_stepped": 12}
    assert "loops" not in migrate({"pytorch-lightning_version": "1.5.0", "state_dict": {}})
    assert migrated("1.5.0", loops={"fit_loop": {"x": 1}})["loops"]["fit_loop"]["x"] == 1


def test_the_loops_are_complete() -> None:
    """Another framework that reads the file may look for every entry."""
    own = fulmen.Trainer(max_epochs=1, logger=False, enable_checkpointing=False)
    from fulmen.snapshot import dump_fit

    assert migrated("1.5.0")["loops"]["fit_loop"].keys() == dump_fit(own.fit_loop, manual=False).keys()


def test_before_1_6_5_nobody_counted_the_batches_that_stepped() -> None:
    fit_loop = {"epoch_loop.state_dict": {}, "epoch_progress": 1}
    expected = {"fit_loop": {"epoch_loop.state_dict": {"_batches_that_stepped": 12}, "epoch_progress": 1}}
    assert migrated("1.6.4", loops={"fit_loop": fit_loop})["loops"] == expected
    kept = {"fit_loop": {"epoch_loop.state_dict": {"_batches_that_stepped": 5}}}
    assert migrated("1.6.5", loops=kept)["loops"] == migrated("1.6.4", loops=kept)["loops"] == kept


LONG = "ModelCheckpoint{'monitor': 'x', 'mode': 'min', 'save_on_train_epoch_end': True}"
SHORT = "ModelCheckpoint{'monitor': 'x', 'mode': 'min'}"


def test_before_1_9_the_keys_of_model_checkpoints_were_longer() -> None:
    assert migrated("1.8.6", callbacks={LONG: {"a": 1}, "Timer": {}})["callbacks"] == {SHORT: {"a": 1}, "Timer": {}}
    assert migrated("1.9.0", callbacks={LONG: {"a": 1}})["callbacks"] == {LONG: {"a": 1}}


def test_keys_that_become_equal_lose_nothing() -> None:
    other = LONG.replace("True", "None")
    with pytest.warns(UserWarning, match="only the first one's state is restored"):
        result = migrated("1.8.0", callbacks={LONG: {"a": 1}, other: {"a": 2}})
    assert result["callbacks"] == {SHORT: {"a": 1}, other: {"a": 2}}


def test_before_2_0_there_was_apex() -> None:
    with pytest.warns(UserWarning, match=r"state of Apex \(amp_scaling_state\)"):
        assert migrated("1.9.5", amp_scaling_state={"a": 1}) == {}


def test_before_2_0_loops_were_nested_more_deeply() -> None:
    fit_loop = {
        "epoch_loop.state_dict": {"_batches_that_stepped": 5},
        "epoch_loop.batch_progress": 1,
        "epoch_loop.batch_loop.state_dict": {},
        "epoch_loop.batch_loop.optimizer_loop.state_dict": {},
        "epoch_loop.batch_loop.optimizer_loop.optim_progress": {"optimizer": 2, "optimizer_position": 1},
        "epoch_loop.batch_loop.manual_loop.state_dict": {},
        "epoch_loop.batch_loop.manual_loop.optim_step_progress": 3,
        "epoch_loop.val_loop.state_dict": {},
        "epoch_loop.val_loop.dataloader_progress": 4,
        "epoch_loop.val_loop.epoch_loop.state_dict": {},
        "epoch_loop.val_loop.epoch_loop.batch_progress": 5,
    }
    test_loop = {
        "state_dict": {},
        "dataloader_progress": 6,
        "epoch_loop.state_dict": {},
        "epoch_loop.batch_progress": 7,
    }
    assert migrated("1.9.5", loops={"fit_loop": fit_loop, "test_loop": test_loop})["loops"] == {
        "fit_loop": {
            "epoch_loop.state_dict": {"_batches_that_stepped": 5},
            "epoch_loop.batch_progress": 1,
            "epoch_loop.automatic_optimization.state_dict": {},
            "epoch_loop.automatic_optimization.optim_progress": {"optimizer": 2},
            "epoch_loop.manual_optimization.state_dict": {},
            "epoch_loop.manual_optimization.optim_step_progress": 3,
            "epoch_loop.val_loop.state_dict": {},
            "epoch_loop.val_loop.batch_progress": 5,
        },
        "test_loop": {"state_dict": {}, "batch_progress": 7},
    }


@pytest.mark.parametrize(
    ("version", "key"),
    [
        ("1.5.0", "native_amp_scaling_state"),
        ("1.8.0", "NativeMixedPrecisionPlugin"),
        ("2.0.9", "MixedPrecisionPlugin"),
    ],
)
def test_up_to_2_0_the_scaler_had_other_names(version: str, key: str) -> None:
    result = migrated(version, **{key: {"scale": 2.0}}, loops={})
    assert result == {"MixedPrecision": {"scale": 2.0}, "loops": {}}


# ---------------------------------------------------------------------------------------------------- real files


def writer() -> Any:
    spec = importlib.util.spec_from_file_location("old_checkpoints_write", OLD / "write.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FILES = sorted(OLD.glob("*.pt"))
WHOLE = json.loads((OLD / "losses.json").read_text())


@pytest.mark.filterwarnings("ignore:The checkpoint was written by a `ModelCheckpoint` with dirpath")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_training_goes_on_from_files_of_old_versions(path: Path, tmp_path: Path) -> None:
    write = writer()
    module = write.define(fulmen.LightningModule)()
    stopping = EarlyStopping("val_loss", patience=9)
    callbacks = [ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss", save_top_k=-1), stopping]
    if not path.name.startswith("1.1."):
        callbacks.append(ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=10))
    trainer = fulmen.Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    loaders = DataLoader(write.data(), 4), DataLoader(write.data(), 14)
    with_classes = path.name.startswith("1.1.")  # as keys of the callbacks' states
    trainer.fit(module, *loaders, ckpt_path=path, weights_only=False if with_classes else None)
    assert trainer.current_epoch == 4
    assert stopping.patience == 3  # the callback's state was found
    if path.name == "1.5.10-middle.pt":  # that version went on with the next epoch
        assert (len(module.losses), trainer.global_step) == (14, 24)
    else:
        assert trainer.global_step == 28
        assert module.losses == pytest.approx(WHOLE[-len(module.losses) :], rel=1e-4)
        assert len(module.losses) == (18 if "middle" in path.name else 14)
        assert stopping.best_score.item() == pytest.approx(0.2111, abs=1e-3)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_modules_are_built_from_files_of_old_versions(path: Path) -> None:
    net = writer().define(fulmen.LightningModule)
    with_classes = path.name.startswith("1.1.")
    module = net.load_from_checkpoint(path, weights_only=False if with_classes else None)
    assert dict(module.hparams) == {"width": 5, "rate": 0.02}
    saved = read(path, weights_only=not with_classes)["state_dict"]
    assert all(torch.equal(value, saved[name]) for name, value in module.state_dict().items())


def test_callbacks_of_before_0_10_take_what_there_is() -> None:
    states = migrated("0.7.1", checkpoint_callback_best=0.3, early_stop_callback_wait=2, early_stop_callback_patience=4)
    stopping, keeping = EarlyStopping("x"), ModelCheckpoint()
    stopping.load_state_dict(states["callbacks"]["EarlyStopping"])
    assert (stopping.wait_count, stopping.patience, stopping.best_score.item()) == (2, 4, float("inf"))
    keeping.load_state_dict(states["callbacks"]["ModelCheckpoint"])
    assert (keeping.best_model_score, keeping.best_model_path) == (0.3, "")
