"""Runs whose files are at a URL: they are written, found again and gone on from as on a local disk."""

from __future__ import annotations

import csv
import io
import sys

import pytest
import torch
from torch.utils.data import DataLoader

from fulmen import LightningModule, Trainer
from fulmen.callbacks import Checkpoint, ModelCheckpoint, OnExceptionCheckpoint, SpikeDetection
from fulmen.callbacks.report import Report
from fulmen.errors import MisconfigurationException
from fulmen.loggers import CSVLogger, TensorBoardLogger
from fulmen.paths import exists, join, names_in, read_bytes

fsspec = pytest.importorskip("fsspec")
from fsspec.implementations.memory import MemoryFileSystem  # noqa: E402

BATCHES = 4


class Net(LightningModule):
    def __init__(self, width=2, fails_at=None):
        super().__init__()
        self.save_hyperparameters("width")
        self.layer = torch.nn.Linear(2, width)
        self.fails_at = fails_at

    def training_step(self, batch, batch_idx):
        if self.global_step == self.fails_at:
            raise RuntimeError("out of luck")
        loss = self.layer(batch).pow(2).mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.layer(batch).pow(2).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def loader():
    return DataLoader(torch.ones(BATCHES, 2))


def make_trainer(root, *callbacks, **settings):
    chosen = {"accelerator": "cpu", "max_epochs": 2, "logger": False, "num_sanity_val_steps": 0}
    chosen |= {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    chosen["enable_checkpointing"] = any(isinstance(each, Checkpoint) for each in callbacks)
    return Trainer(callbacks=list(callbacks), default_root_dir=root, **(chosen | settings))


@pytest.fixture(params=["memory://", "file://"])
def root(request, tmp_path):
    place = str(tmp_path / "runs")
    return f"file://{place}" if request.param == "file://" else f"memory://{place.strip('/')}"


# ------------------------------------------------------------------------------------------------ checkpoints


def test_checkpoints_are_kept_removed_and_gone_on_from(root):
    saves = ModelCheckpoint(monitor="val_loss", save_top_k=2, save_last=True)
    trainer = make_trainer(root, saves, max_epochs=3)
    trainer.fit(Net(), loader(), loader())
    assert sorted(names_in(join(root, "checkpoints"))) == ["epoch=1-step=8.ckpt", "epoch=2-step=12.ckpt", "last.ckpt"]
    assert saves.best_model_path == join(root, "checkpoints", "epoch=2-step=12.ckpt")

    again = ModelCheckpoint(monitor="val_loss", save_top_k=2, save_last=True)
    resumed = make_trainer(root, again, max_epochs=4)
    resumed.fit(Net(), loader(), loader(), ckpt_path="last")
    assert resumed.ckpt_path == join(root, "checkpoints", "last.ckpt")
    assert (resumed.global_step, resumed.current_epoch) == (16, 4)
    assert sorted(names_in(join(root, "checkpoints"))) == ["epoch=2-step=12.ckpt", "epoch=3-step=16.ckpt", "last.ckpt"]


def test_the_best_is_validated_and_loaded(root):
    saves = ModelCheckpoint(monitor="val_loss")
    trainer = make_trainer(root, saves)
    trainer.fit(Net(width=3), loader(), loader())
    trainer.validate(dataloaders=loader(), ckpt_path="best", verbose=False)
    assert trainer.ckpt_path == saves.best_model_path
    loaded = Net.load_from_checkpoint(saves.best_model_path)
    assert loaded.hparams.width == 3
    assert torch.equal(loaded.layer.weight, trainer.lightning_module.layer.weight)


def test_a_fixed_name_is_counted_up(root):
    make_trainer(root, ModelCheckpoint(filename="x"), max_epochs=1).fit(Net(), loader(), loader())
    with pytest.warns(UserWarning, match="checkpoints exists and is not empty"):
        make_trainer(root, ModelCheckpoint(filename="x"), max_epochs=1).fit(Net(), loader(), loader())
    assert sorted(names_in(join(root, "checkpoints"))) == ["x-v1.ckpt", "x.ckpt"]


def test_what_is_missing_is_said_with_what_there_is(root):
    make_trainer(root, ModelCheckpoint(filename="x"), max_epochs=1).fit(Net(), loader(), loader())
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint .*y\.ckpt.*x\.ckpt"):
        make_trainer(root).fit(Net(), loader(), loader(), ckpt_path=join(root, "checkpoints", "y.ckpt"))


def test_the_newest_of_the_last_checkpoints(root):
    for name in ("last.ckpt", "last-v1.ckpt"):
        trainer = make_trainer(root)
        trainer.fit(Net(), loader(), loader())
        trainer.save_checkpoint(join(root, "checkpoints", name))
    resumed = make_trainer(root, ModelCheckpoint(save_last=True), max_epochs=3)
    resumed.fit(Net(), loader(), loader(), ckpt_path="last")
    assert resumed.ckpt_path == join(root, "checkpoints", "last-v1.ckpt")


def test_a_last_checkpoint_with_fields_in_its_name_is_found(root):
    class Named(ModelCheckpoint):
        CHECKPOINT_NAME_LAST = "{epoch}-last"

    make_trainer(root, Named(save_last=True)).fit(Net(), loader(), loader())
    resumed = make_trainer(root, Named(save_last=True), max_epochs=3)
    resumed.fit(Net(), loader(), loader(), ckpt_path="last")
    assert resumed.ckpt_path == join(root, "checkpoints", "epoch=1-last.ckpt")


def test_the_checkpoint_of_a_cluster_is_found(root):
    trainer = make_trainer(root)
    trainer.fit(Net(), loader(), loader())
    for number in (2, 10):
        trainer.save_checkpoint(join(root, f"hpc_ckpt_{number}.ckpt"))
    resumed = make_trainer(root, max_epochs=3)
    resumed.fit(Net(), loader(), loader(), ckpt_path="hpc")
    assert resumed.ckpt_path == join(root, "hpc_ckpt_10.ckpt")


def test_what_an_exception_leaves_is_gone_on_from_and_removed(root):
    with pytest.raises(RuntimeError, match="out of luck"):
        make_trainer(root, OnExceptionCheckpoint(root)).fit(Net(fails_at=6), loader(), loader())
    assert names_in(root) == ["on_exception.ckpt"]
    resumed = make_trainer(root, OnExceptionCheckpoint(root))
    with pytest.warns(UserWarning, match="goes on from the last checkpoint"):
        resumed.fit(Net(), loader(), loader())
    assert resumed.global_step == 2 * BATCHES
    assert names_in(root) == []


# ------------------------------------------------------------------------------------------------ loggers, callbacks


def rows(path):
    return list(csv.DictReader(io.StringIO(read_bytes(path).decode())))


def test_the_csv_logger(root):
    for version in range(2):
        logger = CSVLogger(root)
        make_trainer(root, ModelCheckpoint(), logger=logger).fit(Net(), loader(), loader())
        folder = join(root, "lightning_logs", f"version_{version}")
        assert (logger.version, logger.log_dir) == (version, folder)
        assert sorted(names_in(folder)) == ["checkpoints", "hparams.yaml", "metrics.csv"]
        written = rows(join(folder, "metrics.csv"))
        assert [row["step"] for row in written if row["loss"]] == [str(step) for step in range(8)]
        assert [row["step"] for row in written if row["val_loss"]] == ["3", "7"]
        assert read_bytes(join(folder, "hparams.yaml")) == b"width: 2\n"


def test_the_csv_logger_appends_to_a_version(root):
    for step in range(2):
        logger = CSVLogger(root, version=0, append=True)
        logger.log_metrics({"loss": 0.5 + step}, step)
        logger.finalize("success")
    assert [row["loss"] for row in rows(join(logger.log_dir, "metrics.csv"))] == ["0.5", "1.5"]


def test_the_csv_logger_replaces_what_is_not_its_own(root):
    for step in range(2):
        logger = CSVLogger(root, version=0)
        if step:
            with pytest.warns(UserWarning, match="exists and is not empty"):
                _ = logger.experiment
            assert not exists(join(logger.log_dir, "metrics.csv"))
        logger.log_metrics({"loss": step}, step)
        logger.finalize("success")
    assert [row["loss"] for row in rows(join(logger.log_dir, "metrics.csv"))] == ["1"]


def test_the_tensorboard_logger(root):
    pytest.importorskip("tensorboard")
    logger = TensorBoardLogger(root, sub_dir="sub")
    make_trainer(root, ModelCheckpoint(), logger=logger).fit(Net(), loader(), loader())
    assert logger.log_dir == join(root, "lightning_logs", "version_0", "sub")
    events, hparams = sorted(names_in(logger.log_dir))
    assert events.startswith("events.out.tfevents")
    assert hparams == "hparams.yaml"
    content = read_bytes(join(logger.log_dir, events))
    assert content.count(b"val_loss") == 2
    assert names_in(join(root, "lightning_logs", "version_0", "checkpoints")) == ["epoch=1-step=8.ckpt"]
    assert TensorBoardLogger(root).version == 1


def test_a_report_and_the_batches_of_a_spike(root):
    class Spiking(Net):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (1000 if batch_idx == 3 else 1)

    with pytest.raises(RuntimeError, match="spike"):
        make_trainer(root, Report(), SpikeDetection()).fit(Spiking(), loader(), loader())
    assert sorted(names_in(root)) == ["report.html", "skip_batches.json"]
    assert read_bytes(join(root, "skip_batches.json")) == b"[2, 3]"
    assert b"</html>" in read_bytes(join(root, "report.html"))


def test_fsspec_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    for make in (lambda: make_trainer("s3://bucket"), lambda: CSVLogger("s3://bucket")):
        with pytest.raises(ModuleNotFoundError, match=r'pip install "fulmen\[remote\]"'):
            make()


# ------------------------------------------------------------------------------------------------ failures


class Unreliable(MemoryFileSystem):
    """Writes nothing more to files of some names, in the middle of their content."""

    protocol = "unreliable"
    store: dict = {}  # noqa: RUF012 - as in the class above, the content is shared
    pseudo_dirs = [""]  # noqa: RUF012
    fails_on = None
    error = OSError(28, "No space left on device")

    def _open(self, path, mode="rb", **kwargs):
        file = super()._open(path, mode, **kwargs)
        if mode == "wb" and self.fails_on is not None and self.fails_on in path:
            written = file.write

            def write(data):
                written(data[:10])
                raise self.error

            file.write = write
        return file

    def pipe_file(self, path, value, **kwargs):
        with self.open(path, "wb") as file:
            file.write(value)


@pytest.fixture
def unreliable(tmp_path, monkeypatch):
    fsspec.register_implementation("unreliable", Unreliable, clobber=True)
    monkeypatch.setattr(Unreliable, "fails_on", None)
    return f"unreliable://{tmp_path.name}"


@pytest.mark.parametrize(
    ("error", "kind"), [(OSError(28, "No space left on device"), OSError), (ValueError("bad gateway"), OSError)]
)
def test_a_checkpoint_that_cannot_be_written_leaves_the_earlier_ones(unreliable, monkeypatch, error, kind):
    monkeypatch.setattr(Unreliable, "error", error)
    monkeypatch.setattr(Unreliable, "fails_on", "step=8")
    saves = ModelCheckpoint(monitor="val_loss", save_last=True)
    trainer = make_trainer(unreliable, saves, max_epochs=3)
    with pytest.raises(kind, match=r"step=8\.ckpt' could not be written: .*(No space left|bad gateway)") as caught:
        trainer.fit(Net(), loader(), loader())
    folder = join(unreliable, "checkpoints")
    first = join(folder, "epoch=0-step=4.ckpt")
    assert sorted(names_in(folder)) == ["epoch=0-step=4.ckpt", "last.ckpt"]
    assert (trainer.global_step, trainer.interrupted) == (8, True)
    assert (saves.best_model_path, list(saves.best_k_models)) == (first, [first])
    assert f"`trainer.fit(model, ckpt_path='{folder}/last.ckpt')`" in caught.value.__notes__[-1]

    monkeypatch.setattr(Unreliable, "fails_on", None)
    resumed = make_trainer(unreliable, ModelCheckpoint(monitor="val_loss", save_last=True), max_epochs=3)
    resumed.fit(Net(), loader(), loader(), ckpt_path="last")
    assert resumed.global_step == 12


def test_a_checkpoint_of_the_same_name_is_as_it_was(unreliable, monkeypatch):
    trainer = make_trainer(unreliable)
    trainer.fit(Net(), loader(), loader())
    path = join(unreliable, "a.ckpt")
    trainer.save_checkpoint(path)
    before = read_bytes(path)
    monkeypatch.setattr(Unreliable, "fails_on", "a.ckpt")
    with pytest.raises(OSError, match="An earlier file of that name is unchanged"):
        trainer.save_checkpoint(path)
    assert read_bytes(path) == before


def test_a_place_that_cannot_be_written_to_is_told_before_training(unreliable, monkeypatch):
    monkeypatch.setattr(Unreliable, "fails_on", "checkpoints")
    module = Net(fails_at=0)
    with pytest.raises(MisconfigurationException, match=r"cannot write to 'unreliable://.*No space left.*dirpath="):
        make_trainer(unreliable, ModelCheckpoint()).fit(module, loader(), loader())


def test_metrics_that_cannot_be_written_do_not_end_the_training(unreliable, monkeypatch):
    logger = CSVLogger(unreliable)
    monkeypatch.setattr(Unreliable, "fails_on", "metrics.csv")
    with pytest.warns(UserWarning, match=r"metrics\.csv' could not be written: .*everything is in"):
        make_trainer(unreliable, logger=logger).fit(Net(), loader(), loader())
    assert not exists(join(logger.log_dir, "metrics.csv"))
    monkeypatch.setattr(Unreliable, "fails_on", None)
    logger.finalize("success")
    assert len(rows(join(logger.log_dir, "metrics.csv"))) == 10
