"""Layers point downwards, third parties stay out of the core, and nothing imports itself in a circle."""

import ast
import re
import sys
from dataclasses import dataclass

import pytest

import fulmen


@dataclass(frozen=True)
class Import:
    """One import statement's target, seen from one file."""

    source: str
    target: str
    line: int
    lazy: bool  # inside a function
    typing_only: bool  # under TYPE_CHECKING

    def __str__(self):
        return f"{self.source}:{self.line} imports {self.target}"


class ImportCollector(ast.NodeVisitor):
    def __init__(self, source, modules):
        self.source, self.modules = source, modules
        self.lazy = self.typing_only = False
        self.imports = []

    def visit_FunctionDef(self, node):
        before, self.lazy = self.lazy, True
        self.generic_visit(node)
        self.lazy = before

    visit_AsyncFunctionDef = visit_Lambda = visit_FunctionDef

    def visit_If(self, node):
        if ast.unparse(node.test) not in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            return self.generic_visit(node)
        self.typing_only = True
        for statement in node.body:
            self.visit(statement)
        self.typing_only = False
        for statement in node.orelse:
            self.visit(statement)
        return None

    def visit_Import(self, node):
        for alias in node.names:
            self.add(alias.name, node)

    def visit_ImportFrom(self, node):
        origin = self.absolute(node)
        for alias in node.names:
            submodule = f"{origin}.{alias.name}"
            if origin == "fulmen":  # its face: what counts is the file behind it
                submodule = fulmen._MODULE_OF.get(alias.name, submodule)
            self.add(submodule if submodule in self.modules else origin, node)

    def visit_Call(self, node):
        """`import_module("...")` with a literal is an import, too."""
        function = ast.unparse(node.func)
        if function.endswith("import_module") and node.args and isinstance(node.args[0], ast.Constant):
            self.add(node.args[0].value, node)
        self.generic_visit(node)

    def absolute(self, node):
        if not node.level:
            return node.module
        parts = self.source.module.split(".")
        package = parts[: len(parts) - node.level + self.source.is_package]
        return ".".join([*package, node.module] if node.module else package)

    def add(self, target, node):
        self.imports.append(Import(self.source.module, target, node.lineno, self.lazy, self.typing_only))


def imports_of(sources):
    modules = {source.module for source in sources}
    found = []
    for source in sources:
        collector = ImportCollector(source, modules)
        collector.visit(source.tree)
        found += collector.imports
    return found


@pytest.fixture(scope="session")
def imports(sources):
    return [entry for entry in imports_of(sources) if not entry.typing_only]


@pytest.fixture(scope="session")
def layer_of(architecture):
    """Module -> its layer, by the table in docs/architecture.md; None for the face of the house."""
    rooms = {}
    for level, files in re.findall(r"^\| L(\d)[^|]*\|([^|]*)\|", architecture, re.MULTILINE):
        rooms |= {name.removesuffix("/*"): int(level) for name in files.replace("`", " ").split()}

    def look_up(module):
        path = module.replace(".", "/").removeprefix("fulmen/")
        while path and path not in rooms:  # a file with a line of its own, else its folder's
            path = path.rpartition("/")[0]
        return rooms.get(path)

    return look_up


def is_ours(module):
    return module.split(".")[0] == "fulmen"


def test_every_file_has_its_room(sources, layer_of):
    homeless = [s.name for s in sources if s.module != "fulmen" and layer_of(s.module) is None]
    assert homeless == [], "add these files to the table of layers in docs/architecture.md"


def test_layers_point_downwards(imports, layer_of):
    def upwards(entry):
        here, there = layer_of(entry.source), layer_of(entry.target)
        if here is None or there is None or there <= here:
            return False
        return not (entry.lazy and here == 3 and there == 4)  # the core's defaults are batteries

    assert [str(entry) for entry in imports if is_ours(entry.target) and upwards(entry)] == []


def test_third_parties_stay_out_of_the_core(imports, layer_of):
    def foreign(module):
        root = module.split(".")[0]
        return root not in sys.stdlib_module_names and root not in ("fulmen", "torch")

    core = [entry for entry in imports if not entry.lazy and (layer_of(entry.source) or 0) <= 3]
    assert [str(entry) for entry in core if foreign(entry.target)] == []


def test_integrations_are_found_by_name_only(imports, layer_of):
    below = [entry for entry in imports if layer_of(entry.source) != 5]
    assert [str(entry) for entry in below if entry.target.startswith("fulmen.integrations")] == []


def test_there_are_no_import_cycles(imports):
    graph = {}
    for entry in imports:
        if is_ours(entry.target) and not entry.lazy:
            graph.setdefault(entry.source, set()).add(entry.target)
    assert [sorted(cycle) for cycle in strongly_connected(graph) if len(cycle) > 1] == []
    assert [module for module, targets in graph.items() if module in targets] == []


def strongly_connected(graph):
    """The strongly connected components of a graph: Kosaraju's two passes."""
    order, seen = [], set()
    for start in graph:
        walk(graph, start, seen, order)
    backwards = {}
    for source, targets in graph.items():
        for target in targets:
            backwards.setdefault(target, set()).add(source)
    components, seen = [], set()
    for start in reversed(order):
        component = []
        walk(backwards, start, seen, component)
        components.append(component)
    return [component for component in components if component]


def walk(graph, node, seen, order):
    """Append everything that can be reached from `node`, each after what it leads to."""
    if node in seen:
        return
    seen.add(node)
    for target in sorted(graph.get(node, ())):
        walk(graph, target, seen, order)
    order.append(node)


def test_the_checker_sees_cycles():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": set()}
    assert sorted(sorted(component) for component in strongly_connected(graph)) == [["a", "b", "c"], ["d"], ["e"]]


def test_the_checker_sees_all_kinds_of_imports(sources):
    code = """
import torch.nn
from typing import TYPE_CHECKING
from . import trigger
from .fabric.plan import Plan
from fulmen import Every, __version__
if TYPE_CHECKING:
    from fulmen.trainer import Trainer
else:
    import rich
class A:
    import yaml
    def f(self):
        from fulmen.errors import LossError
        importlib.import_module("fulmen.loggers")
"""
    source = type(sources[0])("fulmen.example", sources[0].path.with_name("example.py"), code, ast.parse(code))
    collector = ImportCollector(source, {"fulmen", "fulmen.trigger", "fulmen.errors"})
    collector.visit(source.tree)
    assert [(entry.target, entry.lazy, entry.typing_only) for entry in collector.imports] == [
        ("torch.nn", False, False),
        ("typing", False, False),
        ("fulmen.trigger", False, False),
        ("fulmen.fabric.plan", False, False),
        ("fulmen.trigger", False, False),
        ("fulmen", False, False),
        ("fulmen.trainer", False, True),
        ("rich", False, False),
        ("yaml", False, False),
        ("fulmen.errors", True, False),
        ("fulmen.loggers", True, False),
    ]
