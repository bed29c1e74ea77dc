"""Who overrides what: by class, by instance, and by a stock class that says it is plain."""

import functools

from fulmen.fabric.overriding import overrides, plain


class Base:
    @plain
    def step(self):
        return "base"


class Same(Base):
    @plain
    def step(self):
        return "same work"


class Other(Base):
    def step(self):
        return super().step()


class Wrapped(Base):
    @functools.wraps(Base.step)
    def step(self):
        return "copied attributes are not enough"


def test_classes():
    kinds = (Base, type("Child", (Base,), {}), Same, Other, Wrapped)
    assert [overrides(kind(), "step") for kind in kinds] == [False, False, False, True, True]


def test_an_instance():
    owner = Base()
    owner.step = lambda: 1
    assert overrides(owner, "step")
    assert not overrides(Base(), "step")
