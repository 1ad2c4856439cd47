"""Every pattern is whole; and each check of that finds what it is there to find."""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from patterns.events import Event
from tools import catalogue, missing

ROOT = Path(__file__).resolve().parent.parent
KEYS = sorted(catalogue.faces(ROOT))


# The handbook


def test_there_are_patterns() -> None:
    """The checks below run over something."""
    assert KEYS


@pytest.mark.parametrize("check", missing.CHECKS)
@pytest.mark.parametrize("key", KEYS)
def test_pattern_is_whole(key: str, check: str) -> None:
    """A pattern has its six faces, and each of them says and proves what was agreed."""
    lacking = missing.CHECKS[check](key, ROOT)
    assert not lacking, f"{key}: " + "\n".join(lacking)


def test_every_page_below_a_category_is_a_pattern() -> None:
    """No page, module, notebook, test or benchmark two levels down escapes the catalogue."""
    places = (
        "patterns/*/*",
        "diagrams_src/*/*.py",
        "notebooks/*/*.ipynb",
        "docs/*/*.md",
        "benchmarks/*/*.py",
    )
    strays = [
        path
        for place in places
        for path in ROOT.glob(place)
        if path.stem not in {"__init__", "index", "__pycache__"}
        and path.parts[-2] not in {"assets", "__pycache__"}
        if f"{path.parent.name}/{path.stem}" not in KEYS
    ]
    strays += [
        path
        for path in ROOT.glob("tests/*/test_*.py")
        if f"{path.parent.name}/{path.stem.removeprefix('test_')}" not in KEYS
    ]
    assert strays == []
    assert not list(ROOT.glob("tests/faults/**/test_*.py")), "the harness holds no tests of its own"


# The checks: a small handbook that is whole, and one change at a time

PAGE = """\
---
title: Thing
summary: It does one thing, and says so.
aka: []
tags: [demo]
symptoms: [nothing works]
related: {}
engine: none
---

# Thing

## The problem

It fails the way it fails in production.

```python
assert True
```

## The pattern

<!-- diagram -->

It works in one step.

```mermaid
stateDiagram-v2
```

## The code

The region that decides:

```python
--8<-- "patterns/demo/thing.py:decide"
```

```pycon
>>> 1 + 1
2
```

## Break it

Take the ground away.

```python
print("held")
```

```text
held
```

<!-- table: faults -->

## What it costs

<!-- chart: cost -->

<!-- table: cost -->

## When to use it, and when not

It is for things.

- Not for one value: a variable is enough.
- **Not** between machines; use a queue
  instead.
- Not for secrets: prefer a vault.

**DON'T** trust it:

```python
assert 1
```

**DO** check it:

```python
assert 1
```

## Tuning

<!-- parameters: tests.test_catalogue.Policy -->

| parameter | default | unit | raised | lowered |
|---|---|---|---|---|
| `record` | `required` | classes | more fails | less fails |
| `ratio` | `0.5` | share | later | earlier |
| `window` | `CountBased(4)` | calls | calmer | nervous |
| `names` | `[]` | a | b | c |

## In production

| event | when |
|---|---|
| `Happened` | it has happened |

## Related patterns

<!-- related -->

X or Y? Take X.

## References

Nobody, "Nothing" (2026).
"""

MODULE = '''\
"""Do one thing.

Guaranteed:

1. It is done once.
2. It is not done twice: the
   second line of an item may hold 3. anything.
"""

# --8<-- [start:decide]
DONE = True
# --8<-- [end:decide]
'''

TESTS = '''\
import pytest
from patterns.demo.thing import DONE

def check_once(make): assert make
def check_twice(make): assert make

@pytest.mark.invariant(1)
def test_once():
    """Once."""
    check_once(1)

@pytest.mark.invariant(1, 2)
async def test_both():
    """Both."""
    await run(check_once)
    check_twice(1)

@pytest.mark.naive(1)
def test_naive_once():
    """Not once."""
    with pytest.raises(AssertionError, match="x"):
        check_once(0)

@pytest.mark.naive(2)
async def test_naive_twice():
    """Not twice."""
    async with server():
        with pytest.raises(AssertionError):
            await run(check_twice, 0)
'''


@dataclass(frozen=True)
class CountBased:
    size: int


@dataclass(frozen=True, kw_only=True)
class Policy:
    record: tuple[type, ...]
    ratio: float = 0.5
    window: CountBased = CountBased(4)
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Happened(Event):
    pass


