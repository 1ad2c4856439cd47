"""The built site: whole, linked, searchable, and asking no other host for anything."""

from __future__ import annotations

import functools
import hashlib
import html
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest
from bs4 import BeautifulSoup

from tests.built_site import ROOT, build, built
from tests.eventually import eventually_now
from tools import catalogue, site_check, site_docstrings, site_notebook, site_pages
from tools.examples import count_blocks

KEYS = sorted(catalogue.load(ROOT).patterns)


@pytest.fixture(scope="session")
def site() -> Path:
    return built()


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[str, site_check.Page]:
    return site_check.pages(site)


@functools.lru_cache(maxsize=64)  # several tests look at the same page, and none changes it
def soup(site: Path, path: str) -> BeautifulSoup:
    return BeautifulSoup((site / path).read_text("utf-8"), "html.parser")


def words_of(page: BeautifulSoup) -> str:
    article = page.find("article")
    assert article is not None
    return article.get_text(" ", strip=True)


# The whole site


def test_every_link_and_anchor_leads_somewhere(site: Path, pages: dict[str, site_check.Page]) -> None:
    """No link, picture, script or anchor of any built page, notebooks included, is dead."""
    assert site_check.broken(site, "http://127.0.0.1:8000/", pages) == []


def test_no_page_asks_another_host_for_anything(site: Path) -> None:
    """Scripts, styles, fonts, pictures and frames all come from the site itself."""
    assert site_check.foreign(site) == []


def test_every_picture_says_what_it_shows(pages: dict[str, site_check.Page]) -> None:
    """Each img has an alt text of several words."""
    pictures = [(name, *picture) for name, page in pages.items() for picture in page.pictures]
    assert pictures
    assert [each for each in pictures if len((each[2] or "").split()) < 2] == []


def test_every_page_has_one_title_and_a_description(site: Path, pages: dict[str, site_check.Page]) -> None:
    """A search engine and a screen reader are told what each page is."""
    titles: dict[str, str] = {}
    for name in pages:
        text = (site / name).read_text("utf-8")
        assert len(re.findall(r"<h1\b", text)) == 1, name
        page = BeautifulSoup(text.partition("</head>")[0], "html.parser")
        assert page.title is not None
        titles.setdefault(page.title.get_text(), name)
        description = page.find("meta", attrs={"name": "description"})
        assert description is not None, name
        assert len(str(description["content"]).split()) >= 3, name
    assert len(titles) == len(pages), "two pages have the same title"


def test_the_sitemap_names_every_page(site: Path, pages: dict[str, site_check.Page]) -> None:
    """What is built is found by crawlers, under the address from SITE_URL's default."""
    tree = ElementTree.fromstring((site / "sitemap.xml").read_text("utf-8"))
    addresses = {element.text for element in tree.iter("{http://www.sitemaps.org/schemas/sitemap/0.9}loc")}
    expected = {
        f"http://127.0.0.1:8000/{name.removesuffix('index.html')}" for name in pages if name != "404.html"
    }
    assert addresses == expected


def test_a_missing_page_helps_the_reader_on(site: Path) -> None:
    """The 404 page offers the search and the way by symptom."""
    page = soup(site, "404.html")
    text = words_of(page)
    assert "There is no such page" in text
    assert "Press / and type what you see" in text
    assert any(str(a["href"]).endswith("choose/") for a in page.select("article a"))


def test_what_is_never_loaded_is_not_published(site: Path) -> None:
    """Stemmers for other languages and source maps are left out."""
    assert not (site / "assets/javascripts/lunr").exists()
    assert list(site.rglob("*.map")) == []


def test_pages_are_light(site: Path, pages: dict[str, site_check.Page]) -> None:
    """No page carries half a megabyte of styles, as a rendered notebook does by default."""
    heavy = {name: (site / name).stat().st_size for name in pages}
    assert {name: size for name, size in heavy.items() if size > 400_000} == {}


# Each pattern's page


