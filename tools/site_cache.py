"""Rendered pages, kept by the content of what they are made from.

A page is rendered again only when its final Markdown, a file that it includes, the set of pages, or the
tools themselves have changed; the rest of a build (navigation, cross-references, search, templates) always
runs. So a change to one page costs one page, in `make site` as in `make serve`, and a stale page cannot be.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.structure.toc import AnchorLink, TableOfContents
from mkdocs.utils import CountHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

__all__ = ["Store", "digest"]

_INCLUDED = re.compile(r'^\s*--8<-- "([^":\n]+)', re.MULTILINE)


def digest(parts: Iterable[str | bytes]) -> str:
    """Return one name for some content."""
    hasher = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        hasher.update(len(data).to_bytes(8, "big") + data)
    return hasher.hexdigest()


class Store:
    """A folder of JSON documents named by digest; what a build did not use is removed at its end.

    Args:
        root: the repository; the folder is `.cache/handbook` in it.
        config: the parsed mkdocs.yml.
    """

    def __init__(self, root: Path, config: MkDocsConfig) -> None:
        self._root = root
        self._folder = root / ".cache" / "handbook"
        self._used: set[str] = set()
        makers = sorted((root / "tools").glob("*.py"))
        pins = [path for path in (root / "requirements.txt", Path(config.config_file_path)) if path.exists()]
        self._base = digest([*(path.read_bytes() for path in (*makers, *pins)), str(config.repo_url)])
        self._uris = ""

    def pages_are(self, files: Files) -> None:
        """Note which files a page may link to."""
        self._uris = digest(sorted(file.src_uri for file in files))

    def remember(self, parts: Iterable[str | bytes], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what `make` returned when it was last called for this content."""
        name = digest([self._base, *parts])
        self._used.add(name)
        path = self._folder / f"{name}.json"
        try:
            document: dict[str, Any] = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            document = make()
            if not document.get("sound", True):
                return document
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=self._folder, delete=False) as file:
                json.dump(document, file)
            Path(file.name).replace(path)
        return document

    def evict(self) -> None:
        """Remove what this build did not use."""
        for path in self._folder.glob("*.json"):
            if path.stem not in self._used:
                path.unlink(missing_ok=True)

    def wrap(self, page: Page, config: MkDocsConfig, tidy: Callable[[str], str] | None = None) -> None:
        """Make `page.render` remember: content, headings, anchors, and what it told the cross-references."""
        render = page.render
        references: Any = config.plugins["autorefs"]

        def remembered(config: MkDocsConfig, files: Files) -> None:
            def make() -> dict[str, Any]:
                registered: list[list[Any]] = []

                def record(_: Page, identifier: str, anchor: str | None = None, **options: Any) -> None:
                    registered.append([identifier, anchor, options])

                warnings = CountHandler()
                warnings.setLevel(logging.WARNING)
                logging.getLogger("mkdocs").addHandler(warnings)
                references.register_anchor = record
                try:
                    render(config, files)
                finally:
                    del references.register_anchor
                    logging.getLogger("mkdocs").removeHandler(warnings)
                content = page.content or ""
                return {
                    "title": page._title_from_render,
                    "content": tidy(content) if tidy else content,
                    "toc": [_link_out(link) for link in page.toc],
                    "anchors": sorted(page.present_anchor_ids or ()),
                    "links": {to.src_uri: links for to, links in (page.links_to_anchors or {}).items()},
                    "registered": registered,
                    # What was warned of must be warned of again.
                    "sound": not warnings.get_counts(),
                }

            known = self.remember(self._parts(page), make)
            page._title_from_render = known["title"]
            page.content = known["content"]
            page.toc = TableOfContents([_link_in(link) for link in known["toc"]])
            page.present_anchor_ids = set(known["anchors"])
            targets = ((files.get_file_from_path(uri), links) for uri, links in known["links"].items())
            page.links_to_anchors = {file: links for file, links in targets if file is not None}
            for identifier, anchor, options in known["registered"]:
                references.register_anchor(page, identifier, anchor, **options)

        page.render = remembered  # type: ignore[method-assign]  # as mkdocs-jupyter does, for this page only

    def _parts(self, page: Page) -> list[str | bytes]:
        text = page.markdown or ""
        parts: list[str | bytes] = [page.file.src_uri, self._uris, text]
        parts += [(self._root / path).read_bytes() for path in _INCLUDED.findall(text)]
        if page.file.src_uri.startswith("api/"):
            parts += self._sources(page.file.src_uri)
        return parts

    def _sources(self, uri: str) -> list[bytes]:
        """Return what a module's page is made from: its file, or for a pattern all of its files."""
        place = self._root / "patterns" / Path(*Path(uri).with_suffix("").parts[1:3])
        files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
        return [path.read_bytes() for path in files if path.exists()]


def _link_out(link: AnchorLink) -> list[Any]:
    return [link.title, link.id, link.level, [_link_out(child) for child in link.children]]


def _link_in(parts: list[Any]) -> AnchorLink:
    title, name, level, children = parts
    link = AnchorLink(title, name, level)
    link.children = [_link_in(child) for child in children]
    return link
