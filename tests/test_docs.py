"""The documentation is true: its code runs, its links lead somewhere, its table of hooks is the table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import fulmen.callbacks
from fulmen.fabric.seed import isolate_rng
from fulmen.hooks import HOOKS

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
EVERYTHING = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
WHO = {"C": "callback", "M": "module", "S": "strategy", "D": "datamodule"}
LOG = {"step": "by step", "evaluation": "by epoch", "epoch": "by epoch only", "never": ""}


def blocks(page):
    """The Python blocks of a page, each with the lines before it, so that errors name the page's lines."""
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield "\n" * (text[: match.start()].count("\n") + 1) + match.group(1)


def with_code():
    return [page for page in [*PAGES, ROOT / "README.md"] if page.stem != "architecture" and any(blocks(page))]


@pytest.mark.parametrize("page", with_code(), ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    monkeypatch.delenv("PL_SEED_WORKERS", raising=False)
    namespace = {"__name__": page.stem}
    with isolate_rng():
        torch.manual_seed(0)  # a page learns from random data, and says what comes of it
        for block in blocks(page):
            exec(compile(block, page.name, "exec"), namespace)


@pytest.mark.parametrize("page", EVERYTHING, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_the_index_lists_every_page():
    listed = set(re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs" / "index.md").read_text(encoding="utf-8")))
    assert listed == {page.name for page in PAGES} - {"index.md"}


def test_the_table_of_callbacks_has_all():
    text = (ROOT / "docs" / "callbacks.md").read_text(encoding="utf-8")
    first_cells = re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE)
    listed = [name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(listed) == sorted(fulmen.callbacks.__all__)
    assert listed == sorted(listed, key=str.casefold)


def heading_anchors(page):
    """The names by which links may point into a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", EVERYTHING, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_into_pages_find_their_heading(page):
    links = re.findall(r"\]\(([\w./-]*)#([\w-]+)\)", page.read_text(encoding="utf-8"))
    targets = [(page.parent / target if target else page, anchor) for target, anchor in links]
    assert [anchor for target, anchor in targets if anchor not in heading_anchors(target)] == []


def hook_table():
    """The table of hooks as it stands in docs/the-loop.md."""
    lines = ["| hook | arguments | called on | log | when |", "|---|---|---|---|---|"]
    for hook in HOOKS:
        cells = [
            f"`{hook.name}`",
            ", ".join(hook.arguments),
            ", ".join(WHO[letter] for letter in hook.who),
            LOG[hook.log],
            hook.when,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def test_the_table_of_hooks_is_the_table():
    text = (ROOT / "docs" / "the-loop.md").read_text(encoding="utf-8")
    written = re.search(r"<!-- hooks.*?-->\n(.*?)\n<!-- end of hooks -->", text, re.DOTALL).group(1)
    assert written == hook_table()
