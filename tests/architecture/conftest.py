"""The sources as syntax trees: what the rules of this directory are checked against."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Source:
    """One file of fulmen."""

    module: str  # dotted, a package without its __init__
    path: Path
    text: str
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @property
    def name(self) -> str:
        """As people say it: `fabric/plan.py`."""
        return self.path.relative_to(ROOT / "src" / "fulmen").as_posix()


def _read(path: Path) -> Source:
    module = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
    text = path.read_text(encoding="utf-8")
    return Source(module, path, text, ast.parse(text))


@pytest.fixture(scope="session")
def sources() -> list[Source]:
    return [_read(path) for path in sorted((ROOT / "src" / "fulmen").rglob("*.py"))]


@pytest.fixture(scope="session")
def architecture() -> str:
    return (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
