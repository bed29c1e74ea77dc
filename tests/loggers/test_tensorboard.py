from __future__ import annotations

import pickle
from argparse import Namespace
from enum import Enum
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("tensorboard")

from fulmen.loggers.tensorboard import TensorBoardLogger, _flattened
from fulmen.ranks import rank_zero_only


def events(logger):
    """What TensorBoard reads from the event files of a logger: {tag: [(step, value), ...]} and the other summaries."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    scalars, others = {}, {}
    for path in sorted(Path(logger.log_dir).glob("events.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    scalars.setdefault(value.tag, []).append((event.step, value.tensor.float_val[0]))
                else:
                    others[value.tag] = value
            if event.graph_def:
                others["graph"] = event.graph_def
    return scalars, others


def test_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("FULMEN_TEST_LOGS", str(tmp_path))
    logger = TensorBoardLogger("$FULMEN_TEST_LOGS/logs", name="exp", sub_dir="part")
    assert (logger.name, logger.version, logger.sub_dir) == ("exp", 0, "part")
    assert (logger.save_dir, logger.root_dir) == ("$FULMEN_TEST_LOGS/logs", "$FULMEN_TEST_LOGS/logs/exp")
    assert logger.log_dir == f"{tmp_path}/logs/exp/version_0/part"
    (tmp_path / "logs" / "exp" / "version_4").mkdir(parents=True)
    assert TensorBoardLogger("$FULMEN_TEST_LOGS/logs", name="exp").version == 5
    assert TensorBoardLogger(tmp_path, name=None, version="v").log_dir == f"{tmp_path}/v"


def test_scalars_tensors_and_dicts(tmp_path):
    logger = TensorBoardLogger(tmp_path, prefix="p")
    logger.log_metrics({"float": 0.5, "tensor": torch.tensor([2.0]), "int": 3}, step=7)
    logger.log_metrics({"both": {"a": 1.0, "b": torch.tensor(2.0)}}, step=8)
    logger.save()
    scalars, _ = events(logger)
    assert scalars == {"p-float": [(7, 0.5)], "p-tensor": [(7, 2.0)], "p-int": [(7, 3.0)]}
    assert sorted(path.name for path in Path(logger.log_dir).iterdir() if path.is_dir()) == ["p-both_a", "p-both_b"]
    logger.finalize("success")


@pytest.mark.parametrize("value", [torch.zeros(2), "text", [1, 2], object()])
def test_what_is_no_number_is_refused(tmp_path, value):
    logger = TensorBoardLogger(tmp_path)
    with pytest.raises(ValueError, match="The metric 'm' is"):
        logger.log_metrics({"m": value}, step=0)
    logger.finalize("failed")


class Color(Enum):
    RED = 1


def test_hyperparameters_go_to_the_table_and_to_yaml(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.log_hyperparams({"lr": 0.1, "nested": {"name": "x", "deep": Namespace(a=[1])}, "color": Color.RED})
    logger.save()
    scalars, others = events(logger)
    assert scalars == {"hp_metric": [(0, -1.0)]}
    content = others["_hparams_/session_start_info"].metadata.plugin_data.content
    for name in (b"lr", b"nested/name", b"nested/deep/a", b"[1]", b"color", b"Color.RED"):
        assert name in content
    yaml_file = Path(logger.log_dir) / "hparams.yaml"
    assert yaml_file.read_text() == "color: RED\nlr: 0.1\nnested:\n  deep:\n    a:\n    - 1\n  name: x\n"
    logger.finalize("success")


@pytest.mark.parametrize(
    ("metrics", "expected"), [({"acc": 0.5}, {"acc": [(2, 0.5)]}), (0.25, {"hp_metric": [(2, 0.25)]})]
)
def test_hyperparameters_with_a_metric(tmp_path, metrics, expected):
    logger = TensorBoardLogger(tmp_path)
    logger.log_hyperparams({"lr": 0.1}, metrics, step=2)
    logger.finalize("success")
    assert events(logger)[0] == expected


def test_without_default_metric_only_yaml_is_written(tmp_path):
    logger = TensorBoardLogger(tmp_path, default_hp_metric=False)
    logger.log_hyperparams({"lr": 0.1})
    logger.log_metrics({"a": 1.0}, step=0)
    logger.finalize("success")
    assert set(events(logger)[0]) == {"a"}
    assert (Path(logger.log_dir) / "hparams.yaml").read_text() == "lr: 0.1\n"


def test_an_existing_yaml_is_kept(tmp_path):
    logger = TensorBoardLogger(tmp_path, version=0)
    Path(logger.log_dir).mkdir(parents=True)
    (Path(logger.log_dir) / "hparams.yaml").write_text("mine: 1\n")
    logger.log_hyperparams({"lr": 0.1})
    logger.save()
    logger.finalize("success")
    assert (Path(logger.log_dir) / "hparams.yaml").read_text() == "mine: 1\n"


class Net(nn.Module):
    def __init__(self, example):
        super().__init__()
        self.layer = nn.Linear(2, 3)
        self.example_input_array = example

    def forward(self, x):
        return self.layer(x)


def test_graph(tmp_path):
    logger = TensorBoardLogger(tmp_path, log_graph=True)
    logger.log_graph(Net(torch.zeros(1, 2)))
    logger.finalize("success")
    assert b"Linear" in events(logger)[1]["graph"]


@pytest.mark.parametrize(("example", "found"), [(None, "is not set"), ([1.0], "is of list")])
def test_graph_without_a_usable_example_is_a_warning(tmp_path, example, found):
    with pytest.warns(UserWarning, match=f"`example_input_array` {found}"):
        TensorBoardLogger(tmp_path, log_graph=True).log_graph(Net(example))


def test_graph_is_off_by_default(tmp_path):
    TensorBoardLogger(tmp_path).log_graph(Net(None))
    assert list(tmp_path.iterdir()) == []


def test_other_ranks_write_nothing(tmp_path):
    rank_zero_only.rank = 1
    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics({"a": 1.0}, step=0)
    logger.log_hyperparams({"a": 1})
    logger.experiment.add_scalar("a", 1.0)
    logger.save()
    logger.finalize("success")
    assert list(tmp_path.iterdir()) == []


def test_it_can_be_pickled_while_it_writes(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics({"a": 1.0}, step=0)
    copied = pickle.loads(pickle.dumps(logger))
    assert copied.log_dir == logger.log_dir
    logger.finalize("success")


def test_missing_package(tmp_path, monkeypatch):
    import sys

    for name in ("tensorboard", "tensorboardX"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r"fulmen\[tensorboard\]"):
        TensorBoardLogger(tmp_path)


def test_hyperparameters_are_made_plain_for_the_table():
    np = pytest.importorskip("numpy")
    tensor = torch.ones(2)
    given = {
        "count": np.int64(3),
        "rate": np.float32(0.5),
        "flag": np.bool_(True),
        "array": np.zeros(2),
        "none": None,
        "function": len,
        "plain": {"bool": True, "int": 1, "float": 0.5, "text": "x"},
        "tensor": tensor,
        "empty": {},
    }
    flat = _flattened(given)
    assert {name: flat[name] for name in ("count", "rate", "flag")} == {"count": 3, "rate": 0.5, "flag": True}
    assert [type(flat[name]) for name in ("count", "rate", "flag")] == [int, float, bool]
    assert {name: flat[f"plain/{name}"] for name in given["plain"]} == given["plain"]
    assert flat["tensor"] is tensor
    others = {name: flat[name] for name in ("array", "none", "function", "empty")}
    assert others == {"array": "[0. 0.]", "none": "None", "function": "<built-in function len>", "empty": "{}"}
