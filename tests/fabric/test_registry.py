"""Registries: classes under names."""

import pytest

from fulmen.fabric.registry import Registry


class Lamp:
    def __init__(self, watts=40):
        self.watts = watts


def test_register_get_remove():
    registry = Registry("lamp")
    registry.register("small", Lamp, description="A small one", watts=5)
    registry.register("plain", Lamp)
    assert registry.get("small").watts == 5
    assert registry.get("plain").watts == 40
    assert registry.entry("small").description == "A small one"
    assert registry.names() == ["plain", "small"]
    registry.remove("plain")
    assert "plain" not in registry
    with pytest.raises(KeyError, match=r"no lamp 'plain'\. Registered: small"):
        registry.get("plain")


def test_as_a_decorator():
    registry = Registry("lamp")

    @registry.register("bright", watts=100)
    class Bright(Lamp):
        pass

    assert type(registry.get("bright")) is Bright
    assert registry.get("bright").watts == 100


def test_names_are_taken_once_unless_overridden():
    registry = Registry("lamp")
    registry.register("small", Lamp, watts=5)
    with pytest.raises(ValueError, match="override=True"):
        registry.register("small", Lamp)
    registry.register("small", Lamp, override=True, watts=7)
    assert registry.get("small").watts == 7
    with pytest.raises(TypeError, match="string"):
        registry.register(3, Lamp)


def test_the_names_of_a_class_are_found_without_importing_it():
    registry = Registry("lamp")
    registry.register("small", Lamp, watts=5)
    registry.register_lazily("far", f"{Lamp.__module__}:{Lamp.__qualname__}", watts=7)
    registry.register_lazily("other", "a_module_that_is_not_there:Lamp")
    assert [(name, entry.init_params["watts"]) for name, entry in registry.entries_of(Lamp)] == [
        ("small", 5),
        ("far", 7),
    ]