def found(check: Any, text: str) -> str:
    return "\n".join(check(text))


def changed(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
    return text.replace(old, new)


@pytest.fixture
def handbook(tmp_path: Path) -> Path:
    """Return a tree with one pattern that has five of its six faces."""
    files = {
        "patterns/demo/__init__.py": '"""Demonstrations."""\n',
        "patterns/demo/thing.py": MODULE,
        "tests/demo/test_thing.py": TESTS,
        "docs/demo/thing.md": PAGE,
        "benchmarks/demo/thing.py": "from patterns.demo.thing import DONE\n",
        "diagrams_src/demo/thing.py": "from diagrams import Diagram\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    return tmp_path


@pytest.mark.parametrize("check", [missing.headings, missing.words, missing.tuning])
def test_whole_page_passes(check: Any) -> None:
    """Nothing is demanded that a good page does not have."""
    assert found(check, PAGE) == ""


def test_missing_face_is_named_with_its_place(handbook: Path) -> None:
    """Five faces of six: the sixth is asked for by the path where it belongs."""
    assert missing.CHECKS["faces"]("demo/thing", handbook) == [
        "the notebook is missing: notebooks/demo/thing.ipynb"
    ]


@pytest.mark.parametrize(
    ("place", "stem"),
    [
        ("patterns/demo", "other.py"),
        ("diagrams_src/demo", "other.py"),
        ("notebooks/demo", "other.ipynb"),
        ("docs/demo", "other.md"),
        ("tests/demo", "test_other.py"),
        ("benchmarks/demo", "other.py"),
    ],
)
def test_any_one_face_makes_a_pattern_of_which_five_are_missing(
    handbook: Path, place: str, stem: str
) -> None:
    """The keys are the union over the six faces: no face can be alone unseen."""
    (handbook / place).mkdir(parents=True, exist_ok=True)
    (handbook / place / stem).write_text("from patterns.demo.other import x\n", "utf-8")
    assert list(catalogue.faces(handbook)) == ["demo/other", "demo/thing"]
    lacking = missing.CHECKS["faces"]("demo/other", handbook)
    assert sum("is missing" in sentence for sentence in lacking) == 5


@pytest.mark.parametrize(
    "stub",
    [
        "# TODO",
        "# fixme: later",
        "Coming soon.",
        "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}what\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}",
    ],
)
def test_stub_is_found_with_its_line(handbook: Path, stub: str) -> None:
    """A face that still says what is to be done is not a face."""
    with (handbook / "patterns/demo/thing.py").open("a", encoding="utf-8") as file:
        file.write(stub)
    (sentence,) = (s for s in missing.CHECKS["faces"]("demo/thing", handbook) if "still says" in s)
    assert sentence.startswith("patterns/demo/thing.py:13 ")


def test_face_of_another_module_is_found(handbook: Path) -> None:
    """A benchmark that measures something else does not count."""
    (handbook / "benchmarks/demo/thing.py").write_text("import json\n", "utf-8")
    assert "benchmarks/demo/thing.py does not import patterns.demo.thing" in missing.CHECKS["faces"](
        "demo/thing", handbook
    )


def test_bad_front_matter_is_reported_for_its_own_page(handbook: Path) -> None:
    """What the catalogue says about a page is part of what the page lacks."""
    assert missing.CHECKS["front matter"]("demo/thing", handbook) == []
    page = handbook / "docs/demo/thing.md"
    page.write_text(changed(PAGE, "engine: none", "engine: steam"), "utf-8")
    (sentence,) = missing.CHECKS["front matter"]("demo/thing", handbook)
    assert "'steam'" in sentence


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("## Break it\n", "", "lacks the headings 'Break it'"),
        ("## The code\n", "## The Code\n", "lacks the headings 'The code'"),
        ("## References\n", "## References\n\nBook.\n\n## Appendix\n", "headings of its own: 'Appendix'"),
        ("## Tuning\n", "## Tuning\n\nwords that are there\n\n## Tuning\n", "one is there twice"),
        ("# Thing\n", "# Thing\n\n# Thing again\n", "2 titles"),
        ("# Thing\n", "", "0 titles"),
        ('Nobody, "Nothing" (2026).\n', "", "under 'References' stands nothing"),
        (
            'Nobody, "Nothing" (2026).\n',
            "```text\nmany words in a fence\n```\n",
            "under 'References' stands nothing",
        ),
        ("<!-- diagram -->", "", "under 'The pattern' there is no <!-- diagram -->"),
        ("```mermaid", "```text", "under 'The pattern' there is no ```mermaid"),
        ("<!-- table: faults -->", "", "no <!-- table: faults -->"),
        ("<!-- chart: cost -->", "", "no <!-- chart: cost -->"),
        ("<!-- table: cost -->", "", "no <!-- table: cost -->"),
        ("<!-- related -->", "", "no <!-- related -->"),
    ],
)
def test_heading_that_is_missing_moved_or_empty_is_named(old: str, new: str, complaint: str) -> None:
    """A page has the agreed headings in the agreed order, and something under each."""
    assert complaint in found(missing.headings, changed(PAGE, old, new))


def test_headings_out_of_order_are_found() -> None:
    """The same headings in another order are another page."""
    swapped = (
        PAGE.replace("## Tuning", "## X")
        .replace("## In production", "## Tuning")
        .replace("## X", "## In production")
    )
    assert "not in order" in found(missing.headings, swapped)


def test_heading_inside_a_fence_is_not_a_heading() -> None:
    """A comment of a code block does not open a section."""
    assert found(missing.headings, changed(PAGE, "assert True\n", "## Tuning\n# Title\nassert True\n")) == ""


def test_long_page_is_refused_and_code_does_not_count() -> None:
    """Prose has a bound; blocks, tables and comments do not count towards it."""
    long = "word " * missing.MOST_WORDS
    assert "more than" in found(missing.words, PAGE + long)
    for free in (f"```text\n{long}\n```\n", f"| {long} |\n", f"<!-- {long} -->\n"):
        assert found(missing.words, PAGE + free) == ""


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("```python\nassert True\n```", "text", "under 'The problem' nothing is executed"),
        ('```python\nprint("held")\n```', "", "under 'Break it' nothing is executed"),
        ('--8<-- "patterns/demo/thing.py:decide"', "assert 1", "no named region of the module is included"),
        ("```pycon\n>>> 1 + 1\n2\n```", "", "under 'The code' nothing is executed"),
    ],
)
def test_section_that_executes_nothing_is_named(handbook: Path, old: str, new: str, complaint: str) -> None:
    """The sections that show something run it."""
    assert list(missing.examples(PAGE, handbook)) == []
    assert complaint in "\n".join(missing.examples(changed(PAGE, old, new), handbook))


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("- Not for secrets: prefer a vault.\n", "", "only 2 items"),
        ("- Not for secrets: prefer a vault.\n", "- Not for secrets.\n", "instead: 'Not for secrets.'"),
        ("**DON'T** trust it:", "Trust it not:", "**DON'T**"),
        ("**DO** check it:", "Check it:", "**DO**"),
        ("**DO** check it:\n\n```python\nassert 1\n```", "**DO** check it.", "**DO**"),
        ("```python\nassert 1\n```\n\n**DO**", "```text\nassert 1\n```\n\n**DO**", "**DON'T**"),
    ],
)
def test_advice_without_alternative_or_execution_is_found(
    handbook: Path, old: str, new: str, complaint: str
) -> None:
    """Three times "not", each with what is better; DON'T and DO both run."""
    assert list(missing.when_not(PAGE, handbook)) == []
    assert complaint in "\n".join(missing.when_not(changed(PAGE, old, new), handbook))


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("| `0.5` |", "| `0.6` |", "the default of ratio is 0.5, the table says 0.6"),
        ("| `0.5` |", "| `1/2 +` |", "the default of ratio is 0.5"),
        ("`CountBased(4)`", "`CountBased(5)`", "the default of window"),
        ("`required`", "`()`", "the default of record is required"),
        ("| `names` | `[]` | a | b | c |\n", "", "no row for names"),
        ("| `names` |", "| `nouns` |", "it has no parameter nouns"),
        ("| a | b | c |", "| a | b |", "a row has five cells"),
        ("| a | b | c |", "|  | b | c |", "the first three are filled"),
        ("| share | later | earlier |", "| share | later | |", "the row of `ratio` must say what moves"),
        (
            "| `ratio` | `0.5` | share | later | earlier |\n",
            "| `ratio` | `0.5` | s | l | e |\n" * 2,
            "two rows",
        ),
        ("tests.test_catalogue.Policy", "tests.test_catalogue.Police", "cannot be found"),
        ("<!-- parameters: tests.test_catalogue.Policy -->", "", "no table under 'Tuning'"),
    ],
)
def test_tuning_row_that_is_not_the_code_is_found(old: str, new: str, complaint: str) -> None:
    """The table is the constructor: each parameter, its default as the code has it, every cell filled."""
    assert complaint in found(missing.tuning, changed(PAGE, old, new))


