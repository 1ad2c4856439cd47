"""The books of one fault: what was promised, what happened, and what the fault did to it.

The producer's side says how each piece of work ended for the caller: `acked` (done, as far as the caller
knows), `unsure` (the reply was lost: done once or not at all), `failed` (surely not done). The consumer's
side says `effect` each time the work shows. The books then tell:

- lost: acknowledged, and no effect;
- duplicated: effects beyond the first;
- unsure: ambiguous for the caller, whichever way it went.

A piece of work that failed for sure and shows an effect all the same breaks the books, as does a count
above its limit. So do books in which no fault was injected, or nothing was written: they prove nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["Broken", "Ledger"]


class Broken(AssertionError):
    """The books do not hold: something was lost or doubled beyond the limit, or nothing was tried."""


class Ledger:
    """The books of one fault of one pattern.

    Args:
        pattern: the key `category/name`.
        fault: what is injected, in words a reader knows.
        lost: the most that may be lost.
        duplicated: the most effects beyond the first of each.
        unsure: the most ambiguous answers; None sets no limit.
        within: the longest time in seconds from a fault to `recovered()`; None sets no limit.
        bound: what else the test asserts, one short clause for the reader.
        seed: what the run was seeded with.
    """

    def __init__(
        self,
        pattern: str,
        fault: str,
        *,
        lost: int = 0,
        duplicated: int = 0,
        unsure: int | None = None,
        within: float | None = None,
        bound: str = "",
        seed: int | None = None,
    ) -> None:
        self.pattern, self.fault, self.seed = pattern, fault, seed
        self.faults = 0
        self.closed = False
        self._most = {"lost": lost, "duplicated": duplicated, "unsure": unsure}
        self._within, self._bound = within, bound
        self._outcomes: dict[str, set[Hashable]] = {"acked": set(), "unsure": set(), "failed": set()}
        self._effects: Counter[Hashable] = Counter()
        self._held = ""
        self._naive: str | None = None
        self._without: tuple[str, Ledger] | None = None
        self._first = self._latest = self._end = 0.0
        self._recoveries: list[float] = []

    def injected(self, n: int = 1) -> None:
        """A fault has been injected, `n` times; the proxy says so by itself."""
        if n < 1:
            raise ValueError(f"n must be >= 1, got {n!r}: what was not injected is not counted")
        self._latest = time.monotonic()
        self._first = self._first or self._latest
        self.faults += n

    def recovered(self) -> None:
        """The service does right again: takes the time since the latest fault."""
        if not self.faults:
            raise ValueError("recovered() before injected(): there is nothing to recover from")
        self._recoveries.append(time.monotonic() - self._latest)

    def acked(self, work: Hashable) -> None:
        """The caller was told that `work` is done; also if it was unsure or failed before."""
        self._outcomes["acked"].add(work)

    def unsure(self, work: Hashable) -> None:
        """The caller got an ambiguous error: once or not at all."""
        self._outcomes["unsure"].add(work)

    def failed(self, work: Hashable) -> None:
        """The caller was told that `work` is surely not done."""
        self._outcomes["failed"].add(work)

    def effect(self, work: Hashable, n: int = 1) -> None:
        """The effect of `work` was seen, `n` times."""
        self._effects[work] += n

    def held(self, text: str) -> None:
        """Say what held, in one short clause: the table's answer to the fault."""
        self._held = text

    def naive(self, text: str) -> None:
        """Say what the variant without the pattern did under the same fault, with figures it just gave."""
        self._naive = text

    def without(self, name: str) -> Ledger:
        """Return books for the naive variant `name`; they must break the same limits, and fill the table."""
        twin = Ledger(self.pattern, self.fault, within=self._within)
        twin._most = self._most
        self._without = name, twin
        return twin

    @property
    def outcomes(self) -> dict[str, int]:
        """How many pieces of work ended how; one that was acknowledged in the end counts as that."""
        acked, unsure, failed = self._outcomes.values()
        return {"acked": len(acked), "unsure": len(unsure - acked), "failed": len(failed - unsure - acked)}

    @property
    def lost(self) -> int:
        """Acknowledged, and no effect."""
        return len([work for work in self._outcomes["acked"] if not self._effects[work]])

    @property
    def duplicated(self) -> int:
        """Effects beyond the first of each piece of work."""
        return sum(n - 1 for n in self._effects.values() if n > 1)

    @property
    def contradicted(self) -> int:
        """Failed for sure, and an effect all the same."""
        acked, unsure, failed = self._outcomes.values()
        return len([work for work in failed - unsure - acked if self._effects[work]])

    @property
    def seconds(self) -> float:
        """From the first fault until the books were closed."""
        return (self._end or time.monotonic()) - self._first if self.faults else 0.0

    @property
    def bound(self) -> str:
        """The limits in words."""
        words = [
            f"{'at most ' if most else ''}{most} {name}"
            for name, most in self._most.items()
            if most is not None
        ]
        words += [f"back within {self._within:g} s"] if self._within is not None else []
        return ", ".join([*words, self._bound] if self._bound else words)

    def __str__(self) -> str:
        return (
            f"{self.pattern} {self.fault}: {self.faults} injected, {self.lost} lost, "
            f"{self.duplicated} duplicated, {self.outcomes['unsure']} unsure, {self.seconds:.1f} s"
        )

    def row(self) -> dict[str, Any]:
        """Return the row of the results file."""
        naive = self._naive
        if self._without:
            name, books = self._without
            naive = f"{name}: {books.damage} ({books.faults} injected)"
        return {
            "fault": self.fault,
            "injected": self.faults,
            "lost": self.lost,
            "duplicated": self.duplicated,
            "unsure": self.outcomes["unsure"],
            "seconds": round(self.seconds, 2),
            "held": self._held,
            "bound": self.bound,
            "naive": naive,
        }

    @property
    def damage(self) -> str:
        """What was lost, doubled or contradicted, in words."""
        counts = {
            "lost": self.lost,
            "duplicated": self.duplicated,
            "done though reported failed": self.contradicted,
        }
        return ", ".join(f"{n} {word}" for word, n in counts.items() if n) or "nothing lost or duplicated"

    def check(self) -> None:
        """Raise Broken, naming every way in which the books do not hold."""
        wrong = []
        if not self.faults:
            wrong.append("nothing was injected")
        if not self._effects and not any(self._outcomes.values()):
            wrong.append("no work was entered")
        counts = {"lost": self.lost, "duplicated": self.duplicated, "unsure": self.outcomes["unsure"]}
        for name, most in self._most.items():
            if most is not None and counts[name] > most:
                wrong.append(f"{counts[name]} {name}, at most {most} allowed")
        if self.contradicted:
            wrong.append(f"{self.contradicted} failed for sure and yet done")
        if self._within is not None and not self._recoveries:
            wrong.append("recovered() was never called")
        if self._within is not None and max(self._recoveries, default=0) > self._within:
            wrong.append(f"{max(self._recoveries):.2f} s to recover, at most {self._within:g} s allowed")
        if wrong:
            raise Broken(f"{self}\n" + "; ".join(wrong))

    def close(self) -> None:
        """Print the line and check the books.

        Raises:
            Broken: they do not hold, nothing says what held, or the naive variant held as well.
        """
        self._end = time.monotonic()
        print(self)
        self.check()
        if not self._held:
            raise Broken(f"{self}\nheld() was not told what held")
        if self._without:
            name, books = self._without
            if not books.faults:
                raise Broken(f"{books}\nnothing was injected into {name}")
            try:
                books.check()
            except Broken:
                pass
            else:
                raise Broken(f"{books}\n{name} held as well: the test does not tell it from the pattern")
        self.closed = True
