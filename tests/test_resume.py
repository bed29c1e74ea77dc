"""Which checkpoint `ckpt_path` means, and what is said when it does not fit."""

from __future__ import annotations

import os
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fulmen
from fulmen.callbacks import EarlyStopping, ModelCheckpoint
from fulmen.errors import CheckpointError, MisconfigurationException
from fulmen.fabric.environments import SLURMEnvironment

pytestmark = pytest.mark.filterwarnings("ignore::fulmen.errors.PossibleUserWarning")


class Net(fulmen.LightningModule):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.layer = nn.Linear(2, width)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).pow(2).mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.layer(batch).pow(2).mean())

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("test_loss", self.layer(batch).pow(2).mean())

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def loader() -> DataLoader[Tensor]:
    return DataLoader(torch.ones(3, 2))  # type: ignore[arg-type]


def make_trainer(path: Path, *callbacks: Any, **arguments: Any) -> fulmen.Trainer:
    chosen: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": path,
    }
    return fulmen.Trainer(callbacks=list(callbacks), **{**chosen, **arguments})


@pytest.fixture
def fitted(tmp_path: Path) -> fulmen.Trainer:
    """A run of two epochs that kept both checkpoints and the last; the first is the best by hand."""
    trainer = make_trainer(tmp_path, ModelCheckpoint(tmp_path, save_top_k=-1, save_last=True))
    trainer.fit(Net(), loader(), loader())
    trainer.checkpoint_callback.best_model_path = str(tmp_path / "epoch=0-step=3.ckpt")
    return trainer


def weight_in(path: Any) -> Tensor:
    return torch.load(path)["state_dict"]["layer.weight"]


def call(trainer: fulmen.Trainer, name: str, module: Any, **arguments: Any) -> None:
    if name == "fit":
        trainer.fit(module, loader(), loader(), **arguments)
    elif name == "predict":
        trainer.predict(module, loader(), **arguments)
    else:
        getattr(trainer, name)(module, loader(), verbose=False, **arguments)


# ---------------------------------------------------------------------------------------------------- which


@pytest.mark.parametrize("name", ["validate", "test", "predict"])
@pytest.mark.parametrize(
    ("given", "file"),
    [
        ("best", "epoch=0-step=3.ckpt"),
        ("last", "last.ckpt"),
        ("path", "epoch=0-step=3.ckpt"),
        (None, None),
    ],
)
def test_what_is_loaded(fitted: fulmen.Trainer, tmp_path: Path, name: str, given: str | None, file: str | None) -> None:
    module = Net()
    before = module.layer.weight.clone()
    path = tmp_path / "epoch=0-step=3.ckpt" if given == "path" else given
    call(fitted, name, module, ckpt_path=path)
    assert torch.equal(module.layer.weight, before if file is None else weight_in(tmp_path / file))
    assert fitted.ckpt_path == (None if file is None else str(tmp_path / file))


def test_without_a_model_the_best_is_meant(fitted: fulmen.Trainer, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"takes the best checkpoint of the last fit.*ckpt_path=\"best\""):
        call(fitted, "test", None)
    assert fitted.ckpt_path == str(tmp_path / "epoch=0-step=3.ckpt")


def test_fit_goes_on(fitted: fulmen.Trainer, tmp_path: Path) -> None:
    module, trainer = Net(), make_trainer(tmp_path, max_epochs=3)
    with pytest.warns(UserWarning, match="states of callbacks that this Trainer does not have"):
        call(trainer, "fit", module, ckpt_path=tmp_path / "last.ckpt")
    assert (trainer.current_epoch, trainer.global_step) == (3, 9)


def test_the_last_is_the_newest(fitted: fulmen.Trainer, tmp_path: Path) -> None:
    newer = tmp_path / "last-v1.ckpt"
    newer.write_bytes((tmp_path / "epoch=0-step=3.ckpt").read_bytes())
    os.utime(newer, (2e9, 2e9))
    call(fitted, "test", Net(), ckpt_path="last")
    assert fitted.ckpt_path == str(newer)


def test_the_first_of_several_callbacks_has_the_best(tmp_path: Path) -> None:
    callbacks = [ModelCheckpoint(tmp_path / "a"), ModelCheckpoint(tmp_path / "b", monitor="val_loss")]
    trainer = make_trainer(tmp_path, *callbacks)
    call(trainer, "fit", Net())
    with pytest.warns(UserWarning, match="several checkpoint callbacks takes the first one's best"):
        call(trainer, "test", Net(), ckpt_path="best")
    assert trainer.ckpt_path == callbacks[0].best_model_path


