"""Writes the six faces of a new pattern from templates: `python -m tools.new category/name`.

The templates have the form of patterns/resiliency/circuit_breaker. What the author has to write stands in
‹angle quotes›, and the tests of the new pattern fail until none is left. Nothing is ever overwritten.
"""

from __future__ import annotations

import json
import keyword
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tools.catalogue import FACES

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Refused", "main", "write"]

ROOT = Path(__file__).resolve().parent.parent

_RESERVED = {"__init__", "conftest", "index", "assets", "faults", "utils", "helpers", "common"}

_MODULE = '''\
"""‹What it does, in one plain sentence›.

‹The problem: what goes wrong without it, and what it costs whom.›

Guaranteed, each by a test that rejects a naive variant:

1. ‹What always holds, so that a test can fail on it.›

Not guaranteed: ‹what a reader could expect and does not get›.

Redis keys: ‹each key with its type, or none›.

Safe for tasks of one event loop; no lock is held during a call.

>>> guard = {cls}("payments", Policy(limit=1))
>>> guard.admit()
‹what it answers›

Sources: ‹the primary source first›.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.events import Event, Listener, emit, ignore

if TYPE_CHECKING:
    from types import TracebackType

__all__ = [{exported}]


# --8<-- [start:policy]
@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """‹What is decided here›.

    Attributes:
        limit: ‹what it bounds, and its unit›; required, because nobody else can choose it.
    """

    limit: int
    # --8<-- [end:policy]

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"limit must be >= 1, got {{self.limit!r}}")


@dataclass(frozen=True, slots=True)
class Rejected(Event):
    """‹When this is sent›."""


class {cls}:
    """‹What it guards, in one sentence›.

    Args:
        name: what events and errors call it.
        policy: see `Policy`.
        clock: where time is read and waited for.
        on_event: hears of each decision.
    """

    def __init__(
        self, name: str, policy: Policy, *, clock: Clock = SYSTEM_CLOCK, on_event: Listener = ignore
    ) -> None:
        self._name = name
        self._policy = policy
        self._clock = clock
        self._on_event = on_event

    # --8<-- [start:decide]
    def admit(self) -> bool:
        """‹Decide without any I/O: this is what the page shows›."""
        emit(self._on_event, Rejected(self._name))
        raise NotImplementedError("‹decide›")

    # --8<-- [end:decide]

    async def __aenter__(self) -> None:
        self.admit()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """‹Say what the outcome means›."""
'''

_TESTS = '''\
"""The proof of patterns/{key}: each invariant, and a naive variant that breaks it."""

from __future__ import annotations

from typing import Any

import pytest

from patterns.clock import ManualClock
from patterns.{module} import {names}

Make = Any  # {cls} or a naive variant with the same constructor


# 1: ‹the invariant in a few words›


def check_first_invariant(make: Make) -> None:
    """‹What is tried, and what must be seen›."""
    guard = make("payments", Policy(limit=1), clock=ManualClock())
    assert guard.admit(), "‹what went wrong›"


class Naive({cls}):
    """‹What most people write first›."""

    def admit(self) -> bool:
        return False


@pytest.mark.invariant(1)
def test_first_invariant() -> None:
    """‹The claim, in one sentence›."""
    check_first_invariant({cls})


@pytest.mark.naive(1)
def test_naive_variant_breaks_it() -> None:
    """‹What the naive variant does instead, in one sentence›."""
    with pytest.raises(AssertionError, match="‹what went wrong›"):
        check_first_invariant(Naive)


# faults, bad input


def test_a_bad_policy_names_field_value_and_bound() -> None:
    """Nothing is built from values that could never work."""
    with pytest.raises(ValueError, match="limit must be >= 1, got 0"):
        Policy(limit=0)
'''

_PAGE = """\
---
title: {title}
summary: ‹What it does, in one plain sentence of 10 to 200 letters.›
aka: []
tags:
  - {category}
symptoms:
  - ‹what a reader in trouble would type›
related: {{}}
engine: none
---

# {title}

## The problem

‹A short executed example that fails the way production fails.›

```python
print("‹what fails›")
```

```text
```

- **‹One force?›** ‹And the one that pulls against it: three to six such pairs.›

## The pattern

<!-- diagram -->

```mermaid
stateDiagram-v2
    direction LR
    [*] --> ‹STATE›
```

1. ‹Four to eight numbered steps, in the names of the code.›

## The code

‹What the region shows, in one sentence:›

```python
--8<-- "patterns/{key}.py:decide"
```

‹A minimal use:›

```python
from patterns.{module} import {names}

guard = {cls}("payments", Policy(limit=1))
print(guard.admit())
```

```text
```

## Break it

‹One executed experiment: the naive variant and this module under the same fault.›

```python
print("‹what each did›")
```

```text
```

<!-- table: faults -->

## What it costs

<!-- chart: cost -->

<!-- table: cost -->

## When to use it, and when not

‹When to use it.›

- **Not** ‹here›: ‹what is better›.
- **Not** ‹here›: ‹what is better›.
- **Not** ‹here›: ‹what is better›.

**DON'T** ‹do this, because›:

```python
print("‹what it does›")
```

```text
```

**DO** ‹this instead›:

```python
print("‹what it does›")
```

```text
```

## Tuning

‹Where to begin.›

<!-- parameters: patterns.{module}.Policy -->

| Parameter | Default | Unit | Raised | Lowered |
|---|---|---|---|---|
| `limit` | required | ‹unit› | ‹what moves› | ‹what moves› |

## In production

- ‹Keys and TTL, atomicity, observability, security: a checklist.›

| Event | When | Fields |
|---|---|---|
| `Rejected` | ‹when› | |

### Libraries

‹What to use instead, and why.›

### Known uses

‹Where it runs.›

## Related patterns

<!-- related -->

**{title} or ‹its nearest neighbour›?** ‹Two lines.›

## References

- ‹The primary source first.›
"""

