from __future__ import annotations

import copy
import pickle

import pytest

from fulmen import loggers
from fulmen.loggers.logger import DummyLogger, Logger, merge_dicts, params_to_dict, rank_zero_experiment
from fulmen.ranks import rank_zero_only


class Recorder(Logger):
    name, version = "recorder", 3

    def __init__(self):
        super().__init__()
        self.saves = 0

    @property
    @rank_zero_experiment
    def experiment(self):
        return self

    def log_metrics(self, metrics, step=None):
        raise NotImplementedError

    def log_hyperparams(self, params, *args, **kwargs):
        raise NotImplementedError

    def save(self):
        self.saves += 1


def test_the_namespace_is_all_and_every_name_is_found():
    assert dir(loggers) == sorted(loggers.__all__)
    for name in loggers.__all__:
        assert getattr(loggers, name).__name__ == name
    with pytest.raises(AttributeError, match="NoSuchLogger"):
        loggers.NoSuchLogger  # noqa: B018


def test_defaults_of_the_base():
    logger = Recorder()
    assert (logger.root_dir, logger.log_dir, logger.save_dir, logger.group_separator) == (None, None, None, "/")
    logger.finalize("success")
    assert logger.saves == 1


def test_the_base_cannot_be_used_itself():
    with pytest.raises(TypeError, match="abstract"):
        Logger()


def test_the_experiment_does_nothing_on_other_ranks():
    logger = Recorder()
    assert logger.experiment is logger
    rank_zero_only.rank = 1
    experiment = logger.experiment
    assert experiment.add_image("name", 1, step=2) is None
    experiment["key"] = 1
    assert experiment["key"].anything() is None


def test_dummy_logger_takes_everything():
    logger = DummyLogger()
    logger.log_metrics({"a": 1}, step=1)
    logger.log_hyperparams({"a": 1}, metrics={})
    logger.log_graph(None)
    logger.save()
    logger.finalize("failed")
    assert (logger.name, logger.version, logger.log_dir) == ("", "", None)
    assert logger.watch("model", log="all") is None
    assert logger.experiment.log_image(key="x") is None
    assert logger[0] is logger
    assert list(logger) == [logger]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_dummy_logger_can_be_copied(copied):
    assert copied(DummyLogger()).experiment.anything() is None


def test_merge_dicts():
    dicts = [
        {"a": 1.7, "b": 2.0, "c": 1, "d": {"d1": 1, "d3": 3}},
        {"a": 1.1, "b": 2.2, "v": 1, "d": {"d1": 2, "d2": 3}},
        {"a": 1.1, "v": 2.3},
    ]
    merged = merge_dicts(dicts, agg_key_funcs={"a": min, "v": max, "d": {"d1": sum}})
    assert merged == {"a": 1.1, "b": 2.1, "c": 1, "v": 2.3, "d": {"d1": 3, "d3": 3, "d2": 3}}


def test_merge_dicts_with_another_default():
    assert merge_dicts([{"a": 1}, {"a": 5}], default_func=max) == {"a": 5}
    assert merge_dicts([]) == {}


def test_params_to_dict():
    from argparse import Namespace

    assert params_to_dict(None) == {}
    assert params_to_dict(Namespace(a=1)) == {"a": 1}
    given = {"a": 1}
    assert params_to_dict(given) == given
    assert params_to_dict(given) is not given
