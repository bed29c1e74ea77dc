from __future__ import annotations

import copy
import csv
import math
import pickle
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.loggers.csv_logs import CSVLogger, ExperimentWriter
from fulmen.ranks import rank_zero_only


def rows(logger) -> list[dict[str, str]]:
    with open(Path(logger.log_dir) / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_folders(tmp_path):
    logger = CSVLogger(tmp_path, name="exp", version=3)
    assert (logger.name, logger.version, logger.save_dir) == ("exp", 3, str(tmp_path))
    assert logger.root_dir == str(tmp_path / "exp")
    assert logger.log_dir == str(tmp_path / "exp" / "version_3")
    assert Path(CSVLogger(tmp_path, name=None, version="abc").log_dir) == tmp_path / "abc"
    assert CSVLogger(tmp_path, name=None).name == ""


def test_nothing_is_written_before_it_is_needed(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.save()
    logger.finalize("success")
    assert list(tmp_path.iterdir()) == []


def test_version_is_one_more_than_the_highest(tmp_path):
    for name in ("version_0", "version_7", "version_x", "other"):
        (tmp_path / "lightning_logs" / name).mkdir(parents=True)
    assert CSVLogger(tmp_path).version == 8


def test_columns_are_sorted_and_the_header_is_rewritten_for_new_keys(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"b": 0.5, "a": 1}, step=0)
    logger.save()
    metrics_file = Path(logger.log_dir) / "metrics.csv"
    assert metrics_file.read_bytes() == b"a,b,step\r\n1,0.5,0\r\n"
    logger.log_metrics({"a": 2}, step=5)
    logger.save()
    logger.log_metrics({"c": None, "a": 'say "x",\ny'}, step=6)
    logger.save()
    assert metrics_file.read_bytes() == b'a,b,c,step\r\n1,0.5,,0\r\n2,,,5\r\n"say ""x"",\ny",,,6\r\n'
    assert [entry.name for entry in metrics_file.parent.iterdir()] == ["metrics.csv"]


def test_an_unchanged_header_is_not_written_again(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"a": 1}, step=0)
    logger.save()
    before = (Path(logger.log_dir) / "metrics.csv").stat().st_ino
    logger.log_metrics({"a": 2}, step=1)
    logger.save()
    assert (Path(logger.log_dir) / "metrics.csv").stat().st_ino == before


def test_step_defaults_to_the_number_of_unsaved_rows(tmp_path):
    logger = CSVLogger(tmp_path)
    for _ in range(2):
        logger.log_metrics({"a": 1})
    logger.save()
    logger.log_metrics({"a": 1})
    logger.save()
    assert [row["step"] for row in rows(logger)] == ["0", "1", "0"]


def test_rows_are_written_every_n_steps_without_save(tmp_path):
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=2)
    logger.log_metrics({"a": 1}, step=0)
    assert not (Path(logger.log_dir) / "metrics.csv").exists()
    logger.log_metrics({"a": 1}, step=1)
    assert len(rows(logger)) == 2


def test_prefix_and_tensors(tmp_path):
    logger = CSVLogger(tmp_path, prefix="run")
    logger.log_metrics({"loss": torch.tensor(0.25), "n": torch.tensor([3])}, step=0)
    logger.save()
    assert rows(logger) == [{"run-loss": "0.25", "run-n": "3", "step": "0"}]


@settings(max_examples=50, deadline=None)
@given(value=st.floats())
def test_every_float_reads_back_exactly(tmp_path_factory, value):
    logger = CSVLogger(tmp_path_factory.mktemp("logs"))
    logger.log_metrics({"x": value}, step=0)
    logger.finalize("success")
    (row,) = rows(logger)
    assert float(row["x"]) == value or (math.isnan(value) and math.isnan(float(row["x"])))


names = st.sampled_from(["a", "b", "c", "step_loss", "Z"])


@settings(max_examples=50, deadline=None)
@given(batches=st.lists(st.lists(st.dictionaries(names, st.integers()), min_size=1), min_size=1))
def test_no_row_and_no_value_is_ever_lost(tmp_path_factory, batches):
    logger = CSVLogger(tmp_path_factory.mktemp("logs"))
    logged = []
    for batch in batches:
        for metrics in batch:
            logger.log_metrics(metrics, step=len(logged))
            logged.append({key: str(value) for key, value in {**metrics, "step": len(logged)}.items()})
        logger.save()
    assert [{key: value for key, value in row.items() if value} for row in rows(logger)] == logged


