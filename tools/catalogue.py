"""What the handbook holds, read from the tree and from each page's front matter.

A pattern is the key `category/name`. Nothing registers one: a file in the right place is enough, and every
other face of the same key is then expected. Nothing here needs mkdocs.

    python -m tools.catalogue            # what is there, and what is wrong with it
    python -m tools.catalogue missing    # the faces that a pattern still lacks
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "ENGINES",
    "FACES",
    "RELATIONS",
    "Catalogue",
    "Category",
    "Edge",
    "Pattern",
    "faces",
    "front_matter",
    "load",
    "missing",
]

ROOT = Path(__file__).resolve().parent.parent

ENGINES = ("none", "redis", "cluster", "containers")

# Each kind of edge, how the page that draws it says so, and how the page at the other end says it.
RELATIONS: dict[str, tuple[str, str]] = {
    "requires": ("Builds on", "Is built on by"),
    "combines_with": ("Combines with", "Combines with"),
    "alternative_to": ("Alternative to", "Alternative to"),
    "creates_need_for": ("Creates the need for", "Is needed because of"),
    "confused_with": ("Often confused with", "Often confused with"),
}

# Face -> where it lies. The first glob that matches a key wins; a package is its __init__.py.
FACES: dict[str, tuple[str, ...]] = {
    "module": ("patterns/{}.py", "patterns/{}/__init__.py"),
    "diagram": ("diagrams_src/{}.py",),
    "notebook": ("notebooks/{}.ipynb",),
    "page": ("docs/{}.md",),
    "tests": ("tests/{category}/test_{name}.py",),
    "benchmark": ("benchmarks/{}.py",),
}

_KEY = re.compile(r"[a-z][a-z0-9_]*/[a-z][a-z0-9_]*")
_NOT_A_NAME = {"__init__", "conftest", "index"}
_FIELDS = {"title", "summary", "aka", "tags", "symptoms", "related", "engine"}
_FRONT = re.compile(r"---\n(.*?)\n---\n", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Edge:
    """A typed relation, from the page that states it or, inverted, from the one that is named.

    Attributes:
        kind: a key of RELATIONS.
        target: the key of the other pattern; None if `text` names something without a page.
        text: the name of what has no page, as the author wrote it.
        why: the author's reason, or None.
        inverse: the other page states this edge.
    """

    kind: str
    target: str | None
    text: str = ""
    why: str | None = None
    inverse: bool = False

    @property
    def label(self) -> str:
        """How the relation reads on the page that shows it."""
        return RELATIONS[self.kind][self.inverse]


@dataclass(frozen=True, slots=True)
class Pattern:
    """One pattern that has a page."""

    key: str
    title: str
    summary: str
    aka: tuple[str, ...]
    tags: tuple[str, ...]
    symptoms: tuple[str, ...]
    related: tuple[Edge, ...]
    engine: str

    @property
    def category(self) -> str:
        """The first word of the key."""
        return self.key.partition("/")[0]

    @property
    def name(self) -> str:
        """The second word of the key."""
        return self.key.partition("/")[2]


@dataclass(frozen=True, slots=True)
class Category:
    """A folder of patterns; its summary is the docstring of `patterns/<category>/__init__.py`."""

    name: str
    title: str
    summary: str
    patterns: tuple[Pattern, ...]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Everything that the site is made from, and every plain sentence about what is wrong with it."""

    root: Path
    categories: tuple[Category, ...]
    errors: tuple[str, ...]
    patterns: dict[str, Pattern] = field(default_factory=dict)

    def edges(self, key: str) -> list[Edge]:
        """Return the edges of a page: its own, and the inverses of those that name it.

        An edge to a page that is not there is in `errors`, and not here.
        """
        own = [edge for edge in self.patterns[key].related if not edge.target or edge.target in self.patterns]
        stated = {(edge.label, edge.target) for edge in own}
        for other in self.patterns.values():
            for edge in other.related:
                inverted = Edge(edge.kind, other.key, why=edge.why, inverse=True)
                if edge.target == key and (inverted.label, other.key) not in stated:
                    own.append(inverted)
        order = list(RELATIONS)
        return sorted(own, key=lambda edge: (order.index(edge.kind), edge.inverse))

    def symptoms(self) -> list[tuple[str, Pattern]]:
        """Return every symptom with the pattern that treats it, in alphabetical order."""
        pairs = [(symptom, pattern) for pattern in self.patterns.values() for symptom in pattern.symptoms]
        return sorted(pairs, key=lambda pair: (pair[0].casefold(), pair[1].title))


