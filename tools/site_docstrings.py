"""Doctests in docstrings, shown as console sessions.

Markdown reads `>>>` as a quotation in a quotation, so each run of prompt and output is put into a fence.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

__all__ = ["Doctests", "fenced"]

_SESSION = re.compile(r"^>>> .*(?:\n(?!\s*$).+)*", re.MULTILINE)


def fenced(docstring: str) -> str:
    """Return a docstring with each unindented doctest in a `pycon` fence."""
    return _SESSION.sub(lambda match: f"```pycon\n{match[0]}\n```", docstring)


class Doctests(griffe.Extension):
    """Fences the doctests of every object that is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Fence the object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
