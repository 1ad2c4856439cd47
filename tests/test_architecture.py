"""The house rules of design.md, read from imports and calls; each rule is shown to find what breaks it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tools import catalogue

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]

# Distribution -> the name it is imported by, where they differ.
IMPORTED_AS = {"opentelemetry-api": "opentelemetry"}
# Shared noun -> the extra it may use.
NOUNS_WITH_EXTRA = {"database": "postgres", "embedded": "embedded", "events": "otel", "serving": "container"}
READ_THE_TIME = {"patterns/clock.py", "patterns/embedded.py"}
MAKE_CLIENTS = {"patterns/keyspace.py"}
CALL_MKDOCS = {"tools/hook.py", "tools/site.py", "tools/site_cache.py"}
# The one helper that polls, and the proxy whose fault is to be late.
MAY_SLEEP = {"tests/eventually.py", "tests/faults/proxy.py"}

JUNK_DRAWERS = {"util", "utils", "helper", "helpers", "common", "misc", "base", "shared_code", "lib", "tools"}
NOT_FOR_PATTERNS = {
    "asyncio.sleep": "wait through a Clock",
    "asyncio.timeout": "limit time through a Clock",
    "asyncio.timeout_at": "limit time through a Clock",
    "asyncio.wait_for": "limit time through a Clock",
}
DANGEROUS = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle"}
CLIENTS = {
    "Redis",
    "StrictRedis",
    "RedisCluster",
    "from_url",
    "ConnectionPool",
    "BlockingConnectionPool",
}


_CLIENT = rf"redis\.(?:.+\.)?(?:Sentinel|{'|'.join(CLIENTS)})$"


@dataclass(frozen=True)
class House:
    """What the rules need to know besides the source."""

    nouns: frozenset[str]
    extras: dict[str, frozenset[str]]
    requires: dict[str, frozenset[str]] = field(default_factory=dict)


def this_house() -> House:
    nouns = {path.stem for path in ROOT.glob("patterns/*.py")} - {"__init__"}
    extras = {
        name: frozenset(_imported_as(requirement) for requirement in requirements)
        for name, requirements in EXTRAS.items()
    }
    requires = {
        key: frozenset(edge.target for edge in pattern.related if edge.kind == "requires" and edge.target)
        for key, pattern in catalogue.load(ROOT).patterns.items()
    }
    return House(frozenset(nouns), extras, requires)


def _imported_as(requirement: str) -> str:
    name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
    return IMPORTED_AS.get(name, name).replace("-", "_")


# The rules


def broken_rules(place: str, source: str, house: House) -> list[str]:
    """Return what a file breaks, as `line: sentence`.

    Args:
        place: its path in the repository, with slashes.
        source: its text.
        house: what is known about the rest.
    """
    parts = place.removesuffix(".py").split("/")
    tree = ast.parse(source)
    found: list[tuple[int, str]] = []
    if JUNK_DRAWERS & set(parts[1:]):
        found.append((1, f"{parts[-1]} is a junk drawer: name the noun"))
    if parts[0] == "patterns":
        found += _imports_of_a_pattern(parts, tree, house)
        found += _calls_of_a_pattern(place, tree)
    if parts[0] == "tools" and place not in CALL_MKDOCS:
        found += [
            (line, f"imports {name}: only the hook and the commands know mkdocs")
            for line, name in _imports(tree)
            if name.split(".")[0] in {"mkdocs", "material"}
        ]
    if parts[0] == "tests" and place not in MAY_SLEEP:
        found += _fixed_sleeps(tree)
    return [f"{line}: {sentence}" for line, sentence in sorted(found)]


def _imports_of_a_pattern(parts: list[str], tree: ast.Module, house: House) -> Iterator[tuple[int, str]]:
    own_noun = parts[1] if len(parts) == 2 else None
    category = parts[1] if len(parts) > 2 else None
    key = "/".join(parts[1:3]) if category else ""
    extra = NOUNS_WITH_EXTRA.get(own_noun, "") if own_noun else category
    allowed = {"redis", *house.extras.get(extra or "", ())}
    for line, name in _imports(tree):
        root, *rest = name.split(".")
        if name.startswith("."):
            yield line, "imports relatively: write the whole name"
        elif root in DANGEROUS:
            yield line, f"imports {root}: what it reads can run code"
        elif root == "time":
            if "/".join(parts) + ".py" not in READ_THE_TIME:
                yield line, "imports time: only clock and embedded do; take a Clock"
        elif root in {"tools", "tests", "benchmarks", "diagrams_src"}:
            yield line, f"imports {name}: a pattern stands without the handbook around it"
        elif root == "patterns":
            if not rest or rest[0] in house.nouns:
                continue
            other = "/".join(rest[:2])
            if own_noun:
                yield line, f"imports {name}: a shared noun knows no pattern"
            elif len(rest) > 1 and other != key and other not in house.requires.get(key, ()):
                yield line, f"imports {name}: the page of {key} has no `requires` edge to {other}"
        elif root not in sys.stdlib_module_names and root not in allowed:
            yield line, f"imports {root}: it is not in the extra {extra or own_noun!r} of pyproject.toml"


def _calls_of_a_pattern(place: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    names = _names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            dotted = _dotted(node, names)
            if place != "patterns/clock.py" and dotted in NOT_FOR_PATTERNS:
                yield node.lineno, f"uses {dotted}: {NOT_FOR_PATTERNS[dotted]}"
            if isinstance(node, ast.Attribute) and node.attr in {"call_later", "call_at"}:
                yield node.lineno, f"uses {node.attr}: wait through a Clock"
            if dotted.startswith("random.") and dotted not in {"random.Random", "random.SystemRandom"}:
                yield node.lineno, f"uses {dotted}: chance is an argument, take a random.Random"
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            dotted = _dotted(node.func, names)
            if dotted in {"eval", "exec", "builtins.eval", "builtins.exec"}:
                yield node.lineno, f"calls {called}: what it reads can run code"
            if place not in MAKE_CLIENTS and (called in CLIENTS or re.match(_CLIENT, dotted)):
                yield node.lineno, f"calls {called}: only keyspace makes a Redis client"
            if dotted == "asyncio.wait" and any(word.arg == "timeout" for word in node.keywords):
                yield node.lineno, "uses asyncio.wait(timeout=): limit time through a Clock"


def _fixed_sleeps(tree: ast.Module) -> Iterator[tuple[int, str]]:
    names = _names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _dotted(node.func, names) == "time.sleep":
            yield node.lineno, "sleeps: wait with tests/eventually.py"
        # A sleep that is not awaited here is a task that never ends, which some tests need.
        if isinstance(node, ast.Await) and isinstance(node.value, ast.Call):
            call = node.value
            if _dotted(call.func, names) == "asyncio.sleep" and ast.unparse(call.args[0]) not in {"0", "0.0"}:
                yield node.lineno, "sleeps: wait with tests/eventually.py"


def _imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            if node.level:
                yield node.lineno, "." * node.level + (node.module or "")
            elif node.module == "patterns":
                yield from ((node.lineno, f"patterns.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module or ""


def _names(tree: ast.Module) -> dict[str, str]:
    """Return what each imported name stands for."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, names)}.{node.attr}"
    return ""


