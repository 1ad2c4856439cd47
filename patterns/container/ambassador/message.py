"""What is taken over from one side to the other, and what is not HTTP enough to be.

aiohttp's parser refuses most of what smuggles requests: two lengths, a length beside `Transfer-Encoding`,
folded lines, bare LF, NUL, spaces before the colon. Here is what it lets pass and a proxy must not.

Sources: RFC 9110, 7.6.1 (Connection) and 7.6.3 (Via); RFC 9112, 6.1 and 6.3 (framing), 11.2 (smuggling);
linkerd and Envoy for what else does not cross a proxy.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from patterns.container.ambassador.events import ProxyError, Refused
from patterns.deadline import HEADER as DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aiohttp import web

__all__ = ["RETRIES", "Headers", "answered", "asked", "check", "once", "to_upstream", "unreadable"]

RETRIES = "X-Max-Retries"
"""How many retries the application wants at most; 0 for none."""

Raw = tuple[bytes, bytes]
Headers = list[tuple[str, str]]

# --8<-- [start:headers]
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",  # aiohttp drops trailers, so none is announced
        b"transfer-encoding",
        b"upgrade",
    }
)
_NOT_TO_UPSTREAM = frozenset({b"host", b"expect", DEADLINE.lower().encode(), RETRIES.lower().encode()})


def _end_to_end(raw: Sequence[Raw], drop: frozenset[bytes] = frozenset()) -> Headers:
    """Return the headers for the other side: names, values, case and order as they came.

    Where a name comes again in another case, it takes the first one's: aiohttp would keep one of them.
    """
    drop |= HOP_BY_HOP | _named_by_connection(raw)
    spelt: dict[bytes, str] = {}
    return [
        (spelt.setdefault(name.lower(), name.decode()), value.decode())
        for name, value in raw
        if name.lower() not in drop
    ]


def _named_by_connection(raw: Iterable[Raw]) -> set[bytes]:
    values = [value for name, value in raw if name.lower() == b"connection"]
    return {option.strip(b" \t").lower() for value in values for option in value.split(b",")}


# --8<-- [end:headers]


def to_upstream(raw: Sequence[Raw], *, deadline: str) -> Headers:
    """Return the headers of an attempt; the deadline and RETRIES are set, and Via is added."""
    return [
        *_end_to_end(raw, _NOT_TO_UPSTREAM),
        (DEADLINE, deadline),
        (RETRIES, "0"),  # who is nearest to the caller retries: three layers of three would be 27
        ("Via", "1.1 ambassador"),
    ]


def answered(raw: Sequence[Raw]) -> Headers:
    """Return the headers of an answer. A length beside chunks is wrong: the chunks were read."""
    chunked = any(name.lower() == b"transfer-encoding" for name, _ in raw)
    return _end_to_end(raw, frozenset({b"content-length"}) if chunked else frozenset())


def asked(request: web.BaseRequest) -> tuple[str, str]:
    """Return the upstream's name and the target at it, byte for byte as it came.

    Raises:
        Refused: the target is no path, so it would be for the ambassador to say where it leads.
    """
    target = request.raw_path
    if not _TARGET.fullmatch(target):
        raise Refused(ProxyError.REQUEST, 400, "the target must be a path of visible ASCII, without #")
    name, rest = _SPLIT.fullmatch(target[1:]).groups()  # type: ignore[union-attr]  # it matches any text
    return name, rest if rest.startswith("/") else f"/{rest}"


# --8<-- [start:check]
def check(request: web.BaseRequest) -> None:
    """Refuse what two servers may read in two ways.

    Raises:
        Refused: with status 400, or 405 for a tunnel.
    """
    raw = request.raw_headers
    if request.method == "CONNECT":
        raise Refused(ProxyError.DENIED, 405, "CONNECT asks for a tunnel to any host; there is none")
    if request.version not in {(1, 0), (1, 1)}:
        raise Refused(ProxyError.REQUEST, 400, "only HTTP/1.0 and HTTP/1.1 are spoken here")
    codings = _values(raw, b"transfer-encoding")
    lengths = _values(raw, b"content-length")
    if codings and ([each.lower() for each in codings] != [b"chunked"] or request.version == (1, 0)):
        raise Refused(ProxyError.REQUEST, 400, "Transfer-Encoding must be chunked, once, in HTTP/1.1")
    if (codings and lengths) or len(lengths) > 1 or not all(each.isdigit() for each in lengths):
        raise Refused(ProxyError.REQUEST, 400, "the length of the body must be said once, in one way")
    if len(_values(raw, b"host")) > 1:
        raise Refused(ProxyError.REQUEST, 400, "there must be one Host")
    if unreadable(raw):
        raise Refused(ProxyError.REQUEST, 400, "a header is not UTF-8, and would be changed on the way")


# --8<-- [end:check]


def once(raw: Iterable[Raw], name: str) -> str | None:
    """Return the value of a header that may be there once; None if it is not there.

    Raises:
        Refused: it is there twice.
    """
    values = _values(raw, name.lower().encode())
    if len(values) > 1:
        raise Refused(ProxyError.REQUEST, 400, f"there must be one {name} at most")
    return values[0].decode("ascii", "replace") if values else None


def unreadable(raw: Iterable[Raw]) -> bool:
    """Whether aiohttp would change a header: it leaves out bytes that are not UTF-8, without a word."""
    try:
        for name, value in raw:
            name.decode()
            value.decode()
    except UnicodeDecodeError:
        return True
    return False


def _values(raw: Iterable[Raw], wanted: bytes) -> list[bytes]:
    return [value for name, value in raw if name.lower() == wanted]


_TARGET = re.compile(r"/[!-\"$-~]*")
_SPLIT = re.compile(r"([^/?]*)(.*)", re.DOTALL)
