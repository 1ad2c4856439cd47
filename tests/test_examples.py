"""Nothing that looks like Python on a page goes unexecuted, and nothing that it prints goes uncompared."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from sybil import Document, Sybil
from sybil.parsers.markdown import CodeBlockParser

from tools import collect, examples
from tools.examples import ExampleFailed, Page
from tools.fences import count_blocks, parse, region

ROOT = Path(__file__).resolve().parent.parent


def dedent(text: str) -> str:
    return textwrap.dedent(text).lstrip("\n")


def run(text: str, path: Path) -> list[str]:
    """Run a page and return what it printed, block by block; raises at the first block that fails."""
    path.write_text(dedent(text), "utf-8")
    page = Page(path)
    try:
        printed = []
        for block in parse(dedent(text)):
            printed.append(page.run(block))
            if block.output is not None and printed[-1] != block.output.text:
                raise ExampleFailed(f"expected {block.output.text!r}, got {printed[-1]!r}")
        return printed
    finally:
        page.close()


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "page.md"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of its own, with the real tools and one page."""
    shutil.copytree(ROOT / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "docs" / "a").mkdir(parents=True)
    (tmp_path / "patterns").mkdir()
    (tmp_path / "conftest.py").write_text(
        "from tools.collect import collector\n\npytest_collect_file = collector()\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p no:valkey -p no:cacheprovider\n")
    return tmp_path


