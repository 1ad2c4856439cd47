"""Measure several ways of doing one thing in one run, so that their ratios can be trusted.

Only ratios within a run mean anything: the cases of a round run back to back in shuffled order, and the first
round is dropped. A value is the lower quartile over the rounds; a ratio is the median of the rounds' own
ratios, so that a machine whose speed drifts does not matter. Below about 30 % a difference is noise.
"""

from __future__ import annotations

import asyncio
import gc
import math
import random
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

__all__ = ["SEED", "Case", "Row", "row", "time_async", "time_sync"]

SEED = 20261124

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One way of doing it.

    Attributes:
        name: what the reader sees.
        call: does it once.
        ours: True for this handbook's module.
        baseline: True for the one case that ratios refer to.
        note: what the reader must know about this peer.
    """

    name: str
    call: Callable[[], Any]
    ours: bool = False
    baseline: bool = False
    note: str | None = None


async def time_async(
    cases: Sequence[Case], *, rounds: int = 41, calls: int = 500, cpu: bool = True
) -> list[Row]:
    """Time async calls; nanoseconds each, of this thread's CPU, or of the wall for network work."""

    async def slice_of(call: Callable[[], Awaitable[object]]) -> float:
        began = _now(cpu=cpu)
        for _ in range(calls):
            await call()
        return (_now(cpu=cpu) - began) / calls

    samples: dict[str, list[float]] = {case.name: [] for case in cases}
    rng = random.Random(SEED)
    for number in range(rounds + 1):
        for case in rng.sample(list(cases), len(cases)):
            gc.collect()
            gc.disable()
            try:
                seconds = await slice_of(case.call)
            finally:
                gc.enable()
            if number:
                samples[case.name].append(seconds * 1e9)
        await asyncio.sleep(0)
    return _rows(cases, samples, rounds * calls)


def time_sync(cases: Sequence[Case], *, rounds: int = 41, calls: int = 1000) -> list[Row]:
    """Time plain calls; nanoseconds of this thread's CPU each."""
    samples: dict[str, list[float]] = {case.name: [] for case in cases}
    rng = random.Random(SEED)
    for number in range(rounds + 1):
        for case in rng.sample(list(cases), len(cases)):
            call = case.call
            gc.collect()
            gc.disable()
            began = time.thread_time()
            for _ in range(calls):
                call()
            seconds = (time.thread_time() - began) / calls
            gc.enable()
            if number:
                samples[case.name].append(seconds * 1e9)
    return _rows(cases, samples, rounds * calls)


def row(
    case: str,
    value: float,
    unit: str,
    *,
    n: int,
    baseline_value: float,
    ours: bool = False,
    baseline: bool = False,
    note: str | None = None,
) -> Row:
    """Return one line of a benchmark's results; the ratio is to `baseline_value`."""
    ratio = value / baseline_value if baseline_value else math.nan
    return {
        "case": case,
        "ours": ours,
        "baseline": baseline,
        "value": float(f"{value:.4g}"),
        "unit": unit,
        "ratio": float(f"{ratio:.3g}"),
        "n": n,
        "note": note,
    }


def _rows(cases: Sequence[Case], samples: dict[str, list[float]], n: int) -> list[Row]:
    (base,) = (samples[case.name] for case in cases if case.baseline)
    rows = []
    for case in cases:
        times = samples[case.name]
        found = row(
            case.name,
            statistics.quantiles(times, n=4)[0],
            "ns",
            n=n,
            baseline_value=1.0,
            ours=case.ours,
            baseline=case.baseline,
            note=case.note,
        )
        ratio = statistics.median(time / other for time, other in zip(times, base, strict=True))
        rows.append(found | {"ratio": float(f"{ratio:.3g}")})
    return rows


def _now(*, cpu: bool) -> float:
    return time.thread_time() if cpu else time.perf_counter()
