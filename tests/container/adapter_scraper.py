"""Scrapes as Prometheus does: in process, and over HTTP from outside."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING, Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from patterns.container.adapter.endpoint import TIMEOUT_HEADER
from tests.container.adapter_ground import OPENMETRICS, Make, samples
from tests.eventually import eventually

if TYPE_CHECKING:
    from tests.faults.ledger import Ledger

__all__ = ["answers", "enter", "page_at", "ports", "scraped"]


async def scraped(make: Make, sources: list[Any], within: float, **options: Any) -> Any:
    """Scrape as Prometheus does: hang up after `within`, and take a page that does not parse for none."""
    adapter = make(sources, **options)
    asking = asyncio.ensure_future(adapter.scrape(within))
    done, _ = await asyncio.wait({asking}, timeout=within)
    if not done:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        return None
    await adapter.aclose()
    try:
        page = asking.result()
        for accept in ("", OPENMETRICS):
            samples(page, accept)
    except Exception:  # the exporter's 500, or what Prometheus says of a page that it cannot read
        return None
    return page


def enter(book: Ledger, number: int, page: Any, well: list[str], ill: list[str]) -> None:
    """Enter one scrape: what a target that is well says must be there, what one that is not said must not."""
    shown = (
        {each.labels.get("target") for each in samples(page) if each.name[:8] != "adapter_"} if page else ()
    )
    for target in well:
        book.acked((number, target))
    for target in ill:
        book.failed((number, target))
    for place in shown:
        book.effect((number, place))


def ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        for each in (one, two):
            each.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


async def page_at(port: int, within: float = 5.0) -> tuple[float, dict[str, float]]:
    """Scrape as Prometheus does; return how long it took, and the series by name, summed over labels."""
    began = time.monotonic()
    headers = {TIMEOUT_HEADER: f"{within:f}"}
    limit = aiohttp.ClientTimeout(total=within)
    async with (
        aiohttp.ClientSession(timeout=limit) as client,
        client.get(f"http://127.0.0.1:{port}/metrics", headers=headers) as answer,
    ):
        assert answer.status == 200
        text = await answer.text()
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for each in family.samples:
            key = f"{each.name} {each.labels.get('source', '')}".strip()
            found[key] = found.get(key, 0.0) + each.value
    return time.monotonic() - began, found


async def answers(port: int, **wanted: float) -> dict[str, float]:
    """Wait until a page says so."""

    async def page() -> dict[str, float] | None:
        try:
            _, found = await page_at(port)
        except (aiohttp.ClientError, AssertionError):
            return None
        return (
            found
            if all(found.get(name.replace("__", " ")) == value for name, value in wanted.items())
            else None
        )

    return await eventually(page, within=30) or {}