def python(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "RESULTS_DIR"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=project,
        env={**inherited, "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# What is executed


def test_blocks_share_one_loop_and_one_namespace(page: Path) -> None:
    """A task that one block starts is awaited in the next, on the same loop."""
    text = """
        ```python
        import asyncio

        task = asyncio.create_task(asyncio.sleep(0.001, "done"))
        loop = asyncio.get_running_loop()
        assert not task.done()
        ```

        ```pycon
        >>> await task
        'done'
        >>> asyncio.get_running_loop() is loop
        True
        ```
        """
    assert run(text, page) == ["", ""]


@pytest.mark.parametrize(
    "info",
    [
        "python",
        " python ",
        'python title="a.py"',
        'python title="a.py" hl_lines="1 2"',
        "{.python .run}",
        ' {.python .run #here title="a b"}',
        "python {.run}",
        ".python",
    ],
)
def test_a_fence_with_attributes_is_executed(info: str, page: Path) -> None:
    """A title, a class or a highlighted line does not keep a block from being executed."""
    assert run(f"```{info}\nprint(6 * 7)\n```\n\n```text\n42\n```\n", page) == ["42\n"]


def test_sybils_own_parser_is_rejected(page: Path) -> None:
    """The naive variant, Sybil's parser, skips a fence with a title in silence and executes an include."""
    naive = Sybil([CodeBlockParser("python", lambda example: None)], pattern="*.md")
    page.write_text('```python title="a.py"\n1 / 0\n```\n')
    assert list(naive.parse(page)) == []
    with pytest.raises(ExampleFailed, match="ZeroDivisionError"):
        run('```python title="a.py"\n1 / 0\nassert True\n```\n', page)
    include = '```python\n--8<-- "patterns/clock.py:clock"\n```\n'
    page.write_text(include)
    (executed,) = naive.parse(page)
    assert "--8<--" in executed.parsed
    assert [block.form for block in parse(include)] == ["include"]


@pytest.mark.parametrize("ticks", ["```", "````", "~~~", "~~~~~"])
@pytest.mark.parametrize("indent", [0, 4, 8])
def test_a_fence_may_be_indented_and_long(ticks: str, indent: int, page: Path) -> None:
    """Fences in content tabs and admonitions, and fences of four and more backticks, are executed."""
    text = f"{ticks}python\nif True:\n    print('a\\n\\nb')\n{ticks}\n\n{ticks}text\na\n\nb\n{ticks}\n"
    indented = '=== "Tab"\n\n' + textwrap.indent(text, " " * indent)
    assert run(indented, page) == ["a\n\nb\n"]


def test_a_longer_fence_shows_a_shorter_one() -> None:
    """What stands inside a fence of four backticks is text, whatever it looks like."""
    assert parse("````text\n```python\n1 / 0\n```\n````\n") == []


def test_a_browser_block_stands_alone(page: Path) -> None:
    """A block with the class run does not see the page's names, and the page does not see its."""
    shared = "```python\nx = 1\nassert x\n```\n\n"
    with pytest.raises(ExampleFailed, match="'x' is not defined"):
        run(shared + "```{.python .run}\nassert x\n```\n", page)
    with pytest.raises(ExampleFailed, match="'y' is not defined"):
        run("```{.python .run}\ny = 1\nassert y\n```\n\n```python\nassert y\n```\n", page)


def test_a_block_may_bring_its_own_loop(page: Path) -> None:
    """A script's asyncio.run works on a page, and so does `run` of anything else beside an await."""
    text = """
        ```python
        import asyncio, subprocess

        asyncio.run(asyncio.sleep(0))
        assert True
        ```

        ```python
        await asyncio.to_thread(subprocess.run, ["true"])
        assert subprocess.run(["true"]).returncode == await asyncio.sleep(0, 0)
        ```
        """
    run(text, page)


def test_hints_resolve_as_in_a_script(page: Path) -> None:
    """While a page runs it is `__main__`: hints of its classes resolve, and its errors have short names."""
    text = """
        ```pycon
        >>> from typing import get_type_hints
        >>> class Busy(Exception):
        ...     after: "Seconds"
        >>> Seconds = float
        >>> get_type_hints(Busy)
        {'after': <class 'float'>}
        >>> raise Busy("later")
        Traceback (most recent call last):
        Busy: later
        ```
        """
    run(text, page)


# What fails


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```python\nx = 1\n```\n", "asserts nothing"),
        ("```python\nx = 1\n```\n\n# Heading\n\n```text\n\n```\n", "asserts nothing"),
        ("```python\nassert True\nprint(1)\n```\n", "no text fence below shows it"),
        ("```python\nx =\n```\n", "line 2: invalid syntax"),
        ("```pycon\n>>> x = 1\n```\n", "shows no output"),
        ("```pycon\nx\n```\n", "belongs to no prompt"),
        ("```pycon\n>>> 1\n1\n\nand so on\n```\n", "belongs to no prompt"),
        ("```pycon\n>>> 1 / 0  # doctest: +SKIP\n1\n```\n", "only option"),
        ("```pycon\n>>> 1.00\n1.0...\n```\n", "expected"),
        ("```pycon\n>>> True\n1\n```\n", "expected"),
        (
            "```pycon\n>>> raise KeyError(1)\nTraceback (most recent call last):\nKeyError: 2\n```\n",
            "KeyError: 1",
        ),
        ("```pycon\n>>> 1\nTraceback (most recent call last):\nKeyError: 2\n```\n", "raised nothing"),
        ("```pycon\n>>> [][0]\n1\n```\n", "IndexError"),
        ("```py\nassert True\n```\n", "not 'py'"),
        ("```python3\nassert True\n```\n", "not 'python3'"),
        ("```Python\nassert True\n```\n", "not 'Python'"),
        ("```yaml\na: 1\n```\n", "not 'yaml'"),
        ("```\nassert True\n```\n", "does not say what it holds"),
        ("```{.run}\nassert True\n```\n", "not 'run'"),
        ("```python run\nassert True\n```\n", "not understood"),
        ("```python title=x\nassert True\n```\n", "not understood"),
        ("```python\nassert True\n", "never closed"),
        ("```python\nassert True\n````\n", "never closed"),
        ("    ```python\n  assert True\n    ```\n", "indented less"),
        ("> ```python\n> assert True\n> ```\n", "stands alone on its line"),
        ("- ```python\n  assert True\n  ```\n", "stands alone on its line"),
        ("-\n\t```python\n\tassert True\n\t```\n", "stands alone on its line"),
        (">>> 1 / 0\n", "outside a fence"),
        ('--8<-- "patterns/clock.py:clock"\n', "stands in a fence"),
        ("```{.python .run}\nimport asyncio\nawait asyncio.sleep(0)\nassert True\n```\n", "'await' outside"),
        ("```{.python .run}\nimport asyncio\nasyncio.run(f())\nassert 1\n```\n", "ends in its only"),
    ],
)
def test_a_bad_form_is_rejected(text: str, message: str, page: Path) -> None:
    """A block that is none of the three forms, or is not what its output says, fails with the reason."""
    with pytest.raises(ExampleFailed, match=message):
        run(text, page)


def test_output_is_compared_exactly(page: Path) -> None:
    """One space too many at the end of a line is a difference."""
    good = "```python\nprint('a ')\n```\n\n```text\na \n```\n"
    assert run(good, page) == ["a \n"]
    with pytest.raises(ExampleFailed, match="expected"):
        run(good.replace("a \n", "a\n"), page)