def test_hpc_is_the_highest_number(fitted: fulmen.Trainer, tmp_path: Path) -> None:
    for number in (2, 10, 9):
        (tmp_path / f"hpc_ckpt_{number}.ckpt").write_bytes((tmp_path / "last.ckpt").read_bytes())
    (tmp_path / "hpc_ckpt_x.ckpt").touch()
    call(fitted, "test", Net(), ckpt_path="hpc")
    assert fitted.ckpt_path == str(tmp_path / "hpc_ckpt_10.ckpt")


def test_a_job_that_slurm_has_queued_again_goes_on(fitted: fulmen.Trainer, tmp_path: Path) -> None:
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes((tmp_path / "last.ckpt").read_bytes())
    trainer = make_trainer(tmp_path, ModelCheckpoint(tmp_path), max_epochs=3)
    call(trainer, "validate", Net())
    assert trainer.ckpt_path is None
    object.__setattr__(trainer.plan, "cluster_environment", SLURMEnvironment())
    call(trainer, "validate", Net())
    assert trainer.ckpt_path is None
    call(trainer, "fit", Net())
    assert (trainer.ckpt_path, trainer.current_epoch) == (str(tmp_path / "hpc_ckpt_1.ckpt"), 3)
    trainer = make_trainer(tmp_path / "elsewhere")
    object.__setattr__(trainer.plan, "cluster_environment", SLURMEnvironment())
    call(trainer, "fit", Net())
    assert trainer.ckpt_path is None


@pytest.mark.parametrize("word", ["best", "last"])
def test_a_path_set_beforehand_may_be_a_word(fitted: fulmen.Trainer, tmp_path: Path, word: str) -> None:
    fitted.ckpt_path = word
    call(fitted, "test", Net())
    assert fitted.ckpt_path == str(tmp_path / {"best": "epoch=0-step=3.ckpt", "last": "last.ckpt"}[word])


@pytest.mark.parametrize("path", [5, ["a.ckpt"], {}], ids=str)
def test_what_is_no_path(tmp_path: Path, path: Any) -> None:
    with pytest.raises(TypeError, match=rf'`ckpt_path={re.escape(repr(path))}` is of {type(path).__name__}.*"best"'):
        call(make_trainer(tmp_path), "test", Net(), ckpt_path=path)


def test_a_path_set_beforehand_is_used_in_every_run(fitted: fulmen.Trainer, tmp_path: Path) -> None:
    fitted.ckpt_path = path = str(tmp_path / "epoch=0-step=3.ckpt")
    for name in ("test", "validate"):
        module = Net()
        call(fitted, name, module)
        assert torch.equal(module.layer.weight, weight_in(path))
        assert fitted.ckpt_path == path
    with pytest.warns(UserWarning, match="the argument `ckpt_path='last'` wins"):
        call(fitted, "test", Net(), ckpt_path="last")


@pytest.mark.parametrize(
    ("callbacks", "given", "error", "message"),
    [
        ([], "best", ValueError, "there is no checkpoint callback.*Add `ModelCheckpoint"),
        ([ModelCheckpoint()], "best", ValueError, "ModelCheckpoint has no best checkpoint.*Has `fit` saved one"),
        ([ModelCheckpoint()], "best", ValueError, r"the module, to use its weights as they are: `trainer.test\(module"),
        ([], "hpc", ValueError, r"no `hpc_ckpt_<n>\.ckpt` in"),
        ([], "", ValueError, r'`ckpt_path=""` is empty\. Give a path, "best", "last", or None'),
        ([], "nowhere.ckpt", FileNotFoundError, "There is no checkpoint 'nowhere.ckpt'"),
        ([], "registry:name:version:2", FileNotFoundError, "There is no checkpoint 'registry:name:version:2'"),
    ],
    ids=["no callback", "no best", "what instead of best", "no hpc", "empty", "no file", "registry"],
)
def test_what_is_not_there(
    tmp_path: Path, callbacks: list[Any], given: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(make_trainer(tmp_path, *callbacks), "test", Net(), ckpt_path=given)


def test_a_trial_run_has_no_best(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, ModelCheckpoint(tmp_path), fast_dev_run=True)
    call(trainer, "fit", Net())
    with pytest.raises(ValueError, match="`fast_dev_run` saves none"):
        call(trainer, "test", Net(), ckpt_path="best")


def test_no_last_is_a_start_from_the_beginning(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, ModelCheckpoint(tmp_path), max_epochs=1)
    with pytest.warns(UserWarning, match="no last checkpoint .yet.. Training starts from the beginning"):
        call(trainer, "fit", Net(), ckpt_path="last")
    assert (trainer.global_step, trainer.ckpt_path) == (3, None)


# ---------------------------------------------------------------------------------------------------- what it holds


class Own:
    """A class of the user's."""


class Keeping(Net):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["own"] = Own()


def test_objects_of_the_user_need_trust(tmp_path: Path) -> None:
    trainer, path = make_trainer(tmp_path), tmp_path / "own.ckpt"
    call(trainer, "fit", Keeping())
    trainer.save_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"holds objects of .*Own, which `weights_only` refuses") as raised:
        call(trainer, "test", Net(), ckpt_path=path)
    assert isinstance(raised.value.__cause__, pickle.UnpicklingError)
    with pytest.raises(CheckpointError, match="weights_only=False"):
        call(trainer, "test", Net(), ckpt_path=path, weights_only=True)
    call(trainer, "test", Net(), ckpt_path=path, weights_only=False)