_DIAGRAM = '''\
"""‹What the drawing says, in words: this becomes its alt text›."""

from tools.diagrams import box, canvas, cluster, edge

with canvas("{title}"):
    caller = box("Caller")
    with cluster("your process"):
        guard = box("{cls}", "‹what it does›")
    caller >> edge("‹what passes›") >> guard
'''

_BENCHMARK = '''\
"""‹What is measured›, with and without, and beside the library that a reader would pick."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.paired import Case, time_sync
from patterns.{module} import {names}

if TYPE_CHECKING:
    from benchmarks.paired import Row


def measure() -> list[Row]:
    """Return ns per decision."""
    ours = {cls}("payments", Policy(limit=1))
    return time_sync(
        [
            Case("‹without›", lambda: True, baseline=True),
            Case("this module", ours.admit, ours=True),
        ]
    )


def bounds(rows: list[Row]) -> list[str]:
    """‹The promise: at most so many times the baseline or the fastest peer›."""
    ours = next(row["ratio"] for row in rows if row["ours"])
    return [] if ours <= 2 else [f"a decision costs {{ours:.1f}} times the baseline, more than 2"]
'''

_NOTEBOOK = (
    ("markdown", "# {title}: with and without\n\n‹What will be seen, in two sentences.›"),
    ("code", "from patterns.{module} import {names}\n\nguard = {cls}(\"payments\", Policy(limit=1))"),
    ("markdown", "## Without it\n\n‹The naive way, on virtual time.›"),
    ("code", "print(\"‹what happens›\")"),
    ("markdown", "## With it"),
    ("code", "assert guard.admit()"),
)  # fmt: skip


class Refused(Exception):
    """Nothing was written; the text is one plain sentence."""


def write(key: str, root: Path = ROOT) -> list[Path]:
    """Write the six faces of `key`, and what a new category needs; return the files written.

    Raises:
        Refused: the key is not one, or one of its faces is there.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*/[a-z][a-z0-9_]*", key):
        raise Refused(
            f"A pattern is named category/name in lower-case letters, digits and _, not {key!r}: "
            "make new PATTERN=resiliency/bulkhead"
        )
    category, name = key.split("/")
    for word in (category, name):
        if word in _RESERVED or keyword.iskeyword(word):
            raise Refused(f"{word!r} cannot be the name of a pattern or category.")
    if (root / "patterns" / f"{category}.py").exists():
        raise Refused(f"patterns/{category}.py is a shared part, so {category!r} cannot be a category.")
    for places in FACES.values():
        for place in places:
            face = root / place.format(key, category=category, name=name)
            if face.exists():
                raise Refused(f"{face.relative_to(root)} is there already: nothing was written.")
    cls = "".join(word.capitalize() for word in name.split("_"))
    words = {
        "key": key,
        "category": category,
        "module": key.replace("/", "."),
        "cls": cls,
        "names": ", ".join(sorted([cls, "Policy"])),
        "exported": ", ".join(f'"{each}"' for each in sorted([cls, "Policy", "Rejected"])),
        "title": name.replace("_", " ").title(),
    }
    templates = {
        "module": _MODULE,
        "diagram": _DIAGRAM,
        "page": _PAGE,
        "tests": _TESTS,
        "benchmark": _BENCHMARK,
    }
    files = {
        FACES[face][0].format(key, category=category, name=name): template.format(**words)
        for face, template in templates.items()
    }
    files[f"notebooks/{key}.ipynb"] = _notebook(words)
    packages = {
        f"patterns/{category}/__init__.py": '"""‹What this category holds, in one line›."""\n',
        f"benchmarks/{category}/__init__.py": f'"""Benchmarks of the {category} patterns."""\n',
    }
    files |= {place: text for place, text in packages.items() if not (root / place).exists()}
    for place, text in files.items():
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    return [root / place for place in files]


def _notebook(words: dict[str, str]) -> str:
    cells = []
    for number, (kind, source) in enumerate(_NOTEBOOK):
        cell: dict[str, object] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        cell["source"] = source.format(**words).splitlines(keepends=True)
        cells.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Write one pattern and say what comes next; 2 if nothing was written."""
    if len(arguments) != 1:
        print("usage: python -m tools.new category/name", file=sys.stderr)
        return 2
    try:
        written = write(arguments[0])
    except Refused as refusal:
        print(refusal, file=sys.stderr)
        return 2
    for path in written:
        print(f"wrote {path.relative_to(ROOT)}")
    print("Fill in what stands in ‹angle quotes›; `make missing` says what is left to do.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
