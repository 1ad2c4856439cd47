"""What a built site must be, whatever built it.

`foreign` finds everything that a browser would fetch from another host by itself: scripts, styles, fonts,
pictures, frames, imports, `url()`. Plain links may leave the site.
`broken` follows every link and anchor that stays in it.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ALLOWED", "Page", "broken", "foreign", "pages"]

# Absolute addresses in the scripts of Material 9.8.2, exactly. None is fetched on this site: mermaid is
# loaded only where no global of that name exists, the hosts of repositories are asked only by an element
# that tools/theme/partials/source.html leaves out, and the others are names of XML vocabularies or texts.
ALLOWED = {
    "http://www.w3.org/1999/xhtml",
    "http://www.w3.org/2000/svg",
    # fetched only where something is missing that every page or every browser here has
    "https://unpkg.com/mermaid@11/dist/mermaid.min.js",
    "https://unpkg.com/resize-observer-polyfill",
    # asked for stars by the element that is left out
    "https://api.github.com/repos/${e}/${t}",
    "https://api.github.com/users/${e}",
    "https://${e}/api/v4/projects/${encodeURIComponent(t",  # as far as the scan reads it
    # texts in comments
    "https://clipboardjs.com/",
    "http://lunrjs.com",
    "http://tartarus.org/~martin/PorterStemmer/js.txt",
    "https://bit.ly/2s3ChXG",
}

_URL = re.compile(
    r"""(?:https?://|(?<=["'`])//)(?:\$\{|[a-zA-Z0-9][-a-zA-Z0-9.]*\.[a-z]{2,})[^\s"'`)<>\\]*"""
)
_CSS = re.compile(r"""(?:url\(\s*|@import\s+(?:url\(\s*)?)["']?((?:https?:)?//[^"')\s;]+)""", re.IGNORECASE)
# A script or a style with all that is in it, or one tag; a quoted value may hold a `>`.
_TAG = re.compile(
    r"""<(script|style)\b(?:[^>"']|"[^"]*"|'[^']*')*>.*?</\1>|<[a-z](?:[^>"']|"[^"]*"|'[^']*')*>""",
    re.IGNORECASE | re.DOTALL,
)
# A script that fetches: an import, a worker, a request, or an element given a source.
_FETCHES = re.compile(
    r"""(?:\bimport\s*\(?|\bfrom|importScripts\(|fetch\(|\bopen\(\s*["']GET["']\s*,|Worker\(|\.(?:src|href)\s*=|url\()"""
    r"""\s*["'`]((?:https?:)?//[^"'`\s)]+)"""
)
_FETCHED = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
    "audio": ("src",),
    "track": ("src",),
    "iframe": ("src", "srcdoc"),
    "embed": ("src",),
    "object": ("data",),
    "input": ("src",),
    "image": ("href", "xlink:href"),
    "use": ("href", "xlink:href"),
    "feimage": ("href", "xlink:href"),
    "base": ("href",),
    "form": ("action",),
    "body": ("background",),
}
# The only kinds of <link> that fetch nothing.
_NAMED = {"canonical", "prev", "next", "edit", "alternate", "license", "author", "help"}


@dataclass
class Page:
    """One built page: where its links lead, what they may lead to, and what it fetches."""

    links: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    fetched: list[str] = field(default_factory=list)
    pictures: list[tuple[str, str | None]] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page()
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        page = self.page
        page.anchors.update(found[name] for name in ("id", "name") if found.get(name))
        rel = set(found.get("rel", "").lower().split())
        if tag == "a" and "href" in found:
            page.links.append(found["href"])
        elif tag == "link":
            (page.links if rel and rel <= _NAMED else page.fetched).append(found.get("href", ""))
        for name in _FETCHED.get(tag, ()):
            if name in found:
                sources = found[name].split(",") if name == "srcset" else [found[name]]
                page.fetched += [source.split()[0] for source in sources if source.strip()]
        if tag == "meta" and found.get("http-equiv", "").lower() == "refresh":
            page.fetched.append(found.get("content", "").partition("=")[2].strip())
        if tag == "img":
            page.pictures.append((found.get("src", ""), found.get("alt")))
        page.fetched += [
            url for name, value in found.items() if name.startswith("data-") for url in _URL.findall(value)
        ]
        if found.get("style"):
            page.styles.append(found["style"])
        if tag in ("script", "style") and "src" not in found:
            self._inside = tag if found.get("type") != "application/json" else ""

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.page.scripts.append(data)
        elif self._inside == "style":
            self.page.styles.append(data)