@pytest.mark.parametrize("key", KEYS)
def test_the_head_of_a_page_says_what_it_is_and_when_it_was_checked(site: Path, key: str) -> None:
    """Summary, other names, symptoms, the checked line and the other faces stand under the title."""
    pattern = catalogue.load(ROOT).patterns[key]
    page = soup(site, f"{key}/index.html")
    text = words_of(page)
    assert pattern.summary.replace("`", "") in text
    for words in (*pattern.aka, *pattern.symptoms):
        assert words in text
    assert re.search(r"Checked on \d{4}-\d\d-\d\d · Python \S+.* · \d+ examples? executed", text)
    faces = {a.get_text() for a in page.select("p.faces a")}
    assert {"Module and source", "Notebook", "Tests", "Benchmark"} <= faces


@pytest.mark.parametrize("key", KEYS)
def test_the_page_shows_as_many_python_blocks_as_were_executed_and_included(site: Path, key: str) -> None:
    """No highlighted Python on a page escapes the runner."""
    page = soup(site, f"{key}/index.html")
    shown = page.select("article .language-python.highlight, article .language-pycon.highlight")
    assert len(shown) == sum(count_blocks((ROOT / f"docs/{key}.md").read_text("utf-8"))) > 0


@pytest.mark.parametrize("key", KEYS)
def test_included_code_is_dedented_and_leads_to_its_line(site: Path, key: str) -> None:
    """Under each included region stands a link to the line of the source that it begins at."""
    page = soup(site, f"{key}/index.html")
    sources = page.select("p.source")
    assert sources
    for source in sources:
        block = source.find_previous("div", class_="highlight")
        assert block is not None
        code = block.get_text().strip("\n")
        assert not code.startswith(" "), "the region is not dedented"
        assert "--8<--" not in code
        link = source.find("a")
        assert link is not None
        path, _, line = link.get_text().partition(", line ")
        if line:
            text = (ROOT / path).read_text("utf-8").splitlines()[int(line) - 1]
            assert text.strip() == code.splitlines()[0].strip()


@pytest.mark.parametrize("key", KEYS)
def test_figures_and_relations_are_made_from_results_and_edges(site: Path, key: str) -> None:
    """The markers of a page are gone, and what they stand for is there."""
    page = soup(site, f"{key}/index.html")
    assert not re.search(r"<!-- (table|chart|related|diagram)", str(page.find("article")))
    for selector in (
        ".results.faults tbody tr",
        ".results.cost tbody tr",
        "figure.chart svg",
        "figure.diagram",
    ):
        assert page.select(selector), selector
    assert len(page.select(".related li")) == len(catalogue.load(ROOT).edges(key))


def test_a_page_across_patterns_has_a_chart_for_each_of_its_markers(site: Path) -> None:
    """No `<!-- chart: question -->` is left as a comment, which a reader would not see."""
    text = (ROOT / "docs" / "comparing_caches.md").read_text("utf-8")
    page = soup(site, "comparing_caches/index.html")
    captions = [each.get_text().partition(".")[0].lower() for each in page.select("figure.chart figcaption")]
    assert captions == [each.lower() for each in re.findall(r"<!-- chart: (.+) -->", text)]
    assert captions
    assert page.select(".results.cost tbody tr")


@pytest.mark.parametrize("key", KEYS)
def test_a_notebook_stands_beside_its_page_and_can_be_downloaded(site: Path, key: str) -> None:
    """Page and notebook link to each other, and the download is the committed file."""
    page = site / key / "index.html"
    notebook = site / "notebooks" / key / "index.html"
    links = site_check.read(page).links
    assert os.path.relpath(notebook.parent, page.parent) + "/" in links
    assert os.path.relpath(page.parent, notebook.parent) + "/" in site_check.read(notebook).links
    assert f"/edit/main/notebooks/{key}.ipynb" in " ".join(site_check.read(notebook).links)
    (download,) = soup(site, f"notebooks/{key}/index.html").select("a.download")
    file = notebook.parent / str(download["href"])
    assert file.read_bytes() == (ROOT / f"notebooks/{key}.ipynb").read_bytes()