def test_training_cannot_go_on_from_weights_alone(fitted: fulmen.Trainer, tmp_path: Path) -> None:
    path = tmp_path / "weights.ckpt"
    fitted.save_checkpoint(path, weights_only=True)
    with pytest.raises(KeyError, match=r"no 'optimizer_states': it was saved with `weights_only=True`.*load_from_chec"):
        call(make_trainer(tmp_path, max_epochs=3), "fit", Net(), ckpt_path=path)
    call(make_trainer(tmp_path), "test", Net(), ckpt_path=path)


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "torn.ckpt").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(CheckpointError, match=r"torn.ckpt' is no complete checkpoint"):
        call(make_trainer(tmp_path), "fit", Net(), ckpt_path=tmp_path / "torn.ckpt")


def test_another_number_of_optimizers(fitted: fulmen.Trainer, tmp_path: Path) -> None:
    class Scheduled(Net):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    message = r"holds 1 optimizer.s. and 0 scheduler.s.; `configure_optimizers` returned 1 and 1\. Return the same"
    with pytest.raises(CheckpointError, match=message):
        call(make_trainer(tmp_path, ModelCheckpoint(tmp_path)), "fit", Scheduled(), ckpt_path=tmp_path / "last.ckpt")


def test_weights_that_do_not_fit(fitted: fulmen.Trainer, tmp_path: Path) -> None:
    class Other(Net):
        def __init__(self) -> None:
            super().__init__(width=3)
            self.more = nn.Linear(1, 1)

    with pytest.raises(CheckpointError) as raised:
        call(make_trainer(tmp_path), "test", Other(), ckpt_path=tmp_path / "last.ckpt")
    message = str(raised.value)
    for part in (
        "does not fit Other",
        "more.weight (1, 1)",
        "layer.weight ((2, 2) in the checkpoint, (3, 2) in the mo",
    ):
        assert part in message
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_only_the_keys_that_fit(fitted: fulmen.Trainer, tmp_path: Path) -> None:
    class Loose(Net):
        def __init__(self) -> None:
            super().__init__()
            self.more = nn.Linear(1, 1)
            self.strict_loading = False

    module = Loose()
    call(make_trainer(tmp_path, ModelCheckpoint(tmp_path)), "test", module, ckpt_path=tmp_path / "last.ckpt")
    assert torch.equal(module.layer.weight, weight_in(tmp_path / "last.ckpt"))


def test_states_nobody_takes_are_named(fitted: fulmen.Trainer, tmp_path: Path) -> None:
    other = EarlyStopping("val_loss")
    with pytest.warns(UserWarning, match=r"does not have: \[\"ModelCheckpoint\{'monitor': None.*They are ignored; add"):
        call(make_trainer(tmp_path, other), "fit", Net(), ckpt_path=tmp_path / "last.ckpt")


def test_a_limit_that_is_behind(fitted: fulmen.Trainer, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, ModelCheckpoint(tmp_path), max_epochs=1)
    with pytest.raises(MisconfigurationException, match=r"after 2 epochs, but `Trainer\(max_epochs=1\)`\. Raise it"):
        call(trainer, "fit", Net(), ckpt_path=tmp_path / "last.ckpt")


def test_a_limit_that_is_reached(fitted: fulmen.Trainer, tmp_path: Path) -> None:
    module, trainer = Net(), make_trainer(tmp_path, ModelCheckpoint(tmp_path))
    call(trainer, "fit", module, ckpt_path=tmp_path / "last.ckpt")
    assert (trainer.current_epoch, trainer.global_step) == (2, 6)
    assert torch.equal(module.layer.weight, weight_in(tmp_path / "last.ckpt"))


def test_a_checkpoint_of_an_evaluation_leaves_the_counters_of_fit(fitted: fulmen.Trainer, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, ModelCheckpoint(tmp_path))
    call(trainer, "validate", Net(), ckpt_path=tmp_path / "epoch=0-step=3.ckpt")
    assert (trainer.current_epoch, trainer.global_step) == (0, 0)
    without_loops = torch.load(tmp_path / "last.ckpt")
    del without_loops["loops"]
    torch.save(without_loops, tmp_path / "old.ckpt")
    call(trainer, "validate", Net(), ckpt_path=tmp_path / "old.ckpt")
    assert (trainer.current_epoch, trainer.global_step) == (0, 0)


