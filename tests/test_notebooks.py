"""Every notebook is saved as it was executed, and shows only what a reader can check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest

from tools import notebooks

# Its functions have no annotations.
files: Any = nbformat
v4: Any = nbformat.v4
PATHS = notebooks.notebooks()


def notebook(*sources: str) -> Any:
    """Return a notebook with a title and these cells of code, not yet executed."""
    return v4.new_notebook(cells=[v4.new_markdown_cell("# Title"), *map(v4.new_code_cell, sources)])


def executed(source: str, *outputs: Any, count: int | None = 1) -> Any:
    made = notebook()
    made.cells.append(v4.new_code_cell(source, execution_count=count, outputs=list(outputs)))
    return made


def shown(**data: str) -> Any:
    """Return an output with these kinds of data, named without their slash."""
    kinds = {
        "text": "text/plain",
        "html": "text/html",
        "script": "application/javascript",
        "png": "image/png",
    }
    return v4.new_output("display_data", {kinds[name]: value for name, value in data.items()})


def read(path: Path) -> Any:
    return files.read(path, as_version=4)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    (tmp_path / "a").mkdir()
    return tmp_path


# The saved notebooks


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_saved_notebook_is_executed_and_clean(path: Path) -> None:
    """Every cell was executed in order without error, and shows only text, PNG and SVG."""
    assert notebooks.problems(read(path)) == []


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_saved_notebook_holds_nothing_volatile(path: Path) -> None:
    """A notebook is what `make notebooks` saves: no timestamps, versions, sizes or random names."""
    assert path.read_text("utf-8") == notebooks.canonical(read(path))


# What is refused

ADDRESS = "<function f at 0x7f3a5c0d1e10>"


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (executed("1", count=None), "executed as None"),
        (executed("1", count=2), "executed as 2, not as 1"),
        (executed("1", v4.new_output("error", ename="OSError", evalue="no")), "raised OSError: no"),
        (executed("1", v4.new_output("stream", name="stderr", text="Warning\n")), "wrote to stderr: Warning"),
        (executed("1", shown(text="x", html="<b>x</b>")), "its output is text/html"),
        (executed("1", shown(script="alert(1)")), "its output is application/javascript"),
        (executed("1", shown(text=ADDRESS)), "names an address, 0x7f3a5c0d1e10"),
        (executed("1", v4.new_output("stream", text=ADDRESS)), "names an address"),
        (executed("1", shown(text=f"{Path.home()}/x")), "path of this machine"),
        (executed("# NBVAL_IGNORE_OUTPUT\nx = 1"), "must end in an assert"),
        (executed("# NBVAL_IGNORE_OUTPUT\nassert 1\nx = 1"), "must end in an assert"),
        (executed("# NBVAL_IGNORE_OUTPUT\nif 1:\n    assert 1"), "must end in an assert"),
        (executed("x = 1\n# NBVAL_IGNORE_OUTPUT\nassert x"), "NBVAL_IGNORE_OUTPUT is not allowed here"),
        (executed("# NBVAL_SKIP\nassert 1"), "NBVAL_SKIP is not allowed"),
        (executed("# NBVAL_RAISES_EXCEPTION\n1 / 0"), "NBVAL_RAISES_EXCEPTION is not allowed"),
        (executed("%matplotlib inline"), "not Python"),
        (executed("!ls"), "not Python"),
        (executed("# only this"), "no code in it"),
        (notebook(), "no code in it"),
        (v4.new_notebook(cells=[v4.new_code_cell("1", execution_count=1)]), "begin with the title"),
        (v4.new_notebook(cells=[v4.new_raw_cell("# Title")]), "code or markdown, not raw"),
    ],
)
def test_what_a_reader_cannot_check_is_refused(made: Any, message: str) -> None:
    """A cell that was not executed, failed, hides its output or shows what differs each time is named."""
    assert any(message in problem for problem in notebooks.problems(made)), notebooks.problems(made)


def test_a_good_notebook_is_accepted() -> None:
    """Text, pictures, top-level await and an ignored output with its assert are all in order."""
    made = executed("await f()", shown(text="x", png="aGVsbG8="), v4.new_output("stream", text="x\n"))
    made.cells.append(v4.new_code_cell("# NBVAL_IGNORE_OUTPUT\nprint(1)\nassert 1", execution_count=2))
    assert notebooks.problems(made) == []


def test_only_what_was_run_is_kept() -> None:
    """Timestamps, tags, versions and sizes of pictures go; sources, outputs and names of cells stay."""
    made = executed("1", shown(text="x"))
    name = made.cells[1].id
    clean = notebooks.canonical(made)
    made.metadata.update(language_info={"name": "python", "version": "3.11.7"}, widgets={"state": {}})
    made.cells[1].metadata.update(
        execution={"iopub.execute_input": "2026-01-01T00:00:00Z"}, tags=["nbval-skip"]
    )
    made.cells[1].outputs[0].metadata["image/png"] = {"width": 640}
    made.cells[1].source += "\n\n"
    assert notebooks.canonical(made) == clean
    assert name in clean
    made.cells[0].id = name
    assert clean != notebooks.canonical(made)
    assert len({cell.id for cell in files.reads(notebooks.canonical(made), 4).cells}) == 2


# Saving


@pytest.mark.slow
def test_saving_twice_gives_the_same_bytes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A notebook with text, a picture, printing in pieces and top-level await is saved equal twice."""
    path = folder / "a" / "b.ipynb"
    made = notebook(
        "import asyncio\nfrom patterns.clock import ManualClock\nclock = ManualClock()\n"
        "for part in range(3):\n    print(part, flush=True)\n    await asyncio.sleep(0.01)\n"
        "clock.monotonic()",
        "# NBVAL_IGNORE_OUTPUT\nimport matplotlib.pyplot as plt\nplt.plot([1, 2]);\nassert plt",
    )
    files.write(made, path)
    assert notebooks.main(["--check", "a/b"]) == 1
    assert notebooks.main(["a/b"]) == 0
    first = path.read_bytes()
    saved = read(path)
    assert [output.get("text", "") for output in saved.cells[1].outputs] == ["0\n1\n2\n", ""]
    assert saved.cells[1].outputs[1].data["text/plain"] == "0.0"
    assert "image/png" in saved.cells[2].outputs[0].data
    assert notebooks.main(["a/b"]) == 0
    assert path.read_bytes() == first
    assert notebooks.main(["--check", "a/b"]) == 0
    assert "a/b: executed and saved" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("print('before')\n1 / 0", "ZeroDivisionError: division by zero"),
        ("import warnings\nwarnings.warn('old')", "wrote to stderr"),
        ("import os\nos._exit(1)", "died"),
    ],
)
def test_a_notebook_that_fails_stays_as_it_is(
    source: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A notebook that raises, warns or ends its kernel is reported in plain text and not saved."""
    path = folder / "a" / "b.ipynb"
    files.write(notebook(source), path)
    before = path.read_bytes()
    assert notebooks.main(["a/b"]) == 1
    complaint = capsys.readouterr().err
    assert message in complaint
    assert "\x1b" not in complaint
    assert path.read_bytes() == before


def test_an_unknown_notebook_is_one_plain_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A key without a notebook ends in one sentence."""
    assert notebooks.main(["no/such"]) == 1
    assert capsys.readouterr().err == "There is no notebooks/no/such.ipynb.\n"
