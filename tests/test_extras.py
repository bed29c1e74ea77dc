import json
import sys

import pytest

from fulmen.extras import available, need


@pytest.fixture
def broken_package(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import tensorboard\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    return "half_installed"


def test_need_returns_the_module():
    assert need("json") is json
    assert need("json.decoder") is json.decoder


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.delitem(sys.modules, "sklearn.datasets", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "fulmen\[demo\]"') as raised:
        need("sklearn.datasets")
    assert raised.value.name == "sklearn"


def test_without_an_extra_the_package_itself_is_named():
    with pytest.raises(ModuleNotFoundError, match="pip install surely_not_there"):
        need("surely_not_there.part")


def test_the_package_that_is_really_missing_is_named(broken_package):
    with pytest.raises(ModuleNotFoundError, match=r'pip install "fulmen\[tensorboard\]"'):
        need(broken_package)


def test_available(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert available("json")
    assert available("json.decoder")
    assert available("this")  # found without importing it
    assert "this" not in sys.modules
    assert not available("surely_not_there")
    assert not available("surely_not_there.part")
    assert not available("sklearn")
