"""The leases of one process in a shared bulkhead: takes, renews and gives them back; does without if it must.

A holder is `<lease in ms>:<random>`, one for each permit. Whoever takes one waits for the answer in a task of
its own, so that a caller who hangs up leaves no question behind whose answer nobody reads: what is granted to
nobody is given back, when it is known to be granted.

Where no answer comes, a request may still be on its way. What it may take is given back twice, the second
time with an exchange that begins after Redis has answered the first.
"""

from __future__ import annotations

import asyncio
import math
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

from redis.exceptions import RedisError

from patterns.events import Listener, emit
from patterns.resiliency.bulkhead import MOST, Bulkhead
from patterns.resiliency.bulkhead.events import PermitLost, SharingLost, SharingRegained
from patterns.resiliency.bulkhead.scripts import COUNT, GIVE_BACK, HOLD

if TYPE_CHECKING:
    from patterns.clock import Clock
    from patterns.keyspace import Client, Script

__all__ = ["Leases"]

_Answer: TypeAlias = "asyncio.Future[float | None]"


class Leases:
    """What this process has out; for tasks of one event loop.

    Args:
        name: the bulkhead's.
        client: where the leases are.
        key: the sorted set of all leases.
        limit: leases of all processes; may be changed.
        without_redis: permits of this process while Redis does not answer.
        lease: seconds.
        timeout: seconds that one exchange with Redis may take.
        clock: where durations are read and waited.
        on_event: hears PermitLost, SharingLost and SharingRegained.

    Attributes:
        alone: whether this process admits without Redis now.
        freed: set when a permit of this process came back.
    """

    def __init__(
        self,
        name: str,
        client: Client,
        key: str,
        *,
        limit: int,
        without_redis: int,
        lease: float,
        timeout: float,
        clock: Clock,
        on_event: Listener,
    ) -> None:
        self.limit = limit
        self.alone = False
        self.freed = asyncio.Event()
        self._name = name
        self._client = client
        self._key = key
        self._without_redis = without_redis
        self._lease = lease
        self._lease_ms = math.ceil(lease * 1000)
        self._timeout = timeout
        self._clock = clock
        self._now = clock.monotonic
        self._on_event = on_event
        # So many callers talk to Redis at once: a herd in front of the connections is not a silent Redis.
        self._talk = Bulkhead(name, limit=_TALKERS, max_waiting=MOST, max_wait=math.inf, clock=clock)
        self._asking: set[asyncio.Task[None]] = set()
        self._held: dict[str, float] = {}  # holder -> until when it surely is in the store
        self._uncounted: dict[str, bool] = {}  # holders without a lease -> whether one may be on its way
        self._owed: dict[str, float] = {}  # holder to give back -> when it has surely ended by itself
        self._doubtful: set[str] = set()  # those owed of which a request may be on its way: give back twice
        self._again: set[str] = set()  # those owed that have been given back once, and can wait
        self._ask_at = self._renew_at = -math.inf
        self._keeper: asyncio.Task[None] | None = None
        self._stirred = asyncio.Event()  # the keeper has something to do

    @property
    def out(self) -> int:
        """Permits that this process has out."""
        return len(self._held) + len(self._uncounted)

    async def count(self) -> int:
        """Count the leases of all processes; raises where Redis is down."""
        async with self._clock.timeout(self._timeout):
            return int(await COUNT(self._client, keys=[self._key]))

    # --8<-- [start:take]
    async def take(self) -> bool:
        """Take a permit from Redis, or from ourselves where Redis is silent; say whether there was one.

        A caller that is cancelled waits until the answer is in and what it granted is given back: as long as
        two exchanges at most.
        """
        if self.alone and self._now() < self._ask_at:
            return self._hold_alone()
        holder = f"{self._lease_ms}:{uuid.uuid4().hex}"
        answer: _Answer = asyncio.get_running_loop().create_future()
        asking = asyncio.create_task(self._ask(holder, answer))
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)
        try:
            ends = await answer
        except BaseException as error:
            unread = not answer.cancel() and not answer.cancelled() and not answer.exception()
            if unread and answer.result():  # it was granted in the moment in which the caller hung up
                self._owe(holder)
            if isinstance(error, asyncio.CancelledError):
                await asyncio.wait([asking])
                await self._give_back()
            raise
        if ends is None:
            return self._hold_alone()
        if ends:
            self._held[holder] = ends
            self._watch()
        return bool(ends)

    async def _ask(self, holder: str, answer: _Answer) -> None:
        """Answer until when there is a permit, 0 if there is none, None if Redis is silent."""
        try:
            ends = await self._ask_redis(holder, answer)
        except BaseException as error:
            self._owe(holder, doubtful=True)
            if isinstance(error, asyncio.CancelledError):  # the event loop is about to close
                answer.cancel()
                await self._give_back()
                raise
            if not answer.cancelled():
                answer.set_exception(error)
        else:
            if not answer.cancelled():
                answer.set_result(ends)
            elif ends:
                self._owe(holder)
                await self._give_back()
                self.freed.set()

    async def _ask_redis(self, holder: str, answer: _Answer) -> float | None:
        try:
            async with self._talk:
                sent = self._now()
                if answer.cancelled():
                    return 0.0
                if self.alone and sent < self._ask_at:
                    return None
                self._ask_at = sent + _RETRY_SECONDS  # while alone, one caller finds out if Redis is back
                (granted,) = await self._exchange(holder)
                return granted and sent + self._lease
        except _SILENCE as error:
            self._owe(holder, doubtful=True)
            self._lose(type(error).__name__)
            return None

    # --8<-- [end:take]

    def _hold_alone(self) -> bool:
        if self.out >= self._without_redis:
            return False
        self._uncounted[f"{self._lease_ms}:{uuid.uuid4().hex}"] = False
        self._watch()
        return True

    async def put(self) -> None:
        """Give a permit back; Redis need not answer."""
        # One that is not counted goes first, so that the store keeps counting the others.
        if self._uncounted:
            holder, on_its_way = self._uncounted.popitem()
            if on_its_way:
                self._owe(holder, doubtful=True)
        else:
            self._owe(self._held.popitem()[0], doubtful=self.alone)
        try:
            await self._give_back()
        finally:
            self.freed.set()
            if self._urgent or not self.out:
                self._stirred.set()  # the keeper gives back what was cut short, and ends with the last permit

    # --8<-- [start:keep]
    def _watch(self) -> None:
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.create_task(self._keep(), name=f"keeper of bulkhead {self._name}")

    async def _keep(self) -> None:
        """Renew what is held, and give back what is owed, until nothing is held."""
        self._renew_at = self._now() + self._lease / 3
        while self.out:
            now = self._now()
            if now >= self._renew_at or (self._urgent and not self.alone):
                await self._renew(now)
            else:
                self._stirred.clear()
                with suppress(TimeoutError):
                    async with self._clock.timeout(self._renew_at - now):
                        await self._stirred.wait()
            if not self.out and self._urgent:
                await self._give_back()

    async def _renew(self, sent: float) -> None:
        holders = [*self._held, *self._uncounted]
        answers: list[int] = []
        try:
            answers = await self._exchange(*holders)
            self._renew_at = sent + self._lease / 3
        except _SILENCE as error:
            self._lose(type(error).__name__)
            self._renew_at = self._now() + self._lease / 10
            for holder in holders:  # the request may still arrive
                if holder in self._uncounted:
                    self._uncounted[holder] = True
                elif holder not in self._held:  # given back while we asked
                    self._owe(holder, doubtful=True)
        for holder, kept in zip(holders, answers, strict=False):
            if holder in self._held or holder in self._uncounted:
                if kept:
                    self._uncounted.pop(holder, None)
                    self._held[holder] = sent + self._lease
                elif holder in self._held:
                    self._held[holder] = -math.inf
                else:
                    self._uncounted[holder] = False
            elif kept:  # it was given back while we asked, and may have been taken again after that
                self._owe(holder)
        now = self._now()
        for holder in [holder for holder, until in self._held.items() if until <= now]:
            del self._held[holder]
            self._uncounted[holder] = self.alone
            emit(self._on_event, PermitLost(self._name))

    # --8<-- [end:keep]

    @property
    def _urgent(self) -> bool:
        return len(self._owed) > len(self._again)

    def _owe(self, holder: str, *, doubtful: bool = False) -> None:
        now = self._now()
        self._owed = {holder: ends for holder, ends in self._owed.items() if ends > now}
        self._owed[holder] = now + 2 * self._lease
        self._doubtful &= self._owed.keys()
        self._again = (self._again & self._owed.keys()) - {holder}
        if doubtful:
            self._doubtful.add(holder)

    async def _give_back(self) -> None:
        """Give back what is owed; if Redis is silent, it goes with a later exchange or ends by itself."""
        async with self._talk:
            owed, doubtful = list(self._owed), self._doubtful.copy()  # of all who came meanwhile
            if not owed or self.alone:
                return
            try:
                await self._run(GIVE_BACK, *owed)
            except _SILENCE as error:
                self._lose(type(error).__name__)
            else:
                self._paid(owed, doubtful)

    async def _exchange(self, *holders: str) -> list[int]:
        """Give back what is owed, and take or renew `holders`; 1 for each that has a permit, else 0."""
        owed, doubtful = list(self._owed), self._doubtful.copy()
        answers: list[int] = await self._run(HOLD, self.limit, self._lease_ms, len(owed), *owed, *holders)
        self._paid(owed, doubtful)
        if self.alone:
            self.alone = False
            self.freed.set()
            emit(self._on_event, SharingRegained(self._name))
        return answers

    def _paid(self, owed: list[str], doubtful: set[str]) -> None:
        for holder in owed:
            if holder not in doubtful:
                self._owed.pop(holder, None)
        self._doubtful -= doubtful
        self._again = (self._again | doubtful) & self._owed.keys()

    async def _run(self, script: Script, *args: str | int) -> Any:
        """Run a script within the time-out; once more where its reply was lost, for that does no harm."""
        async with self._clock.timeout(self._timeout):
            try:
                return await script(self._client, keys=[self._key], args=args)
            except (RedisError, OSError):
                return await script(self._client, keys=[self._key], args=args)

    def _lose(self, error: str) -> None:
        self._ask_at = self._now() + _RETRY_SECONDS
        if not self.alone:
            self.alone = True
            emit(self._on_event, SharingLost(self._name, error))


_TALKERS = 8
_RETRY_SECONDS = 1.0  # how often a process that is alone looks for Redis

_SILENCE = (RedisError, OSError, TimeoutError)
