"""What mkdocs-jupyter renders, made part of the site.

The template it uses brings along half a megabyte of JupyterLab styles, and scripts from other hosts. Here
only the cells remain, in the markup that the rest of the site has: code with a copy button, text output,
pictures on a light card, headings with a permalink.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from bs4 import BeautifulSoup
from bs4.element import Tag

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["tidy", "title", "without_scripts"]

_START = '<div class="jupyter-wrapper">'


def title(notebook: str) -> str:
    """Return the first heading of a notebook given as JSON.

    Raises:
        ValueError: it has none.
    """
    for cell in json.loads(notebook)["cells"]:
        if cell["cell_type"] == "markdown":
            for line in "".join(cell["source"]).splitlines():
                if line.startswith("# "):
                    return line.removeprefix("# ").strip()
    raise ValueError("a notebook begins with one heading `# Title`")


def tidy(html: str) -> str:
    """Return the cells of a rendered notebook as plain blocks."""
    at = html.find(_START)
    if at < 0:
        raise ValueError("this is not what mkdocs-jupyter renders: there is no jupyter-wrapper")
    # The styles that follow the notebook are cut here and not parsed: they are the half megabyte.
    end = html.rfind("<style>")
    source = BeautifulSoup(html[at : end if end > at else len(html)], "html.parser")
    cells = source.select(".jp-Notebook > .jp-Cell")
    blocks = [block for cell in cells for block in _cell(cell)]
    return "\n".join(blocks)


def without_scripts(page: str) -> str:
    """Return a finished page without what mkdocs-jupyter 0.27 adds to each: it fetches a maths engine."""
    return re.sub(r"<script data-mkdocs-jupyter[^>]*>.*?</script>", "", page, flags=re.DOTALL)


def _cell(cell: Tag) -> Iterable[str]:
    if "jp-MarkdownCell" in (cell.get("class") or []):
        text = cell.select_one(".jp-RenderedMarkdown")
        if text is not None:
            yield _markdown(text)
        return
    code = cell.select_one(".jp-InputArea-editor pre")
    if code is not None and code.get_text().strip():
        for anchor in code.select("a[id]"):
            anchor.unwrap()
        for empty in code.find_all("span", recursive=False):
            if not empty.contents:
                empty.decompose()
        lines = code.decode_contents().strip("\n")
        yield f'<div class="language-python highlight cell"><pre><code>{lines}\n</code></pre></div>'
    for output in cell.select(".jp-OutputArea-output"):
        yield from _output(output)


def _markdown(text: Tag) -> str:
    for anchor in text.select("a.anchor-link"):
        anchor["class"] = "headerlink"
        anchor["title"] = "Permanent link"
    for pre in text.select("div.highlight > pre"):
        # nbconvert puts no <code> into its blocks, and the copy button looks for one.
        pre.string = pre.get_text()
        pre.contents[0].wrap(Tag(name="code"))
    return text.decode_contents().strip()


def _output(output: Tag) -> Iterable[str]:
    kind = output.get("data-mime-type")
    error = (
        kind == "application/vnd.jupyter.stderr" or output.select_one("pre .ansi-red-intense-fg") is not None
    )
    picture = output.find(["img", "svg"])
    if isinstance(picture, Tag):
        for name in ("style", "class"):
            del picture[name]
        if picture.name == "img":
            if picture.get("alt") in (None, "", "No description has been provided for this image"):
                picture["alt"] = "Plot made by the cell above"
            picture["loading"] = "lazy"
        yield f'<figure class="diagram plot">{picture.decode()}</figure>'
        return
    table = output.find("table")
    if isinstance(table, Tag):
        for name in ("border", "class", "style"):
            del table[name]
        yield f'<div class="results">{table.decode()}</div>'
        return
    pre = output.find("pre")
    if isinstance(pre, Tag):
        name = "output error" if error else "output"
        yield f'<div class="{name}"><pre><code>{pre.decode_contents().strip(chr(10))}\n</code></pre></div>'
    elif inner := output.decode_contents().strip():
        yield f'<div class="output">{inner}</div>'
