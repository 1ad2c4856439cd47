"""The committed results, the tests and the pages speak of the same things."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import run
from tests.faults.rows import declared
from tools import results, tables

ROOT = Path(__file__).resolve().parent.parent


def complaints(root: Path) -> list[str]:
    """Return a sentence for each fault or file by which the committed results differ from the tests."""
    faults: dict[str, list[str]] = {}
    for path in sorted(root.glob("tests/**/test_*.py")):
        parts = path.relative_to(root / "tests").parts
        own = f"{parts[0]}/{path.stem.removeprefix('test_')}" if len(parts) == 2 else None
        if own:
            faults.setdefault(own, [])
        for each in declared(path, own):
            faults.setdefault(each.pattern, []).append(each.fault)
    said = []
    for pattern, names in faults.items():
        document = results.read("faults", pattern, folder=root / "results")
        written = [row["fault"] for row in document["rows"]] if document else []
        if not names:
            said.append(f'{pattern}: no test declares a fault, so its table "Break it" is empty')
        said += [
            f"{pattern}: two tests declare the fault {name!r}" for name in names if names.count(name) > 1
        ]
        said += [
            f"{pattern}: no result for the fault {name!r}: run `make faults`"
            for name in names
            if name not in written
        ]
        said += [
            f"{pattern}: a result for {name!r}, which no test declares: run `make faults`"
            for name in written
            if name not in names
        ]
    for path in sorted((root / "results" / "faults").glob("*/*.json")):
        pattern = f"{path.parent.name}/{path.stem}"
        if pattern not in faults:
            said.append(f"{pattern}: results, and no test: remove {path.relative_to(root)}")
    return said


def test_every_fault_that_a_test_declares_has_a_committed_result() -> None:
    """Each pattern declares faults, and the committed results hold exactly these."""
    said = complaints(ROOT)
    assert not said, "\n".join(said)


def test_every_difference_is_told(tmp_path: Path) -> None:
    """A fault without result, a result without fault, a fault told twice, a pattern without any: all told."""
    (tmp_path / "tests" / "cache").mkdir(parents=True)
    marks = "".join(f"@pytest.mark.fault({name!r})\n" for name in ("killed", "paused", "paused"))
    (tmp_path / "tests" / "cache" / "test_a.py").write_text(f"import pytest\n{marks}def test_it(): ...\n")
    (tmp_path / "tests" / "cache" / "test_b.py").write_text("def test_it(): ...\n")
    row = {"injected": 1, "lost": 0, "duplicated": 0, "unsure": 0, "seconds": 1.0, "held": "x", "bound": "y"}
    for pattern, fault in (("cache/a", "killed"), ("cache/gone", "killed")):
        results.write("faults", pattern, [{"fault": fault, **row}], seed=1, folder=tmp_path / "results")
    results.write(
        "faults",
        "cache/a",
        [{"fault": "killed", **row}, {"fault": "old", **row}],
        seed=1,
        folder=tmp_path / "results",
    )
    assert set(complaints(tmp_path)) == {
        "cache/a: two tests declare the fault 'paused'",
        "cache/a: no result for the fault 'paused': run `make faults`",
        "cache/a: a result for 'old', which no test declares: run `make faults`",
        'cache/b: no test declares a fault, so its table "Break it" is empty',
        "cache/gone: results, and no test: remove results/faults/cache/gone.json",
    }


MEASURED = run.keys()
SHARED = [key for key in MEASURED if "/" not in key]


def test_a_page_across_patterns_may_have_a_benchmark() -> None:
    """What is measured is every pattern, and each module one level up that has the name of a page."""
    assert "comparing_caches" in SHARED
    assert not {"run", "paired", "caches", "traffic"} & set(SHARED)
    written = {path.stem for path in (ROOT / "results" / "benchmarks").glob("*.json")}
    assert written == set(SHARED)


@pytest.mark.parametrize("key", SHARED)
def test_a_page_across_patterns_shows_what_was_measured(key: str) -> None:
    """Its charts ask what was measured, in whole, and the table below them says on what and when."""
    document = results.read("benchmarks", key)
    assert document is not None
    page = (ROOT / "docs" / f"{key}.md").read_text("utf-8")
    charts = re.findall(r"^<!-- chart: (.+) -->$", page, re.MULTILINE)
    assert len(charts) == len(set(charts))
    assert set(charts) <= set(tables.questions(document))
    assert "<!-- table: cost -->" in page
    for question in tables.questions(document):
        cases = [row for row in document["rows"] if row["case"].startswith(f"{question}: ")]
        assert sum(row["baseline"] for row in cases) == 1, f"{question}: a ratio is to one baseline"