def load(root: Path = ROOT) -> Catalogue:
    """Read the catalogue; what is wrong is in `errors`, and a page that cannot be read is left out."""
    errors: list[str] = []
    patterns: dict[str, Pattern] = {}
    for path in sorted(root.glob("docs/*/*.md")):
        if path.stem in _NOT_A_NAME:
            continue
        key = f"{path.parent.name}/{path.stem}"
        if pattern := _pattern(key, path, root, errors):
            patterns[key] = pattern
    for pattern in patterns.values():
        errors += _edge_errors(pattern, patterns)
    by_category: dict[str, list[Pattern]] = {}
    for pattern in sorted(patterns.values(), key=lambda pattern: pattern.title.casefold()):
        by_category.setdefault(pattern.category, []).append(pattern)
    categories = tuple(
        Category(name, _words(name), _category_summary(root, name, errors), tuple(members))
        for name, members in sorted(by_category.items())
    )
    ordered = {pattern.key: pattern for category in categories for pattern in category.patterns}
    return Catalogue(root, categories, tuple(errors), ordered)


def faces(root: Path = ROOT) -> dict[str, dict[str, Path | None]]:
    """Return, for each key that any face names, the path of every face, or None where it is missing."""
    keys: set[str] = set()
    for places in FACES.values():
        for place in places:
            glob = place.replace("{}", "*/*").format(category="*", name="*")
            for path in root.glob(glob):
                if key := _key_of(path, root):
                    keys.add(key)
    return {key: {face: _find(root, face, key) for face in FACES} for key in sorted(keys)}


def missing(root: Path = ROOT) -> dict[str, list[str]]:
    """Return the faces that each incomplete pattern lacks, as the paths where they belong."""
    lacking = {
        key: [_place(FACES[face][0], key) for face, path in found.items() if path is None]
        for key, found in faces(root).items()
    }
    return {key: paths for key, paths in lacking.items() if paths}