def test_a_pattern_is_reached_from_home_choose_its_category_and_the_navigation(site: Path) -> None:
    """No hand-kept list is needed for a page to be found."""
    for key in KEYS:
        category = key.partition("/")[0]
        for path, selector in (
            ("index.html", ".shelf a"),
            ("index.html", ".symptom-index a"),
            ("choose/index.html", ".symptom-index a"),
            (f"{category}/index.html", ".cards a"),
            (f"{category}/index.html", "nav.md-nav--primary a"),
        ):
            base = Path(path).parent
            links = {os.path.normpath(base / str(a["href"])) for a in soup(site, path).select(selector)}
            assert key in links, (key, path, selector)


def test_the_home_page_counts_what_the_results_hold(site: Path) -> None:
    """Patterns, examples, faults and losses are sums over the committed results."""
    shown = [item.get_text() for item in soup(site, "index.html").select("ul.counts strong")]
    examples = [json.loads((ROOT / f"results/examples/{key}.json").read_text("utf-8")) for key in KEYS]
    faults = [json.loads((ROOT / f"results/faults/{key}.json").read_text("utf-8")) for key in KEYS]
    rows = [row for document in faults for row in document["rows"]]
    expected = (
        len(KEYS),
        sum(document["executed"] for document in examples),
        sum(row["injected"] for row in rows),
        sum(row["lost"] for row in rows),
    )
    assert shown == [f"{count:,}" for count in expected]


def test_every_public_module_has_a_page_with_its_source(site: Path) -> None:
    """Docstrings and source are on the site, each line with an address of its own."""
    for module in site_pages.modules(ROOT):
        page = (site / site_pages.api_uri(module)).with_suffix("") / "index.html"
        (shown,) = re.findall(
            r'<div class="listing [^>]*><pre><code>(.*?)</code>', page.read_text("utf-8"), re.DOTALL
        )
        lines = re.split(r'^<span id="L(\d+)">', shown, flags=re.MULTILINE)
        texts = [html.unescape(re.sub(r"<[^>]+>", "", line)) for line in lines[::2]]
        assert "".join(texts).rstrip() == site_pages.source_of(ROOT, module).read_text("utf-8").rstrip(), (
            module
        )
        assert [int(at) for at in lines[1::2]] == [*range(1, len(texts))], module


# Search


@pytest.fixture(scope="session")
def index(site: Path) -> list[dict[str, Any]]:
    docs: list[dict[str, Any]] = json.loads((site / "search/search_index.json").read_text("utf-8"))["docs"]
    return docs


@pytest.mark.parametrize("key", KEYS)
def test_search_knows_a_page_by_title_names_symptoms_and_text(index: list[dict[str, Any]], key: str) -> None:
    """What a reader in trouble would type is in the index of the page."""
    pattern = catalogue.load(ROOT).patterns[key]
    docs = [doc for doc in index if doc["location"].partition("#")[0] == f"{key}/"]
    assert docs[0]["title"] == pattern.title
    for words in (*pattern.aka, *pattern.symptoms):
        assert words in docs[0]["text"]
    assert {"What it costs", "Tuning"} <= {doc["title"] for doc in docs}
    assert all(doc["boost"] > 1 for doc in docs)


@pytest.mark.parametrize("key", KEYS)
def test_search_knows_a_notebook_by_its_text_and_its_output(index: list[dict[str, Any]], key: str) -> None:
    """Prose and printed lines of the saved notebook are found."""
    text = " ".join(
        re.sub(r"<[^>]+>", "", doc["text"])
        for doc in index
        if doc["location"].startswith(f"notebooks/{key}/")
    )
    cells = json.loads((ROOT / f"notebooks/{key}.ipynb").read_text("utf-8"))["cells"]
    printed = [
        " ".join(line.split())
        for cell in cells
        for output in cell.get("outputs", ())
        for line in "".join(output.get("text", ())).splitlines()
    ]
    texts = ["".join(cell["source"]).split() for cell in cells if cell["cell_type"] == "markdown"]
    assert printed
    found = " ".join(html.unescape(text).split())
    assert [line for line in printed if line not in found] == []
    assert any(" ".join(words[-4:]) in found for words in texts)


