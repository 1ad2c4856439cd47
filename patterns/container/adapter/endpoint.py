"""The adapter's side of HTTP, for patterns.serving.

- `/metrics`: the page, in the format that the scraper prefers; 400 for a time-out that is none.
- `/healthz`: 200 if every target answers, else 503; either way a JSON object of each one's state.
- `/livez`: 200; of the adapter itself, which is alive when all applications are dead.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from patterns.container.adapter import Adapter

__all__ = ["TIMEOUT_HEADER", "application", "seconds_in"]

TIMEOUT_HEADER = "X-Prometheus-Scrape-Timeout-Seconds"


# --8<-- [start:application]
def application(adapter: Adapter) -> web.Application:
    """Return what `patterns.serving` serves; it closes the adapter at its end."""

    async def metrics(request: web.Request) -> web.Response:
        try:
            within = seconds_in(request.headers.get(TIMEOUT_HEADER))
        except ValueError as error:
            return web.Response(status=400, text=f"{error}\n")
        page = await adapter.scrape(within)
        body, content_type = page.encode(request.headers.get("Accept", ""))
        response = web.Response(body=body, headers={"Content-Type": content_type})
        response.enable_compression()
        return response

    async def healthz(_: web.Request) -> web.Response:
        page = await adapter.scrape()
        found: dict[str, dict[str, bool]] = {}
        for outcome in page.outcomes:
            found.setdefault(outcome.source, {})[outcome.target] = outcome.up
        return web.json_response({"up": page.up, "sources": found}, status=200 if page.up else 503)

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="alive")

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics), web.get("/healthz", healthz), web.get("/livez", livez)])

    async def close(_: web.Application) -> None:
        await adapter.aclose()

    app.on_cleanup.append(close)
    return app
    # --8<-- [end:application]


def seconds_in(header: str | None) -> float | None:
    """Return the seconds that the scraper waits; None if it does not say.

    Raises:
        ValueError: they are no decimal number > 0. NaN, a sign and an exponent are none.
    """
    if header is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", header, re.ASCII) or not float(header) > 0:
        raise ValueError(
            f"{TIMEOUT_HEADER} must be a decimal number of seconds > 0, got {header.encode()[:40]!r}"
        )
    return float(header)
