"""Executes the Python of every page.

A page knows three forms of Python and no fourth:

- a `pycon` fence with prompts: each output is compared;
- a `python` fence: the next fence, if it is `text` and no heading stands between, is its standard output,
  compared exactly; without that output the block needs an assert. With the class `.run` it also runs in
  the reader's browser, so it stands alone: its own namespace, no top-level await;
- a fence that holds only includes of named regions (`--8<-- "patterns/...:region"`): shown, not executed,
  and the regions must exist.

Whatever else looks like code is an error, so that nothing is skipped in silence. The blocks of a page
share one event loop and one namespace, and run in order; every warning is an error; at the end of the
page no task, thread or process that it started may be left.

`python -m tools.examples [page ...]` executes pages, each in a process of its own, writes the `text`
outputs in place and results/examples; `--check` writes nothing. tools/fences.py reads the pages,
tools/collect.py hands them to pytest.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import difflib
import doctest
import gc
import inspect
import io
import json
import linecache
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
import types
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tools import results
from tools.fences import PYTHON, TOP_LEVEL_AWAIT, Block, Fence, count_blocks, parse, region

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["ExampleFailed", "Page", "count_blocks", "difference", "key_of", "pages", "region"]

ROOT = Path(__file__).resolve().parent.parent
SECONDS_PER_PAGE = 120


class ExampleFailed(Exception):
    """A block is not what the page says; the text is for the reader of a test report."""


class Page:
    """One page while its blocks run: one event loop, one namespace, and what they leave behind.

    Args:
        path: the file, for tracebacks.
        names: what the namespace holds at the start.
    """

    def __init__(self, path: Path, names: dict[str, Any] | None = None) -> None:
        self.path = path
        self._main = types.ModuleType("__main__")
        self._main.__dict__.update(names or {}, __name__="__main__")
        self._runner = asyncio.Runner()
        self._complaints: list[str] = []
        self._threads = set(threading.enumerate())
        self._processes = _children()

    def run(self, block: Block) -> str:
        """Run one block and return its standard output.

        Raises:
            ExampleFailed: the block is not allowed, raised, or its output is not what the page shows.
        """
        if block.problem:
            raise ExampleFailed(block.problem)
        if block.form == "include":
            return ""
        if block.form == "pycon":
            self.run_prompts(block.fence.text, block.line)
            return ""
        printed = self._run_python(block)
        if block.output is None and printed:
            raise ExampleFailed(
                "the block prints, and no text fence below shows it: add an empty one, then make examples\n"
                + difference("", printed)
            )
        return printed

    def _run_python(self, block: Block) -> str:
        code = self._compiled(block.fence.text, block.line, "exec", 0 if block.alone else TOP_LEVEL_AWAIT)
        main = types.ModuleType("__main__") if block.alone else self._main
        printed, error = self._execute(code, main)
        if error is not None:
            raise ExampleFailed((f"printed:\n{printed}\n" if printed else "") + self._traceback(error))
        return printed if not printed or printed.endswith("\n") else printed + "\n"

    def run_prompts(self, text: str, line: int) -> None:
        """Run the examples with prompts in `text`, whose first line is line `line` + 1 of the file.

        Raises:
            ExampleFailed: an output is not what the text shows.
        """
        checker = doctest.OutputChecker()
        for example in doctest.DocTestParser().get_examples(text):
            if set(example.options) - {doctest.ELLIPSIS}:
                raise ExampleFailed(f"{example.source.strip()!r}: the only option is +ELLIPSIS")
            code = self._compiled(example.source, line + example.lineno, "single", TOP_LEVEL_AWAIT)
            printed, error = self._execute(code, self._main)
            where = f"line {line + example.lineno + 1}: {example.source.strip()}"
            wanted = example.want
            if error is not None:
                if example.exc_msg is None:
                    raise ExampleFailed(f"{where}\n{self._traceback(error)}")
                printed += "".join(traceback.format_exception_only(error))
                wanted = example.exc_msg
            elif example.exc_msg is not None:
                raise ExampleFailed(f"{where}\nraised nothing\n" + difference(example.exc_msg, printed))
            flags = doctest.DONT_ACCEPT_TRUE_FOR_1
            if example.options.get(doctest.ELLIPSIS):
                flags |= doctest.ELLIPSIS
            if not checker.check_output(wanted, printed, flags):
                raise ExampleFailed(f"{where}\n" + difference(wanted, printed))

    def close(self) -> list[str]:
        """End the loop and return what the page should have ended itself, one sentence each."""
        loop = self._runner.get_loop()
        left = [
            f"task {task.get_name()!r} is still running {_coroutine_name(task)}"
            for task in sorted(asyncio.all_tasks(loop), key=asyncio.Task.get_name)
        ]
        with self._watched():
            self._runner.close()
            self._main.__dict__.clear()
            gc.collect()
        left += [
            f"thread {thread.name!r} is still running"
            for thread in set(threading.enumerate()) - self._threads
            if not thread.daemon
        ]
        # A process that was told to end may need a moment.
        _, alive = psutil.wait_procs(_children() - self._processes, timeout=1)
        left += [
            f"process {process.pid} is still running: {name}" for process in alive if (name := _name(process))
        ]
        return left + self._complaints

    def _compiled(self, source: str, lines_above: int, mode: str, flags: int) -> types.CodeType:
        # Asserts run whatever PYTHONOPTIMIZE says, and tracebacks name the line of the page.
        padded = "\n" * lines_above + source
        code: types.CodeType = compile(padded, str(self.path), mode, flags, dont_inherit=True, optimize=0)
        return code

    def _execute(self, code: types.CodeType, main: types.ModuleType) -> tuple[str, BaseException | None]:
        """Execute on the page's loop, as `python -m asyncio` does, unless the code brings its own loop."""
        awaits = bool(code.co_flags & inspect.CO_COROUTINE)
        brings_loop = "asyncio" in code.co_names and bool({"run", "Runner"} & set(code.co_names))

        async def on_loop() -> None:
            self._runner.get_loop().set_exception_handler(self._loop_complains)
            result = eval(code, main.__dict__)  # noqa: S307 - to run the pages is the purpose
            if awaits:
                await result

        printed = io.StringIO()
        with self._watched(), contextlib.redirect_stdout(printed), _main_is(main), contextlib.chdir(ROOT):
            try:
                if main is self._main and (awaits or not brings_loop):
                    self._runner.run(on_loop())
                else:
                    exec(code, main.__dict__)  # noqa: S102 - as above
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # also SystemExit and CancelledError: a page must not end the run
                return printed.getvalue(), error
        return printed.getvalue(), None

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Make warnings errors, and keep what Python can only report: errors in finalizers and lost tasks."""
        before = sys.unraisablehook, sys.displayhook
        sys.unraisablehook, sys.displayhook = self._finalizer_complains, sys.__displayhook__
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                yield
        finally:
            sys.unraisablehook, sys.displayhook = before

    def _finalizer_complains(self, unraisable: sys.UnraisableHookArgs) -> None:
        self._complaints.append(f"{unraisable.exc_type.__name__}: {unraisable.exc_value}")

    def _loop_complains(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self._complaints.append(context["message"] + (f": {error!r}" if error else ""))

    def _traceback(self, error: BaseException) -> str:
        linecache.checkcache(str(self.path))
        frames = list(traceback.walk_tb(error.__traceback__))
        ours = [at for at, (frame, _) in enumerate(frames) if frame.f_code.co_filename == str(self.path)]
        shown = error.__traceback__
        for _ in range(ours[0] if ours else 0):
            shown = shown.tb_next if shown else None
        return "".join(traceback.format_exception(type(error), error, shown))


@contextlib.contextmanager
def _main_is(module: types.ModuleType) -> Iterator[None]:
    """Let the page be `__main__`, as it would be for a reader who types it in: type hints resolve there."""
    module.__dict__["__name__"] = "__main__"
    before = sys.modules["__main__"]
    sys.modules["__main__"] = module
    try:
        yield
    finally:
        sys.modules["__main__"] = before


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _name(process: psutil.Process) -> str:
    """Return the start of a process's command line, or nothing if it may outlive a page."""
    try:
        command = process.cmdline()
    except psutil.Error:
        return ""
    embedded = sys.modules.get("patterns.embedded")
    may_stay = (
        # Both live as long as the interpreter.
        bool(re.search(r"multiprocessing\.(resource_tracker|forkserver)", " ".join(command)))
        or command[3:4] == ["guard"]  # ends with its server, which is named itself
        or (embedded is not None and process.pid == embedded.shared().pid)
    )
    return "" if may_stay else " ".join(command)[:100]