def test_pages_that_only_repeat_patterns_are_not_in_the_index(index: list[dict[str, Any]]) -> None:
    """Home, choose, category and tag pages cannot outrank a pattern, and sources are not searched."""
    found = {doc["location"].partition("#")[0] for doc in index}
    assert not found & {"", "choose/", "tags/", "api/", *(f"{key.partition('/')[0]}/" for key in KEYS)}
    assert not any("#source" in doc["location"] for doc in index)
    assert all(doc["boost"] < 1 for doc in index if doc["location"].startswith(("api/", "notebooks/")))


# What is vendored


def test_mermaid_is_byte_for_byte_the_version_that_is_stated() -> None:
    """The committed script has the stated sha256 and version, and its licence lies beside it."""
    folder = ROOT / "docs/assets/vendor/mermaid"
    stated = json.loads((folder / "version.json").read_text("utf-8"))
    script = (folder / stated["file"]).read_bytes()
    assert hashlib.sha256(script).hexdigest() == stated["sha256"]
    assert f'"{stated["version"]}"'.encode() in script
    assert "Permission is hereby granted" in (folder / "LICENSE").read_text("utf-8")


# The checks themselves: each finds what it is there to find


def put(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, "utf-8")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.html", '<script src="https://cdn.example/x.js"></script>'),
        ("a.html", '<script src="//cdn.example/x.js"></script>'),
        ("a.html", '<link rel="stylesheet" href="https://cdn.example/x.css">'),
        ("a.html", '<link rel="preconnect" href="https://cdn.example">'),
        ("a.html", '<link rel="prefetch alternate" href="https://cdn.example/feed">'),
        ("a.html", '<img src="https://cdn.example/x.png">'),
        ("a.html", '<img alt="a > b" src="https://cdn.example/x.png">'),
        ("a.html", '<p title="it\'s"><img src="https://cdn.example/x.png">'),
        ("a.html", "<script data-of='{&quot;url&quot;: &quot;https://cdn.example/x.js&quot;}'></script>"),
        ("a.html", "<SCRIPT SRC='https://cdn.example/x.js'></SCRIPT>"),
        ("a.html", '<img srcset="x.png 1x, https://cdn.example/x.png 2x">'),
        ("a.html", '<iframe src="https://cdn.example/"></iframe>'),
        ("a.html", '<video poster="http://cdn.example/x.png"></video>'),
        ("a.html", '<form action="https://cdn.example/"></form>'),
        ("a.html", '<meta http-equiv="refresh" content="0; url=https://cdn.example/">'),
        ("a.html", "<style>@import 'https://cdn.example/x.css';</style>"),
        ("a.html", '<p style="background: url(https://cdn.example/x.png)">x</p>'),
        ("a.html", "<script>import('https://cdn.example/x.mjs')</script>"),
        ("a.html", '<svg><image xlink:href="https://cdn.example/x.png"/></svg>'),
        ("a.css", '@font-face { src: url("https://cdn.example/x.woff2") }'),
        ("a.css", "@import url(//cdn.example/x.css);"),
        ("a.js", 'import x from "https://cdn.example/x.mjs";'),
        ("a.js", 'const where = "https://cdn.example/x.js";'),
        ("a.js", "const where = `//cdn.example/x.js`;"),
        ("a.js", 'fetch("https://unpkg.com/mermaid@12/dist/mermaid.min.js")'),
        ("a.svg", '<svg><image href="https://cdn.example/x.png"/></svg>'),
    ],
)
def test_anything_fetched_from_another_host_is_found(tmp_path: Path, name: str, text: str) -> None:
    """Each way in which a page could ask another host is reported with its file."""
    put(tmp_path, name, text)
    (error,) = site_check.foreign(tmp_path)
    assert error.startswith(f"{name}: it refers to ")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.html", '<a href="https://cdn.example/">a plain link</a>'),
        ("a.html", '<link rel="canonical" href="https://cdn.example/">'),
        ("a.html", '<script src="x.js"></script><p>https://cdn.example/</p>'),
        ("a.html", '<svg xmlns="http://www.w3.org/2000/svg"></svg>'),
        ("a.css", "a { background: url(data:image/png;base64,AAAA) } /* https://cdn.example */"),
        ("a.js", 'load("https://unpkg.com/mermaid@11/dist/mermaid.min.js")'),
    ],
)
def test_what_is_not_fetched_is_left_alone(tmp_path: Path, name: str, text: str) -> None:
    """Plain links, names of vocabularies and the exact fallbacks of the theme pass."""
    put(tmp_path, name, text)
    assert site_check.foreign(tmp_path) == []


