"""The parts of pages that are made and not written: heads, cards, relations, symptoms, whole index pages.

Each function takes the catalogue and a `link`, which turns a source path (`docs`-relative, as in
`cache/cache_aside.md`) into the address a page should use; so nothing here knows the site generator.
Results are read by `tools.results`; what is missing is an `Unmade`, one plain sentence.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from tools import results, tables

if TYPE_CHECKING:
    from pathlib import Path

    from tools.catalogue import Catalogue, Category, Pattern

__all__ = [
    "LINE",
    "LISTING",
    "Link",
    "Unmade",
    "alt_text",
    "api_index",
    "api_page",
    "cards",
    "category_page",
    "counts",
    "diagram",
    "head",
    "modules",
    "notebook_head",
    "related",
    "result",
    "symptom_list",
]

Link = Callable[[str], str]

# What the listing of a module has before each line number.
LINE = "L"

# Where the listing of a module goes, once the search index has been fed.
LISTING = '<div class="listing"></div>'


class Unmade(Exception):
    """Something that a page shows has not been made; the message says which command makes it."""


def result(root: Path, kind: str, key: str) -> dict[str, Any]:
    """Return a committed result.

    Raises:
        Unmade: it is not there, or it is not sound.
    """
    command = {"benchmarks": "make bench", "faults": "make faults", "examples": "make examples"}[kind]
    try:
        document = results.read(kind, key, folder=root / "results")
    except ValueError as error:
        raise Unmade(f"{error}: run `{command}`") from error
    if document is None:
        raise Unmade(f"results/{kind}/{key}.json is not there: run `{command}`")
    return document


def head(catalogue: Catalogue, pattern: Pattern, link: Link) -> str:
    """Return what stands under a pattern's title: summary, names, symptoms, when checked, the other faces."""
    examples = result(catalogue.root, "examples", pattern.key)
    faults = results.read("faults", pattern.key, folder=catalogue.root / "results")
    names = []
    if pattern.aka:
        names.append(f"<dt>Also known as</dt> <dd>{', '.join(map(escape, pattern.aka))}</dd>")
    symptoms = " ".join(f"<li>{escape(symptom)}</li>" for symptom in pattern.symptoms)
    names.append(f'<dt>Symptoms</dt> <dd><ul class="symptoms">{symptoms}</ul></dd>')
    return (
        f'<p class="lead">{tables.prose(pattern.summary)}</p>\n'
        f'<dl class="names">{" ".join(names)}</dl>\n'
        f"{tables.checked(examples, faults)}\n"
        f'<p class="faces">{_faces(catalogue, pattern, link)}</p>'
    )


def notebook_head(catalogue: Catalogue, key: str, link: Link) -> str:
    """Return what stands under a notebook's title: where it belongs, and the file to download."""
    file = key.rpartition("/")[2] + ".ipynb"
    links = [f'<a class="download" href="{file}" download>Download {file}</a>']
    if key in catalogue.patterns:
        links.append(f'<a href="{link(key + ".md")}">The pattern</a>')
        links.append(f'<a href="{link(f"api/{key}.md")}">Module and source</a>')
    return f'<p class="faces">{" ".join(links)}</p>'


def diagram(catalogue: Catalogue, pattern: Pattern, link: Link) -> str:
    """Return a pattern's drawing on its light card.

    Raises:
        Unmade: the SVG has not been rendered, or its source does not say what it shows.
    """
    source = f"assets/diagrams/{pattern.key}.svg"
    alt = alt_text(catalogue.root, pattern.key)
    if not (catalogue.root / "docs" / source).exists():
        raise Unmade(f"docs/{source} is not there: run `make diagrams`")
    address = link(source)
    return (
        f'<figure class="diagram"><a href="{address}" class="enlarge" title="Enlarge the diagram">'
        f'<img src="{address}" alt="{escape(alt)}"{_size(catalogue.root / "docs" / source)}></a></figure>'
    )


def alt_text(root: Path, key: str) -> str:
    """Return what a pattern's drawing says in words: the docstring of its source.

    Raises:
        Unmade: there is no source, or it has no docstring.
    """
    path = root / "diagrams_src" / f"{key}.py"
    doc = ast.get_docstring(ast.parse(path.read_text("utf-8"))) if path.exists() else None
    if not doc:
        raise Unmade(f"diagrams_src/{key}.py must say in its docstring what the drawing shows")
    return " ".join(doc.split())