def front_matter(text: str) -> tuple[dict[str, Any], str]:
    """Return a page's front matter and the rest of it.

    Raises:
        ValueError: there is none, or it is not a YAML mapping.
    """
    match = _FRONT.match(text)
    if match is None:
        raise ValueError("a page begins with front matter between two lines of ---")
    try:
        meta = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise ValueError(f"the front matter is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(meta, dict):
        raise ValueError(f"the front matter must be a mapping, got {meta!r}")
    return meta, text[match.end() :]


def _pattern(key: str, path: Path, root: Path, errors: list[str]) -> Pattern | None:
    where = path.relative_to(root).as_posix()
    try:
        meta, _ = front_matter(path.read_text("utf-8"))
    except ValueError as error:
        errors.append(f"{where}: {error}")
        return None
    before = len(errors)
    errors += [f"{where}: {name!r} is missing" for name in sorted(_FIELDS - meta.keys())]
    errors += [f"{where}: {name!r} is not a field" for name in sorted(meta.keys() - _FIELDS, key=str)]
    for name in ("title", "summary"):
        if name in meta and not (isinstance(meta[name], str) and meta[name].strip()):
            errors.append(f"{where}: {name!r} must be text, got {meta[name]!r}")
    summary = meta.get("summary")
    if isinstance(summary, str) and not re.fullmatch(r"[^\n]{10,200}[.]", summary.strip()):
        errors.append(f"{where}: 'summary' must be one plain sentence of 10 to 200 letters, got {summary!r}")
    lists = {
        name: _texts(where, name, meta[name], errors) for name in ("aka", "tags", "symptoms") if name in meta
    }
    if "symptoms" in lists and not lists["symptoms"]:
        errors.append(f"{where}: 'symptoms' must name at least one thing that a reader in trouble would type")
    if "engine" in meta and meta["engine"] not in ENGINES:
        errors.append(f"{where}: 'engine' must be one of {', '.join(ENGINES)}, got {meta['engine']!r}")
    related = _edges(where, meta.get("related") or {}, errors)
    if len(errors) > before:
        return None
    return Pattern(
        key,
        meta["title"].strip(),
        meta["summary"].strip(),
        lists["aka"],
        lists["tags"],
        lists["symptoms"],
        related,
        meta["engine"],
    )


def _texts(where: str, name: str, value: object, errors: list[str]) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        errors.append(f"{where}: {name!r} must be a list of texts, got {value!r}")
        return ()
    texts = tuple(item.strip() for item in value)
    twice = {text for text in texts if texts.count(text) > 1}
    errors += [f"{where}: {name!r} names {text!r} twice" for text in sorted(twice)]
    return texts


def _edges(where: str, related: object, errors: list[str]) -> tuple[Edge, ...]:
    """Read `kind: [key, "text", {key: reason}]`."""
    if not isinstance(related, Mapping):
        errors.append(f"{where}: 'related' must map each kind of edge to a list, got {related!r}")
        return ()
    edges: list[Edge] = []
    for kind, targets in related.items():
        if kind not in RELATIONS:
            errors.append(f"{where}: an edge must be one of {', '.join(RELATIONS)}, got {kind!r}")
            continue
        if not isinstance(targets, list):
            errors.append(f"{where}: 'related: {kind}' must be a list, got {targets!r}")
            continue
        for target in targets:
            pairs = list(target.items()) if isinstance(target, Mapping) else [(target, None)]
            for name, why in pairs:
                if not isinstance(name, str) or not (why is None or isinstance(why, str)):
                    errors.append(f"{where}: 'related: {kind}' must name keys or texts, got {target!r}")
                elif _KEY.fullmatch(name):
                    edges.append(Edge(kind, name, why=why))
                else:
                    edges.append(Edge(kind, None, name.strip(), why))
    return tuple(edges)


def _edge_errors(pattern: Pattern, patterns: Mapping[str, Pattern]) -> list[str]:
    where = f"docs/{pattern.key}.md"
    titles = {other.title.casefold(): other.key for other in patterns.values()}
    titles |= {_words(other.name).casefold(): other.key for other in patterns.values()}
    errors = []
    for edge in pattern.related:
        if edge.target == pattern.key:
            errors.append(f"{where}: 'related: {edge.kind}' names the page itself")
        elif edge.target and edge.target not in patterns:
            errors.append(f"{where}: 'related: {edge.kind}' names {edge.target}, and there is no such page")
        elif not edge.target and (key := titles.get(edge.text.casefold())):
            errors.append(
                f"{where}: 'related: {edge.kind}' names {edge.text!r}, which has a page: write {key}"
            )
        elif not edge.target and edge.kind == "requires":
            errors.append(f"{where}: 'related: requires' must name a pattern with a page, got {edge.text!r}")
    return errors


def _category_summary(root: Path, name: str, errors: list[str]) -> str:
    path = root / "patterns" / name / "__init__.py"
    doc = ast.get_docstring(ast.parse(path.read_text("utf-8"))) if path.exists() else None
    if not doc:
        errors.append(
            f"patterns/{name}/__init__.py: its docstring must say in one line what the category holds"
        )
        return ""
    return doc.splitlines()[0]


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _key_of(path: Path, root: Path) -> str | None:
    parts = path.relative_to(root).parts
    category, name = parts[1], Path(parts[2]).stem
    if parts[0] == "tests":
        name = name.removeprefix("test_")
    return f"{category}/{name}" if name not in _NOT_A_NAME and _KEY.fullmatch(f"{category}/{name}") else None


def _find(root: Path, face: str, key: str) -> Path | None:
    paths = (root / _place(place, key) for place in FACES[face])
    return next((path for path in paths if path.exists()), None)


def _place(place: str, key: str) -> str:
    category, _, name = key.partition("/")
    return place.format(key, category=category, name=name)


def main(arguments: list[str]) -> int:
    """Print the catalogue or what is missing; 1 if something is wrong."""
    if arguments == ["missing"]:
        lacking = missing()
        for key, paths in lacking.items():
            print(f"{key}: {', '.join(paths)}")
        if not lacking:
            print("Every pattern has its six faces.")
        return 0
    if arguments:
        print("usage: python -m tools.catalogue [missing]", file=sys.stderr)
        return 2
    catalogue = load()
    for category in catalogue.categories:
        print(f"{category.title}: {category.summary}")
        for pattern in category.patterns:
            print(f"  {pattern.key}: {pattern.summary}")
    for error in catalogue.errors:
        print(error, file=sys.stderr)
    return 1 if catalogue.errors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