def test_a_vendored_script_is_trusted_only_as_stated(tmp_path: Path) -> None:
    """One changed byte, and every address in it counts again."""
    text = 'const docs = "https://mermaid.example/docs";'
    put(tmp_path, "assets/vendor/m/m.js", text)
    stated = {"file": "m.js", "sha256": hashlib.sha256(text.encode()).hexdigest()}
    put(tmp_path, "assets/vendor/m/version.json", json.dumps(stated))
    assert site_check.foreign(tmp_path) == []
    put(tmp_path, "assets/vendor/m/m.js", text + " ")
    assert len(site_check.foreign(tmp_path)) == 1


@pytest.mark.parametrize(
    ("link", "sentence"),
    [
        ("../gone/", "leads nowhere"),
        ("../b/#nowhere", "names an anchor that is not there"),
        ("#nowhere", "names an anchor that is not there"),
        ("../../x/", "leaves the site"),
        ("/gone.html", "leads nowhere"),
        ("https://site.example/gone/", "leads nowhere"),
        ("picture.png", "leads nowhere"),
    ],
)
def test_a_link_that_leads_nowhere_is_found(tmp_path: Path, link: str, sentence: str) -> None:
    """Dead pages, dead anchors and ways out of the site are each reported, whatever form the link has."""
    put(tmp_path, "a/index.html", f'<h1 id="top">a</h1><a href="{link}">x</a>')
    put(tmp_path, "b/index.html", '<h1 id="top">b</h1>')
    (error,) = site_check.broken(tmp_path, "https://site.example/")
    assert error == f"a/index.html: {link} {sentence}"


@pytest.mark.parametrize(
    "link",
    [
        "../b/",
        "../b/#top",
        "#top",
        "/b/#top",
        "https://site.example/b/",
        "https://else.example/x",
        "mailto:a@b.c",
    ],
)
def test_a_link_that_leads_somewhere_passes(tmp_path: Path, link: str) -> None:
    """Pages, anchors and other hosts are not complained of."""
    put(tmp_path, "a/index.html", f'<h1 id="top">a</h1><a href="{link}">x</a>')
    put(tmp_path, "b/index.html", '<h1 id="top">b</h1>')
    assert site_check.broken(tmp_path, "https://site.example/") == []


# A small handbook, whole, and one change at a time

