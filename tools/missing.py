"""What each pattern still lacks, a plain sentence for each thing: `python -m tools.missing [key ...]`.

A pattern is done when its six faces are there, its page says everything under the agreed headings, its tuning
tables are the parameters of the code, each numbered invariant has a test and a naive variant which the same
check rejects, and its figures are committed. tests/test_catalogue.py fails on the same sentences.

Conventions that a check relies on:

- In "Tuning", `<!-- parameters: patterns.resiliency.circuit_breaker.Policy -->` stands above each table. Its
  five columns: the parameter and its default, both in backticks, the unit, and what moves when it is raised
  and when it is lowered (may be empty where the default is no number). Without a default: `required`.
- In "When to use it, and when not", at least three list items begin with "Not" (bold or plain) and say what
  to use instead; a line **DON'T** and a line **DO** each stand above an executed block.
- In the tests, `@pytest.mark.invariant(n)` marks what proves invariant n; `@pytest.mark.naive(n)` marks the
  test that hands a naive variant to the same `check_...` function in `pytest.raises(AssertionError)`.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools import catalogue, results
from tools.fences import count_blocks, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["CHECKS", "HEADINGS", "missing"]

ROOT = Path(__file__).resolve().parent.parent

HEADINGS = (
    "The problem",
    "The pattern",
    "The code",
    "Break it",
    "What it costs",
    "When to use it, and when not",
    "Tuning",
    "In production",
    "Related patterns",
    "References",
)
MOST_WORDS = 1600

# What a section cannot do without, besides words.
_MARKERS = {
    "The pattern": ("<!-- diagram -->", "```mermaid"),
    "Break it": ("<!-- table: faults -->",),
    "What it costs": ("<!-- table: cost -->", "<!-- chart: cost -->"),
    "Related patterns": ("<!-- related -->",),
}
_EXECUTED = ("The problem", "The code", "Break it", "When to use it, and when not")

_STUB = re.compile(
    r"\b(?:TODO|FIXME|XXX|TBD)\b|lorem ipsum|coming soon|to be written|write me|\u2039.*?\u203a",
    re.IGNORECASE,
)
# After what it is not for, a clause of its own says what is better.
_INSTEAD = re.compile(r"[:;.,\u2014] +(?:\S+ +){2,}\S+")
_LABEL = re.compile(r"""(?:#{3,} |\*\*|[!?=]{3}\+? .*")(don['\u2019]t|do)\b""", re.IGNORECASE)
_PARAMETERS = re.compile(r"<!-- parameters: ([\w.]+) -->\n+((?:\|.*\n?)+)")


# Faces


def faces(key: str, root: Path) -> Iterator[str]:
    """Each of the six faces is there, is about this pattern, and holds no stub."""
    found = catalogue.faces(root).get(key, dict.fromkeys(catalogue.FACES))
    for face, path in found.items():
        if path is None:
            yield f"the {face} is missing: {_belongs(face, key)}"
            continue
        files = sorted(path.parent.rglob("*")) if path.name == "__init__.py" else [path]
        for file in files:
            if file.is_file() and file.suffix not in {".pyc", ".svg", ".png"}:
                for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
                    if (stub := _STUB.search(line)) and len(line) < 2000:
                        yield f"{file.relative_to(root)}:{number} still says {stub[0]!r}"
        module = "patterns." + key.replace("/", ".")
        if face in {"notebook", "tests", "benchmark"} and module not in path.read_text("utf-8"):
            yield f"{path.relative_to(root)} does not import {module}"


def front_matter(key: str, root: Path) -> Iterator[str]:
    """The front matter is complete, and its edges lead somewhere."""
    prefix = f"docs/{key}.md: "
    for error in catalogue.load(root).errors:
        if error.startswith(prefix):
            yield error.removeprefix(prefix)


# The page


def headings(text: str) -> Iterator[str]:
    """The page has one title, then the agreed headings in the agreed order, and each is filled."""
    body = _body(text)
    titles = re.findall(r"^# .+$", _without_fences(body), re.MULTILINE)
    if len(titles) != 1:
        yield f"the page has {len(titles)} titles (`# ...`), not one"
    sections = _sections(body)
    found = [name for name, _ in sections]
    if found != list(HEADINGS):
        lost = [name for name in HEADINGS if name not in found]
        extra = [name for name in found if name not in HEADINGS]
        if lost:
            yield "the page lacks the headings " + ", ".join(map(repr, lost))
        if extra:
            yield "the page has headings of its own: " + ", ".join(map(repr, extra))
        if not lost and not extra:
            yield "the page's headings are not in order, or one is there twice: " + ", ".join(found)
    for name, section in sections:
        generated = len(re.findall(r"<!-- (?:table|chart|related)", section))
        shown = re.sub(r"<!--.*?-->|[|:-]{3,}", "", _without_fences(section), flags=re.DOTALL)
        if not generated and len(re.findall(r"\w+", shown)) < 3:
            yield f"under {name!r} stands nothing that can be read"
        for marker in _MARKERS.get(name, ()):
            if marker not in section:
                yield f"under {name!r} there is no {marker}"


def words(text: str) -> Iterator[str]:
    """The prose stays short: about 1,200 words, and never more than the bound."""
    count = _words(_body(text))
    if count > MOST_WORDS:
        yield f"the page has {count} words outside code and tables, more than {MOST_WORDS}"


def examples(text: str, root: Path = ROOT) -> Iterator[str]:
    """The sections that show something execute it, and the code is included from the module."""
    for name, section in _sections(_body(text)):
        blocks = parse(section, root)
        if name in _EXECUTED and not any(block.form in {"python", "pycon"} for block in blocks):
            yield f"under {name!r} nothing is executed"
        if name == "The code" and not any(block.form == "include" for block in blocks):
            yield "under 'The code' no named region of the module is included"


def when_not(text: str, root: Path = ROOT) -> Iterator[str]:
    """At least three uses are advised against, each with what is better; DON'T and DO are both executed."""
    section = dict(_sections(_body(text))).get("When to use it, and when not", "")
    prose = _without_fences(section)
    items = re.findall(r"^[-*] +(\**not\b.*(?:\n {2,}.*)*)", prose, re.MULTILINE | re.IGNORECASE)
    if len(items) < 3:
        yield f"only {len(items)} items of the list begin with 'Not', fewer than three"
    for item in items:
        if not _INSTEAD.search(" ".join(item.split())):
            yield f"it does not say what to use instead: {' '.join(item.split())!r}"
    lines = section.splitlines()
    places = [
        (number, match[1].upper().replace("\u2019", "'"))
        for number, line in enumerate(lines, 1)
        if (match := _LABEL.match(line))
    ]
    executed = [block.line for block in parse(section, root) if block.form in {"python", "pycon"}]
    for wanted in ("DON'T", "DO"):
        starts = [number for number, label in places if label == wanted]
        ends = [*(number for number, _ in places), len(lines) + 1]
        if not any(
            start < line < min(end for end in ends if end > start) for start in starts for line in executed
        ):
            yield f"no executed block stands under a line that says **{wanted}**"


def tuning(text: str) -> Iterator[str]:
    """Each tuning table holds exactly the parameters and defaults of what it names, every cell filled."""
    section = dict(_sections(_body(text))).get("Tuning", "")
    tables = _PARAMETERS.findall(section)
    if not tables:
        yield "no table under 'Tuning' stands below a `<!-- parameters: ... -->`"
    for name, table in tables:
        try:
            target, names = _named(name)
        except (ImportError, AttributeError) as error:
            yield f"'parameters: {name}' cannot be found: {error}"
            continue
        rows = [[cell.strip() for cell in _cells(line)] for line in table.strip().splitlines()[2:]]
        if odd := [row for row in rows if len(row) != 5 or not all(row[:3])]:
            yield f"{name}: a row has five cells, of which the first three are filled, not {odd[0]}"
            continue
        defaults = _defaults(target)
        shown = {row[0].strip("`"): row[1].strip("`") for row in rows}
        if len(shown) < len(rows):
            yield f"{name}: a parameter has two rows"
        if absent := [parameter for parameter in defaults if parameter not in shown]:
            yield f"{name}: no row for {', '.join(absent)}"
        if extra := [parameter for parameter in shown if parameter not in defaults]:
            yield f"{name}: it has no parameter {', '.join(extra)}"
        for row in rows:
            default = defaults.get(row[0].strip("`"))
            if isinstance(default, int | float) and not isinstance(default, bool) and not all(row):
                yield f"{name}: the row of {row[0]} must say what moves when it is raised and when lowered"
        for parameter, default in defaults.items():
            if parameter in shown and not _is_written(default, shown[parameter], names):
                wanted = "required" if default is inspect.Parameter.empty else repr(default)
                yield f"{name}: the default of {parameter} is {wanted}, the table says {shown[parameter]}"


def events(text: str, module: Any) -> Iterator[str]:
    """Each event of the module stands in the page's section 'In production'."""
    from patterns.events import Event  # noqa: PLC0415 - the site's tools run without it

    section = dict(_sections(_body(text))).get("In production", "")
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        if isinstance(value, type) and issubclass(value, Event) and f"`{name}`" not in section:
            yield f"under 'In production' the event `{name}` is not named"


# The proof


def invariants(docstring: str, tests: str) -> Iterator[str]:
    """Each numbered invariant has a test that names it, and a naive variant which the same check rejects."""
    numbers = [int(number) for number in re.findall(r"^(\d+)\. \S", docstring, re.MULTILINE)]
    if not numbers:
        yield "the module's docstring numbers no invariant (lines that begin with `1. `)"
    elif numbers != list(range(1, len(numbers) + 1)):
        yield f"the invariants are numbered {numbers}, not 1 to {len(numbers)}"
    proved: dict[int, set[str]] = {number: set() for number in numbers}
    rejected: dict[int, set[str]] = {number: set() for number in numbers}
    marked = {"invariant": set[int](), "naive": set[int]()}
    for function in _test_functions(ast.parse(tests)):
        for mark, given in _marks(function):
            if not given or not all(isinstance(number, int) for number in given):
                yield f"{function.name}: the numbers of @pytest.mark.{mark} must be written out"
                continue
            for number in given:
                marked[mark].add(number)
                if number not in proved:
                    yield f"{function.name} is marked {mark}({number}), and there is no such invariant"
                    continue
                if mark == "invariant":
                    proved[number] |= _checks_in(function)
                else:
                    rejected[number] |= _checks_in_raises(function)
    for number in numbers:
        if number not in marked["invariant"]:
            yield f"invariant {number} has no test marked invariant({number})"
        if number not in marked["naive"]:
            yield f"invariant {number} has no naive variant: no test is marked naive({number})"
        elif not rejected[number] & proved[number]:
            yield (
                f"invariant {number}: no check_... function both proves it and rejects a naive variant, "
                "in pytest.raises(AssertionError)"
            )


def figures(key: str, text: str, root: Path) -> Iterator[str]:
    """The committed results are there, and count what the page holds."""
    folder = root / "results"
    for kind, command in (("benchmarks", "bench"), ("faults", "faults"), ("examples", "examples")):
        try:
            document = results.read(kind, key, folder=folder)
        except ValueError as error:
            yield str(error)
            continue
        if document is None:
            yield f"results/{kind}/{key}.json is missing: make {command} PATTERN={key}"
        elif not document["rows"]:
            yield f"results/{kind}/{key}.json holds no row"
        elif kind == "faults":
            differ = {row["fault"] for row in document["rows"]} ^ set(faults_declared(key, root))
            if differ:
                named = ", ".join(map(repr, sorted(differ)))
                yield f"results/faults/{key}.json and the tests differ in {named}: make faults PATTERN={key}"
        elif kind == "examples":
            executed, included = count_blocks(text, root)
            counted = (document["executed"], document["included"])
            if counted != (executed, included):
                yield (
                    f"results/examples/{key}.json counts {counted[0]} executed and {counted[1]} included, "
                    f"the page has {executed} and {included}: make examples PATTERN={key}"
                )


def faults_declared(key: str, root: Path) -> list[str]:
    """Return the faults that the tests inject into a pattern, found without running them."""
    found = []
    for path in sorted((root / "tests").rglob("test_*.py")):
        own = path.parent.name + "/" + path.stem.removeprefix("test_")
        found += [fault for fault, of in _faults_in(path.read_text("utf-8")) if (of or own) == key]
    return found


@functools.cache  # each pattern asks every file
def _faults_in(text: str) -> list[tuple[str, str | None]]:
    if "pytest.mark.fault" not in text:
        return []
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
            given = {word.arg: ast.literal_eval(word.value) for word in node.keywords}
            found.append((str(ast.literal_eval(node.args[0])), given.get("pattern")))
    return found


# How it all comes together


def _page_check(check: Callable[[str], Iterator[str]]) -> Callable[[str, Path], list[str]]:
    def checked(key: str, root: Path) -> list[str]:
        page = root / "docs" / f"{key}.md"
        return list(check(page.read_text("utf-8"))) if page.exists() else []

    checked.__doc__ = check.__doc__
    return checked


def _invariants(key: str, root: Path) -> list[str]:
    found = catalogue.faces(root).get(key, {})
    module, tests = found.get("module"), found.get("tests")
    if module is None or tests is None:
        return []
    docstring = ast.get_docstring(ast.parse(module.read_text("utf-8"))) or ""
    return list(invariants(docstring, tests.read_text("utf-8")))


def _events(key: str, root: Path) -> list[str]:
    page = root / "docs" / f"{key}.md"
    if not page.exists() or catalogue.faces(root)[key]["module"] is None:
        return []
    return list(events(page.read_text("utf-8"), importlib.import_module("patterns." + key.replace("/", "."))))


def _figures(key: str, root: Path) -> list[str]:
    page = root / "docs" / f"{key}.md"
    return list(figures(key, page.read_text("utf-8"), root)) if page.exists() else []


# Name of the check -> the sentences about what a pattern lacks.
CHECKS: dict[str, Callable[[str, Path], list[str]]] = {
    "faces": lambda key, root: list(faces(key, root)),
    "front matter": lambda key, root: list(front_matter(key, root)),
    "headings": _page_check(headings),
    "words": _page_check(words),
    "examples": _page_check(examples),
    "when not": _page_check(when_not),
    "tuning": _page_check(tuning),
    "events": _events,
    "invariants": _invariants,
    "figures": _figures,
}


def missing(key: str, root: Path = ROOT) -> list[str]:
    """Return everything that the pattern lacks."""
    return [sentence for check in CHECKS.values() for sentence in check(key, root)]


def main(arguments: Sequence[str]) -> int:
    """Print what is missing; 1 if something is."""
    known = list(catalogue.faces())
    if unknown := [key for key in arguments if key not in known]:
        print(f"There is no pattern {unknown[0]!r} here; there are: {', '.join(known)}.", file=sys.stderr)
        return 2
    lacking = 0
    for key in arguments or known:
        sentences = missing(key)
        lacking += bool(sentences)
        print(f"{key}: " + (f"{len(sentences)} to do" if sentences else "whole"))
        for sentence in sentences:
            print(f"  - {sentence}")
    return 1 if lacking else 0


# Reading a page


def _belongs(face: str, key: str) -> str:
    category, _, name = key.partition("/")
    return catalogue.FACES[face][0].format(key, category=category, name=name)


def _body(text: str) -> str:
    try:
        return catalogue.front_matter(text)[1]
    except ValueError:
        return text


def _without_fences(text: str) -> str:
    """Blank out the fences, line for line."""
    kept, inside = [], ""
    for line in text.split("\n"):
        fence = re.match(r" *(`{3,}|~{3,})", line)
        if inside or fence:
            if fence and not inside:
                inside = fence[1]
            elif line.strip() == inside:
                inside = ""
            kept.append("")
        else:
            kept.append(line)
    return "\n".join(kept)


def _sections(body: str) -> list[tuple[str, str]]:
    """Return each `## ` heading and what stands below it."""
    lines, prose = body.split("\n"), _without_fences(body).split("\n")
    starts = [number for number, line in enumerate(prose) if line.startswith("## ")]
    ends = [*starts[1:], len(lines)]
    return [
        (prose[start][3:].strip(), "\n".join(lines[start + 1 : end]) + "\n")
        for start, end in zip(starts, ends, strict=True)
    ]


def _words(text: str) -> int:
    """Count the words outside fences, tables and comments."""
    prose = re.sub(r"<!--.*?-->", "", _without_fences(text), flags=re.DOTALL)
    lines = [line for line in prose.splitlines() if not line.lstrip().startswith("|")]
    return len(re.findall(r"\w[\w'\u2019.-]*", " ".join(lines)))


def _cells(line: str) -> list[str]:
    # A bar inside backticks or escaped is text, not the end of a cell.
    masked = re.sub(r"`[^`]*`|\\\|", lambda match: match[0].replace("|", "\0"), line.strip())
    return [cell.replace("\0", "|").replace("\\|", "|") for cell in masked.strip("|").split("|")]


# Reading code


def _named(name: str) -> tuple[Any, dict[str, Any]]:
    """Return the object of a dotted name, and the names that its defaults may be written with."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        target: Any = module
        for part in parts[cut:]:
            target = getattr(target, part)
        return target, vars(module)
    raise ImportError(f"no module of {name}")


def _defaults(target: Any) -> dict[str, Any]:
    made = {
        field.name: field.default_factory()
        for field in (dataclasses.fields(target) if dataclasses.is_dataclass(target) else ())
        if field.default_factory is not dataclasses.MISSING
    }
    skipped = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    return {
        name: made.get(name, parameter.default)
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind not in skipped and name != "self"
    }


def _is_written(default: object, text: str, names: dict[str, Any]) -> bool:
    if default is inspect.Parameter.empty:
        return text == "required"
    try:
        value = eval(text, dict(names))  # noqa: S307 - the text is a page of this repository
    except Exception:  # whatever a wrong default raises, it is not the right one
        return False
    return type(value) is type(default) and bool(value == default)


def _test_functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node


def _marks(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[str, list[Any]]]:
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call):
            match = re.fullmatch(r"pytest\.mark\.(invariant|naive)", ast.unparse(decorator.func))
            if match:
                yield (
                    match[1],
                    [arg.value if isinstance(arg, ast.Constant) else None for arg in decorator.args],
                )


def _checks_in(node: ast.AST) -> set[str]:
    """Return the `check_...` functions that are called, or handed on to be called."""
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name) and name.id.startswith("check_")}


def _checks_in_raises(function: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.With | ast.AsyncWith) and any(
            ast.unparse(item.context_expr).startswith("pytest.raises(AssertionError") for item in node.items
        ):
            for statement in node.body:
                found |= _checks_in(statement)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
