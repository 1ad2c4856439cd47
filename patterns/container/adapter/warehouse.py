r"""Adapts the warehouse: a report for people becomes families of samples.

>>> text = b"Warehouse 2.1\nStarted: 24.11.2026 06:00:00 GMT\nOrders picked: 1,204\nOldest waiting: 1m05s\n"
>>> for family in parsed(text + b"Waiting in zone N: 12\n"):
...     print(family.name, [(sample.value, dict(sample.labels)) for sample in family.samples])
warehouse_orders_picked [(1204.0, {})]
warehouse_oldest_waiting_seconds [(65.0, {})]
warehouse_orders_waiting [(12.0, {'zone': 'N'})]
"""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from patterns import bounds
from patterns.container.adapter.source import Family, Kind, Malformed

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Warehouse", "parsed"]

_LONGEST = 1 << 20  # bytes of a report
_END = b"\n.\n"


# --8<-- [start:warehouse]
class Warehouse:
    """The source, and its only target.

    Args:
        name: what the operator calls it.
        host: where it listens.
        port: where it listens.
    """

    def __init__(self, name: str, host: str, port: int) -> None:
        self._source = bounds.text("name", name)
        self._address = bounds.text("host", host), bounds.whole("port", port, at_least=1, at_most=65535)

    @property
    def name(self) -> str:
        """Its name as a source."""
        return self._source

    async def targets(self) -> Sequence[_Program]:
        """Return the one program."""
        return [_Program(*self._address)]


class _Program:
    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self.name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def collect(self) -> list[Family]:
        """Ask for a report on a connection of its own, and translate it."""
        reader, writer = await asyncio.open_connection(*self._address, limit=_LONGEST)
        try:
            writer.write(b"status\n")
            report = await reader.readuntil(_END)
        except asyncio.LimitOverrunError:
            raise Malformed(f"a report of more than {_LONGEST} bytes") from None
        finally:
            writer.transport.abort()  # nothing is owed to it, and closing politely may wait
        return parsed(report[: -len(_END) + 1])
        # --8<-- [end:warehouse]


def parsed(report: bytes) -> list[Family]:
    """Return the families of a report.

    Raises:
        Malformed: it is no report of the warehouse, or a line that is known cannot be read.
    """
    first, *lines = report.decode("utf-8", "replace").split("\n")
    if not first.startswith("Warehouse "):
        raise Malformed("not a report of the warehouse")
    said = [(key, text) for line in lines for key, colon, text in [line.rpartition(": ")] if colon]
    started = next((_moment(text) for key, text in said if key == "Started"), None)
    families: dict[str, Family] = {}
    for key, text in said:
        zone = key.removeprefix("Waiting in zone ") if key.startswith("Waiting in zone ") else None
        known = _KNOWN.get(key if zone is None else "Waiting in zone ")
        if known:  # a line that is new to us is no error: the program may grow
            name, kind, about = known
            value, labels = _amount(text), {} if zone is None else {"zone": zone}
            family = families.setdefault(name, Family(name, kind, about))
            family.add(value, labels, created=started if kind == "counter" else None)
    return list(families.values())


_KNOWN: dict[str, tuple[str, Kind, str]] = {
    "Orders picked": ("warehouse_orders_picked", "counter", "Orders taken off a list"),
    "Orders refused": ("warehouse_orders_refused", "counter", "Lines that were no order"),
    "Oldest waiting": ("warehouse_oldest_waiting_seconds", "gauge", "Age of the order that waits longest"),
    "Memory": ("warehouse_memory_bytes", "gauge", "Resident memory"),
    "Waiting in zone ": ("warehouse_orders_waiting", "gauge", "Orders on the list of a zone"),
}


def _amount(text: str) -> float:
    if number := re.fullmatch(r"([0-9]{1,3}(?:,[0-9]{3})*)( \[kB\])?", text, re.ASCII):
        return float(number[1].replace(",", "")) * (1024 if number[2] else 1)
    if duration := re.fullmatch(r"([0-9]{1,9})m([0-9]{2})s", text, re.ASCII):
        return float(duration[1]) * 60 + float(duration[2])
    raise Malformed("an amount that is none")


def _moment(text: str) -> float:
    try:
        return datetime.strptime(text, "%d.%m.%Y %H:%M:%S GMT").replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise Malformed("a start that is no time") from None