THING = """\
---
title: Thing
summary: It does one thing, and says so.
aka: [Gadget]
tags: [demo]
symptoms: [nothing works]
related: {alternative_to: [Nothing]}
engine: none
---

# Thing

<!-- diagram -->

```python
--8<-- "patterns/demo/thing.py:main"
```

<!-- table: faults -->

<!-- chart: cost -->

<!-- table: cost -->

<!-- related -->
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository with one pattern, built with the tools and the theme of this one."""
    for name in ("tools", "docs/assets", "mkdocs.yml", "docs/index.md", "docs/choose.md", "docs/glossary.md"):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            skipped = shutil.ignore_patterns("__pycache__", "diagrams")
            shutil.copytree(ROOT / name, target, ignore=skipped)
        else:
            shutil.copy(ROOT / name, target)
    shutil.copy(ROOT / "docs/tags.md", tmp_path / "docs/tags.md")
    put(tmp_path, "patterns/__init__.py", '"""All of them."""\n')
    put(tmp_path, "patterns/demo/__init__.py", '"""Patterns to try things on."""\n')
    code = '"""A thing.\n\n>>> 1\n1\n"""\n\n\ndef run() -> None:\n    """Run."""\n'
    put(
        tmp_path,
        "patterns/demo/thing.py",
        code + "    # --8<-- [start:main]\n    pass\n    # --8<-- [end:main]\n",
    )
    put(tmp_path, "diagrams_src/demo/thing.py", '"""One thing leads to another."""\n')
    put(tmp_path, "docs/assets/diagrams/demo/thing.svg", '<svg xmlns="http://www.w3.org/2000/svg"/>')
    put(tmp_path, "docs/demo/thing.md", THING)
    put(tmp_path, "docs/glossary.md", "# Glossary\n")
    base = {
        "pattern": "demo/thing",
        "commit": "abc",
        "date": "2026-11-24",
        "seed": None,
        "versions": {"python": "3.11.7"},
        "machine": "2 cores",
    }
    fault = {"fault": "kill", "injected": 3, "lost": 0, "duplicated": 0, "unsure": 0, "seconds": 1.0}
    cost = {"case": "thing", "ours": True, "baseline": True, "value": 1.0, "unit": "s", "ratio": 1.0, "n": 9}
    for kind, extra in (
        ("faults", {"rows": [{**fault, "held": "it did", "bound": "none", "naive": None}]}),
        ("benchmarks", {"rows": [{**cost, "note": None}]}),
        ("examples", {"rows": [], "executed": 1, "included": 1}),
    ):
        put(tmp_path, f"results/{kind}/demo/thing.json", json.dumps({**base, **extra}))
    return tmp_path


def edit(root: Path, path: str, old: str, new: str) -> None:
    text = (root / path).read_text("utf-8")
    assert old in text
    put(root, path, text.replace(old, new, 1))


def remove(root: Path, path: str) -> None:
    (root / path).unlink()


@pytest.mark.slow
def test_one_pattern_makes_a_site(small: Path) -> None:
    """The tree alone is enough: pages, navigation and figures follow from it, without a notebook too."""
    done = build(small, small / "site")
    assert done.returncode == 0, done.stderr
    assert site_check.broken(small / "site", "http://127.0.0.1:8000/") == []
    page = soup(small / "site", "demo/thing/index.html")
    assert page.select("p.source a")[0]["href"] == "../../api/demo/thing/#L11"
    assert "Nothing" in page.select(".related li")[0].get_text()
    before = (small / "site/demo/thing/index.html").read_text("utf-8")
    again = build(small, small / "site")
    assert again.returncode == 0, again.stderr
    assert (small / "site/demo/thing/index.html").read_text("utf-8") == before, "a remembered page differs"


@pytest.mark.slow
def test_what_has_not_been_made_fails_the_build_with_one_plain_sentence_each(small: Path) -> None:
    """Page, thing and command are named, for all of them at once; a remembered page warns again."""
    for kind in ("faults", "benchmarks", "examples"):
        remove(small, f"results/{kind}/demo/thing.json")
    remove(small, "docs/assets/diagrams/demo/thing.svg")
    edit(
        small, "docs/demo/thing.md", "# Thing\n", "# Thing\n\n<!-- table: fault -->\n\n[x](../demo/gone.md)\n"
    )
    for _ in range(2):
        done = build(small, small / "site")
        assert done.returncode == 1
        for sentence in (
            "docs/demo/thing.md: results/faults/demo/thing.json is not there: run `make faults`",
            "docs/demo/thing.md: results/benchmarks/demo/thing.json is not there: run `make bench`",
            "docs/demo/thing.md: results/examples/demo/thing.json is not there: run `make examples`",
            "docs/demo/thing.md: docs/assets/diagrams/demo/thing.svg is not there: run `make diagrams`",
            "docs/demo/thing.md: <!-- table: fault --> is not one of table: faults, table: cost",
            "contains a link '../demo/gone.md', but the target 'demo/gone.md' is not found",
        ):
            assert sentence in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "thing.py:main",
            "thing.py:nowhere",
            "docs/demo/thing.md: it includes patterns/demo/thing.py:nowhere, and there is no such region",
        ),
        (
            "engine: none",
            "engine: steam",
            "docs/demo/thing.md: 'engine' must be one of none, redis, cluster, containers, got 'steam'",
        ),
    ],
)
def test_what_cannot_be_read_fails_the_build_with_one_plain_sentence(
    small: Path, old: str, new: str, sentence: str
) -> None:
    """A region or a field that is wrong is named with its page, without a traceback."""
    edit(small, "docs/demo/thing.md", old, new)
    done = build(small, small / "site")
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