def test_ellipsis_is_asked_for(page: Path) -> None:
    """An ellipsis stands for any text only where the example says so."""
    asked = "```pycon\n>>> print('abc')  # doctest: +ELLIPSIS\na...\n```\n"
    run(asked, page)
    with pytest.raises(ExampleFailed, match="expected"):
        run(asked.replace("  # doctest: +ELLIPSIS", ""), page)


def test_a_warning_is_an_error(page: Path) -> None:
    """A warning in an example fails it, whatever the filters of the process."""
    with pytest.raises(ExampleFailed, match="DeprecationWarning: old"):
        run("```python\nimport warnings\nwarnings.warn('old', DeprecationWarning)\nassert 1\n```\n", page)


def test_asserts_are_executed_under_optimisation(page: Path) -> None:
    """PYTHONOPTIMIZE does not turn an example's asserts off."""
    code = (
        "from pathlib import Path; from tools.examples import Page, parse; "
        f"Page(Path('p.md')).run(parse({'```python' + chr(10) + 'assert 0' + chr(10) + '```'!r})[0])"
    )
    done = python(ROOT, "-O", "-c", code)
    assert "AssertionError" in done.stderr


@pytest.mark.parametrize("ending", ["SystemExit", "asyncio.CancelledError"])
def test_an_example_cannot_end_the_run(ending: str, page: Path) -> None:
    """An example that exits or cancels itself fails, and the run goes on."""
    with pytest.raises(ExampleFailed, match=ending.removeprefix("asyncio.")):
        run(f"```python\nimport asyncio\nassert True\nraise {ending}()\n```\n", page)


# Includes


def test_an_included_region_must_exist(tmp_path: Path) -> None:
    """An include of a file or region that is not there, of a whole file, or beside code, is a problem."""
    (tmp_path / "patterns").mkdir()
    module = tmp_path / "patterns" / "m.py"
    module.write_text(
        "a = 0\n# --8<-- [start:one]\nb = 1\n# --8<-- [start:two]\nc = 2\n# --8<-- [end:two]\n"
        "# --8<-- [end:one]\n# --8<-- [start:empty]\n# --8<-- [end:empty]\n# --8<-- [start:open]\n"
    )

    def problem(*lines: str) -> str | None:
        (block,) = parse("\n".join(["```python", *lines, "```", ""]), tmp_path)
        assert block.form == "include"
        return block.problem

    assert problem('--8<-- "patterns/m.py:one"', "", '--8<-- "patterns/m.py:two"') is None
    assert region("patterns/m.py", "one", tmp_path) == "b = 1\nc = 2\n"
    assert "0 start" in str(problem('--8<-- "patterns/m.py:three"'))
    assert "0 end" in str(problem('--8<-- "patterns/m.py:open"'))
    assert "empty" in str(problem('--8<-- "patterns/m.py:empty"'))
    assert "not a file" in str(problem('--8<-- "patterns/n.py:one"'))
    assert "not a file" in str(problem('--8<-- "../patterns/m.py:one"'))
    assert "holds only lines" in str(problem('--8<-- "patterns/m.py"'))
    assert "holds only lines" in str(problem('--8<-- "patterns/m.py:1:2"'))
    assert "holds only lines" in str(problem('--8<-- "patterns/m.py:one"', "assert b"))
    assert "holds only lines" in str(problem("--8<--", "patterns/m.py", "--8<--"))


def test_included_blocks_are_shown_and_not_executed(tmp_path: Path) -> None:
    """Blocks are counted as the built page shows them: executed and included ones, of Python only."""
    (tmp_path / "m.py").write_text("# --8<-- [start:a]\n1 / 0\n# --8<-- [end:a]\n")
    text = dedent(
        """
        ```python
        --8<-- "m.py:a"
        ```

        ```lua
        --8<-- "m.py:a"
        ```

        ```pycon
        >>> 1
        1
        ```

            ```python title="x"
            assert True
            ```

        ```mermaid
        graph LR
        ```
        """
    )
    assert count_blocks(text, tmp_path) == (2, 1)
    page = Page(tmp_path / "page.md")
    assert [page.run(block) for block in parse(text, tmp_path)] == ["", "", "", ""]
    page.close()


# What a page leaves behind


