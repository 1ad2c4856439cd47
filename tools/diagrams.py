"""Draws the architecture of every pattern: diagrams_src/<key>.py to docs/assets/diagrams/<key>.svg.

A source is a module whose docstring says in words what the drawing shows (it becomes the alt text), and
which draws on exactly one canvas:

    from diagrams.onprem.inmemory import Redis

    from tools.diagrams import box, canvas, cluster, edge, icon

    with canvas("Cache-Aside"):
        caller = box("Caller")
        with cluster("your process"):
            cache = box("CacheAside", "one load per key")
        caller >> edge("get(key)") >> cache >> edge("GET") >> icon(Redis, "Redis")

The `diagrams` package draws with graphviz-pure, so that nothing needs to be installed. Two things of it
are mended here: it names nodes at random, and links icons by absolute path. An SVG is therefore the same
bytes on every run, carries its icons, and names no file of the machine.

`python -m tools.diagrams [key ...]` draws; `--check` compares the committed files with a fresh drawing.
"""

from __future__ import annotations

import argparse
import ast
import base64
import contextlib
import html
import itertools
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import diagrams

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["BadDiagram", "alt_of", "box", "canvas", "cluster", "draw", "edge", "icon", "keys", "problems"]

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "diagrams_src"
FOLDER = ROOT / "docs" / "assets" / "diagrams"

# A drawing is shown at this width at most, so that its smallest text stays readable beside the page's.
WIDEST = 760
SMALLEST_TEXT = 13

FONTS = "Helvetica,Arial,sans-serif"
TEXT, LINE, BAD, GOOD, WARN = "#2d3436", "#5b6770", "#b3261e", "#2e7d32", "#8a6100"

Tone = Literal["plain", "good", "bad", "warn", "quiet"]
_FILL = {
    "plain": ("#ffffff", "#8a959d"),
    "good": ("#e6f4e7", "#5b9d60"),
    "bad": ("#fbe6e4", "#cc6b64"),
    "warn": ("#fff3d6", "#c9a03c"),
    "quiet": ("#eef0f2", "#aab3ba"),
}
_STROKE = {"plain": LINE, "good": GOOD, "bad": BAD, "warn": WARN, "quiet": LINE}


class BadDiagram(Exception):
    """A source does not draw what a page can show; the text is one plain sentence."""


@dataclass
class _Drawing:
    title: str
    graph: Any
    direction: str | None
    ids: Iterator[int]


_open: _Drawing | None = None
_drawn: list[_Drawing] = []


@contextlib.contextmanager
def canvas(title: str, *, direction: Literal["LR", "TB"] | None = None) -> Iterator[None]:
    """Draw one diagram.

    Args:
        title: the pattern's name, for who opens the SVG by itself; not drawn.
        direction: left to right or top to bottom; None takes the first if it is narrow enough.
    """
    global _open  # noqa: PLW0603 - as `diagrams` itself does, so that sources need no variable for it
    font = {"fontname": "Helvetica", "fontcolor": TEXT}
    graph = diagrams.Diagram(
        title,
        filename="unused",
        show=False,
        graph_attr={**font, "label": "", "bgcolor": "transparent", "pad": "0.2", "splines": "spline"}
        | {"nodesep": "0.4", "ranksep": "0.6", "compound": "true"},
        node_attr={**font, "fontsize": "14", "labelloc": "c"}
        | {"fixedsize": "false", "width": "0", "height": "0"},
        edge_attr={**font, "fontsize": str(SMALLEST_TEXT), "color": LINE, "arrowsize": "0.8"},
    )
    _open = _Drawing(title, graph, direction, itertools.count(1))
    diagrams.setdiagram(graph)
    try:
        yield
    finally:
        diagrams.setdiagram(None)
        drawing, _open = _open, None
    _drawn.append(drawing)


@contextlib.contextmanager
def cluster(label: str, *, tone: Tone = "plain") -> Iterator[str]:
    """Draw a labelled frame around what is made inside: a process, a host, a class.

    Yields:
        Its name: an edge with `lhead=name` ends at the frame, one with `ltail=name` begins there.
    """
    fill, line = _FILL[tone]
    group = diagrams.Cluster(
        f"<{html.escape(label)}>",
        graph_attr={"style": "rounded,filled", "fillcolor": fill, "pencolor": line, "bgcolor": fill}
        | {"fontname": "Helvetica", "fontsize": str(SMALLEST_TEXT), "fontcolor": LINE, "margin": "14"},
    )
    group.dot.name = f"cluster_{_next_id()}"
    with group:
        yield group.dot.name


