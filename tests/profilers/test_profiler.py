"""The base of profilers, and how a Trainer uses one."""

from __future__ import annotations

import copy
import pickle

import pytest

import fulmen
from fulmen.errors import MisconfigurationException
from fulmen.profilers import AdvancedProfiler, PassThroughProfiler, Profiler, PyTorchProfiler, SimpleProfiler

pytestmark = pytest.mark.filterwarnings("ignore:There is a `validation_step` but no val dataloader")


class Recorder(Profiler):
    """Keeps what it is told."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.told = []

    def start(self, action_name):
        self.told.append(f"start {action_name}")

    def stop(self, action_name):
        self.told.append(f"stop {action_name}")

    def setup(self, stage, local_rank=None, log_dir=None):
        super().setup(stage, local_rank, log_dir)
        self.told.append(("setup", stage, local_rank, log_dir))

    def summary(self):
        return f"{self._title()}: {len(self.told)}"

    def describe(self):
        self.told.append("describe")
        super().describe()

    def teardown(self, stage):
        self.told.append(("teardown", stage))


# ---------------------------------------------------------------------------------------------------- by itself


def test_profile_starts_and_stops_an_action_whatever_happens():
    profiler = Recorder()
    with profiler.profile("good") as name:
        assert name == "good"
    with pytest.raises(ZeroDivisionError), profiler.profile("bad"):
        1 / 0  # noqa: B018
    assert profiler.told == ["start good", "stop good", "start bad", "stop bad"]


def test_the_report_goes_to_a_file(tmp_path, info):
    profiler = Recorder(tmp_path / "new", 'a/b:c*"d')
    profiler.setup("fit")
    profiler.describe()
    assert (tmp_path / "new" / "fit-a_b_c__d.txt").read_text() == "FIT Profiler Report: 2\n"
    profiler.setup("test", local_rank=3)
    profiler.describe()
    assert (tmp_path / "new" / "test-a_b_c__d-3.txt").exists()
    assert info() == []


def test_a_second_run_adds_to_the_file(tmp_path):
    profiler = Recorder(tmp_path, "report")
    for _ in range(2):
        profiler.setup("fit")
        profiler.describe()
    assert len((tmp_path / "fit-report.txt").read_text().splitlines()) == 2


def test_the_report_goes_to_a_url():
    fsspec = pytest.importorskip("fsspec")
    profiler = Recorder("memory://profiles", "report")
    profiler.setup("fit")
    profiler.describe()
    assert fsspec.filesystem("memory").cat("/profiles/fit-report.txt") == b"FIT Profiler Report: 2\n"


@pytest.mark.parametrize(("local_rank", "lines"), [(None, 1), (0, 1), (1, 0)])
def test_without_a_file_name_the_report_goes_to_the_log_of_one_process(tmp_path, info, local_rank, lines):
    profiler = Recorder(tmp_path)
    profiler.setup("fit", local_rank)
    profiler.describe()
    assert len(info()) == lines
    assert profiler.local_rank == (local_rank or 0)
    assert list(tmp_path.iterdir()) == []


def test_start_and_stop_have_to_be_defined():
    with pytest.raises(TypeError, match="abstract"):
        Profiler()


def test_the_pass_through_profiler_does_nothing(info):
    profiler = PassThroughProfiler()
    with profiler.profile("anything"):
        pass
    profiler.setup("fit")
    profiler.describe()
    assert profiler.summary() == ""
    assert info() == []


@pytest.mark.parametrize("kind", [SimpleProfiler, AdvancedProfiler, PyTorchProfiler, PassThroughProfiler])
def test_profilers_are_copied_and_pickled(kind, trainer_with, net, batches):
    profiler = kind(filename="report")
    trainer_with(profiler).fit(net(), batches(6))
    for other in (copy.deepcopy(profiler), pickle.loads(pickle.dumps(profiler))):
        assert other.filename == "report"
        assert other.local_rank == 0


# ---------------------------------------------------------------------------------------------------- in a Trainer


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("simple", SimpleProfiler),
        ("ADVANCED", AdvancedProfiler),
        ("PyTorch", PyTorchProfiler),
        (None, PassThroughProfiler),
    ],
)
def test_profilers_have_names(trainer_with, name, kind):
    assert type(trainer_with(name).profiler) is kind


def test_a_profiler_can_be_given(trainer_with):
    profiler = Recorder()
    assert trainer_with(profiler).profiler is profiler


@pytest.mark.parametrize("wrong", ["fast", 3, Recorder])
def test_anything_else_is_refused(trainer_with, wrong):
    with pytest.raises(MisconfigurationException, match=r"expected one of.*'simple'.*Profiler") as caught:
        trainer_with(wrong)
    assert caught.value.subject is wrong


def test_barebones_has_no_profiler():
    assert type(fulmen.Trainer(barebones=True, accelerator="cpu").profiler) is PassThroughProfiler
    with pytest.raises(ValueError, match="profiler='simple'"):
        fulmen.Trainer(barebones=True, profiler="simple", accelerator="cpu")


def test_a_run_sets_the_profiler_up_and_lets_it_describe(trainer_with, net, batches, tmp_path):
    profiler = Recorder()
    trainer = trainer_with(profiler)
    trainer.fit(net(), batches(1))
    assert profiler.told[0] == ("setup", "fit", None, str(tmp_path))
    assert profiler.told[-2:] == ["describe", ("teardown", "fit")]
    profiler.told.clear()
    trainer.test(net(), batches(1))
    assert profiler.told[0] == ("setup", "test", None, str(tmp_path))
    assert "start [Strategy]SingleDeviceStrategy.test_step" in profiler.told


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_run_that_fails_is_described_too(trainer_with, net, batches, error):
    class Failing(net):
        def training_step(self, batch, batch_idx):
            raise error

    profiler = Recorder()
    trainer = trainer_with(profiler)
    with pytest.raises((error, SystemExit)):
        trainer.fit(Failing(), batches(1))
    assert profiler.told[-2:] == ["describe", ("teardown", "fit")]
    started = [line for line in profiler.told if str(line).startswith("start")]
    stopped = [line for line in profiler.told if str(line).startswith("stop")]
    assert len(started) == len(stopped) > 3


def test_a_profiler_that_fails_does_not_hide_the_error(trainer_with, net, batches):
    class Failing(net):
        def training_step(self, batch, batch_idx):
            raise ZeroDivisionError("the user's")

    class Broken(Recorder):
        def describe(self):
            raise RuntimeError("no disk")

    with pytest.raises(ZeroDivisionError, match="the user's") as caught:
        trainer_with(Broken()).fit(Failing(), batches(1))
    assert any("no disk" in note for note in caught.value.__notes__)


def test_users_profile_their_own_parts(trainer_with, net, batches):
    class Profiled(net):
        def training_step(self, batch, batch_idx):
            with self.trainer.profiler.profile("forward"):
                return super().training_step(batch, batch_idx)

    profiler = Recorder()
    trainer_with(profiler).fit(Profiled(), batches(2))
    assert profiler.told.count("start forward") == 2
    trainer_with(None).fit(Profiled(), batches(2))