def _coroutine_name(task: asyncio.Task[Any]) -> str:
    coroutine = task.get_coro()
    return str(getattr(coroutine, "__qualname__", coroutine))


def difference(expected: str, got: str) -> str:
    """Return a diff for the reader of a test report."""
    lines = difflib.unified_diff(
        expected.splitlines(), got.splitlines(), "expected (the page)", "got", lineterm="", n=2
    )
    return "\n".join(lines)


# From the command line


def pages(root: Path = ROOT) -> list[Path]:
    """Return every page that holds Python."""
    found = [*sorted((root / "docs").rglob("*.md")), *root.glob("README.md")]
    return [page for page in found if parse(page.read_text("utf-8"), root)]


def key_of(page: Path) -> str:
    """Return the key under which a page's result is kept: its path in docs, or README."""
    return page.resolve().relative_to(ROOT).with_suffix("").as_posix().removeprefix("docs/")


def main(argv: Sequence[str] | None = None) -> int:
    """Execute pages, write their outputs and results, and print a line for each."""
    options = argparse.ArgumentParser(
        prog="python -m tools.examples", description="Execute the pages' Python."
    )
    options.add_argument("page", nargs="*", help="docs/category/name.md or category/name; every page if none")
    options.add_argument("--check", action="store_true", help="compare only, write nothing")
    options.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    chosen = options.parse_args(argv)
    if chosen.report:
        _report(Path(chosen.page[0]), chosen.report)
        return 0
    try:
        found = [_page(name) for name in chosen.page] or pages()
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    failed = [page for page in found if not _process(page, write=not chosen.check)]
    if failed:
        print(
            f"{len(failed)} of {len(found)} pages failed: {', '.join(map(key_of, failed))}", file=sys.stderr
        )
    return 1 if failed else 0


