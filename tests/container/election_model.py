"""A lease in memory on virtual time, and a machine that tries every order of messages between candidates."""

from __future__ import annotations

import asyncio
import itertools
import math
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from patterns.clock import ManualClock
from patterns.container.leader_election import Granted, Policy, Refused, Term
from patterns.keyspace import OutcomeUnknown

__all__ = ["SLOW", "MemoryLease", "Overlapping"]

SLOW = Policy()


class MemoryLease:
    """A lease in memory, on a clock that a test moves; it can be slow, down, silent, or lose its replies."""

    name = "report"
    wait_seconds = 0.0

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.holder, self.token, self.fence, self.ends = "", 0, 0, -math.inf
        self.requests: list[tuple[float, str]] = []
        self.reply_after = 0.0
        self.down = self.silent = False
        self.lose_replies = 0

    async def acquire(self, holder: str, milliseconds: int, floor: int) -> Granted | Refused:
        answer = self._acquire(holder, milliseconds, floor) if self._heard("acquire") else None
        await self._reply()
        assert answer is not None
        return answer

    async def renew(self, holder: str, milliseconds: int) -> bool:
        mine = self._heard("renew") and self._current() == holder
        if mine:
            self.ends = self.clock.monotonic() + milliseconds / 1000
        await self._reply()
        return mine

    async def release(self, holder: str) -> bool:
        mine = self._heard("release") and self._current() == holder
        if mine:
            self.ends = -math.inf
        await self._reply()
        return mine

    def _heard(self, request: str) -> bool:
        self.requests.append((self.clock.monotonic(), request))
        return not (self.down or self.silent)

    def _current(self) -> str:
        return self.holder if self.clock.monotonic() < self.ends else ""

    def _acquire(self, holder: str, milliseconds: int, floor: int) -> Granted | Refused:
        now = self.clock.monotonic()
        before = self._current()
        if before not in {"", holder}:
            return Refused(self.holder, self.ends - now)
        if before == "" or self.token <= floor:
            self.token = self.fence = max(self.fence, floor) + 1
        if before == "":
            self.holder, self.ends = holder, now + milliseconds / 1000
        return Granted(self.token)

    async def _reply(self) -> None:
        if self.down:
            raise ConnectionError("refused")
        if self.silent:
            await asyncio.Event().wait()
        await self.clock.sleep(self.reply_after)
        if self.lose_replies:
            self.lose_replies -= 1
            raise OutcomeUnknown("EVALSHA", "the reply was lost")


class Overlapping(RuleBasedStateMachine):
    """Three candidates whose clocks run at different rates, a store, and messages that take their time."""

    make_term: Any = Term

    @initialize(rates=st.permutations([0.991, 1.0, 1.009]))
    def begin(self, rates: list[float]) -> None:
        self.time = ManualClock()
        self.store = MemoryLease(self.time)
        self.rates = rates
        self.clocks = [ManualClock(start=1000.0 * number) for number in range(3)]
        self.terms: list[Term | None] = [None] * 3
        self.sent: list[float | None] = [None] * 3
        self.asked: list[float | None] = [None] * 3  # the first try to acquire that has had no answer
        self.answer: list[Granted | Refused | bool | None] = [None] * 3
        self.holders = itertools.count()
        self.names = ["", "", ""]

    @rule(who=st.integers(0, 2))
    def send(self, who: int) -> None:
        """Send a request: to renew, if the term is valid, else to acquire."""
        if self.sent[who] is None:
            term = self.terms[who]
            if term is not None and not term.valid:
                self.terms[who] = None
            now = self.sent[who] = self.clocks[who].monotonic()
            asked = self.asked[who]
            if self.terms[who] is None and (asked is None or now - asked >= SLOW.renew_deadline):
                self.asked[who], self.names[who] = now, f"{who}/{next(self.holders)}"

    @rule(who=st.integers(0, 2))
    def arrive(self, who: int) -> None:
        """Let the store carry out a request."""
        if self.sent[who] is not None and self.answer[who] is None:
            if self.terms[who] is None:
                self.answer[who] = self.store._acquire(self.names[who], SLOW.lease_ms, 0)
            else:
                mine = self.store._current() == self.names[who]
                self.answer[who] = mine
                if mine:
                    self.store.ends = self.time.monotonic() + SLOW.lease_duration

    @rule(who=st.integers(0, 2))
    def reply(self, who: int) -> None:
        """Let the reply reach the candidate."""
        sent, answer, term = self.sent[who], self.answer[who], self.terms[who]
        if sent is None or answer is None:
            return
        if isinstance(answer, Granted):
            clock, asked = self.clocks[who], self.asked[who]
            self.terms[who] = self.make_term(
                "report", self.names[who], answer.token, policy=SLOW, clock=clock, sent=asked
            )
        if isinstance(answer, Granted | Refused):
            self.asked[who] = None
        elif term is not None and answer is True:
            term.renewed(sent)
        elif term is not None:
            term.end()
        self.sent[who] = self.answer[who] = None

    @rule(who=st.integers(0, 2))
    def exchange(self, who: int) -> None:
        """Do all three in no time."""
        self.exchange_slowly(who, 0.0)

    @rule(who=st.integers(0, 2), seconds=st.sampled_from([0.2, 1.0, 3.0]))
    def exchange_slowly(self, who: int, seconds: float) -> None:
        """Send a request, and let the reply take its time."""
        self.send(who)
        self.arrive(who)
        self.wait(seconds)
        self.reply(who)

    @rule(who=st.integers(0, 2))
    def lose(self, who: int) -> None:
        """Lose a request or its reply."""
        self.sent[who] = self.answer[who] = None

    @rule(seconds=st.sampled_from([0.2, 3.0, 10.0]))
    def wait(self, seconds: float) -> None:
        """Let time pass, for each at its own rate."""
        self.time.jump(seconds)
        for clock, rate in zip(self.clocks, self.rates, strict=True):
            clock.jump(seconds * rate)

    @rule(who=st.integers(0, 2))
    def take_over(self, who: int) -> None:
        """Ask in the very moment in which the store frees the lease."""
        if self.store._current():
            self.wait(self.store.ends - self.time.monotonic())
        self.exchange_slowly(who, 0.0)

    @invariant()
    def one_valid_term(self) -> None:
        if hasattr(self, "terms"):
            valid = [term.token for term in self.terms if term is not None and term.valid]
            assert len(valid) <= 1, f"{len(valid)} terms are valid at one time"