def related(catalogue: Catalogue, pattern: Pattern, link: Link) -> str:
    """Return a page's edges and the inverses of those that name it, drawn as branches."""
    edges = catalogue.edges(pattern.key)
    if not edges:
        return '<p class="made">No other pattern is related to this one yet.</p>'
    branches = []
    for edge in edges:
        if edge.target:
            other = catalogue.patterns[edge.target]
            name = f'<a href="{link(edge.target + ".md")}">{escape(other.title)}</a>'
        else:
            name = f"<em>{tables.prose(edge.text)}</em>"
        why = f'<span class="why">{tables.prose(edge.why)}</span>' if edge.why else ""
        branches.append(
            f'<li><span class="kind">{edge.label}</span> <span class="to">{name} {why}</span></li>'
        )
    here = f'<span class="here">{escape(pattern.title)}</span>'
    return f'<div class="related">{here}<ul>{" ".join(branches)}</ul></div>'


def cards(patterns: Sequence[Pattern], link: Link, root: Path) -> str:
    """Return patterns as cards, each with its drawing."""
    items = []
    for pattern in patterns:
        picture = link(f"assets/diagrams/{pattern.key}.svg")
        items.append(
            f'<li class="card"><a href="{link(pattern.key + ".md")}"><span class="diagram">'
            f'<img src="{picture}" alt="{escape(alt_text(root, pattern.key))}" loading="lazy"></span>'
            f"<strong>{escape(pattern.title)}</strong></a><p>{tables.prose(pattern.summary)}</p></li>"
        )
    return f'<ul class="cards">{"".join(items)}</ul>'


def category_page(category: Category, link: Link, root: Path) -> str:
    """Return the page of one category, as Markdown."""
    return (
        f"# {category.title}\n\n"
        f'<p class="lead">{tables.prose(category.summary)}</p>\n\n{cards(category.patterns, link, root)}\n'
    )


def shelves(catalogue: Catalogue, link: Link) -> str:
    """Return each category as a card that holds its patterns, each with its drawing."""
    items = []
    for category in catalogue.categories:
        rows = "".join(
            f'<li><span class="diagram"><img src="{link(f"assets/diagrams/{pattern.key}.svg")}" '
            f'alt="{escape(alt_text(catalogue.root, pattern.key))}" loading="lazy"></span>'
            f'<div><a href="{link(pattern.key + ".md")}">{escape(pattern.title)}</a>'
            f"<p>{tables.prose(pattern.summary)}</p></div></li>"
            for pattern in category.patterns
        )
        items.append(
            f'<section class="shelf"><h3 id="{category.name}">'
            f'<a href="{link(category.name + "/index.md")}">{category.title}</a></h3>'
            f"<p>{tables.prose(category.summary)}</p><ul>{rows}</ul></section>"
        )
    return f'<div class="shelves">{"".join(items)}</div>'


def counts(catalogue: Catalogue) -> str:
    """Return what was run and what was lost, over all patterns."""
    folder = catalogue.root / "results"
    found = tables.totals(
        tuple(results.read(kind, key, folder=folder) for kind in ("examples", "faults"))
        for key in catalogue.patterns
    )
    shown = (
        (len(catalogue.patterns), "patterns", "each a module, a proof, a notebook and a measurement"),
        (found["executed"], "examples executed", "every one on these pages, outputs compared"),
        (found["injected"], "faults injected", f"of {found['kinds']} kinds: kills, pauses, lost replies"),
        (
            found["lost"],
            "acknowledged effects lost",
            f"{found['duplicated']:,} twice, {found['unsure']:,} unsure",
        ),
    )
    items = "".join(
        f"<li><strong>{value:,}</strong> <span>{name}</span> <small>{detail}</small></li>"
        for value, name, detail in shown
    )
    return f'<ul class="counts">{items}</ul>'


def symptom_list(catalogue: Catalogue, link: Link) -> str:
    """Return symptom -> pattern, with a box that filters it."""
    items = "".join(
        f"<li><span>{escape(symptom)}</span> "
        f'<a href="{link(pattern.key + ".md")}">{escape(pattern.title)}</a></li>'
        for symptom, pattern in catalogue.symptoms()
    )
    return (
        '<div class="symptom-index" data-filter><p class="filter" hidden>'
        '<input type="search" aria-label="Filter the symptoms" autocomplete="off" '
        'placeholder="Type what you see: herd, leaders, retries"></p>'
        f'<ul>{items}</ul><p class="none" hidden>Nothing here matches. '
        "Search the whole site with <kbd>/</kbd>.</p></div>"
    )