def read(path: Path) -> Page:
    """Return what is in one HTML file."""
    reader = _Reader()
    reader.feed(path.read_text("utf-8"))
    reader.close()
    return reader.page


def pages(folder: Path) -> dict[str, Page]:
    """Return every HTML file of a built site by its path."""
    return {path.relative_to(folder).as_posix(): read(path) for path in sorted(folder.rglob("*.html"))}


def foreign(folder: Path) -> list[str]:
    """Return a sentence for each thing that a browser would fetch from another host."""
    errors = []
    pinned = _pinned(folder)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        found: list[str] = []
        if path.suffix == ".html":
            page = _suspects(path.read_text("utf-8"))
            found += [source for source in page.fetched if _is_foreign(source)]
            found += [url for style in page.styles for url in _CSS.findall(style)]
            found += [url for script in page.scripts for url in _URL.findall(script)]
        elif path.suffix == ".css":
            found += _CSS.findall(path.read_text("utf-8"))
        elif path.suffix in (".js", ".mjs"):
            text = path.read_text("utf-8")
            found += _FETCHES.findall(text)
            if name not in pinned:
                found += _URL.findall(text)
        elif path.suffix == ".svg":
            page = read(path)
            found += [source for source in page.fetched if _is_foreign(source)]
            found += [url for style in page.styles for url in _CSS.findall(style)]
        errors += [f"{name}: it refers to {url}" for url in dict.fromkeys(found) if url not in ALLOWED]
    return errors


def broken(folder: Path, site_url: str = "/", built: dict[str, Page] | None = None) -> list[str]:
    """Return a sentence for each link, anchor or source in the site that leads nowhere.

    Args:
        folder: the built site.
        site_url: where it is to be published; absolute links below it are followed too.
        built: its `pages`, where they have been read.
    """
    errors = []
    built = pages(folder) if built is None else built
    base = urlsplit(site_url)
    for name, page in built.items():
        for link in dict.fromkeys([*page.links, *page.fetched]):
            parts = urlsplit(link)
            if parts.scheme not in ("", "http", "https") or (
                parts.netloc and (parts.scheme, parts.netloc) != (base.scheme, base.netloc)
            ):
                continue
            target = unquote(parts.path)
            if target.startswith(base.path):
                target = target.removeprefix(base.path)
            elif target:
                target = posixpath.normpath(posixpath.join(posixpath.dirname(name), target)) + (
                    "/" if target.endswith("/") else ""
                )
            else:
                target = name
            if target.startswith("../"):
                errors.append(f"{name}: {link} leaves the site")
                continue
            file = folder / target
            if file.is_dir():
                file /= "index.html"
            if not file.is_file():
                errors.append(f"{name}: {link} leads nowhere")
                continue
            anchor = unquote(parts.fragment)
            to = built.get(file.relative_to(folder).as_posix())
            if anchor and to is not None and anchor not in to.anchors:
                errors.append(f"{name}: {link} names an anchor that is not there")
    return errors


def _suspects(text: str) -> Page:
    """Return what is in the tags that hold an address with a host, and in scripts and styles.

    Nothing else can fetch from elsewhere, and parsing whole pages would take a second of each build.
    """
    reader = _Reader()
    for match in _TAG.finditer(text):
        if "//" in match[0]:
            reader.feed(match[0])
    reader.close()
    return reader.page


def _is_foreign(source: str) -> bool:
    parts = urlsplit(source)
    return bool(parts.netloc) or parts.scheme in ("http", "https", "ftp")


def _pinned(folder: Path) -> set[str]:
    """Return the vendored scripts that are, byte for byte, what was looked over when they were committed."""
    names = set()
    for path in folder.glob("assets/vendor/*/version.json"):
        stated = json.loads(path.read_text("utf-8"))
        script = path.with_name(stated["file"])
        if hashlib.sha256(script.read_bytes()).hexdigest() == stated["sha256"]:
            names.add(script.relative_to(folder).as_posix())
    return names
