"""Reads a page: which of its fences are Python, in which form, and what must not be there.

The rules are in tools/examples.py. A page is Markdown as the site's own extensions read it (superfences,
snippets); what they would render as Python in a way not known here is reported, never skipped.
"""

from __future__ import annotations

import ast
import doctest
import re
import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PYTHON", "TOP_LEVEL_AWAIT", "Block", "Fence", "count_blocks", "parse", "region"]

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ("python", "pycon")
# Shown and not executed: output and other text, and diagrams.
OTHER = ("text", "mermaid")

_OPENING = re.compile(r"(?P<indent> *)(?P<ticks>`{3,}|~{3,})(?P<info>.*)")
_OPTION = r"""[a-zA-Z]\w*=(?:"[^"]*"|'[^']*')"""
_INFO = re.compile(
    rf"\s*(?:\.?(?P<lang>[\w#.+-]+))?\s*"
    rf"(?:\{{\s*(?P<attributes>(?:(?:[.#][\w-]+|{_OPTION})\s*)+)\}}|(?P<options>(?:{_OPTION}\s*)*))\s*"
)
_INCLUDE = re.compile(r"""-+8<-+\s+(["'])(?P<path>[^"':]+):(?P<region>[a-z][-_0-9a-z]*)\1\s*""")
_MARKER = re.compile(r"(?<!;)-+8<-+[ \t]+\[[ \t]*(start|end)[ \t]*:[ \t]*([a-z][-_0-9a-z]*)[ \t]*\]")
TOP_LEVEL_AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


@dataclass(frozen=True)
class Fence:
    """One fenced block, as written; lines count from 1, and `end` is that of the closing fence."""

    line: int
    end: int
    indent: int
    ticks: str
    lang: str
    classes: tuple[str, ...]
    body: tuple[str, ...]
    problem: str | None = None

    @property
    def text(self) -> str:
        """The body without its indentation."""
        return "".join(f"{line}\n" for line in self.body)


@dataclass(frozen=True)
class Block:
    """One block of Python, or one fence that must not be there.

    Attributes:
        form: pycon, python, include or problem.
        output: the `text` fence below a `python` block.
        problem: what is wrong with it as written.
    """

    fence: Fence
    form: str
    output: Fence | None = None
    problem: str | None = None

    @property
    def line(self) -> int:
        """The line of the opening fence, from 1."""
        return self.fence.line

    @property
    def alone(self) -> bool:
        """Whether the block also runs in the browser, where it has no page around it."""
        return "run" in self.fence.classes


def parse(text: str, root: Path = ROOT) -> list[Block]:
    """Return every block of Python on a page, and every fence or line that must not be there."""
    blocks = []
    found = list(_fences(text))
    for number, (fence, _) in enumerate(found):
        if fence.problem:
            blocks.append(Block(fence, "problem", problem=fence.problem))
        elif any(re.match(r"-+8<-+", line.strip()) for line in fence.body):
            blocks.append(Block(fence, "include", problem=_include_problem(fence, root)))
        elif fence.lang in PYTHON:
            output = None
            if fence.lang == "python" and number + 1 < len(found):
                below, after_heading = found[number + 1]
                if below.lang == "text" and below.indent == fence.indent and not after_heading:
                    output = below
            blocks.append(Block(fence, fence.lang, output, _code_problem(fence, output)))
        elif fence.lang not in OTHER:
            problem = (
                f"a fence is python, pycon, text or mermaid, or holds only an include; not {fence.lang!r}"
            )
            blocks.append(Block(fence, "problem", problem=problem))
    return blocks


def count_blocks(text: str, root: Path = ROOT) -> tuple[int, int]:
    """Return how many Python blocks of a page are executed, and how many are included.

    The built page must show as many highlighted Python blocks as the sum.
    """
    blocks = [block for block in parse(text, root) if block.fence.lang in PYTHON]
    included = sum(block.form == "include" for block in blocks)
    return len(blocks) - included, included


def region(path: str, name: str, root: Path = ROOT) -> str:
    """Return the named region of a file: what stands between `[start:name]` and `[end:name]`.

    Raises:
        ValueError: there is no such file, or not exactly one such region with something in it.
    """
    file = (root / path).resolve()
    if not file.is_relative_to(root.resolve()) or not file.is_file():
        raise ValueError(f"{path} is not a file of this project")
    lines = file.read_text("utf-8").splitlines()
    marks = [(at, m[1], m[2]) for at, line in enumerate(lines) if (m := _MARKER.search(line))]
    starts = [at for at, kind, of in marks if (kind, of) == ("start", name)]
    ends = [at for at, kind, of in marks if (kind, of) == ("end", name)]
    if len(starts) != 1 or len(ends) != 1 or ends[0] < starts[0]:
        raise ValueError(
            f"{path} has {len(starts)} start and {len(ends)} end of region {name!r}, not one of each"
        )
    inside = [line for line in lines[starts[0] + 1 : ends[0]] if not _MARKER.search(line)]
    if not "".join(inside).strip():
        raise ValueError(f"region {name!r} of {path} is empty")
    return textwrap.dedent("\n".join(inside)) + "\n"


