"""A registry: classes under names that users can type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Generic, TypeVar

__all__ = ["Entry", "Registry"]

T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """What is known under one name.

    Args:
        source: The class, or "module:class", which is imported when somebody asks for it.
        description: One line for people.
        init_params: Keyword arguments the class is called with.
    """

    source: type[T] | str
    description: str = ""
    init_params: dict[str, Any] = field(default_factory=dict)

    @property
    def target(self) -> type[T]:
        """The class."""
        if not isinstance(self.source, str):
            return self.source
        module, _, name = self.source.partition(":")
        target: type[T] = getattr(import_module(module), name)
        return target


class Registry(Generic[T]):
    """Classes under names.

    Args:
        kind: What is registered, for messages: "strategy".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry[T]] = {}

    def register(
        self,
        name: str,
        target: type[T] | None = None,
        description: str = "",
        override: bool = False,
        **init_params: Any,
    ) -> Callable[[type[T]], type[T]] | type[T]:
        """Put a class under a name; without the class, give a decorator that does so.

        Args:
            name: What users will type.
            target: The class; None to use the call as a decorator of the class.
            description: One line for people.
            override: Whether a class that is there already may be replaced.
            **init_params: Keyword arguments the class is called with when it is asked for by this name.

        Raises:
            TypeError: The name is not a string.
            ValueError: The name is taken and `override` is False.
        """
        if not isinstance(name, str):
            raise TypeError(f"The name of a {self.kind} has to be a string, got {name!r}.")
        if name in self._entries and not override:
            raise ValueError(
                f"The {self.kind} {name!r} is registered already, as {self._entries[name].target.__name__}. "
                f"Choose another name, or replace it: `register({name!r}, ..., override=True)`."
            )

        def put(cls: type[T]) -> type[T]:
            self._entries[name] = Entry(cls, description, init_params)
            return cls

        return put if target is None else put(target)

    def register_lazily(self, name: str, source: str, description: str = "", **init_params: Any) -> None:
        """Put a class under a name that is imported when it is asked for.

        Args:
            name: What users will type.
            source: "module:class".
            description: One line for people.
            **init_params: Keyword arguments the class is called with.
        """
        self._entries[name] = Entry(source, description, init_params)

    def get(self, name: str) -> T:
        """A new object of the class under `name`, made with its registered arguments.

        Raises:
            KeyError: Nothing is registered under that name.
        """
        entry = self.entry(name)
        return entry.target(**entry.init_params)

    def entry(self, name: str) -> Entry[T]:
        """What is known under `name`, without making an object.

        Raises:
            KeyError: Nothing is registered under that name.
        """
        if name not in self._entries:
            raise KeyError(f"There is no {self.kind} {name!r}. Registered: {', '.join(self.names()) or 'none'}.")
        return self._entries[name]

    def entries_of(self, target: type) -> list[tuple[str, Entry[T]]]:
        """The names of a class, with what is known under them; nothing is imported to find out."""
        source = f"{target.__module__}:{target.__qualname__}"
        return [(name, entry) for name, entry in self._entries.items() if entry.source in (target, source)]

    def remove(self, name: str) -> None:
        """Forget what is under `name`.

        Raises:
            KeyError: Nothing is registered under that name.
        """
        self.entry(name)
        del self._entries[name]

    def names(self) -> list[str]:
        """All names, in alphabetical order."""
        return sorted(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries
