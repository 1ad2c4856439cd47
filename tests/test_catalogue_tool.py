"""The catalogue reads the tree and the front matter, and says in plain sentences what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tools import catalogue

if TYPE_CHECKING:
    from pathlib import Path

META: dict[str, Any] = {
    "title": "Thing",
    "summary": "It does one thing, and says so.",
    "aka": ["Gadget"],
    "tags": ["demo"],
    "symptoms": ["nothing works"],
    "related": {},
    "engine": "none",
}


def put(root: Path, path: str, text: str = "") -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text, "utf-8")


def page(root: Path, key: str, **changes: Any) -> None:
    meta = {name: value for name, value in {**META, **changes}.items() if value is not ...}
    put(root, f"docs/{key}.md", f"---\n{yaml.safe_dump(meta)}---\n\n# {meta.get('title')}\n")
    category = key.partition("/")[0]
    put(root, f"patterns/{category}/__init__.py", '"""Patterns of this kind."""\n')


def test_a_file_in_the_right_place_is_all_that_registers_a_pattern(tmp_path: Path) -> None:
    """Any one face makes the key known, and the others are then named as missing."""
    put(tmp_path, "tests/cache/test_thing.py")
    put(tmp_path, "patterns/queue/other/__init__.py")
    assert list(catalogue.faces(tmp_path)) == ["cache/thing", "queue/other"]
    lacking = catalogue.missing(tmp_path)
    assert lacking["cache/thing"] == [
        "patterns/cache/thing.py",
        "diagrams_src/cache/thing.py",
        "notebooks/cache/thing.ipynb",
        "docs/cache/thing.md",
        "benchmarks/cache/thing.py",
    ]
    assert "patterns/queue/other.py" not in lacking["queue/other"]


@pytest.mark.parametrize(
    "path",
    [
        "patterns/clock.py",
        "patterns/cache/__init__.py",
        "patterns/cache/thing/worker.py",
        "tests/test_clock.py",
        "tests/faults/proxy.py",
        "docs/cache/index.md",
        "docs/composing.md",
        "notebooks/composing.ipynb",
        "docs/assets/diagrams/thing.svg",
    ],
)
def test_what_is_shared_is_no_pattern(tmp_path: Path, path: str) -> None:
    """One level down, and under the reserved names, nothing is a key."""
    put(tmp_path, path)
    assert catalogue.faces(tmp_path) == {}


def test_categories_and_patterns_have_a_stable_order_and_a_summary(tmp_path: Path) -> None:
    """Categories go by name, patterns by title, and a category says what its package says."""
    page(tmp_path, "b/one", title="Zulu")
    page(tmp_path, "b/two", title="alpha")
    page(tmp_path, "a/three", title="Three")
    found = catalogue.load(tmp_path)
    assert found.errors == ()
    assert [category.title for category in found.categories] == ["A", "B"]
    assert list(found.patterns) == ["a/three", "b/two", "b/one"]
    assert found.categories[0].summary == "Patterns of this kind."


def test_an_edge_is_seen_from_both_ends_and_once(tmp_path: Path) -> None:
    """The other page shows the inverse, unless it states the same relation itself."""
    page(tmp_path, "a/one", title="One", related={"requires": [{"a/two": "a reason"}]})
    page(tmp_path, "a/two", title="Two", related={"combines_with": ["a/three", "Retry"]})
    page(tmp_path, "a/three", title="Three", related={"combines_with": ["a/two"]})
    found = catalogue.load(tmp_path)
    assert found.errors == ()
    assert [(edge.label, edge.target, edge.why) for edge in found.edges("a/one")] == [
        ("Builds on", "a/two", "a reason")
    ]
    assert [(edge.label, edge.target or edge.text) for edge in found.edges("a/two")] == [
        ("Is built on by", "a/one"),
        ("Combines with", "a/three"),
        ("Combines with", "Retry"),
    ]
    assert len(found.edges("a/three")) == 1


def test_an_edge_to_nowhere_is_an_error_and_not_a_link(tmp_path: Path) -> None:
    """A page in the making may be named: the build says so, and draws the rest."""
    page(tmp_path, "a/one", title="One", related={"combines_with": ["a/nowhere", "Retry"]})
    found = catalogue.load(tmp_path)
    assert len(found.errors) == 1
    assert [edge.text for edge in found.edges("a/one")] == ["Retry"]


def test_symptoms_lead_to_their_patterns_in_alphabetical_order(tmp_path: Path) -> None:
    """What a reader sees is listed whatever the page, and however it is spelt."""
    page(tmp_path, "a/one", title="One", symptoms=["two leaders", "Alarm storm"])
    page(tmp_path, "a/two", title="Two", symptoms=["cache is cold"])
    pairs = [(symptom, pattern.key) for symptom, pattern in catalogue.load(tmp_path).symptoms()]
    assert pairs == [("Alarm storm", "a/one"), ("cache is cold", "a/two"), ("two leaders", "a/one")]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"title": ...}, "'title' is missing"),
        ({"colour": "red"}, "'colour' is not a field"),
        ({"title": 7}, "'title' must be text, got 7"),
        ({"summary": "two\nlines."}, "'summary' must be one plain sentence"),
        ({"summary": "No full stop, and so no sentence"}, "'summary' must be one plain sentence"),
        ({"aka": "Gadget"}, "'aka' must be a list of texts, got 'Gadget'"),
        ({"tags": ["a", "a"]}, "'tags' names 'a' twice"),
        ({"symptoms": []}, "'symptoms' must name at least one thing"),
        ({"engine": "mysql"}, "'engine' must be one of none, redis, cluster, containers, got 'mysql'"),
        ({"related": ["a/two"]}, "'related' must map each kind of edge to a list"),
        ({"related": {"likes": ["a/two"]}}, "an edge must be one of requires, combines_with"),
        ({"related": {"requires": "a/two"}}, "'related: requires' must be a list, got 'a/two'"),
        ({"related": {"combines_with": [7]}}, "must name keys or texts, got 7"),
        ({"related": {"combines_with": ["a/nowhere"]}}, "names a/nowhere, and there is no such page"),
        ({"related": {"combines_with": ["a/one"]}}, "names the page itself"),
        ({"related": {"alternative_to": ["The other"]}}, "names 'The other', which has a page: write a/two"),
        ({"related": {"requires": ["Retry"]}}, "must name a pattern with a page, got 'Retry'"),
    ],
)
def test_what_is_wrong_with_front_matter_is_one_plain_sentence(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    """The page, the field and the value are named, and nothing else is complained of."""
    page(tmp_path, "a/two", title="The other")
    page(tmp_path, "a/one", **changes)
    (error,) = catalogue.load(tmp_path).errors
    assert error.startswith("docs/a/one.md: ")
    assert sentence in error


@pytest.mark.parametrize("text", ["# No front matter\n", "---\n- a\n- b\n---\n", "---\na: [\n---\n"])
def test_front_matter_that_cannot_be_read_is_reported(tmp_path: Path, text: str) -> None:
    """A page without sound YAML is left out of the catalogue, with a sentence and no traceback."""
    put(tmp_path, "docs/a/one.md", text)
    found = catalogue.load(tmp_path)
    assert found.patterns == {}
    assert len(found.errors) == 1
    assert "front matter" in found.errors[0]
    assert "\n" not in found.errors[0]


def test_a_category_must_say_what_it_holds(tmp_path: Path) -> None:
    """Without a docstring in its package a category has no summary, and that is an error."""
    page(tmp_path, "a/one")
    put(tmp_path, "patterns/a/__init__.py", "")
    (error,) = catalogue.load(tmp_path).errors
    assert error.startswith("patterns/a/__init__.py: its docstring must say")


def test_the_handbook_itself_has_no_error() -> None:
    """The committed front matter is sound."""
    assert catalogue.load().errors == ()