def icon(kind: Any, label: str, note: str = "") -> Any:
    """Draw a node of the `diagrams` package: its icon, and below it the label and a quieter note."""
    node = kind.__new__(kind)
    image = Path(diagrams.__file__).parents[1] / kind._icon_dir / kind._icon
    cell = f'<TR><TD FIXEDSIZE="TRUE" WIDTH="52" HEIGHT="52"><IMG SCALE="TRUE" SRC="{image}"/></TD></TR>'
    node._icon = None  # the label holds it: its own way fixes the size of the node, whatever the text
    node.__init__(_table(cell, label, note), nodeid=f"n{_next_id()}", shape="plain")
    return node


def box(label: str, note: str = "", *, tone: Tone = "plain", shape: str = "box", **attributes: str) -> Any:
    """Draw a rounded box with a label and a quieter note; `shape` is any of Graphviz."""
    fill, line = _FILL[tone]
    style = "rounded,filled" if shape == "box" else "filled"
    return diagrams.Node(
        _table("", label, note),
        nodeid=f"n{_next_id()}",
        **{"shape": shape, "style": style, "fillcolor": fill, "color": line, "margin": "0.16,0.1"}
        | attributes,
    )


def edge(label: str = "", *, tone: Tone = "plain", dashed: bool = False, **attributes: str) -> Any:
    """Draw what flows: dashed for what the caller does not wait for; further attributes are Graphviz's."""
    color = _STROKE[tone]
    style = {"style": "dashed"} if dashed else {}
    text = {"fontname": "Helvetica", "fontsize": str(SMALLEST_TEXT), "fontcolor": color if label else TEXT}
    padded = "\n".join(f" {line} " for line in label.split("\n")) if label else ""
    return diagrams.Edge(label=padded, color=color, **text | style | attributes)


def _next_id() -> int:
    if _open is None:
        raise BadDiagram("A box, an icon and a cluster are made inside `with canvas(...)`.")
    return next(_open.ids)


def _table(above: str, label: str, note: str) -> str:
    rows = [f"<TR><TD><B>{html.escape(line)}</B></TD></TR>" for line in label.split("\n")]
    small = f'<FONT POINT-SIZE="{SMALLEST_TEXT}" COLOR="{LINE}">'
    rows += [f"<TR><TD>{small}{html.escape(line)}</FONT></TD></TR>" for line in note.split("\n") if line]
    return f'<<TABLE BORDER="0" CELLSPACING="0" CELLPADDING="0">{above}{"".join(rows)}</TABLE>>'


# From a source to an SVG


def keys() -> list[str]:
    """Return the key of every source."""
    found = (path.relative_to(SOURCES).with_suffix("") for path in SOURCES.rglob("*.py"))
    return sorted(path.as_posix() for path in found if path.name != "__init__")


def alt_of(key: str) -> str:
    """Return what a drawing says in words: the docstring of its source.

    Raises:
        BadDiagram: there is no source, or it has no docstring.
    """
    source = SOURCES / f"{key}.py"
    if not source.is_file():
        raise BadDiagram(f"There is no diagrams_src/{key}.py.")
    text = ast.get_docstring(ast.parse(source.read_text("utf-8")))
    if not text:
        raise BadDiagram(f"The docstring of diagrams_src/{key}.py must say in words what the drawing shows.")
    return " ".join(text.split())


def draw(key: str) -> str:
    """Return the SVG of one source.

    Raises:
        BadDiagram: the source does not draw exactly one diagram that a page can show.
    """
    alt = alt_of(key)
    _drawn.clear()
    runpy.run_path(str(SOURCES / f"{key}.py"))
    if len(_drawn) != 1:
        raise BadDiagram(f"diagrams_src/{key}.py must draw on one canvas, not on {len(_drawn)}.")
    drawing = _drawn[0]
    svg = ""
    for direction in (drawing.direction,) if drawing.direction else ("LR", "TB"):
        drawing.graph.dot.graph_attr["rankdir"] = direction
        svg = _finished(_laid_out(drawing.graph.dot.source, key), drawing.title, alt)
        if _width(svg) <= WIDEST:
            break
    if found := problems(svg):
        raise BadDiagram(f"{key}: " + "; ".join(found))
    return svg