# What the tools do by themselves


def test_a_notebook_becomes_plain_blocks() -> None:
    """Styles and scripts go; code, output, errors, tables and pictures stay, with alt texts."""
    rendered = """
    <script src="https://cdn.example/require.js"></script><style>.jp { color: red }</style>
    <div class="jupyter-wrapper"><div class="jp-Notebook">
    <div class="jp-Cell jp-MarkdownCell"><div class="jp-RenderedMarkdown"><h1 id="t">T<a class="anchor-link"
     href="#t">¶</a></h1></div></div>
    <div class="jp-Cell jp-CodeCell"><div class="jp-Cell jp-CodeCell"><div class="jp-InputArea-editor">
    <div class="highlight-ipynb"><pre><span></span><span class="n">x</span>
</pre></div></div>
    <div class="jp-OutputArea-output" data-mime-type="application/vnd.jupyter.stdout"><pre>out</pre></div>
    <div class="jp-OutputArea-output" data-mime-type="application/vnd.jupyter.stderr"><pre>bad</pre></div>
    <div class="jp-OutputArea-output"><img src="data:image/png;base64,AA" style="x"></div>
    <div class="jp-OutputArea-output"><table border="1" class="dataframe"><tr><td>1</td></tr></table></div>
    </div></div>
    </div></div><style>.huge { }</style>"""
    tidied = site_notebook.tidy(rendered)
    assert "script" not in tidied
    assert "style" not in tidied
    page = BeautifulSoup(tidied, "html.parser")
    assert [a["title"] for a in page.select("h1 a.headerlink")] == ["Permanent link"]
    assert [block.get_text() for block in page.select(".highlight.cell code")] == ["x\n"]
    assert [block.get_text().strip() for block in page.select(".output")] == ["out", "bad"]
    assert [block.get_text().strip() for block in page.select(".output.error")] == ["bad"]
    assert [img["alt"] for img in page.select("figure img")] == ["Plot made by the cell above"]
    assert len(page.select(".results table")) == 1
    with pytest.raises(ValueError, match="jupyter-wrapper"):
        site_notebook.tidy("<p>something else</p>")


def test_a_finished_notebook_page_has_no_script_of_the_converter() -> None:
    """What mkdocs-jupyter adds at the end of a page goes; the site's own scripts stay."""
    page = '<script src="x.js"></script><script data-mkdocs-jupyter-mathjax="{}">\nfetch()\n</script></body>'
    assert site_notebook.without_scripts(page) == '<script src="x.js"></script></body>'


def test_a_doctest_in_a_docstring_is_shown_as_a_session() -> None:
    """Markdown would make of its prompts a quotation in a quotation."""
    text = "One.\n\n>>> f(\n...     1)\n2\n>>> g()\n3\n\nTwo.\n"
    assert site_docstrings.fenced(text) == (
        "One.\n\n```pycon\n>>> f(\n...     1)\n2\n>>> g()\n3\n```\n\nTwo.\n"
    )


