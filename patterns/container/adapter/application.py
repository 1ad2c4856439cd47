"""A legacy application, from before anybody spoke Prometheus: it keeps a warehouse, and reports to people.

One line in over TCP, an answer out that ends with a line of one dot: `status` reports, `order ZONE` puts an
order on that zone's list, `pick ZONE` takes the oldest off. Nobody dares to change it; it imports nothing of
the patterns.

Environment: PORT; HOST (127.0.0.1); ORDERS, orders to begin with.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections import deque
from datetime import UTC, datetime

__all__ = ["Floor", "main"]


class Floor:
    """Orders that wait, by zone."""

    def __init__(self) -> None:
        self.started = datetime.now(UTC)
        self.zones: dict[str, deque[datetime]] = {}
        self.picked = self.refused = 0

    def answer(self, line: str) -> str:
        """Return what the program says to one line."""
        verb, _, zone = line.strip().partition(" ")
        if verb == "status":
            return self.report()
        if verb == "order" and zone:
            self.zones.setdefault(zone, deque()).append(datetime.now(UTC))
            return "OK"
        if verb == "pick" and self.zones.get(zone):
            self.zones[zone].popleft()
            self.picked += 1
            return "OK"
        self.refused += 1
        return "WHAT?"

    # --8<-- [start:report]
    def report(self) -> str:
        """Return the report, as people like it: thousands with commas, times in words, units in brackets."""
        waiting = [orders[0] for orders in self.zones.values() if orders]
        now = datetime.now(UTC)
        minutes, seconds = divmod(int((now - min(waiting, default=now)).total_seconds()), 60)
        lines = [
            "Warehouse 2.1",
            f"Started: {self.started:%d.%m.%Y %H:%M:%S} GMT",
            f"Orders picked: {self.picked:,}",
            f"Orders refused: {self.refused:,}",
            f"Oldest waiting: {minutes}m{seconds:02}s",
            f"Memory: {_kilobytes():,} [kB]",
            *(f"Waiting in zone {zone}: {len(orders):,}" for zone, orders in self.zones.items()),
        ]
        return "\n".join(lines)

    # --8<-- [end:report]


def _kilobytes() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
    except OSError:
        return 0


async def main() -> None:
    """Serve until told to stop."""
    told = asyncio.Event()
    for told_by in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(told_by, told.set)
    floor = Floor()
    for number in range(int(os.environ.get("ORDERS", "0"))):
        floor.answer(f"order {'NSEW'[number % 4]}")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(f"{floor.answer(line.decode('utf-8', 'replace'))}\n.\n".encode())
                await writer.drain()
        except (OSError, ValueError):  # hung up, or a line of more than 64 KiB
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, os.environ.get("HOST", "127.0.0.1"), int(os.environ["PORT"]))
    logging.info("open on port %d, pid %d", server.sockets[0].getsockname()[1], os.getpid())
    await told.wait()
    server.close()


if __name__ == "__main__":
    if not os.environ.get("PORT", "").isdigit():
        sys.exit("warehouse: the environment variable PORT must be set")
    logging.basicConfig(level=logging.INFO, format="warehouse: %(message)s")
    asyncio.run(main())