def problems(svg: str) -> list[str]:
    """Return what a page could not show of an SVG, or a reader not read."""
    found = []
    if _width(svg) > WIDEST:
        found.append(f"it is {_width(svg):.0f} px wide, and a page has {WIDEST}: shorten labels, or use TB")
    sizes = {float(size) for size in re.findall(r'font-size="([\d.]+)', svg)}
    if sizes and min(sizes) < SMALLEST_TEXT:
        found.append(f"text of {min(sizes):g} px is smaller than {SMALLEST_TEXT} px")
    if foreign := re.findall(r"""(?:href|src|url)\s*[=(]\s*["']?(?!["']?(?:#|data:))[^"')>]*""", svg):
        found.append(f"it refers to something outside itself: {foreign[0]}")
    if str(ROOT) in svg or "site-packages" in svg:
        found.append("it names a path of this machine")
    missing = [tag for tag in ("title", "desc") if not re.search(rf"<{tag}>[^<]*\w[^<]*</{tag}>", svg)]
    return found + [f"its <{tag}> is missing" for tag in missing]


def _laid_out(dot: str, key: str) -> str:
    beside = Path(sysconfig.get_path("scripts")) / "graphviz-pure"
    binary = str(beside) if beside.exists() else shutil.which("graphviz-pure")
    if binary is None:
        raise BadDiagram("graphviz-pure is not installed: run make site, which installs it.")
    done = subprocess.run(
        [binary, "-Tsvg"], input=dot, capture_output=True, encoding="utf-8", timeout=60, check=False
    )
    complaint = done.stderr.strip()
    if "non-ASCII" in complaint:
        # Its width would be guessed, and the text would leave its box.
        letters = " ".join(sorted({letter for letter in dot if ord(letter) > 127}))
        raise BadDiagram(f"{key}: labels are ASCII, so that their width is known, not {letters}")
    if done.returncode or complaint:
        raise BadDiagram(f"{key}: graphviz-pure says: {complaint or done.returncode}")
    return done.stdout


def _finished(svg: str, title: str, alt: str) -> str:
    """Return what Graphviz drew with its icons, title and text, without random or foreign names."""
    body = svg[svg.index("<g ") : svg.rindex("</svg>")]
    body = re.sub(r"<!--.*?-->\n?|<title>.*?</title>\n?", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*" class="(\w+)"', r'<g class="\1"', body)
    body = body.replace(' xml:space="preserve"', "").replace('"Helvetica"', f'"{FONTS}"')
    icons: dict[str, str] = {}

    def use(match: re.Match[str]) -> str:
        name = icons.setdefault(match["path"], f"icon{len(icons) + 1}")
        place = " ".join(re.findall(r'\b(?:x|y|width|height)="[^"]*"', match[0]))
        return f'<use href="#{name}" {place}/>'

    body = re.sub(r'<image xlink:href="(?P<path>[^"]*)"[^>]*/>', use, body)
    symbols = "".join(
        f'<symbol id="{name}" viewBox="0 0 48 48">'
        f'<image width="48" height="48" href="{_data_uri(path)}"/></symbol>\n'
        for path, name in icons.items()
    )
    size = re.search(r'viewBox="0.00 0.00 ([\d.]+) ([\d.]+)"', svg)
    if size is None:
        raise BadDiagram(f"{title}: graphviz-pure drew nothing")
    width, height = (f"{float(each):g}" for each in size.groups())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">\n'
        f"<title>{html.escape(title)}</title>\n<desc>{html.escape(alt)}</desc>\n"
        + (f"<defs>\n{symbols}</defs>\n" if symbols else "")
        + f"{body.rstrip()}\n</svg>\n"
    )


def _data_uri(path: str) -> str:
    return "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode("ascii")


def _width(svg: str) -> float:
    match = re.search(r'<svg [^>]*?width="([\d.]+)"', svg)
    return float(match[1]) if match else 0.0


def main(argv: Sequence[str] | None = None) -> int:
    """Draw diagrams, or compare the committed ones, with a line for each."""
    options = argparse.ArgumentParser(prog="python -m tools.diagrams", description="Draw the patterns.")
    options.add_argument("key", nargs="*", help="category/name; all if none")
    options.add_argument("--check", action="store_true", help="compare only, write nothing")
    chosen = options.parse_args(argv)
    failed = 0
    for key in chosen.key or keys():
        started = time.monotonic()
        file = FOLDER / f"{key}.svg"
        try:
            svg = draw(key)
        except BadDiagram as error:
            print(error, file=sys.stderr)
            failed += 1
            continue
        fresh = file.is_file() and file.read_bytes() == svg.encode()
        if not fresh and not chosen.check:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(svg.encode())
        verdict = "fresh" if fresh else "stale: run make diagrams" if chosen.check else "drawn"
        failed += chosen.check and not fresh
        print(
            f"{key}: {verdict}, {_width(svg):g} px, {len(svg) // 1024} KB, {time.monotonic() - started:.2f} s"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    # Sources import this module by its name, and must find the same one.
    from tools.diagrams import main as _main

    sys.exit(_main())