def modules(root: Path) -> list[str]:
    """Return every module below `patterns` that has something to say, as dotted names in order."""
    found = []
    for path in sorted((root / "patterns").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[-1].startswith("__"):
            parts = parts[:-1]
        package = len(parts) < 3 and path.name == "__init__.py"  # `patterns` and the categories
        if not package and path.name != "__main__.py":
            found.append(".".join(parts))
    return sorted(found, key=lambda name: (name.count("."), name))


def api_page(root: Path, module: str) -> str:
    """Return one module's page: its docstrings, then its source with a link for each line."""
    path = source_of(root, module)
    name = module.rpartition(".")[2]
    return (
        f"# {name}\n\n"
        f'<p class="module"><code>{module}</code></p>\n\n'
        f"::: {module}\n\n"
        "## Source {#source data-search-exclude}\n\n"
        f'<p class="made" data-search-exclude><code>{path.relative_to(root).as_posix()}</code></p>\n\n'
        f"{LISTING}\n"
    )


def listing(source: str) -> str:
    """Return Python source as HTML whose lines can be linked to: `#L12`."""
    formatter = HtmlFormatter(nowrap=True)
    lines = highlight(source, PythonLexer(ensurenl=True), formatter).rstrip("\n").split("\n")
    numbered = "\n".join(
        f'<span id="{LINE}{at}">'
        f'<a href="#{LINE}{at}" data-line="{at}" aria-label="Line {at}"></a>{line}</span>'
        for at, line in enumerate(lines, 1)
    )
    return f'<div class="listing language-python highlight"><pre><code>{numbered}\n</code></pre></div>'


def region_line(text: str, region: str) -> int | None:
    """Return the line after the marker that begins a named region, or None if there is no such region."""
    for number, line in enumerate(text.splitlines(), 1):
        if f"--8<-- [start:{region}]" in line:
            return number + 1
    return None


def api_index(root: Path, link: Link) -> str:
    """Return the list of all modules with the first line of each docstring, as Markdown."""
    groups: dict[str, list[str]] = {}
    for module in modules(root):
        parts = module.split(".")
        path = source_of(root, module)
        doc = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        first = tables.prose(" ".join(doc.split("\n\n")[0].split()))
        label = parts[1].capitalize() if len(parts) > 2 else "Shared"
        address = link(api_uri(module))
        groups.setdefault(label, []).append(
            f'<dt><a href="{address}"><code>{module}</code></a></dt><dd>{first}</dd>'
        )
    body = "\n\n".join(
        f'## {label}\n\n<dl class="modules">{"".join(items)}</dl>' for label, items in groups.items()
    )
    return f"# Modules\n\nEvery public name, from the docstrings, and under it the source.\n\n{body}\n"


def api_uri(module: str) -> str:
    """Return the source path of a module's page."""
    return "api/" + "/".join(module.split(".")[1:]) + ".md"


def module_of(uri: str) -> str:
    """Return the module whose page has this source path."""
    return "patterns." + uri.removeprefix("api/").removesuffix(".md").replace("/", ".")


def source_of(root: Path, module: str) -> Path:
    """Return the file of a module; a package is its __init__.py."""
    path = root.joinpath(*module.split("."))
    package = path / "__init__.py"
    return package if package.exists() else path.with_suffix(".py")


def _size(svg: Path) -> str:
    """Return the attributes that keep a drawing's place free until it is there."""
    found = re.search(r'<svg[^>]*?\swidth="([\d.]+)(pt|px)?"[^>]*?\sheight="([\d.]+)', svg.read_text("utf-8"))
    if found is None:
        return ""
    scale = 4 / 3 if found[2] == "pt" else 1
    return f' width="{float(found[1]) * scale:.0f}" height="{float(found[3]) * scale:.0f}"'


def _faces(catalogue: Catalogue, pattern: Pattern, link: Link) -> str:
    key = pattern.key
    links = [f'<a href="{link(f"api/{key}.md")}">Module and source</a>']
    if (catalogue.root / f"notebooks/{key}.ipynb").exists():
        links.append(f'<a href="{link(f"notebooks/{key}.ipynb")}">Notebook</a>')
    for label, path in (
        ("Tests", f"tests/{pattern.category}/test_{pattern.name}.py"),
        ("Benchmark", f"benchmarks/{key}.py"),
    ):
        if (catalogue.root / path).exists():
            links.append(f'<a href="{link("repo:" + path)}">{label}</a>')
    return " ".join(links)