# The house


def sources() -> list[str]:
    folders = ("patterns", "tools", "tests", "benchmarks", "diagrams_src")
    return sorted(
        path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).rglob("*.py")
    )


def test_every_file_keeps_the_rules() -> None:
    """Imports, time, chance, clients and names are as design.md settles them, in every file."""
    house = this_house()
    broken = [
        f"{place}:{sentence}"
        for place in sources()
        for sentence in broken_rules(place, (ROOT / place).read_text("utf-8"), house)
    ]
    assert not broken, "\n".join(broken)


def test_the_rules_read_the_whole_house() -> None:
    """The files that the rules are made for are among those that are read."""
    read = set(sources())
    assert {"patterns/clock.py", "tools/results.py", "tests/conftest.py"} <= read
    assert read >= READ_THE_TIME | MAKE_CLIENTS | MAY_SLEEP, "an exception for a file that is not there"


@pytest.mark.parametrize("noun", sorted(this_house().nouns))
def test_every_shared_noun_has_its_own_test(noun: str) -> None:
    """A shared part is proved by itself, not only through the patterns that use it."""
    assert (ROOT / "tests" / f"test_{noun}.py").is_file()


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("patterns/*/__init__.py")), ids=lambda path: path.parent.name
)
def test_category_says_in_one_line_what_it_holds(path: Path) -> None:
    """A category is a package with a one-line docstring and nothing else."""
    tree = ast.parse(path.read_text("utf-8"))
    docstring = ast.get_docstring(tree) or ""
    assert docstring.endswith(".")
    assert "\n" not in docstring
    assert len(tree.body) == 1


def test_extras_are_nouns_or_categories() -> None:
    """An extra is named after what needs it, so that an error can say which one to install."""
    categories = {path.parent.name for path in ROOT.glob("patterns/*/__init__.py")}
    assert set(EXTRAS) <= categories | set(NOUNS_WITH_EXTRA.values()) | {"all"}


# The rules find what breaks them

SMALL = House(
    frozenset({"clock", "events", "keyspace", "embedded"}),
    {"otel": frozenset({"opentelemetry"}), "cache": frozenset({"msgspec"})},
    {"cache/refresh": frozenset({"cache/aside"})},
)
PATTERN = "patterns/cache/refresh.py"


