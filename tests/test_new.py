"""`make new`: a new pattern is whole in form, and fails until it is filled in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import catalogue, missing, new
from tools.fences import parse

ROOT = Path(__file__).resolve().parent.parent
KEY = "demo/rate_gate"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a copy of what a new pattern leans on."""
    nouns = [f"patterns/{noun}.py" for noun in ("__init__", "clock", "events")]
    tools = ["benchmarks/__init__.py", "benchmarks/paired.py", "tools/__init__.py", "tools/diagrams.py"]
    for place in ("pyproject.toml", *nouns, *tools):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / place, tmp_path / place)
    return tmp_path


def run(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_six_faces_are_written(tree: Path) -> None:
    """After `make new` no face is missing, and the category is there."""
    written = new.write(KEY, tree)
    assert all(path.is_file() for path in written)
    assert catalogue.faces(tree).keys() == {KEY}
    assert None not in catalogue.faces(tree)[KEY].values()
    assert (tree / "patterns/demo/__init__.py").is_file()


def test_templates_have_the_form_that_is_asked_for(tree: Path) -> None:
    """Headings, blocks, advice, invariants and their marks are in place: only the content is open."""
    new.write(KEY, tree)
    page = (tree / f"docs/{KEY}.md").read_text("utf-8")
    assert list(missing.headings(page)) == []
    assert list(missing.examples(page, tree)) == []
    assert list(missing.when_not(page, tree)) == []
    assert [block.problem for block in parse(page, tree) if block.problem] == []
    assert missing.CHECKS["invariants"](KEY, tree) == []


def test_what_is_to_be_written_is_named_face_by_face(tree: Path) -> None:
    """`make missing` finds an open place in each of the six files, and asks for the figures."""
    written = new.write(KEY, tree)
    lacking = missing.CHECKS["faces"](KEY, tree)
    for path in written:
        place = str(path.relative_to(tree))
        if "__init__" not in place:
            assert any(sentence.startswith(f"{place}:") for sentence in lacking), f"nothing open in {place}"
    assert len(missing.CHECKS["figures"](KEY, tree)) == 3


def test_tests_of_a_new_pattern_fail_until_it_is_filled_in(tree: Path) -> None:
    """The first invariant is red; the naive variant is already rejected by the same check."""
    new.write(KEY, tree)
    result = run(tree, "pytest", "-q", "-p", "no:cacheprovider", "tests/demo")
    assert "test_first_invariant - NotImplementedError" in result.stdout
    assert "1 failed, 2 passed" in result.stdout


def test_templates_are_clean_python(tree: Path) -> None:
    """What an author starts from is formatted, linted and typed as it must be in the end."""
    new.write(KEY, tree)
    lint = run(tree, "ruff", "check", "--no-cache", ".")
    assert lint.returncode == 0, lint.stdout
    layout = run(tree, "ruff", "format", "--check", "--no-cache", ".")
    assert layout.returncode == 0, layout.stdout


@pytest.mark.slow
def test_templates_are_typed(tree: Path) -> None:
    """Module and tests of a new pattern hold under mypy --strict."""
    new.write(KEY, tree)
    types = run(tree, "mypy", "--cache-dir=/dev/null", f"patterns/{KEY}.py", "tests/demo/test_rate_gate.py")
    assert types.returncode == 0, types.stdout


@pytest.mark.parametrize(
    "face",
    [
        "patterns/demo/rate_gate.py",
        "patterns/demo/rate_gate/__init__.py",
        "docs/demo/rate_gate.md",
        "tests/demo/test_rate_gate.py",
    ],
)
def test_nothing_is_overwritten_and_nothing_half_written(tree: Path, face: str) -> None:
    """One face that is there, also as a package, and not a byte is written."""
    (tree / face).parent.mkdir(parents=True)
    (tree / face).write_text("mine\n")
    before = contents(tree)
    with pytest.raises(new.Refused, match="is there already"):
        new.write(KEY, tree)
    assert contents(tree) == before


def test_second_pattern_of_a_category_leaves_the_category_alone(tree: Path) -> None:
    """The category's own docstring is written once and then belongs to its author."""
    new.write(KEY, tree)
    category = tree / "patterns/demo/__init__.py"
    category.write_text('"""Demonstrations."""\n')
    new.write("demo/other", tree)
    assert category.read_text() == '"""Demonstrations."""\n'


@pytest.mark.parametrize(
    "key",
    [
        "",
        "bulkhead",
        "Resiliency/Bulkhead",
        "resiliency/bulk-head",
        "resiliency/bulkhead/x",
        "../x/y",
        "resiliency/../x",
        "resiliency/",
        "/bulkhead",
        "resiliency/2nd",
        "resiliency/bulkhead\n",
        "resiliency/b\u00fclk",
    ],
)
def test_key_that_is_none_is_refused_in_one_sentence(tree: Path, key: str) -> None:
    """A name that could not be imported, or would lead out of the tree, is refused with an example."""
    before = contents(tree)
    with pytest.raises(new.Refused, match=r"A pattern is named category/name .*make new PATTERN="):
        new.write(key, tree)
    assert contents(tree) == before


@pytest.mark.parametrize("key", ["demo/index", "demo/class", "faults/thing", "assets/thing", "demo/utils"])
def test_reserved_name_is_refused(tree: Path, key: str) -> None:
    """A name that means something else in the tree or in Python is refused."""
    with pytest.raises(new.Refused, match="cannot be the name"):
        new.write(key, tree)


def test_shared_noun_is_no_category(tree: Path) -> None:
    """A category cannot hide a shared part of the package."""
    with pytest.raises(new.Refused, match=r"patterns/clock\.py is a shared part"):
        new.write("clock/alarm", tree)


def test_command_prints_one_sentence_and_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """A bad name at the prompt costs one line and exit code 2."""
    assert new.main(["Bad"]) == 2
    assert new.main([]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 2
