from __future__ import annotations

import copy
import pickle
from argparse import Namespace
from collections import OrderedDict
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.checkpoint.hyperparameters import (
    AttributeDict,
    convert,
    dump_hyperparameters,
    load_hparams_from_tags_csv,
    load_hparams_from_yaml,
    save_hparams_to_tags_csv,
    save_hparams_to_yaml,
    update_hparams,
)


class Color(Enum):
    RED = 1


class TestAttributeDict:
    def test_entries_are_attributes(self):
        hparams = AttributeDict(lr=0.1)
        hparams.width = 3
        assert hparams == {"lr": 0.1, "width": 3}
        del hparams.lr
        assert hparams == {"width": 3}
        assert "width" in dir(hparams)

    def test_a_missing_one_is_an_attribute_error(self):
        hparams = AttributeDict()
        with pytest.raises(AttributeError, match="no attribute 'lr'"):
            hparams.lr  # noqa: B018
        with pytest.raises(AttributeError, match="no attribute 'lr'"):
            del hparams.lr
        assert getattr(hparams, "lr", None) is None

    def test_repr_is_sorted(self):
        assert repr(AttributeDict(b=1, a="x", longer=[1])) == '"a":      x\n"b":      1\n"longer": [1]'
        assert repr(AttributeDict()) == ""

    @pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
    def test_copies(self, copied):
        again = copied(AttributeDict(a=[1]))
        assert again == {"a": [1]}
        assert type(again) is AttributeDict
        assert again.a == [1]


class Owner:
    CHECKPOINT_HYPER_PARAMS_KEY = "hyper_parameters"
    CHECKPOINT_HYPER_PARAMS_NAME = "hparams_name"
    CHECKPOINT_HYPER_PARAMS_TYPE = "hparams_type"
    _hparams_name = "kwargs"

    def __init__(self, hparams):
        self.hparams = hparams


def test_dump_gives_plain_dicts_in_order():
    entries = dump_hyperparameters(Owner(AttributeDict(a=1)))
    assert list(entries.items()) == [("hparams_name", "kwargs"), ("hyper_parameters", {"a": 1})]
    assert type(entries["hyper_parameters"]) is dict
    assert dump_hyperparameters(Owner(AttributeDict())) == {}


def test_update_merges_nested_mappings():
    hparams = {"a": {"b": 1}, "c": 1}
    update_hparams(hparams, {"a": {"d": 2}, "c": {"e": 1}, "f": 1})
    assert hparams == {"a": {"b": 1, "d": 2}, "c": {"e": 1}, "f": 1}


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
nested = st.recursive(
    plain, lambda each: st.lists(each) | st.dictionaries(st.text(), each) | st.tuples(each), max_leaves=8
)


@settings(max_examples=60, deadline=None)
@given(hparams=st.dictionaries(st.text(), nested, max_size=4))
def test_yaml_reads_back_what_was_written(tmp_path_factory, hparams):
    path = tmp_path_factory.mktemp("yaml") / "hparams.yaml"
    save_hparams_to_yaml(path, hparams)
    assert load_hparams_from_yaml(path, use_omegaconf=False) == hparams


def test_yaml_of_types_that_are_nearly_plain(tmp_path):
    path = tmp_path / "hparams.yaml"
    hparams = {
        "attributes": AttributeDict(a=1),
        "color": Color.RED,
        "deep": {"color": [Color.RED]},
        "namespace": Namespace(a=(1, 2)),
        "number": np.float32(0.5),
        "ordered": OrderedDict(b=1),
        "path": Path("a/b"),
        "set": {1},
        "small": 1e-5,
    }
    save_hparams_to_yaml(path, hparams)
    assert load_hparams_from_yaml(path, use_omegaconf=False) == {
        "attributes": {"a": 1},
        "color": "RED",
        "deep": {"color": ["RED"]},
        "namespace": {"a": (1, 2)},
        "number": 0.5,
        "ordered": {"b": 1},
        "path": "a/b",
        "set": {1},
        "small": 1e-5,
    }


@pytest.mark.parametrize("value", [torch.float32, torch.nn.ReLU(), lambda: 0, torch.zeros(2), [object()]])
def test_yaml_skips_what_has_no_safe_form(tmp_path, value):
    with pytest.warns(UserWarning, match="Not written to .*: hyperparameter 'odd', 'next'") as caught:
        save_hparams_to_yaml(tmp_path / "hparams.yaml", {"a": 1, "odd": value, "next": value})
    assert len(caught) == 1
    assert load_hparams_from_yaml(tmp_path / "hparams.yaml", use_omegaconf=False) == {"a": 1}


def test_yaml_never_runs_code(tmp_path):
    (tmp_path / "evil.yaml").write_text(f"a: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    with pytest.raises(yaml.YAMLError):
        load_hparams_from_yaml(tmp_path / "evil.yaml")
    assert not (tmp_path / "made").exists()


def test_empty_yaml_is_an_empty_dict(tmp_path):
    (tmp_path / "empty.yaml").write_text("")
    assert load_hparams_from_yaml(tmp_path / "empty.yaml", use_omegaconf=False) == {}


def test_csv_reads_back_literals_and_text(tmp_path):
    path = tmp_path / "tags.csv"
    save_hparams_to_tags_csv(path, Namespace(a=1, b="x, y", c=[1, None], d=1e-5))
    assert path.read_text().splitlines()[0] == "key,value"
    assert load_hparams_from_tags_csv(path) == {"a": 1, "b": "x, y", "c": [1, None], "d": 1e-5}
    assert convert("os.getcwd()") == "os.getcwd()"


@pytest.mark.parametrize("load", [load_hparams_from_yaml, load_hparams_from_tags_csv])
def test_a_missing_file_is_a_warning_and_empty(tmp_path, load):
    with pytest.warns(RuntimeWarning, match="no file of hyperparameters"):
        assert load(tmp_path / "missing") == {}


@pytest.mark.parametrize("save", [save_hparams_to_yaml, save_hparams_to_tags_csv])
def test_saving_needs_the_folder_and_a_mapping(tmp_path, save):
    with pytest.raises(RuntimeError, match="does not exist"):
        save(tmp_path / "missing" / "file", {})
    with pytest.raises(TypeError, match="int was given"):
        save(tmp_path / "file", 3)


def test_urls(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    url = "memory://fulmen-hparams/file"
    for save, load in (
        (save_hparams_to_yaml, load_hparams_from_yaml),
        (save_hparams_to_tags_csv, load_hparams_from_tags_csv),
    ):
        save(url, {"a": 1})
        assert load(url) == {"a": 1}
        fsspec.filesystem("memory").rm("/fulmen-hparams/file")
        with pytest.warns(RuntimeWarning, match="no file"):
            assert load(url) == {}