@pytest.mark.parametrize(
    ("place", "source", "complaint"),
    [
        (PATTERN, "import requests", "imports requests"),
        (PATTERN, "from opentelemetry import metrics", "imports opentelemetry"),
        (PATTERN, "def f():\n    import requests", "2: imports requests"),
        (PATTERN, "import time", "imports time"),
        (PATTERN, "from time import monotonic", "imports time"),
        ("patterns/cache/refresh/worker.py", "import time", "imports time"),
        ("patterns/events.py", "import time", "imports time"),
        (PATTERN, "import pickle", "can run code"),
        (PATTERN, "from pickle import loads", "can run code"),
        (PATTERN, "eval('1')", "can run code"),
        (PATTERN, "exec('x = 1')", "can run code"),
        (PATTERN, "import builtins\nbuiltins.eval('1')", "can run code"),
        (PATTERN, "import asyncio\nawait_ = asyncio.sleep(0)", "uses asyncio.sleep"),
        (PATTERN, "import asyncio as aio\nf = aio.wait_for", "uses asyncio.wait_for"),
        (PATTERN, "from asyncio import timeout\ntimeout(1)", "uses asyncio.timeout"),
        (PATTERN, "from asyncio import sleep as nap\nnap(1)", "uses asyncio.sleep"),
        (PATTERN, "import asyncio\nasyncio.wait([], timeout=1)", "asyncio.wait(timeout=)"),
        (PATTERN, "loop.call_later(1, print)", "uses call_later"),
        (PATTERN, "loop.call_at(1, print)", "uses call_at"),
        (PATTERN, "import random\nrandom.random()", "uses random.random"),
        (PATTERN, "from random import uniform\nuniform(0, 1)", "uses random.uniform"),
        (PATTERN, "from redis.asyncio import Redis\nRedis()", "only keyspace"),
        (PATTERN, "from redis.asyncio import Redis as R\nR()", "only keyspace"),
        (PATTERN, "import redis\nredis.asyncio.Redis.from_url('x')", "only keyspace"),
        (PATTERN, "from redis.sentinel import Sentinel\nSentinel([])", "only keyspace"),
        (PATTERN, "from . import other", "write the whole name"),
        (PATTERN, "from patterns.cache.other import x", "no `requires` edge to cache/other"),
        (PATTERN, "from patterns.resiliency.retry.budget import x", "no `requires` edge to resiliency/retry"),
        (PATTERN, "import tests.eventually", "without the handbook"),
        (PATTERN, "from tools.results import write", "without the handbook"),
        ("patterns/clock.py", "from patterns.cache.aside import x", "a shared noun knows no pattern"),
        ("patterns/clock.py", "from patterns.cache import aside", "a shared noun knows no pattern"),
        ("patterns/utils.py", "", "junk drawer"),
        ("tests/helpers.py", "", "junk drawer"),
        ("patterns/common/thing.py", "", "junk drawer"),
        ("tools/tables.py", "import mkdocs", "only the hook"),
        ("tools/tables.py", "from mkdocs.structure.files import File", "only the hook"),
        ("tests/test_x.py", "import time\ntime.sleep(0.1)", "sleeps"),
        ("tests/test_x.py", "from time import sleep\nsleep(1)", "sleeps"),
        ("tests/cache/test_x.py", "import asyncio\nasync def f():\n    await asyncio.sleep(0.1)", "sleeps"),
        ("tests/test_x.py", "from asyncio import sleep\nasync def f(n):\n    await sleep(n)", "sleeps"),
    ],
)
def test_rule_finds_what_breaks_it(place: str, source: str, complaint: str) -> None:
    """Each rule, given a file that breaks it, says so."""
    assert complaint in "\n".join(broken_rules(place, source, SMALL))


@pytest.mark.parametrize(
    ("place", "source"),
    [
        (PATTERN, "import asyncio, json, msgspec"),
        (PATTERN, "from redis.exceptions import RedisError\nfrom patterns.clock import Clock"),
        (PATTERN, "from patterns import clock\nfrom patterns.cache.aside import x"),
        (PATTERN, "from patterns.cache.refresh import y"),
        (PATTERN, "import asyncio\nasyncio.wait([])\nasyncio.TaskGroup()\nclock.sleep(1)\nclock.timeout(1)"),
        (PATTERN, "import random\nrng = random.Random(7)\nrng.random()"),
        (PATTERN, "from redis.asyncio import Redis\ndef f(client: Redis) -> None: ..."),
        ("patterns/clock.py", "import time, asyncio\nasyncio.sleep(1)"),
        ("patterns/embedded.py", "import time\ntime.sleep(1)\nSentinel(primary)"),
        ("patterns/keyspace.py", "from redis.asyncio import Redis\nRedis()"),
        ("patterns/events.py", "from opentelemetry.metrics import Meter"),
        ("tools/hook.py", "import mkdocs"),
        ("tests/test_x.py", "import asyncio\nasync def f():\n    await asyncio.sleep(0)"),
        ("tests/test_x.py", "import asyncio\nasync def f():\n    asyncio.create_task(asyncio.sleep(9))"),
        ("tests/eventually.py", "import time\ntime.sleep(0.1)"),
    ],
)
def test_rules_leave_alone_what_is_allowed(place: str, source: str) -> None:
    """What the design allows passes."""
    assert broken_rules(place, source, SMALL) == []