def _fences(text: str) -> Iterator[tuple[Fence, bool]]:
    """Yield each fence and whether a heading stands between it and the fence before."""
    lines = text.split("\n")
    at, heading = 0, False
    while at < len(lines):
        line, number = lines[at], at + 1
        at += 1
        opening = _OPENING.fullmatch(line)
        if opening is None or opening["ticks"][0] in opening["info"]:
            heading = heading or re.match(r"#{1,6} ", line) is not None
            if problem := _stray(line):
                yield Fence(number, number, 0, "", "", (), (), problem), heading
            continue
        indent, ticks = len(opening["indent"]), opening["ticks"]
        body: list[str] = []
        while at < len(lines) and lines[at].strip() != ticks:
            body.append(lines[at])
            at += 1
        problem = (
            None if at < len(lines) else "the fence is never closed (by as many backticks, alone on a line)"
        )
        for offset, inside in enumerate(body, number + 1):
            if inside.strip() and inside[:indent].strip(" "):
                problem = problem or f"line {offset} is indented less than its fence"
        if at < len(lines) and len(lines[at]) - len(lines[at].lstrip()) != indent:
            problem = problem or "the closing fence is not indented as the opening one"
        at += 1
        info = _INFO.fullmatch(opening["info"])
        lang, classes = (info["lang"] or "", ()) if info else ("", ())
        if info and info["attributes"]:
            classes = tuple(re.findall(r"(?<!\S)\.([\w-]+)", info["attributes"]))
            lang, classes = (lang, classes) if lang else ("".join(classes[:1]), classes[1:])
        if info is None:
            problem = problem or f"the fence says {opening['info'].strip()!r}, which is not understood"
        elif not lang:
            problem = problem or "the fence does not say what it holds: python, pycon, text or mermaid"
        dedented = tuple(inside[indent:] for inside in body)
        yield Fence(number, min(at, len(lines)), indent, ticks, lang, classes, dedented, problem), heading
        heading = False


def _stray(line: str) -> str | None:
    if "```" in line or "~~~" in line:
        return "a fence stands alone on its line, indented by spaces only"
    if line.strip().startswith(">>> "):
        return "a prompt outside a fence is not executed"
    if re.match(r"-+8<-+", line.strip()):
        return "an include stands in a fence"
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return "indented by a tab"
    return None


def _include_problem(fence: Fence, root: Path) -> str | None:
    for line in filter(str.strip, fence.body):
        include = _INCLUDE.fullmatch(line.strip())
        if include is None:
            return (
                f'a fence with an include holds only lines such as --8<-- "patterns/...:region", not {line!r}'
            )
        try:
            region(include["path"], include["region"], root)
        except ValueError as error:
            return str(error)
    return None


def _code_problem(fence: Fence, output: Fence | None) -> str | None:
    if fence.lang == "pycon":
        return _pycon_problem(fence)
    alone = "run" in fence.classes
    try:
        tree = _tree(fence, awaiting=not alone)
    except SyntaxError as error:
        return f"line {fence.line + (error.lineno or 0)}: {error.msg}"
    if output is None and not any(isinstance(node, ast.Assert) for node in ast.walk(tree)):
        return "the block asserts nothing, and no text fence below shows its output"
    if alone:
        scripted = [node for node in tree.body if not isinstance(node, ast.ClassDef | ast.AsyncFunctionDef)]
        runs = [node for node in scripted if "asyncio.run(" in ast.unparse(node)]
        if runs and runs != tree.body[-1:]:
            return "a block for the browser ends in its only asyncio.run(...)"
    return None


def _tree(fence: Fence, *, awaiting: bool) -> ast.Module:
    flags = TOP_LEVEL_AWAIT if awaiting else 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The tree of a misplaced await is well formed: only the whole compiler refuses it.
        compile(fence.text, "block", "exec", flags, dont_inherit=True)
        tree: ast.Module = compile(fence.text, "block", "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True)
    return tree


def _pycon_problem(fence: Fence) -> str | None:
    try:
        parts = doctest.DocTestParser().parse(fence.text)
    except ValueError as error:
        return str(error)
    examples = [part for part in parts if isinstance(part, doctest.Example)]
    for part in parts:
        if isinstance(part, str) and part.strip():
            return f"{part.strip().splitlines()[0]!r} belongs to no prompt"
    if not any(example.want or "assert" in example.source for example in examples):
        return "the block shows no output and asserts nothing"
    return None