def test_event_that_the_page_does_not_name_is_found() -> None:
    """Who operates the pattern reads of every event it sends."""

    class Module:
        __all__ = ("Happened", "Policy")
        Happened = Happened
        Policy = Policy

    assert list(missing.events(PAGE, Module)) == []
    (sentence,) = missing.events(changed(PAGE, "`Happened`", "`Other`"), Module)
    assert "`Happened`" in sentence


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("@pytest.mark.invariant(1, 2)", "@pytest.mark.invariant(1)", "invariant 2 has no test"),
        ("@pytest.mark.naive(2)", "", "invariant 2 has no naive variant"),
        ("@pytest.mark.naive(2)", "@pytest.mark.naive(3)", "there is no such invariant"),
        ("@pytest.mark.invariant(1, 2)", "@pytest.mark.invariant(1, 2, 7)", "marked invariant(7)"),
        ("@pytest.mark.invariant(1, 2)", "@pytest.mark.invariant(1, N)", "must be written out"),
        ("run(check_twice, 0)", "run(other, 0)", "invariant 2: no check_... function both"),
        ("    check_twice(1)", "    assert True", "invariant 2: no check_... function both"),
        (
            "pytest.raises(AssertionError):",
            "pytest.raises(ValueError):",
            "invariant 2: no check_... function",
        ),
    ],
)
def test_invariant_without_test_or_rejected_naive_variant_is_found(
    old: str, new: str, complaint: str
) -> None:
    """Each invariant: a marked test, and a naive variant that the very same check rejects."""
    docstring = inspect.cleandoc(MODULE.split('"""')[1])
    assert list(missing.invariants(docstring, TESTS)) == []
    assert complaint in "\n".join(missing.invariants(docstring, changed(TESTS, old, new)))


@pytest.mark.parametrize(
    ("docstring", "complaint"),
    [("It is good.", "numbers no invariant"), ("1. One.\n3. Three.", "numbered [1, 3], not 1 to 2")],
)
def test_docstring_that_numbers_badly_is_found(docstring: str, complaint: str) -> None:
    """Invariants are numbered from one, without a gap."""
    assert complaint in "\n".join(missing.invariants(docstring, TESTS))


def test_figures_that_are_not_committed_are_asked_for(handbook: Path) -> None:
    """A page without measured results names the command that makes each."""
    lacking = "\n".join(missing.CHECKS["figures"]("demo/thing", handbook))
    for command in ("make bench", "make faults", "make examples"):
        assert f"{command} PATTERN=demo/thing" in lacking


def test_fault_that_a_test_declares_and_no_result_holds_is_found(
    handbook: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A committed table cannot lack a fault which the tests inject, in its own file or another."""
    tests = handbook / "tests"
    (tests / "test_faults_common.py").write_text(
        textwrap.dedent("""
        @pytest.mark.fault("reset", pattern="demo/thing")
        @pytest.mark.fault("reset", pattern="demo/other")
        def test_reset(): ...
        """),
        "utf-8",
    )
    with (tests / "demo/test_thing.py").open("a", encoding="utf-8") as file:
        file.write('@pytest.mark.fault("killed")\ndef test_killed(): ...\n')
    assert sorted(missing.faults_declared("demo/thing", handbook)) == ["killed", "reset"]
    monkeypatch.setattr(
        "tools.results.read",
        lambda kind, key, folder: {"rows": [{"fault": "reset"}], "executed": 5, "included": 1},
    )
    assert missing.CHECKS["figures"]("demo/thing", handbook) == [
        "results/faults/demo/thing.json and the tests differ in 'killed': make faults PATTERN=demo/thing"
    ]


def test_command_names_what_is_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make missing` prints the sentences of these checks, and refuses a key that is not there."""
    monkeypatch.setitem(missing.CHECKS, "words", lambda key, root: ["the page is too long"])
    assert missing.main(KEYS[:1]) == 1
    assert "  - the page is too long\n" in capsys.readouterr().out
    assert missing.main(["no/such"]) == 2
    assert "There is no pattern 'no/such' here" in capsys.readouterr().err