@pytest.mark.parametrize(
    ("code", "left"),
    [
        (
            "task = asyncio.create_task(asyncio.sleep(9), name='forgotten')",
            "task 'forgotten' is still running",
        ),
        ("asyncio.sleep(0)", "coroutine 'sleep' was never awaited"),
        ("file = open('/dev/null')", "unclosed file"),
        ("child = subprocess.Popen(['sleep', '9'])", "is still running: sleep 9"),
        (
            "stop = threading.Event()\nthread = threading.Thread(target=stop.wait, args=[2], name='idle')\n"
            "thread.start()",
            "thread 'idle' is still running",
        ),
        (
            "async def f():\n    raise OSError('lost')\ntask = asyncio.create_task(f())\n"
            "del task\nawait asyncio.sleep(0)\nawait asyncio.sleep(0)",
            "never retrieved: OSError",
        ),
    ],
)
def test_what_a_page_leaves_behind_is_reported(code: str, left: str, page: Path) -> None:
    """A task, coroutine, file, process or thread that a page does not end is named at its end."""
    text = f"```python\nimport asyncio, subprocess, threading\n{code}\nassert True\n```\n"
    run_page = Page(page)
    (block,) = parse(text)
    run_page.run(block)
    names = dict(run_page._main.__dict__)
    complaints = [] if left.startswith(("unclosed",)) else run_page.close()
    if child := names.pop("child", None):
        child.kill()
        child.wait()
    if stop := names.pop("stop", None):
        stop.set()
    names.clear()
    complaints = complaints or run_page.close()
    assert any(left in complaint for complaint in complaints), complaints


def test_a_page_that_cleans_up_leaves_nothing(page: Path) -> None:
    """A page that ends what it starts is not accused."""
    text = "import asyncio, subprocess\nassert subprocess.call(['true']) == 0\nawait asyncio.to_thread(int)"
    run_page = Page(page)
    run_page.run(parse(f"```python\n{text}\n```\n")[0])
    assert run_page.close() == []


@pytest.mark.slow
def test_only_the_shared_server_may_stay(page: Path) -> None:
    """The server of the process outlives a page; a server that the page started itself does not."""
    from_page = "from patterns.embedded import Server, shared\nassert shared().running\n"
    run_page = Page(page)
    run_page.run(parse(f"```python\n{from_page}```\n")[0])
    assert run_page.close() == []
    run_page = Page(page)
    run_page.run(parse(f"```python\n{from_page}server = Server().__enter__()\n```\n")[0])
    server = run_page._main.__dict__["server"]
    try:
        (left,) = run_page.close()
        assert f"process {server.pid} is still running: " in left
    finally:
        server.close()


# Under pytest


@pytest.mark.slow
def test_every_block_is_an_item_of_its_own(project: Path) -> None:
    """Pytest reports each block at its line, a failure with the page's own lines, a leak at the end."""
    (project / "docs" / "a" / "b.md").write_text(
        dedent(
            """
            # Page

            ```python
            def f():
                return 1 / 0
            assert f
            ```

            ```python
            f()
            assert True
            ```

            ```pycon
            >>> 1
            1
            >>> import asyncio; task = asyncio.create_task(asyncio.sleep(9), name="left")
            >>> 1 + 1
            3
            ```

            ```python
            assert True
            print("x")
            ```

            ```text
            x
            ```
            """
        )
    )
    (project / "README.md").write_text("```python\nassert True\n```\n")
    (project / "docs" / "a" / "deeper").mkdir()
    shutil.copy(project / "README.md", project / "docs" / "a" / "deeper" / "README.md")
    (project / "patterns" / "m.py").write_text(
        '"""Doc.\n\n>>> await f()\n2\n"""\nasync def f():\n    """Give 3.\n\n    >>> await f()\n    3\n'
        '    """\n    return 3\n'
    )
    (project / "patterns" / "__init__.py").touch()
    done = python(
        project, "-m", "pytest", "-W", "error", "-rA", "--tb=short", "docs", "README.md", "patterns", "-q"
    )
    lines = done.stdout.splitlines()
    assert {line for line in lines if line.startswith(("PASSED", "FAILED", "ERROR "))} == {
        "PASSED docs/a/b.md::line:3,column:1",
        "FAILED docs/a/b.md::line:9,column:1",
        "FAILED docs/a/b.md::line:14,column:1",
        "PASSED docs/a/b.md::line:22,column:1",
        "ERROR docs/a/b.md::line:22,column:1 - Failed: "
        + lines_with(lines, "ERROR ")[0].split("Failed: ")[1],
        "PASSED README.md::line:1,column:1",
        "PASSED docs/a/deeper/README.md::line:1,column:1",
        "FAILED patterns/m.py::line:1,column:1",
        "PASSED patterns/m.py::line:7,column:5",
    }
    assert f'File "{project}/docs/a/b.md", line 5, in f' in done.stdout
    assert f'File "{project}/docs/a/b.md", line 10, in <module>' in done.stdout
    assert "line 18: 1 + 1\n--- expected (the page)\n+++ got\n@@ -1 +1 @@\n-3\n+2" in done.stdout
    assert "line 3: await f()\n--- expected" in done.stdout
    assert "at the end of the page task 'left' is still running sleep" in done.stdout
    assert "<frozen" not in done.stdout


