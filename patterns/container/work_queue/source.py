"""Where the items come from: the one interface that every source container serves.

- `GET /api/v1/items`               -> `{"items": ["name", ...]}`; with `"next": "cursor"` there is more
- `GET /api/v1/items?after=cursor`  -> the next page
- `GET /api/v1/items/<name>`        -> the bytes of one item; 404 if it is gone

A name in a path is percent-encoded down to letters, digits, `-` and `_`: it may be "..", or hold a slash.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

from patterns.clock import SYSTEM_CLOCK, Clock

try:
    import aiohttp
    from yarl import URL
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"patterns.container.work_queue needs {error.name}: pip install executable-patterns[container]"
    ) from error

__all__ = ["HttpSource", "ItemTooLarge", "ItemVanished", "Page", "Source", "SourceFailed", "name_problem"]

LONGEST_NAME = 1024  # bytes of UTF-8


class SourceFailed(Exception):
    """The source did not answer, or not as agreed.

    Attributes:
        what: the request, and what was wrong with the answer.
    """

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class ItemVanished(Exception):
    """The source has no such item; it may have been taken away since it was listed.

    Attributes:
        item: its name.
    """

    def __init__(self, item: str) -> None:
        super().__init__(f"the source has no item {item[:100]!r}")
        self.item = item


class ItemTooLarge(Exception):
    """The item has more bytes than a worker takes.

    Attributes:
        item: its name.
        limit: bytes that are taken.
    """

    def __init__(self, item: str, limit: int) -> None:
        super().__init__(f"item {item[:100]!r} has more than {limit} bytes")
        self.item = item
        self.limit = limit

    def __reduce__(self) -> tuple[type[ItemTooLarge], tuple[str, int]]:
        return type(self), (self.item, self.limit)


@dataclass(frozen=True, slots=True)
class Page:
    """A part of the list.

    Attributes:
        items: what is listed, as it came; `name_problem` tells what is no name.
        next: the cursor of the next page; None if this was the last.
    """

    items: list[Any]
    next: str | None = None


class Source(Protocol):
    """What manager and worker ask of a source."""

    async def page(self, after: str | None) -> Page:
        """Return the first page of the list, or the one after a cursor; SourceFailed if there is none."""
        ...

    async def get(self, item: str) -> bytes:
        """Return one item; ItemVanished, ItemTooLarge or SourceFailed if that cannot be."""
        ...


class HttpSource:
    """A source container, asked over HTTP.

    Args:
        url: its address, without a path.
        session: opened and closed by the caller.
        timeout: seconds that one answer may take.
        largest_item: bytes of an item that are taken.
        largest_page: bytes of a page that are taken.
        clock: where the timeout is counted.
    """

    def __init__(
        self,
        url: str,
        session: aiohttp.ClientSession,
        *,
        timeout: float = 10.0,
        largest_item: int = 16_777_216,
        largest_page: int = 16_777_216,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._items = url.rstrip("/") + "/api/v1/items"
        self._session = session
        self._timeout = timeout
        self._largest_item = largest_item
        self._largest_page = largest_page
        self._clock = clock

    async def page(self, after: str | None) -> Page:
        """Return one page of the list."""
        query = "" if after is None else f"?after={quote(after, safe='')}"
        status, body = await self._ask(f"{self._items}{query}", self._largest_page)
        if status != 200:
            raise SourceFailed(f"the list: status {status}")
        if body is None:
            raise SourceFailed(f"the list: a page of more than {self._largest_page} bytes")
        return _page(body)

    async def get(self, item: str) -> bytes:
        """Return the bytes of one item."""
        status, body = await self._ask(f"{self._items}/{_encoded(item)}", self._largest_item)
        if status in {404, 410}:
            raise ItemVanished(item)
        if status != 200:
            raise SourceFailed(f"item {item[:100]!r}: status {status}")
        if body is None:
            raise ItemTooLarge(item, self._largest_item)
        return body

    async def _ask(self, url: str, most: int) -> tuple[int, bytes | None]:
        """Return status and body; None for one of more than `most` bytes."""
        try:
            async with (
                self._clock.timeout(self._timeout),
                # encoded: yarl would decode what need not be escaped, and resolve a ".."
                self._session.get(URL(url, encoded=True), allow_redirects=False) as answer,
            ):
                body = bytearray()
                async for chunk in answer.content.iter_chunked(65_536):
                    body += chunk
                    if len(body) > most:
                        answer.close()
                        return answer.status, None
                return answer.status, bytes(body)
        except TimeoutError:
            raise SourceFailed(f"no answer within {self._timeout:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise SourceFailed(f"{type(error).__name__}: {error}"[:300]) from error


def name_problem(name: object) -> str | None:
    """Return why something listed is no name, or None if it is one."""
    if not isinstance(name, str):
        return f"{type(name).__name__} instead of text"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "not text that UTF-8 can hold"
    if not 0 < size <= LONGEST_NAME:
        return f"{size} bytes, 1 to {LONGEST_NAME} are allowed"
    return None


def _page(body: bytes) -> Page:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise SourceFailed("the list: not JSON") from None
    if not isinstance(answer, dict) or not isinstance(answer.get("items"), list):
        raise SourceFailed('the list: not {"items": [...]}')
    cursor = answer.get("next")
    if cursor is not None and (not isinstance(cursor, str) or name_problem(cursor)):
        raise SourceFailed("the list: `next` is not a text of 1 to 1024 bytes")
    return Page(answer["items"], cursor)


def _encoded(name: str) -> str:
    return "".join(
        chr(byte) if (byte < 128 and chr(byte).isalnum()) or byte in b"-_" else f"%{byte:02X}"
        for byte in name.encode()
    )