def _page(name: str) -> Path:
    for path in (Path(name), ROOT / name, ROOT / "docs" / f"{name}.md", ROOT / f"{name}.md"):
        if path.is_file() and path.suffix == ".md":
            return path.resolve()
    raise FileNotFoundError(f"There is no page {name!r}: give docs/category/name.md or category/name.")


def _process(page: Path, *, write: bool) -> bool:
    """Run one page in a process of its own; print its line; return whether it passed."""
    key, text = key_of(page), page.read_text("utf-8")
    print(f"{key}: ", end="", flush=True)
    started = time.monotonic()
    outcome = _run_in_process(page)
    failures = list(outcome["failures"])
    changed = text
    for block in reversed(parse(text)):
        printed = outcome["printed"].get(str(block.line))
        if block.output is None or printed is None or printed == block.output.text:
            continue
        where = f"line {block.line}: "
        if not write:
            failures.append(where + difference(block.output.text, printed))
        elif not printed and block.output.body:
            failures.append(
                where + "prints nothing, but the text fence below is not empty: is it its output?"
            )
        elif re.search(r"^\s*(```|~~~)", printed, re.MULTILINE):
            failures.append(where + "prints what would close its fence")
        else:
            changed = _with_output(changed, block.output, printed)
    executed, included = count_blocks(changed)
    passed = not failures
    verb = "unchanged" if changed == text else "outputs written"
    verdict = ("checked" if not write else verb) if passed else f"{len(failures)} failed"
    print(
        f"{executed} executed, {included} included, {verdict}, {time.monotonic() - started:.1f} s", flush=True
    )
    for failure in failures:
        print(textwrap.indent(failure, "    "), file=sys.stderr)
    if passed and write:
        if changed != text:
            page.write_text(changed, "utf-8")
        _write_result(key, changed, executed, included)
    return passed


def _write_result(key: str, text: str, executed: int, included: int) -> None:
    rows = [
        {"line": block.line, "form": block.form}
        for block in parse(text)
        if block.fence.lang in PYTHON and block.form != "problem"
    ]
    if rows:
        results.write("examples", key, rows, seed=None, extra={"executed": executed, "included": included})


def _with_output(text: str, output: Fence, printed: str) -> str:
    lines = text.split("\n")
    indented = [" " * output.indent + line if line else "" for line in printed.split("\n")[:-1]]
    lines[output.line : output.end - 1] = indented
    return "\n".join(lines)


def _run_in_process(page: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-W", "error", "-m", "tools.examples", "--report", str(report), str(page)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                timeout=SECONDS_PER_PAGE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"printed": {}, "failures": [f"the page did not end within {SECONDS_PER_PAGE} s"]}
        if not report.exists():
            return {"printed": {}, "failures": [f"its process ended with {done.returncode}\n{done.stderr}"]}
        outcome: dict[str, Any] = json.loads(report.read_text("utf-8"))
        if done.returncode:
            outcome["failures"].append(f"its process ended with {done.returncode}\n{done.stderr}")
        return outcome


def _report(path: Path, report: Path) -> None:
    """Run a page in this process and write what came of it as JSON."""
    page = Page(path)
    printed, failures = {}, []
    for block in parse(path.read_text("utf-8")):
        try:
            output = page.run(block)
        except ExampleFailed as failure:
            failures.append(f"line {block.line}: {failure}")
        else:
            printed[block.line] = output
    failures += [f"at the end of the page {left}" for left in page.close()]
    report.write_text(json.dumps({"printed": printed, "failures": failures}), "utf-8")


if __name__ == "__main__":
    sys.exit(main())
