"""The committed figures are checked before they are written, and say where they come from."""

from __future__ import annotations

import json
import math
import re
import subprocess
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from tools import results

if TYPE_CHECKING:
    from pathlib import Path

FAULT: dict[str, Any] = {
    "fault": "reset",
    "injected": 30,
    "lost": 0,
    "duplicated": 0,
    "unsure": 2,
    "seconds": 1.5,
    "held": "sent again",
    "bound": "0 lost",
    "naive": "2 lost",
}
BENCHMARK: dict[str, Any] = {
    "case": "closed",
    "ours": True,
    "baseline": False,
    "value": 1.25,
    "unit": "us",
    "ratio": 3,
    "n": 1000,
    "note": None,
}
ROWS = {"faults": FAULT, "benchmarks": BENCHMARK, "examples": {"line": 7, "form": "pycon"}}


@pytest.mark.parametrize("kind", results.KINDS)
def test_what_is_written_is_read_again(kind: str, tmp_path: Path) -> None:
    """A result that was written is read back whole, with its rows in their order."""
    path = results.write(kind, "a/b", [ROWS[kind], ROWS[kind]], seed=7, extra={"x": [1]}, folder=tmp_path)
    document = results.read(kind, "a/b", folder=tmp_path)
    assert document is not None
    assert path == tmp_path / kind / "a" / "b.json"
    assert document["rows"] == [ROWS[kind], ROWS[kind]]
    assert (document["pattern"], document["seed"], document["x"]) == ("a/b", 7, [1])


def test_a_result_says_when_where_and_with_what(tmp_path: Path) -> None:
    """A result carries today's date, the commit, the versions and the kind of machine, and no host name."""
    before = datetime.now(UTC).date()
    results.write("faults", "a/b", [FAULT], seed=1, extra={"versions": {"other": "2.0"}}, folder=tmp_path)
    document = results.read("faults", "a/b", folder=tmp_path)
    assert document is not None
    assert document["date"] in {str(before), str(datetime.now(UTC).date())}
    assert re.fullmatch(r"[0-9a-f]{7,}\+?|unknown", document["commit"])
    assert re.fullmatch(r"\d+ cores?, \w+, \w+", document["machine"])
    assert {"python", "redis-py", "other"} <= set(document["versions"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", document["versions"]["valkey"])


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    """The order in which fields were given does not show in the file, which ends in one newline."""
    first = results.write("faults", "a/b", [FAULT], seed=1, folder=tmp_path / "1").read_bytes()
    turned = dict(reversed(FAULT.items()))
    assert results.write("faults", "a/b", [turned], seed=1, folder=tmp_path / "2").read_bytes() == first
    assert first.endswith(b"}\n")
    assert not list((tmp_path / "1" / "faults" / "a").glob("tmp*"))


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("faults", "injected", 1.5),
        ("faults", "injected", True),
        ("faults", "lost", -1),
        ("faults", "seconds", math.nan),
        ("faults", "held", " "),
        ("faults", "held", None),
        ("faults", "naive", 3),
        ("faults", "surprise", 1),
        ("benchmarks", "ratio", math.inf),
        ("benchmarks", "ours", 1),
        ("benchmarks", "value", "1.0"),
        ("examples", "line", None),
    ],
)
def test_a_bad_row_is_refused(kind: str, field: str, value: object, tmp_path: Path) -> None:
    """A row with a field that is unknown, of the wrong type or not finite is refused by name and value."""
    with pytest.raises(ValueError, match=rf"{field}.*{re.escape(repr(value))}"):
        results.write(kind, "a/b", [{**ROWS[kind], field: value}], seed=1, folder=tmp_path)
    assert not list(tmp_path.rglob("*"))


def test_a_row_that_lacks_a_field_is_refused(tmp_path: Path) -> None:
    """A field may be left out only where it may be None, and then it is written as null."""
    with pytest.raises(ValueError, match="'bound' is missing"):
        results.write(
            "faults", "a/b", [{k: v for k, v in FAULT.items() if k != "bound"}], seed=1, folder=tmp_path
        )
    short = {k: v for k, v in FAULT.items() if k != "naive"}
    path = results.write("faults", "a/b", [short], seed=1, folder=tmp_path)
    assert json.loads(path.read_text())["rows"][0]["naive"] is None


@pytest.mark.parametrize(("kind", "key"), [("bench", "a/b"), ("faults", "../b"), ("faults", "a/b/c")])
def test_a_result_lies_only_under_its_folder(kind: str, key: str) -> None:
    """An unknown kind, or a key that is not one or two plain words, is refused."""
    with pytest.raises(ValueError, match="must be"):
        results.path_of(kind, key)


def test_extra_cannot_forge_what_is_measured(tmp_path: Path) -> None:
    """The date, the commit and the other measured entries cannot be passed in."""
    with pytest.raises(ValueError, match="date"):
        results.write("faults", "a/b", [FAULT], seed=1, extra={"date": "2001-01-01"}, folder=tmp_path)


def test_a_test_run_leaves_the_committed_results_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RESULTS_DIR moves what is written, and what is read stays the committed file."""
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    path = results.write("faults", "no_such/pattern", [FAULT], seed=1)
    assert path.is_relative_to(tmp_path)
    assert results.read("faults", "no_such/pattern") is None


def test_a_forged_file_is_refused(tmp_path: Path) -> None:
    """A file edited into another pattern's name or a wrong type is not read."""
    path = results.write("faults", "a/b", [FAULT], seed=1, folder=tmp_path)
    good = path.read_text()
    for old, new in [('"a/b"', '"a/c"'), ('"lost": 0', '"lost": "none"'), ('"rows"', '"lines"'), ("{", "")]:
        path.write_text(good.replace(old, new, 1))
        with pytest.raises(ValueError, match=re.escape(str(path))):
            results.read("faults", "a/b", folder=tmp_path)


def test_the_commit_says_whether_the_tree_is_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit ends in `+` once a file outside results differs, and is `unknown` outside git."""
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert results.commit() == "unknown"
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for arguments in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    clean = results.commit()
    assert re.fullmatch(r"[0-9a-f]{7,}", clean)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "new.json").write_text("{}")
    assert results.commit() == clean
    (tmp_path / "module.py").write_text("x = 1\n")
    assert results.commit() == clean + "+"
