"""The manager's HTTP side: health, and the queue in numbers for people, Prometheus and an autoscaler."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from redis.exceptions import RedisError

from patterns.clock import SYSTEM_CLOCK, Clock

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.core import Metric

    from patterns.container.work_queue.scaling import Scaler
    from patterns.container.work_queue.state import State, Status

__all__ = ["metrics_app"]


def metrics_app(
    state: State, scaler: Scaler, *, request: float = 2.0, clock: Clock = SYSTEM_CLOCK
) -> web.Application:
    """Serve `/livez`, `/status` (JSON) and `/metrics` of one queue; 503 while Redis does not answer."""

    async def now() -> Status:
        try:
            async with clock.timeout(request):
                return await state.status()
        except (RedisError, OSError, TimeoutError) as error:
            raise web.HTTPServiceUnavailable(text=f"{type(error).__name__}") from error

    async def alive(_: web.Request) -> web.Response:
        return web.Response(text="alive")

    async def status(_: web.Request) -> web.Response:
        return web.json_response(asdict(await now()))

    async def metrics(_: web.Request) -> web.Response:
        found = await now()
        registry = CollectorRegistry()
        registry.register(_Numbers(state.queue, found, scaler.workers(found, clock.monotonic())))
        return web.Response(body=generate_latest(registry), content_type="text/plain", charset="utf-8")

    app = web.Application()
    app.router.add_get("/livez", alive)
    app.router.add_get("/status", status)
    app.router.add_get("/metrics", metrics)
    return app


class _Numbers:
    """One scrape."""

    def __init__(self, queue: str, status: Status, wanted: int) -> None:
        self._queue = queue
        self._status = status
        self._wanted = wanted

    def collect(self) -> Iterable[Metric]:
        """Give every metric of the queue."""
        status = self._status
        items = GaugeMetricFamily("work_queue_items", "Items by state.", labels=["queue", "state"])
        for name in ("ready", "delayed", "running", "done", "failed"):
            items.add_metric([self._queue, name], getattr(status, name))
        yield items
        gauges = {
            "work_queue_oldest_seconds": ("Age of the first item that waits.", status.oldest_seconds),
            "work_queue_workers_wanted": ("Workers that the scaling rule asks for.", self._wanted),
        }
        counters = {
            "work_queue_created": ("Jobs created.", status.created),
            "work_queue_finished": ("Attempts reported.", status.finished),
            "work_queue_busy_seconds": ("Time that those took.", status.busy_seconds),
        }
        for name, (text, value) in gauges.items():
            gauge = GaugeMetricFamily(name, text, labels=["queue"])
            gauge.add_metric([self._queue], value)
            yield gauge
        for name, (text, value) in counters.items():
            counter = CounterMetricFamily(name, text, labels=["queue"])
            counter.add_metric([self._queue], value)
            yield counter
