"""Hands the examples of pages and docstrings to pytest: one item each, at its own line (conftest.py)."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sybil import Region, Sybil
from sybil.document import Document
from sybil.sybil import SybilCollection

from tools.examples import ExampleFailed, Page, difference
from tools.fences import ROOT, Block, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sybil import Example

__all__ = ["collector"]


def collector(root: Path = ROOT) -> Callable[[Path, Any], Any]:
    """Return the `pytest_collect_file` that makes an item of each block of each page under `root`.

    An item that is run alone first runs the blocks above it.
    """
    pages = functools.partial(_page_regions, root=root)
    docstrings = functools.partial(_docstring_regions, root=root)
    return SybilCollection(
        [
            Sybil([pages], pattern="*.md", path=str(root / "docs"), teardown=_close_page),
            Sybil([pages], pattern="README.md", exclude="*/*", path=str(root), teardown=_close_page),
            # As plain text: the docstrings are found here, not by Sybil.
            Sybil(
                [docstrings], pattern="*.py", path=str(root / "patterns"), document_types={".py": Document}
            ),
        ]
    ).pytest()


def _page_regions(document: Document, *, root: Path) -> Iterator[Region]:
    page = document.namespace["page"] = _LazyPage(Path(document.path))
    offsets = _offsets(document.text)
    for block in parse(document.text, root):
        page.blocks.append(block)
        yield Region(offsets[block.line - 1], offsets[block.fence.end] - 1, block, page.evaluate)


class _LazyPage:
    """The blocks of a page, and the page from the first one that is run to the end of the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.blocks: list[Block] = []
        self._page: Page | None = None
        self._done = 0

    def evaluate(self, example: Example) -> str | None:
        self._page = self._page or Page(self.path)
        block = example.parsed
        for above in self.blocks[self._done : self.blocks.index(block)]:
            self._done += 1
            with contextlib.suppress(ExampleFailed):  # it fails as an item of its own
                self._page.run(above)
        self._done += 1
        try:
            printed = self._page.run(block)
        except ExampleFailed as failure:
            return str(failure)
        if block.output is not None and printed != block.output.text:
            return difference(block.output.text, printed) + "\nif the new output is right: make examples"
        return None

    def close(self) -> list[str]:
        return self._page.close() if self._page else []


def _close_page(namespace: dict[str, Any]) -> None:
    page: _LazyPage = namespace["page"]
    if left := page.close():
        pytest.fail(f"{page.path}: at the end of the page " + "; ".join(left), pytrace=False)


def _docstring_regions(document: Document, *, root: Path) -> Iterator[Region]:
    path = Path(document.path)
    offsets = _offsets(document.text)
    module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(ast.parse(document.text)):
        if not isinstance(node, documented) or ">>> " not in (ast.get_docstring(node, clean=False) or ""):
            continue
        docstring = node.body[0]
        start = offsets[docstring.lineno - 1] + docstring.col_offset
        end = offsets[docstring.end_lineno or docstring.lineno] - 1
        yield Region(start, end, (module, ast.get_docstring(node, clean=False)), _run_docstring)


def _run_docstring(example: Example) -> str | None:
    module, text = example.parsed
    page = Page(Path(example.path), dict(vars(importlib.import_module(module))))
    failure = ""
    try:
        page.run_prompts(text, example.line - 1)
    except ExampleFailed as error:
        failure = str(error)
    return "\n".join(filter(None, [failure, *page.close()])) or None


def _offsets(text: str) -> list[int]:
    """Return where each line starts, and where one after the last would."""
    offsets = [0]
    for line in text.split("\n"):
        offsets.append(offsets[-1] + len(line) + 1)
    return offsets