def test_serving_on_a_port_in_use_is_one_plain_sentence() -> None:
    """It names the port and the variable that changes it, and leaves no traceback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "tools.site", "serve"],
            cwd=ROOT,
            env={**os.environ, "PORT": str(port), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.strip() == (
        f"Port {port} is in use: choose another with PORT, as in `make serve PORT={port + 1}`."
    )


@pytest.mark.parametrize("arguments", [["fly"], [], ["build", "--help"], ["serve", "x"], ["check", "a", "b"]])
def test_a_wrong_call_shows_how_to_call_it(arguments: list[str]) -> None:
    """Exit code 2, the three commands, and no folder named after an option."""
    done = subprocess.run(
        [sys.executable, "-m", "tools.site", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "python -m tools.site build" in done.stderr


def test_the_addresses_of_site_and_repository_come_from_the_environment(small: Path) -> None:
    """SITE_URL and REPO_URL replace the stated defaults everywhere."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(small),
        "SITE_URL": "https://site.example/book/",
        "REPO_URL": "https://code.example/a/b",
    }
    subprocess.run(
        [sys.executable, "-m", "tools.site", "build", str(small / "site")],
        cwd=small,
        env=environment,
        capture_output=True,
        timeout=120,
        check=True,
    )
    page = site_check.read(small / "site/demo/thing/index.html")
    assert "https://site.example/book/demo/thing/" in page.links
    assert "https://code.example/a/b/edit/main/docs/demo/thing.md" in page.links
    assert (
        "https://code.example/a/b/edit/main/patterns/demo/thing.py"
        in site_check.read(small / "site/api/demo/thing/index.html").links
    )
    assert {urlsplit(link).netloc for link in page.links} <= {
        "",
        "site.example",
        "code.example",
        "squidfunk.github.io",
    }
    assert site_check.broken(small / "site", "https://site.example/book/") == []


@pytest.mark.slow
def test_a_served_page_follows_every_kind_of_change(small: Path) -> None:
    """Page, module, result, drawing and notebook; and what is missing is said in the page, not a crash."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log, temporary = small / "log", small / "tmp"
    temporary.mkdir()
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "tools.site", "serve"],
            cwd=small,
            env={**os.environ, "PORT": str(port), "PYTHONPATH": str(small), "TMPDIR": str(temporary)},
            stdout=output,
            stderr=output,
        )
    address = f"http://127.0.0.1:{port}"

    def shows(path: str, text: str) -> bool:
        assert server.poll() is None, log.read_text("utf-8")
        try:
            with urllib.request.urlopen(f"{address}/{path}", timeout=5) as answer:
                return text in answer.read().decode()
        except OSError:
            return False

    try:
        eventually_now(lambda: shows("demo/thing/", "It does one thing"), within=60)
        edit(small, "docs/demo/thing.md", "It does one thing", "It does two things")
        eventually_now(lambda: shows("demo/thing/", "It does two things"), within=30)
        edit(small, "patterns/demo/thing.py", '"""Run."""', '"""Walk."""')
        eventually_now(lambda: shows("api/demo/thing/", "Walk."), within=30)
        edit(small, "results/faults/demo/thing.json", "it did", "it always did")
        eventually_now(lambda: shows("demo/thing/", "it always did"), within=30)
        source = (
            '"""A caller asks one thing."""\n\nfrom tools.diagrams import box, canvas\n\n'
            'with canvas("Thing"):\n    box("caller") >> box("thing")\n'
        )
        put(small, "diagrams_src/demo/thing.py", source)
        eventually_now(lambda: shows("assets/diagrams/demo/thing.svg", "A caller asks one thing."), within=30)
        cells = [
            {"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["# Tried\n", "\n", "It ran."]}
        ]
        notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        put(small, "notebooks/demo/thing.ipynb", json.dumps(notebook))
        eventually_now(lambda: shows("notebooks/demo/thing/", "It ran."), within=30)
        assert shows("demo/thing/", ">Notebook<")
        remove(small, "results/faults/demo/thing.json")
        eventually_now(lambda: shows("demo/thing/", "is not there: run `make faults`"), within=30)
    finally:
        server.terminate()
        code = server.wait(20)
    assert code == 0
    assert not list(temporary.iterdir()), "it leaves the folder that it built into"