def lines_with(lines: list[str], start: str) -> list[str]:
    return [line for line in lines if line.startswith(start)]


@pytest.mark.slow
def test_a_block_that_is_run_alone_has_the_page_above_it(project: Path) -> None:
    """Choosing one block runs those above it first, so that it can be worked on alone."""
    text = "```python\nx = 1\nassert x\n```\n\n```python\nassert x == 1\n```\n"
    (project / "docs" / "a" / "b.md").write_text(text)
    done = python(project, "-m", "pytest", "-q", "docs/a/b.md::line:6,column:1")
    assert "1 passed" in done.stdout, done.stdout


# From the command line

PAGE = """\
# Page

```python
print("one")
print()
print("three")
```

It prints:

```text
```

=== "Tab"

    ```python
    import os, sys
    print(os.environ["PYTHONHASHSEED"], sys.flags.utf8_mode)
    ```

    ```text
    wrong
    long
    ```

```text
not an output
```
"""

WRITTEN = PAGE.replace("```text\n```", "```text\none\n\nthree\n```").replace("wrong\n    long", "0 1")


def test_outputs_are_written_and_counted(project: Path) -> None:
    """`python -m tools.examples` writes the outputs in place, and a result that says what was executed."""
    page = project / "docs" / "a" / "b.md"
    page.write_text(PAGE)
    checked = python(project, "-m", "tools.examples", "--check", "a/b")
    assert checked.returncode == 1
    assert "+three" in checked.stderr
    assert page.read_text() == PAGE
    assert not (project / "results").exists()
    done = python(project, "-m", "tools.examples")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("a/b: 2 executed, 0 included, outputs written, ")
    assert page.read_text() == WRITTEN
    result = json.loads((project / "results" / "examples" / "a" / "b.json").read_text())
    assert (result["executed"], result["included"]) == (2, 0)
    assert result["rows"] == [{"form": "python", "line": 3}, {"form": "python", "line": 19}]
    again = python(project, "-m", "tools.examples", "--check", "docs/a/b.md")
    assert (again.returncode, again.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```python\nassert True\n```\n\n```text\nkept\n```\n", "is it its output"),
        ("```python\nprint('```')\n```\n\n```text\n```\n", "would close its fence"),
        ("```python\nprint(1)\n1 / 0\n```\n\n```text\n```\n", "ZeroDivisionError"),
        ("```python\nimport os\nassert 1\nos._exit(7)\n```\n", "ended with 7"),
        (
            "```python\nimport asyncio\nx = asyncio.create_task(asyncio.sleep(9))\nassert x\n```\n",
            "at the end",
        ),
    ],
)
def test_a_page_that_fails_is_left_as_it_is(text: str, message: str, project: Path) -> None:
    """A page of which anything fails is neither rewritten nor given a result."""
    page = project / "docs" / "a" / "b.md"
    page.write_text(text)
    done = python(project, "-m", "tools.examples", "a/b")
    assert done.returncode == 1
    assert message in done.stderr
    assert page.read_text() == text
    assert not (project / "results").exists()


@pytest.mark.slow
def test_a_page_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A page that hangs is killed after the limit and reported."""
    monkeypatch.setattr(examples, "SECONDS_PER_PAGE", 1.5)
    page = tmp_path / "page.md"
    page.write_text("```python\nimport asyncio\nawait asyncio.Event().wait()\nassert True\n```\n")
    assert "did not end within 1.5 s" in examples._run_in_process(page)["failures"][0]


def test_an_unknown_page_is_one_plain_sentence() -> None:
    """A page that does not exist ends in one sentence and a code that is not 0."""
    done = python(ROOT, "-m", "tools.examples", "no/such")
    assert done.returncode == 2
    assert done.stderr == "There is no page 'no/such': give docs/category/name.md or category/name.\n"


def test_fences_are_where_they_say(tmp_path: Path) -> None:
    """A region of a Sybil document starts at the backticks of its own fence."""
    text = "é\n\n    ```python\n    assert True\n    ```\n> ```python\n"
    document = Document(text, str(tmp_path / "page.md"))
    regions = list(collect._page_regions(document, root=tmp_path))
    assert [text[r.start : r.end].splitlines()[0] for r in regions] == ["    ```python", "> ```python"]
    assert [r.parsed.line for r in regions] == [3, 6]
