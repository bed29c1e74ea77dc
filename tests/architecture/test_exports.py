"""The public API is `__all__`: it equals the namespace, and everything in it is documented."""

import importlib
import importlib.util
import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import fulmen


def namespace_of(package):
    """The public names of a package that are its own or of another module of fulmen."""

    def is_public(name, value):
        if name.startswith("_") or isinstance(value, ModuleType):
            return False
        return str(getattr(value, "__module__", "fulmen")).startswith("fulmen")

    return {name for name in dir(package) if is_public(name, getattr(package, name))}


@pytest.fixture(scope="session")
def packages(sources):
    names = [source.module for source in sources if source.is_package and source.module != "fulmen"]
    return [importlib.import_module(name) for name in names]


@pytest.fixture(scope="session")
def exported(sources):
    """(module, name) for everything public, `fulmen`'s own face left out: it only repeats."""
    names = [source.module for source in sources if "__all__ = " in source.text and source.module != "fulmen"]
    return [(module, name) for module in map(importlib.import_module, names) for name in module.__all__]


def test_packages_export_their_namespace(packages):
    for package in packages:
        assert set(getattr(package, "__all__", ())) == namespace_of(package), package.__name__


def test_every_export_exists_and_is_documented(exported):
    assert [f"{module.__name__}.{name}" for module, name in exported if not hasattr(module, name)] == []
    objects = {f"{module.__name__}.{name}": getattr(module, name) for module, name in exported}
    documentable = {name: o for name, o in objects.items() if inspect.isclass(o) or inspect.isroutine(o)}
    assert [name for name, o in documentable.items() if not inspect.getdoc(o)] == []


def test_nothing_is_exported_twice(packages):
    exports = {package.__name__: list(getattr(package, "__all__", ())) for package in [*packages, fulmen]}
    assert {name: names for name, names in exports.items() if len(set(names)) != len(names)} == {}


def test_the_face_of_the_house():
    assert dir(fulmen) == sorted(fulmen.__all__)
    assert set(fulmen.__all__) == {*fulmen._MODULE_OF, "__version__"}


@pytest.mark.parametrize("name", sorted(fulmen._MODULE_OF))
def test_what_the_face_shows_is_there(name):
    assert inspect.getdoc(getattr(fulmen, name))
    assert getattr(fulmen, name) is getattr(importlib.import_module(fulmen._MODULE_OF[name]), name)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'fulmen' has no attribute 'Trianer'"):
        fulmen.Trianer  # noqa: B018


def test_a_star_import_gives_exactly_the_exports():
    code = "from fulmen import *; print(sorted(set(dir()) - set(dir(__builtins__)) - {'__builtins__'}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = {name for name in eval(run.stdout) if not name.startswith("__") or name == "__version__"}
    assert names == set(fulmen.__all__)
