"""Writes docs/compatibility.md: what of Lightning is here, and what differs on purpose. ``make compatibility``.

Held against each other are a record of Lightning's public names (``tests/compat/lightning_api.json``) and the package
as it is imported here; the recorded orders of hooks (``tests/loops/hooks_lightning.json``) and the same runs, run here.
The deliberate differences are those of ``tests/compat/differences.py``.
"""

from __future__ import annotations

import ast
import contextlib
import enum
import functools
import importlib
import importlib.util
import inspect
import io
import itertools
import json
import logging
import re
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
API = ROOT / "tests" / "compat" / "lightning_api.json"
DIFFERENCES = ROOT / "tests" / "compat" / "differences.py"
HOOK_ORDER = ROOT / "tests" / "loops" / "test_hook_order.py"
ROOTS = {"lightning.pytorch": "fulmen", "lightning.fabric": "fulmen.fabric", "lightning": "fulmen"}
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass
class Count:
    """How many of something are equal."""

    equal: int = 0
    total: int = 0

    def add(self, equal: bool) -> bool:
        self.equal += equal
        self.total += 1
        return equal

    def __str__(self) -> str:
        return f"{self.equal} of {self.total}" if self.total else ""


@dataclass
class Area:
    """The comparison of one part of the API."""

    names: Count = field(default_factory=Count)
    parameters: Count = field(default_factory=Count)
    missing: list[str] = field(default_factory=list)  # whole classes, functions and values
    differing: list[str] = field(default_factory=list)  # one line for each object that is here in part


# ------------------------------------------------------------------------------------------------ names and parameters


def compare(record: dict[str, Any]) -> dict[str, Area]:
    """Compares the package with a record of Lightning's names, area by area."""
    areas: dict[str, Area] = {}
    for name, recorded in record["objects"].items():
        paths = [name, *recorded.get("also", [])]
        compare_object(areas.setdefault(area_of(max(paths, key=lambda path: path.count("."))), Area()), paths, recorded)
    return dict(sorted(areas.items()))


def area_of(path: str) -> str:
    """The part of the API that a dotted path belongs to: "callbacks", "fabric.plugins"."""
    package, *parts = path.split(".")[1:]
    prefix = "fabric." if package == "fabric" else ""
    return prefix + (parts[0] if len(parts) > 1 else "root")


def compare_object(area: Area, paths: list[str], recorded: dict[str, Any]) -> None:
    """Compares one class, function or value, with its parameters and members."""
    is_class = recorded["kind"] == "class"
    found = next(
        (value for path in paths if (value := ours(path)) is not None and inspect.isclass(value) == is_class), None
    )
    title = f"`{paths[0].removeprefix('lightning.').removeprefix('pytorch.')}`"
    lacks: list[str] = []
    if not area.names.add(found is not None):
        area.missing.append(title)
    if changed := compare_parameters(area, recorded.get("parameters", []), found):
        lacks.append(changed)
    for method, parameters in recorded.get("methods", {}).items():
        here = area.names.add(found is not None and hasattr(found, method))
        changed = compare_parameters(area, parameters or [], found if here else None, method)
        if not here:
            lacks.append(f"no `{method}()`")
        elif changed:
            lacks.append(f"`{method}()`: {changed}")
    for attribute in [*recorded.get("properties", []), *recorded.get("attributes", [])]:
        if not area.names.add(has_attribute(found, attribute)):
            lacks.append(f"no `{attribute}`")
    lacks += [f"`{name}` cannot be set" for name in recorded.get("settable", []) if is_fixed(found, name)]
    if found is not None and lacks:
        area.differing.append(f"{title}: {'; '.join(lacks)}")


def ours(path: str) -> Any:
    """What is under the path of a recorded name in this package; None if nothing."""
    root = next(root for root in ROOTS if path.startswith(f"{root}."))
    module, _, name = (ROOTS[root] + path.removeprefix(root)).rpartition(".")
    return getattr(imported(module), name, None)


