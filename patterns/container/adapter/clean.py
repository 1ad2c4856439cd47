"""Makes valid series of whatever an application said: decides, and does no I/O.

Prometheus refuses a page as a whole: one bad name, one series twice, and every sample of it is lost. So each
series is cleaned or left out by itself, and what was left out is counted.

>>> from patterns.container.adapter import Family, Policy
>>> said = Family("Orders (today)", "counter", "Taken")
>>> _ = said.add(3, {"zone-name": "Nord"}).add(float("nan"), {"zone-name": "Süd"})
>>> cleaned, dropped = clean([said], Policy())
>>> [(family.name, family.series) for family in cleaned]
[('Orders_today', {(('zone_name', 'Nord'),): (3.0, None)})]
>>> dropped
Counter({<Dropped.VALUE: 'value'>: 1})
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from patterns.container.adapter.events import Dropped

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from patterns.container.adapter.policy import Policy
    from patterns.container.adapter.source import Family, Kind, Sample

__all__ = ["OWN", "Cleaned", "Labels", "clean", "fair_shares", "label_value", "names_of", "without_clashes"]

OWN = "adapter_"  # families of the adapter itself
_PLACED = ("source", "target")  # labels that the adapter sets
_LONGEST_NAME = 200

Labels: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Cleaned:
    """A family that can be written; of each series the value and when it was created."""

    name: str
    kind: Kind
    help: str
    series: dict[Labels, tuple[float, float | None]] = field(default_factory=dict)


# --8<-- [start:clean]
def clean(families: Iterable[Family], policy: Policy) -> tuple[list[Cleaned], Counter[Dropped]]:
    """Return the families of one target that can be written, and how many series were dropped for what."""
    found: dict[str, Cleaned] = {}
    dropped: Counter[Dropped] = Counter()
    room = policy.series  # no page can hold more, so no more are looked at
    for family in families:
        samples, room = family.samples[:room], room - min(room, len(family.samples))
        dropped[Dropped.TOTAL] += len(family.samples) - len(samples)
        name = _name(family)
        if not name or name.startswith(OWN):
            dropped[Dropped.RESERVED if name else Dropped.NAME] += len(samples)
            continue
        into = found.setdefault(name, Cleaned(name, family.kind, _help(family.help, name)))
        if into.kind != family.kind:
            dropped[Dropped.CONFLICT] += len(samples)
            continue
        for sample in samples:
            why = _put(sample, into, policy)
            if why:
                dropped[why] += 1
    return [family for family in found.values() if family.series], +dropped
    # --8<-- [end:clean]


def _put(sample: Sample, into: Cleaned, policy: Policy) -> Dropped | None:
    value = _value(sample.value, into.kind)
    if value is None:
        return Dropped.VALUE
    labels = _labels(sample.labels, policy.longest_label)
    if labels is None:
        return Dropped.LABELS
    if labels in into.series:
        return Dropped.DUPLICATE
    if len(into.series) >= policy.family_series:
        return Dropped.FAMILY
    created = _number(sample.created) if into.kind == "counter" else None
    into.series[labels] = value, created if created and math.isfinite(created) and created > 0 else None
    return None


def without_clashes(
    answers: Sequence[list[Cleaned]],
) -> tuple[list[list[Cleaned]], list[Counter[Dropped]]]:
    """Leave out families whose names, as they are written, belong to another: the first come keep theirs."""
    owner: dict[str, tuple[str, Kind]] = {}
    kept: list[list[Cleaned]] = []
    dropped: list[Counter[Dropped]] = []
    for families in answers:
        kept.append([])
        dropped.append(Counter())
        for family in families:
            mine = family.name, family.kind
            names = names_of(family)
            if all(owner.get(name, mine) == mine for name in names):
                owner.update(dict.fromkeys(names, mine))
                kept[-1].append(family)
            else:
                dropped[-1][Dropped.CONFLICT] += len(family.series)
    return kept, dropped


def names_of(family: Cleaned) -> list[str]:
    """Return the names under which a family's samples and descriptions are written, in either format."""
    if family.kind == "gauge":
        return [family.name]
    return [family.name, f"{family.name}_total", f"{family.name}_created"]


def fair_shares(wanted: Sequence[int], total: int) -> list[int]:
    """Share `total` out: who wants little gets it, the others get the same each.

    >>> fair_shares([10, 9_000, 500], 1_000)
    [10, 495, 495]
    """
    shares = [0] * len(wanted)
    waiting = sorted(range(len(wanted)), key=lambda index: wanted[index])
    while waiting:
        index = waiting.pop(0)
        shares[index] = min(wanted[index], total // (len(waiting) + 1))
        total -= shares[index]
    return shares


def label_value(value: object, longest: int) -> str:
    """Return text that every parser takes: valid UTF-8 without control characters, cut to `longest`."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    if len(text) <= longest and text.isascii() and text.isprintable():
        return text
    text = text[:longest].encode("utf-8", "replace").decode()
    return _CONTROL.sub("�", text)


def _name(family: Family) -> str:
    name = str(family.name)[:_LONGEST_NAME]
    name = _NOT_IN_NAMES.sub("_", name).strip("_")
    while family.kind == "counter" and name.endswith("_total"):
        name = name.removesuffix("_total").rstrip("_")
    return f"_{name}" if name[:1].isdigit() else name


def _help(text: object, name: str) -> str:
    # A backslash or a quote in it is where the parsers of the two formats differ.
    return re.sub(r'[\\"]', "'", label_value(text, 200)).strip() or name


def _labels(labels: object, longest: int) -> Labels | None:
    if not isinstance(labels, Mapping):
        return None
    found: dict[str, str] = {}
    try:
        for raw_name, raw_value in labels.items():
            name = _label_name(str(raw_name)[:_LONGEST_NAME])
            value = label_value(raw_value, longest)
            if name in found:
                return None
            found[name] = value
    except Exception:  # the text of a foreign object may raise anything
        return None
    return tuple(sorted((name, value) for name, value in found.items() if value))  # "" is as if it were not


@lru_cache(maxsize=1024)
def _label_name(raw: str) -> str:
    name = _NOT_IN_NAMES.sub("_", raw).strip("_") or "_"
    name = f"_{name}" if name[0].isdigit() else name
    return f"exported_{name}" if name in _PLACED else name  # as Prometheus does


def _value(value: object, kind: Kind) -> float | None:
    number = _number(value)
    if number is None or (kind == "counter" and not 0 <= number < math.inf):
        return None
    return number


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # an int of more than 308 digits
        return None


_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