def test_a_killed_process_loses_nothing_that_was_saved(tmp_path):
    code = (
        "import os, signal\n"
        "from fulmen.loggers import CSVLogger\n"
        f"logger = CSVLogger({str(tmp_path)!r}, version=0)\n"
        "logger.log_metrics({'a': 1}, step=0); logger.save()\n"
        "logger.log_metrics({'a': 2}, step=1); logger.save()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert [row["a"] for row in rows(CSVLogger(tmp_path, version=0))] == ["1", "2"]


def test_an_occupied_folder_is_warned_about_and_its_metrics_replaced(tmp_path):
    first = CSVLogger(tmp_path, version=0)
    first.log_metrics({"old": 1}, step=0)
    first.finalize("success")
    (Path(first.log_dir) / "notes.txt").write_text("keep")
    second = CSVLogger(tmp_path, version=0)
    with pytest.warns(UserWarning, match="exists and is not empty"):
        second.log_metrics({"new": 1}, step=0)
    second.save()
    assert rows(second) == [{"new": "1", "step": "0"}]
    assert (Path(first.log_dir) / "notes.txt").read_text() == "keep"


def test_append_keeps_the_rows_of_an_earlier_run(tmp_path):
    first = CSVLogger(tmp_path, version=0)
    first.log_metrics({"old": 1}, step=0)
    first.finalize("success")
    second = CSVLogger(tmp_path, version=0, append=True)
    second.log_metrics({"new": 1}, step=1)
    second.save()
    assert rows(second) == [{"new": "", "old": "1", "step": "0"}, {"new": "1", "old": "", "step": "1"}]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda logger: pickle.loads(pickle.dumps(logger))])
def test_a_copy_appends_to_what_the_original_wrote(tmp_path, copied):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"a": 1}, step=0)
    logger.save()
    other = copied(logger)
    other.log_metrics({"a": 2, "b": 3}, step=1)
    other.save()
    assert rows(logger) == [{"a": "1", "b": "", "step": "0"}, {"a": "2", "b": "3", "step": "1"}]


def test_logging_goes_on_after_finalize(tmp_path):
    logger = CSVLogger(tmp_path)
    for step in range(2):
        logger.log_metrics({"a": step}, step=step)
        logger.finalize("success")
    assert [row["a"] for row in rows(logger)] == ["0", "1"]


def test_other_ranks_write_nothing(tmp_path):
    rank_zero_only.rank = 1
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"a": 1}, step=0)
    logger.log_hyperparams({"a": 1})
    logger.experiment.log_metrics({"a": 1})
    logger.finalize("success")
    assert list(tmp_path.iterdir()) == []


def test_hyperparameters_are_written_when_logged(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_hyperparams({"lr": 0.1})
    logger.log_hyperparams(Namespace(width=3))
    logger.log_hyperparams()
    assert (Path(logger.log_dir) / "hparams.yaml").read_text() == "lr: 0.1\nwidth: 3\n"
    assert not (Path(logger.log_dir) / "metrics.csv").exists()


def test_rows_are_copied_to_a_url_now_and_then(tmp_path, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    logger = CSVLogger(f"memory://{tmp_path.name}", name="")
    url = f"{logger.log_dir}/metrics.csv"
    for step in range(3):
        logger.log_metrics({"a": step}, step)
        logger.save()
    assert fsspec.open(url, "rt").open().read() == "a,step\n0,0\n"
    logger.finalize("success")
    assert fsspec.open(url, "rt").open().read() == "a,step\n0,0\n1,1\n2,2\n"


def test_the_writer_alone(tmp_path):
    writer = ExperimentWriter(tmp_path / "here")
    writer.log_metrics({"a": 1})
    assert writer.metrics == [{"a": 1, "step": 0}]
    writer.save()
    writer.close()
    assert writer.metrics == []
    assert writer.metrics_keys == ["a", "step"]