@functools.cache
def imported(name: str) -> ModuleType | None:
    """A module of this package, None if there is none."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "fulmen":
            raise
        return None


def compare_parameters(area: Area, recorded: list[str], found: Any, method: str = "") -> str:
    """Compares parameters, of a callable or of a method of a class, by name, default and place. What differs."""
    parameters = parameters_of(found, method) if found is not None else {}
    places = [name for name, parameter in parameters.items() if parameter.kind in POSITIONAL]
    recorded_places = [text.lstrip("/").partition("=")[0] for text in recorded if not text.startswith("*")]
    changed = []
    for text in recorded:
        name, has_default, default = text.lstrip("/*").partition("=")
        parameter = parameters.get(name)
        if parameter is None:
            difference = f"no `{name}`"
        elif not same_default(default if has_default else None, default_of(parameter)):
            difference = f"`{shown(name, default_of(parameter))}` instead of `{text.lstrip('/*')}`"
        elif name in recorded_places and (name not in places or places.index(name) != recorded_places.index(name)):
            difference = f"`{name}` in another place"
        else:
            difference = ""
        if not area.parameters.add(not difference):
            changed.append(difference)
    return ", ".join(changed)


def parameters_of(found: Any, method: str) -> dict[str, inspect.Parameter]:
    """Parameters by name, without ``self``, ``*args`` and ``**kwargs``."""
    function = getattr(found, method) if method else found
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # not a function here, or one of C
        return {}
    if method and inspect.isfunction(inspect.getattr_static(found, method)):
        parameters = parameters[1:]
    return {parameter.name: parameter for parameter in parameters if parameter.kind not in VARIABLE}


def default_of(parameter: inspect.Parameter) -> str | None:
    """A default as the record writes it."""
    default = parameter.default
    if default is parameter.empty:
        return None
    if inspect.isclass(default) or inspect.isroutine(default):
        return f"<{'class' if inspect.isclass(default) else 'function'} {default.__name__}>"
    if isinstance(default, enum.Enum):
        return f"{type(default).__name__}.{default.name}"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(default))


def same_default(recorded: str | None, here: str | None) -> bool:
    """Whether two defaults are equal; functions without a public name cannot be told apart."""
    if recorded is not None and recorded.startswith(("<function _", "<function <")):
        return here is not None and here.startswith("<function ")
    return recorded == here


def shown(name: str, default: str | None) -> str:
    return name if default is None else f"{name}={default}"


def has_attribute(found: Any, name: str) -> bool:
    """Whether instances of a class have an attribute: as a member, annotated, or put on ``self`` by ``__init__``."""
    if not inspect.isclass(found):
        return False
    return hasattr(found, name) or any(name in declared(base) for base in found.__mro__ if base is not object)


def declared(cls: type) -> set[str]:
    """The names that one class annotates or assigns in its constructor."""
    names = set(inspect.get_annotations(cls))
    for method in ("__init__", "__post_init__"):
        if inspect.isfunction(function := vars(cls).get(method)):
            names |= assigned(function)
    return names


@functools.cache
def assigned(function: Any) -> set[str]:
    """The attributes of its first argument that a function assigns; none if its source is not in a file."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except OSError:  # what a dataclass generates
        return set()
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}


def is_fixed(found: Any, name: str) -> bool:
    """Whether a class has a property that cannot be set."""
    member = inspect.getattr_static(found, name, None)
    return isinstance(member, property) and member.fset is None


# ------------------------------------------------------------------------------------------------ orders of hooks


