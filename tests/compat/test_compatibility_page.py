"""docs/compatibility.md says what is: it is written from the package, the recorded runs and the list of differences."""

from __future__ import annotations

import ast
import importlib.util
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def load(path):
    name = f"compatibility_page_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


script = load(ROOT / "scripts" / "compatibility.py")
DIFFERENCES = load(script.DIFFERENCES).DIFFERENCES


def test_the_page_is_what_the_script_writes():
    written = script.PAGE.read_text(encoding="utf-8")
    assert script.page() == written, "docs/compatibility.md is not up to date: run `make compatibility`"


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.test)
def test_a_difference_names_a_test_that_exists(difference):
    path, *classes, name = difference.test.partition("[")[0].split("::")
    body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    for each in classes:
        (body,) = (node.body for node in body if isinstance(node, ast.ClassDef) and node.name == each)
    assert name.startswith("test_")
    assert name in {node.name for node in body if isinstance(node, ast.FunctionDef)}


def test_differences_fit_into_their_table():
    for difference in DIFFERENCES:
        assert all(text and "|" not in text and "\n" not in text for text in asdict(difference).values())


class Given:
    """What a recorded class is compared with."""

    annotated: int

    def __init__(self, first, second=2, *, third=None):
        self.assigned = first

    def method(self, value=0):
        return value

    @property
    def fixed(self):
        return 1


def compared(monkeypatch, recorded, found=Given):
    area = script.Area()
    monkeypatch.setattr(script, "ours", {"lightning.Given": found}.get)
    script.compare_object(area, ["lightning.Given"], {"kind": "class", **recorded})
    return area


def test_an_equal_class_is_counted_whole(monkeypatch):
    recorded = {
        "parameters": ["first", "second=2", "*third=None"],
        "methods": {"method": ["value=0"]},
        "properties": ["fixed"],
        "attributes": ["annotated", "assigned"],
    }
    area = compared(monkeypatch, recorded)
    assert (str(area.names), str(area.parameters)) == ("5 of 5", "4 of 4")
    assert not area.missing
    assert not area.differing


@pytest.mark.parametrize(
    ("recorded", "said"),
    [
        ({"parameters": ["fourth"]}, "no `fourth`"),
        ({"parameters": ["second=3"]}, "`second=2` instead of `second=3`"),
        ({"parameters": ["second=2", "first"]}, "`second` in another place, `first` in another place"),
        ({"methods": {"other": []}}, "no `other()`"),
        ({"methods": {"method": ["value"]}}, "`method()`: `value=0` instead of `value`"),
        ({"attributes": ["missing"]}, "no `missing`"),
        ({"properties": ["fixed"], "settable": ["fixed"]}, "`fixed` cannot be set"),
    ],
)
def test_what_differs_is_said(monkeypatch, recorded, said):
    assert compared(monkeypatch, recorded).differing == [f"`Given`: {said}"]


def test_a_missing_class_counts_with_its_members(monkeypatch):
    area = compared(monkeypatch, {"parameters": ["first"], "methods": {"method": ["value"]}}, found=None)
    assert (str(area.names), str(area.parameters)) == ("0 of 2", "0 of 2")
    assert area.missing == ["`Given`"]
    assert not area.differing


@pytest.mark.parametrize(
    ("path", "area"),
    [
        ("lightning.pytorch.callbacks.timer.Timer", "callbacks"),
        ("lightning.fabric.plugins.Precision", "fabric.plugins"),
        ("lightning.pytorch.LIGHTNING_LOGO", "root"),
        ("lightning.formatter", "root"),
    ],
)
def test_the_area_of_a_path(path, area):
    assert script.area_of(path) == area
