"""From the books of many tests, in several processes, to one results file for each pattern.

Each fault test leaves one small file: nothing in it at first, its rows once its books were in order. At the
end of the run they are joined. A pattern whose faults did not all run and hold is not written: a results
file is whole or it is the one of before.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tests.faults.ledger import Ledger

__all__ = ["Declared", "Joined", "declared", "join", "leave"]

Row = dict[str, Any]


class Declared(NamedTuple):
    """One `@pytest.mark.fault("...")`."""

    pattern: str
    fault: str


class Joined(NamedTuple):
    """What a run has to say about one pattern.

    Attributes:
        rows: one for each fault that held, in the order declared.
        missing: the faults of which a test failed, was skipped, or was not chosen to run.
        lines: what each test printed.
    """

    rows: list[Row]
    missing: list[str]
    lines: list[str]


def declared(path: Path, pattern: str | None = None) -> list[Declared]:
    """Return the faults that a test file declares, in their order, found without running it.

    Args:
        path: the test file.
        pattern: the key of its pattern; a marker's own `pattern=` wins.

    Raises:
        ValueError: a marker whose text or pattern is not written out.
    """
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
            try:
                names = [ast.literal_eval(argument) for argument in node.args]
                own = {word.arg: ast.literal_eval(word.value) for word in node.keywords}.get(
                    "pattern", pattern
                )
            except ValueError:
                raise ValueError(f"{path}:{node.lineno}: a fault's name must be written out") from None
            if len(names) != 1 or not isinstance(names[0], str) or not isinstance(own, str):
                raise ValueError(f"{path}:{node.lineno}: want pytest.mark.fault('its name') of one pattern")
            found.append((node.lineno, node.col_offset, Declared(own, names[0])))
    return [each for *_, each in sorted(found)]


def leave(folder: Path, test: str, faults: Iterable[Declared], books: Iterable[Ledger] = ()) -> None:
    """Leave a test's rows for `join`; without books: the test is to run, and has not held yet."""
    rows = [{"pattern": book.pattern, "line": str(book), "row": book.row()} for book in books]
    name = hashlib.sha256(test.encode()).hexdigest()[:20]
    part = folder / f"{name}.{os.getpid()}.part"  # every worker of xdist says at first what is to run
    part.write_text(json.dumps({"test": test, "faults": list(faults), "rows": rows}), "utf-8")
    part.replace(folder / f"{name}.json")


def join(folder: Path, order: Sequence[Declared]) -> dict[str, Joined]:
    """Return what was left in `folder`, by pattern.

    Several tests of one fault (one test with parameters, say) become one row: their counts are added.

    Args:
        folder: where the tests left their rows.
        order: every fault declared, in order; a pattern of which no test was to run is left out.
    """
    parts = sorted(
        (json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")), key=itemgetter("test")
    )
    rows: dict[Declared, Row] = {}
    lines: dict[Declared, list[str]] = {}
    to_run: list[Declared] = []
    missing: set[Declared] = set()
    for part in parts:
        faults = [Declared(*each) for each in part["faults"]]
        to_run += faults
        for left in part["rows"]:
            fault = Declared(left["pattern"], left["row"]["fault"])
            rows[fault] = _added(rows[fault], left["row"]) if fault in rows else left["row"]
            lines.setdefault(fault, []).append(left["line"])
        if not part["rows"]:
            missing |= set(faults)
    patterns = {fault.pattern for fault in to_run}
    everything = [fault for fault in dict.fromkeys([*order, *to_run]) if fault.pattern in patterns]
    missing |= set(everything) - set(rows)
    return {
        pattern: Joined(
            [rows[each] for each in everything if each.pattern == pattern and each in rows],
            [each.fault for each in everything if each.pattern == pattern and each in missing],
            [line for each in everything if each.pattern == pattern for line in lines.get(each, [])],
        )
        for pattern in sorted(patterns)
    }


def _added(one: Row, other: Row) -> Row:
    counts = ("injected", "lost", "duplicated", "unsure", "seconds")
    return {
        **one,
        **{name: one[name] + other[name] for name in counts},
        "naive": one["naive"] or other["naive"],
    }