def hook_runs() -> tuple[list[str], list[str], dict[str, str]]:
    """The recorded runs that are equal, those that are not, and the event that is left out of a run on purpose."""
    order = loaded("hook_order", HOOK_ORDER)
    equal: list[str] = []
    unequal: list[str] = []
    with tempfile.TemporaryDirectory() as folder, quiet():
        for name, run in order.RUNS.items():
            reference = order.expected(name)
            if name in order.STALE:
                reference["events"].remove(order.STALE[name])
            same = order.record(run, Path(folder), everything=True) == reference
            (equal if same else unequal).append(name)
    return equal, unequal, order.STALE


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing is printed, logged or warned of inside."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def loaded(name: str, file: Path) -> Any:
    """A module from a file that is in no package."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there for their module
    spec.loader.exec_module(module)
    return module


# ------------------------------------------------------------------------------------------------ the page


def page() -> str:
    """The page as text."""
    record = json.loads(API.read_text(encoding="utf-8"))
    with quiet():
        areas = compare(record)
    equal, unequal, left_out = hook_runs()
    parts = [
        HEAD.format(version=record["version"]),
        counts(areas),
        REST,
        *(rest(name, area) for name, area in areas.items() if area.missing or area.differing),
        HOOKS.format(version=record["version"], equal=len(equal), total=len(equal) + len(unequal)),
        *([f"Not equal: {code(unequal)}.\n"] if unequal else []),
        f"Equal: {code(equal)}.\n",
        *(
            f"In `{name}` Lightning has one event more, `{event}`: a deliberate difference.\n"
            for name, event in left_out.items()
        ),
        DELIBERATE,
        *differences(),
    ]
    return "\n".join(parts)


HEAD = """# Compatibility

<!-- written by `make compatibility`, held by tests/compat/test_compatibility_page.py; not edited by hand -->

What code written for Lightning {version} finds here. `lightning.pytorch` is `fulmen`, and `lightning.fabric` is
`fulmen.fabric`. The record of Lightning was taken by inspecting the installed package, version {version}; the counts
come from inspecting this one. Where it differs on purpose is [at the end](#deliberate-differences).

## Names and parameters

A name is a public class, function or value under its path, or a member of a class. A parameter is equal if its name,
its default and its place are.
"""

REST = """### What is not here, or not the same

Members of a class that is not here are not listed one by one.
"""

HOOKS = """## Order of hooks

Runs of Lightning {version} were recorded: each call on callbacks, module, datamodule, strategy and loggers, with the
epoch and the step that were read inside, and the metrics and counters that were left. Of {total} runs {equal} give the
same record here.
"""

DELIBERATE = """## Deliberate differences

Where Lightning surprises, loses something or cannot go on, fulmen may differ. Each row names the test that holds it.
"""


def counts(areas: dict[str, Area]) -> str:
    """The table of how much is equal, area by area."""
    lines = ["| area | names | parameters |", "|---|---|---|"]
    lines += [f"| `{name}` | {area.names} | {area.parameters} |" for name, area in areas.items()]
    names, parameters = (
        Count(sum(count.equal for count in column), sum(count.total for count in column))
        for column in zip(*((area.names, area.parameters) for area in areas.values()), strict=True)
    )
    return "\n".join([*lines, f"| all | {names} | {parameters} |", ""])


def rest(name: str, area: Area) -> str:
    """What of one area is missing, and what differs."""
    lines = [f"#### {name}", ""]
    if area.missing:
        lines += [f"Not here: {', '.join(area.missing)}.", ""]
    return "\n".join([*lines, *(f"- {line}" for line in area.differing), *([""] if area.differing else [])])


def differences() -> Iterator[str]:
    """The deliberate differences, a table for each area."""
    found = sorted(loaded("compatibility_differences", DIFFERENCES).DIFFERENCES, key=lambda each: each.area)
    for area, each in itertools.groupby(found, key=lambda each: each.area):
        rows = [f"| {row.lightning} | {row.fulmen} | {row.why} | `{row.test}` |" for row in each]
        yield "\n".join([f"### {area}", "", "| Lightning | fulmen | why | test |", "|---|---|---|---|", *rows, ""])


def code(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
