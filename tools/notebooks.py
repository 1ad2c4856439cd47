"""Executes every notebook and saves it, so that what a reader sees is what the modules did.

A saved notebook holds only what two runs can agree on: no timestamps, no version of Python, no addresses.
Its outputs are text, PNG and SVG, since nothing else can be read in a diff or shown without scripts of
another host. A cell whose output cannot be equal twice (a plot, a pid, a timing) starts with
`# NBVAL_IGNORE_OUTPUT` and ends in an assert, so that it still proves something.

`python -m tools.notebooks [key ...]` executes and saves; `--check` only reads what is saved. Whether the
saved outputs are still true is for `pytest --nbval`.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["canonical", "execute", "main", "notebooks", "problems"]

# Its functions have no annotations.
_nbformat: Any = nbformat

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"
SECONDS_PER_CELL = 120

IGNORE = "# NBVAL_IGNORE_OUTPUT"
_SHOWN = {"text/plain", "image/png", "image/svg+xml"}
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "name": "python", "pygments_lexer": "ipython3"},
}


def notebooks(folder: Path = FOLDER) -> list[Path]:
    """Return every notebook: those of patterns, and one level up those across patterns."""
    return sorted([*folder.glob("*.ipynb"), *folder.glob("*/*.ipynb")])


def execute(notebook: Any, folder: Path) -> None:
    """Run the cells in a fresh kernel whose working directory is `folder`, and keep the outputs.

    Raises:
        CellExecutionError, CellTimeoutError, RuntimeError: a cell raised, hung, or ended its kernel.
    """
    if any("matplotlib" in cell.source for cell in notebook.cells):
        # On a fresh machine it makes a list of fonts first, and says so into the notebook.
        subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], check=True, timeout=300)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=SECONDS_PER_CELL,
        coalesce_streams=True,
        # Without it each kernel warns that its loopback sockets are not encrypted.
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(folder)}},
    )
    with tempfile.TemporaryDirectory() as profile:
        # The reader's own IPython start-up files are no part of the notebook.
        client.execute(env={**os.environ, "PYTHONPATH": str(ROOT), "IPYTHONDIR": profile})


def canonical(notebook: Any) -> str:
    """Return the text of a notebook without what differs from run to run and from editor to editor."""
    clean = _nbformat.from_dict({"cells": [], "metadata": _METADATA, "nbformat": 4, "nbformat_minor": 5})
    taken: set[str] = set()
    for number, cell in enumerate(notebook.cells, 1):
        kept = {"cell_type": cell.cell_type, "metadata": {}, "source": cell.source.strip("\n")}
        name = str(cell.get("id", ""))
        kept["id"] = name if name and name not in taken else f"cell-{number}"
        taken.add(kept["id"])
        if cell.cell_type == "code":
            kept["execution_count"] = cell.execution_count
            kept["outputs"] = [_clean(output) for output in cell.outputs]
        clean.cells.append(_nbformat.from_dict(kept))
    return str(_nbformat.writes(clean, version=4)) + "\n"


def problems(notebook: Any) -> list[str]:
    """Return what must not be in a saved notebook, one sentence each."""
    found = []
    if not notebook.cells or not notebook.cells[0].source.startswith("# "):
        found.append("the first cell must begin with the title, as in `# Title`")
    executed = 0
    for number, cell in enumerate(notebook.cells, 1):
        complaints = []
        if cell.cell_type == "code":
            executed += 1
            complaints = [*_source_problems(cell.source), *_output_problems(cell.outputs)]
            if cell.execution_count != executed:
                complaints.append(f"it was executed as {cell.execution_count}, not as {executed}")
        elif cell.cell_type != "markdown":
            complaints.append(f"a cell is code or markdown, not {cell.cell_type}")
        found += [f"cell {number}: {complaint}" for complaint in complaints]
    if not executed:
        found.append("there is no code in it")
    return found


def _source_problems(source: str) -> Iterator[str]:
    first, _, rest = source.strip().partition("\n")
    ignored = first.strip() == IGNORE
    if marker := re.search(r"NBVAL_\w+|PYTEST_VALIDATE_\w+", rest if ignored else source):
        yield f"{marker[0]} is not allowed here: a cell is compared, or starts with {IGNORE}"
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        yield f"it is not Python: {error.msg}"
        return
    if not tree.body:
        yield "there is no code in it"
    elif ignored and not isinstance(tree.body[-1], ast.Assert):
        yield f"it starts with {IGNORE}, so it must end in an assert"


def _output_problems(outputs: Sequence[Any]) -> Iterator[str]:
    for output in outputs:
        if output.output_type == "error":
            yield f"it raised {output.ename}: {output.evalue}"
            continue
        if output.output_type == "stream" and output.name != "stdout":
            yield f"it wrote to {output.name}: {_start(output.text)}"
            continue
        data = {"text/plain": output.text} if output.output_type == "stream" else output.data
        if strange := sorted(set(data) - _SHOWN):
            yield f"its output is {', '.join(strange)}; only text, PNG and SVG are shown"
        text = str(data.get("text/plain", ""))
        if address := re.search(r"\b0x[0-9a-f]{6,}\b", text):
            yield f"its output names an address, {address[0]}, that differs each time: {_start(text)}"
        if str(ROOT) in text or str(Path.home()) in text:
            yield f"its output names a path of this machine: {_start(text)}"


def _start(text: str) -> str:
    first = text.strip().partition("\n")[0]
    return first if len(first) <= 100 else first[:100] + "..."


def _clean(output: Any) -> dict[str, Any]:
    """Return an output without its metadata: sizes of pictures, and whatever a kernel adds."""
    kept = {name: value for name, value in output.items() if name != "metadata"}
    if output.output_type in {"display_data", "execute_result"}:
        kept["metadata"] = {}
    return kept


def _read(path: Path) -> Any:
    return _nbformat.read(path, as_version=4)


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text).strip()


def main(argv: Sequence[str] | None = None) -> int:
    """Execute and save notebooks, or check the saved ones, with a line for each."""
    options = argparse.ArgumentParser(prog="python -m tools.notebooks", description="Execute the notebooks.")
    options.add_argument("key", nargs="*", help="category/name; all if none")
    options.add_argument("--check", action="store_true", help="read only what is saved; execute nothing")
    chosen = options.parse_args(argv)
    failed = 0
    for path in [FOLDER / f"{key}.ipynb" for key in chosen.key] or notebooks():
        key = path.relative_to(FOLDER).with_suffix("").as_posix()
        if not path.is_file():
            print(f"There is no notebooks/{key}.ipynb.", file=sys.stderr)
            failed += 1
            continue
        print(f"{key}: ", end="", flush=True)
        started = time.monotonic()
        found = _checked(path) if chosen.check else _saved(path)
        verdict = f"{len(found)} problems" if found else "checked" if chosen.check else "executed and saved"
        print(f"{verdict}, {time.monotonic() - started:.1f} s", flush=True)
        for problem in found:
            print(f"    {problem}", file=sys.stderr)
        failed += bool(found)
    return 1 if failed else 0


def _checked(path: Path) -> list[str]:
    notebook = _read(path)
    found = problems(notebook)
    if not found and path.read_text("utf-8") != canonical(notebook):
        found.append("it was not saved by `make notebooks`")
    return found


def _saved(path: Path) -> list[str]:
    """Execute and save a notebook, unless it has problems: then it stays as it is."""
    notebook = _read(path)
    try:
        execute(notebook, path.parent)
    except (CellExecutionError, CellTimeoutError, RuntimeError) as error:  # the last: no kernel
        return [_plain(str(error)).replace("\n", "\n    ")]
    if found := problems(notebook):
        return found
    text = canonical(notebook)
    if text != path.read_text("utf-8"):
        path.write_text(text, "utf-8")
    return []


if __name__ == "__main__":
    sys.exit(main())
