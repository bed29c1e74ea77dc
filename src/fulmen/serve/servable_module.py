"""ServableModule: a module that says how it is served."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["ServableModule"]

Converters = dict[str, Callable[[Any], Any]]


class ServableModule(ABC, nn.Module):
    """Inherit from it besides ``LightningModule``, to have ``ServableModuleValidator`` try out that it can be served.

    Example:
        >>> class Served(LightningModule, ServableModule):
        ...     def configure_payload(self):
        ...         return {"body": {"x": [0.0, 1.0]}}
        ...     def configure_serialization(self):
        ...         return {"x": torch.tensor}, {"y": Tensor.tolist}
        ...     def serve_step(self, x):
        ...         return {"y": x + 1}
        ...     def configure_response(self):
        ...         return {"y": [1.0, 2.0]}
    """

    @abstractmethod
    def configure_payload(self) -> dict[str, Any]:
        """An example of a request: the arguments of ``serve_step`` by name, as JSON, under the key "body"."""

    @abstractmethod
    def configure_serialization(self) -> tuple[Converters, Converters]:
        """How arguments are made from JSON, and JSON from results: two dictionaries of functions, by name."""

    @abstractmethod
    def serve_step(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Computes the results of a request, by name; called in eval mode without gradients."""

    @abstractmethod
    def configure_response(self) -> dict[str, Any]:
        """The answer that the example of a request must get, as JSON."""