def test_no_sanity_check_is_run_again(fitted: fulmen.Trainer, tmp_path: Path) -> None:
    checked = []

    class Watching(fulmen.Callback):
        def on_sanity_check_start(self, *_: Any) -> None:
            checked.append(True)

    callbacks = [Watching(), ModelCheckpoint(tmp_path)]
    trainer = make_trainer(tmp_path, *callbacks, max_epochs=3, num_sanity_val_steps=2)
    call(trainer, "fit", Net(), ckpt_path=tmp_path / "last.ckpt")
    assert not checked


# ---------------------------------------------------------------------------------------------------- twice


def test_a_second_fit_goes_on_where_the_first_ended(tmp_path: Path) -> None:
    trainer, module = make_trainer(tmp_path), Net()
    call(trainer, "fit", module)
    call(trainer, "fit", module)
    assert (trainer.current_epoch, trainer.global_step) == (2, 6)
    trainer.fit_loop.max_epochs = 3
    call(trainer, "fit", module)
    assert (trainer.current_epoch, trainer.global_step) == (3, 9)


def test_the_trainer_that_crashed_can_resume(tmp_path: Path) -> None:
    class Fragile(Net):
        broken = True

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            if self.broken and self.global_step == 4:
                raise ArithmeticError("too hot")
            return super().training_step(batch, batch_idx)

    trainer, module = make_trainer(tmp_path, ModelCheckpoint(tmp_path, every_n_train_steps=1)), Fragile()
    with pytest.raises(ArithmeticError, match="too hot"):
        call(trainer, "fit", module)
    module.broken = False
    call(trainer, "fit", module, ckpt_path="best")
    assert (trainer.current_epoch, trainer.global_step, trainer.fit_loop.total_batch_idx) == (2, 6, 5)


def test_without_what_only_we_write(fitted: fulmen.Trainer, tmp_path: Path) -> None:
    """A checkpoint of the reference has the counters, and no random states and positions of data."""
    content = torch.load(tmp_path / "epoch=0-step=3.ckpt")
    del content["fulmen"]
    torch.save(content, tmp_path / "theirs.ckpt")
    trainer = make_trainer(tmp_path, ModelCheckpoint(tmp_path))
    call(trainer, "fit", Net(), ckpt_path=tmp_path / "theirs.ckpt")
    assert (trainer.current_epoch, trainer.global_step) == (2, 6)


class Stateful:
    """A loader that keeps its position."""

    def __init__(self) -> None:
        self.position = 0

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Any:
        self.position %= 3
        while self.position < 3:
            self.position += 1
            yield torch.full((1, 2), float(self.position))

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


@pytest.mark.parametrize("ours", [True, False])
def test_a_loader_with_a_state_goes_on_in_the_middle(tmp_path: Path, ours: bool) -> None:
    seen: list[float] = []

    class Watching(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            seen.append(batch[0, 0].item())
            return super().training_step(batch, batch_idx)

    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1)
    make_trainer(tmp_path, checkpoint, max_epochs=1).fit(Watching(), Stateful(), loader())
    path = tmp_path / "epoch=0-step=2.ckpt"
    content = torch.load(path)
    assert content["loops"]["fit_loop"]["state_dict"] == {"combined_loader": [{"position": 2}]}
    if not ours:
        del content["fulmen"]
        torch.save(content, path)
    seen.clear()
    again = ModelCheckpoint(tmp_path, every_n_train_steps=2)
    make_trainer(tmp_path, again).fit(Watching(), Stateful(), loader(), ckpt_path=path)
    assert seen == [3, 1, 2, 3]


def test_an_interrupted_save_leaves_the_older_file(tmp_path: Path) -> None:
    class Full(fulmen.LightningModule):
        """Stands for a disk that is full: pickling fails half-way."""

        def __reduce__(self) -> Any:
            raise OSError(28, "No space left on device")

    trainer, path = make_trainer(tmp_path), tmp_path / "a.ckpt"
    module = Net()
    call(trainer, "fit", module)
    trainer.save_checkpoint(path)
    before = path.read_bytes()
    module.on_save_checkpoint = lambda checkpoint: checkpoint.update(bad=Full())  # type: ignore[method-assign]
    trainer.recompile_hooks()
    with pytest.raises(OSError, match=r"An earlier file of that name is unchanged\. Free space"):
        trainer.save_checkpoint(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ckpt"]


def test_nothing_is_said_when_all_is_well(fitted: fulmen.Trainer, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "The `srun` command is here")  # on machines of a SLURM cluster
        trainer = make_trainer(tmp_path, ModelCheckpoint(tmp_path, save_top_k=-1, save_last=True), max_epochs=3)
        call(trainer, "fit", Net(), ckpt_path="last")
    assert trainer.global_step == 9
