"""The proof of patterns/container/leader_election: each invariant, and a naive variant that breaks it."""

from __future__ import annotations

import asyncio
import math
import os
import pickle
import random
import signal
import sqlite3
from collections import Counter
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from patterns.clock import ManualClock
from patterns.container.leader_election import (
    Candidate,
    FencedDatabase,
    Granted,
    LeaderObserved,
    LeadershipLost,
    LeaseRenewed,
    NotReplicated,
    Policy,
    Reason,
    RedisLease,
    Refused,
    Request,
    RequestFailed,
    StaleToken,
    StartedLeading,
    StoppedLeading,
    Term,
)
from patterns.container.leader_election.__main__ import main
from patterns.embedded import Cluster, NoFakeTime, Server
from patterns.events import Recorder
from patterns.keyspace import Client, Keyspace, OutcomeUnknown, opened
from tests.container import paused_leader
from tests.container.election_model import SLOW, MemoryLease, Overlapping
from tests.eventually import eventually
from tests.faults import proxy
from tests.faults.leaks import immortal_keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator

    from tests.faults import Ledger, Worker
    from tests.pods import Pod, Pods

Make = Any  # the class that is proved, or a naive variant with the same constructor

FAST = Policy(lease_duration=0.5, renew_deadline=0.25, retry_period=0.1)
LONG = Policy(lease_duration=10, renew_deadline=5, retry_period=0.1)  # nobody waits for it to run out
SLACK = 1.0  # seconds that a busy machine may add to a bound of real time
PROCESS = "patterns.container.leader_election"


async def forever(term: Term) -> None:
    """Work that ends only when it is cancelled."""
    await asyncio.Event().wait()


async def at_once(term: Term) -> int:
    """Work that ends at once."""
    return term.token


@asynccontextmanager
async def running(
    candidate: Candidate, work: Callable[[Term], Awaitable[Any]] = forever
) -> AsyncIterator[Any]:
    """Let a candidate run beside the block, and end it; what then waits for our clock is cancelled again."""
    task = asyncio.create_task(candidate.run(work))
    try:
        yield task
    finally:
        while not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=0.1)
        await asyncio.gather(task, return_exceptions=True)


@contextmanager
def a_database(path: Path) -> Iterator[FencedDatabase]:
    """Open a database with a register that holds one value."""
    database = FencedDatabase(path, "CREATE TABLE IF NOT EXISTS register (value)")
    with sqlite3.connect(path) as sql:
        if not sql.execute("SELECT count(*) FROM register").fetchone()[0]:
            sql.execute("INSERT INTO register VALUES ('nothing')")
    sql.close()
    try:
        yield database
    finally:
        database.close()


def write(database: FencedDatabase, term: Term, value: object) -> None:
    """Write to the register as the holder of a term."""
    with database.transaction(term.token, term.holder) as sql:
        sql.execute("UPDATE register SET value = ?", (value,))


def register(path: Path) -> str:
    """Read the register."""
    sql = sqlite3.connect(path)
    value = sql.execute("SELECT value FROM register").fetchone()[0]
    sql.close()
    return str(value)


def lease_key(app: str, name: str = "report") -> str:
    """Return where RedisLease keeps the lease."""
    return Keyspace(app, "leader_election").key(name, "lease")


# 1: the holder's own clock


async def check_believes_no_longer_than_the_store(make: Make) -> None:
    """However late the reply came, and whatever happened since, the holder gives up before the store does."""
    for reply_after in (0.0, 0.1, 0.7, 1.9):
        clock = ManualClock()
        store = MemoryLease(clock)
        store.reply_after = reply_after
        candidate = make("a", store, SLOW, clock=clock)
        async with running(candidate):
            await clock.advance(reply_after)
            assert candidate.is_leader
            store.down = True
            clock.jump(store.ends - clock.monotonic() - 1.0)  # a pause: no task runs
            assert candidate.is_leader
            clock.jump(1.0)
            assert not candidate.is_leader, f"leads when the lease is gone; the reply took {reply_after} s"


class CountsFromTheReply(Candidate):
    """The lease is believed from when the reply came."""

    async def _try(self, holder: str, asked: float) -> Term | Refused | None:
        answer = await super()._try(holder, asked)
        if isinstance(answer, Term):
            answer.renewed(self._now())
        return answer


class KeepsAFlag(Candidate):
    """The leader is leader until it is told otherwise."""

    @property
    def is_leader(self) -> bool:
        return self.term is not None


@pytest.mark.invariant(1)
async def test_a_term_is_valid_no_longer_than_its_lease() -> None:
    """After a pause, without the store, and with replies of 0 to 1.9 s, `is_leader` is false in time."""
    await check_believes_no_longer_than_the_store(Candidate)


@pytest.mark.naive(1)
@pytest.mark.parametrize("variant", [CountsFromTheReply, KeepsAFlag])
async def test_a_flag_and_the_time_of_the_reply_believe_too_long(variant: Make) -> None:
    """Both lead on when the lease is gone: one by the time of the reply, one until its loop runs again."""
    with pytest.raises(AssertionError, match="leads when the lease is gone"):
        await check_believes_no_longer_than_the_store(variant)


@pytest.mark.invariant(1)
def test_a_term_that_is_over_stays_over() -> None:
    """`check` raises with the token, and a renewal that was on its way does not make it valid again."""
    clock = ManualClock()
    term = Term("report", "a", 7, policy=SLOW, clock=clock, sent=0.0)
    term.check()
    assert term.remaining == pytest.approx(15 * 0.99 - 0.002)
    term.end()
    clock.jump(2)
    term.renewed(clock.monotonic())
    assert not term.valid
    assert term.remaining == -2
    with pytest.raises(LeadershipLost, match="token 7 of election 'report' is over") as over:
        term.check()
    assert (over.value.election, over.value.token) == ("report", 7)


# 2: one holder, and no two valid terms


def check_no_two_terms_are_valid(make_term: Make) -> None:
    """No order of requests, replies, losses and pauses makes two terms valid at one time."""
    machine = type("Machine", (Overlapping,), {"make_term": make_term})
    phases = (
        tuple(Phase) if make_term is Term else (Phase.generate,)
    )  # no need to shrink what is meant to fail
    bounds = settings(max_examples=150, stateful_step_count=30, deadline=None, phases=phases)
    run_state_machine_as_test(machine, settings=bounds)


class NoMargin(Term):
    """The lease is believed to its last moment, by a clock that may be slow."""

    def renewed(self, sent: float) -> None:
        super().renewed(sent)
        self._ends_at = sent + self._policy.lease_duration


class FromNow(Term):
    """The lease is believed from when the reply was read."""

    def __init__(self, *args: Any, clock: Any, sent: float, **options: Any) -> None:
        super().__init__(*args, clock=clock, sent=clock.monotonic(), **options)

    def renewed(self, sent: float) -> None:
        super().renewed(self._now())


@pytest.mark.invariant(2)
def test_no_two_terms_are_valid_at_one_time() -> None:
    """Over random orders of messages, pauses of up to a lease, and clocks 0.9 % fast or slow."""
    check_no_two_terms_are_valid(Term)


@pytest.mark.naive(2)
@pytest.mark.parametrize("variant", [NoMargin, FromNow])
def test_without_margin_or_counted_from_the_reply_two_lead(variant: Make) -> None:
    """A slow clock, or a slow reply, is enough for two leaders."""
    with pytest.raises(AssertionError, match="2 terms are valid"):
        check_no_two_terms_are_valid(variant)


async def check_the_store_has_one_holder(make: Make, client: Client, app: str) -> None:
    """Of twenty that ask at once one is granted; asked again it is the same one, with the same token."""
    lease = make("report", client, app=app)
    for _ in range(2):
        answers = await asyncio.gather(*[lease.acquire(f"c{number}", 10_000, 0) for number in range(20)])
        granted = [number for number, answer in enumerate(answers) if isinstance(answer, Granted)]
        assert len(granted) == 1, f"{len(granted)} of 20 were granted the lease"
        refused = next(answer for answer in answers if isinstance(answer, Refused))
        assert refused.holder == f"c{granted[0]}"
        assert refused.remaining == pytest.approx(10, abs=1)
        assert answers[granted[0]] == Granted(1)


class LooksThenTakes(RedisLease):
    """GET, then SET if there was nothing; here all have looked before the first one takes."""

    looked = 0

    async def acquire(self, holder: str, milliseconds: int, floor: int = 0) -> Granted | Refused:
        found: Any = await self._client.hget(self._keys[0], "holder")
        self.looked += 1
        await eventually(lambda: self.looked >= 20, within=5)
        if found:
            return Refused(found.decode(), None)
        await self._client.hset(self._keys[0], "holder", holder)
        return Granted(1)


@pytest.mark.invariant(2)
async def test_the_store_grants_the_lease_to_one(server: Server, app: str) -> None:
    """Twenty connections ask Redis at once, twice."""
    async with opened(server.url) as client:
        await check_the_store_has_one_holder(RedisLease, client, app)


@pytest.mark.naive(2)
async def test_looking_before_taking_grants_it_to_all(server: Server, app: str) -> None:
    """Two commands in place of one script: all twenty have it."""
    async with opened(server.url) as client:
        with pytest.raises(AssertionError, match="20 of 20 were granted"):
            await check_the_store_has_one_holder(LooksThenTakes, client, app)


# 3: fencing


async def check_tokens_rise(make: Make, client: Client, app: str) -> None:
    """Released, run out, taken over by another: each acquisition has a higher token than the one before."""
    lease = make("report", client, app=app)
    tokens = []
    for number in range(6):
        answer = await lease.acquire(f"c{number}", 10_000, 0)
        assert isinstance(answer, Granted)
        tokens.append(answer.token)
        if number % 2:
            await lease.release(f"c{number}")
        else:
            await client.pexpire(lease_key(app), 0)
    assert tokens == sorted(set(tokens)), f"tokens do not rise: {tokens}"


class CountsInTheLease(RedisLease):
    """The counter lives in the lease, and dies with it."""

    async def acquire(self, holder: str, milliseconds: int, floor: int = 0) -> Granted | Refused:
        await self._client.delete(self._keys[1])
        return await super().acquire(holder, milliseconds, floor)


def check_the_fence_refuses_what_is_stale(make: Make, path: Path) -> None:
    """A late leader, and a second one with the same token, write nothing; also if they began before."""
    old, new = (make(path, "CREATE TABLE IF NOT EXISTS writes (token INTEGER, holder TEXT)") for _ in "12")
    try:

        def append(database: FencedDatabase, token: int, holder: str) -> bool:
            try:
                with database.transaction(token, holder) as sql:
                    sql.execute("INSERT INTO writes VALUES (?, ?)", (token, holder))
            except StaleToken:
                return False
            return True

        assert append(old, 33, "old")
        assert append(old, 33, "old"), "a leader may write more than once"
        with old.transaction(33, "old") as sql:
            with suppress(sqlite3.OperationalError):  # locked: the old leader's transaction is under way
                append(new, 34, "new")
            sql.execute("INSERT INTO writes VALUES (33, 'old')")
        assert append(new, 34, "new")
        stale = append(old, 33, "old") or append(old, 34, "old")
        sql = sqlite3.connect(path)
        rows = sql.execute("SELECT token, holder FROM writes ORDER BY rowid").fetchall()
        sql.close()
        assert rows == sorted(rows), f"an old token wrote after a new one: {rows}"
        assert not stale, "a stale token was let in"
    finally:
        old.close()
        new.close()


class Impatient(FencedDatabase):
    """The real one, which here does not wait for another's transaction."""

    def __init__(self, path: Path, schema: str) -> None:
        super().__init__(path, schema, wait=0)


class ChecksBefore(Impatient):
    """The token is compared before the transaction begins."""

    @contextmanager
    def transaction(self, token: int, holder: str) -> Iterator[sqlite3.Connection]:
        with super().transaction(token, holder):
            pass
        yield self._sql


class TrustsItsCallers(Impatient):
    """No token is compared."""

    @contextmanager
    def transaction(self, token: int, holder: str) -> Iterator[sqlite3.Connection]:
        yield self._sql


class LetsEqualTokensIn(Impatient):
    """Only lower tokens are refused, whoever comes."""

    @contextmanager
    def transaction(self, token: int, holder: str) -> Iterator[sqlite3.Connection]:
        with super().transaction(token, "anybody") as sql:
            yield sql


async def check_leads_above_what_the_resource_has_seen(make: Make, app: str, url: str, path: Path) -> None:
    """Redis comes back empty: the next leader can write, and the last one cannot any more."""
    with a_database(path) as database:
        with database.transaction(100, "an early leader"):
            pass
        async with opened(url) as client:
            lease = RedisLease("report", client, app=app)
            terms: list[Term] = []

            async def work(term: Term) -> None:
                terms.append(term)
                write(database, term, term.holder)

            for _ in range(3):
                await client.delete(*lease._keys)
                terms.clear()
                async with running(make("a", lease, FAST, floor=database.floor), work) as task:
                    await asyncio.wait({task}, timeout=1)  # long enough for three terms that fail
                tokens = [term.token for term in terms]
                assert register(path) == terms[0].holder, f"a new leader could not write: tokens {tokens}"
        stale = pytest.raises(StaleToken, match="token 100 of 'an early leader' is stale")
        with stale, database.transaction(100, "an early leader"):
            pass


class IgnoresTheFloor(Candidate):
    """The token is what Redis says."""

    def __init__(self, *args: Any, floor: object, **options: Any) -> None:
        super().__init__(*args, **options)


@pytest.mark.invariant(3)
async def test_tokens_rise_with_each_acquisition(server: Server, app: str) -> None:
    """Six acquisitions after releases and expiries; only the counter outlives them."""
    async with opened(server.url) as client:
        await check_tokens_rise(RedisLease, client, app)
        assert await immortal_keys(client, app, declared={"fence"}) == []


@pytest.mark.invariant(3)
def test_the_resource_refuses_stale_tokens_in_the_transaction_of_the_write(tmp_path: Path) -> None:
    """A lower token and an equal one of another holder are refused, and no write slips in between."""
    check_the_fence_refuses_what_is_stale(Impatient, tmp_path / "fence.db")


@pytest.mark.invariant(3)
async def test_a_new_leader_is_above_the_floor_when_redis_has_forgotten(
    server: Server, app: str, tmp_path: Path
) -> None:
    """Lease and counter are gone, three times over, and each new leader's token is higher."""
    await check_leads_above_what_the_resource_has_seen(Candidate, app, server.url, tmp_path / "a.db")


@pytest.mark.naive(3)
async def test_a_counter_that_expires_gives_a_token_twice(server: Server, app: str) -> None:
    """Six acquisitions, six times token 1."""
    async with opened(server.url) as client:
        with pytest.raises(AssertionError, match="tokens do not rise"):
            await check_tokens_rise(CountsInTheLease, client, app)


@pytest.mark.naive(3)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [
        (ChecksBefore, "an old token wrote after a new one"),
        (TrustsItsCallers, "a stale token was let in|wrote after"),
        (LetsEqualTokensIn, "a stale token was let in|wrote after"),
    ],
)
def test_a_fence_beside_the_write_is_none(variant: Make, complaint: str, tmp_path: Path) -> None:
    """Compared too early, not at all, or without the holder: a stale write is accepted."""
    with pytest.raises(AssertionError, match=complaint):
        check_the_fence_refuses_what_is_stale(variant, tmp_path / "fence.db")


@pytest.mark.naive(3)
async def test_without_the_floor_a_token_comes_again(server: Server, app: str, tmp_path: Path) -> None:
    """The new leader has a token that was used, and is shut out of the resource."""
    with pytest.raises(AssertionError, match=r"a new leader could not write: tokens \[1, 2, 3"):
        await check_leads_above_what_the_resource_has_seen(
            IgnoresTheFloor, app, server.url, tmp_path / "a.db"
        )


@pytest.mark.invariant(3)
@pytest.mark.parametrize(("floor", "token"), [(0, 1), (1, 2), (41, 42)])
async def test_the_token_is_the_first_above_stored_and_floor(floor: int, token: int) -> None:
    """max(stored, floor) + 1, in virtual time; and a follower does not ask the resource at all."""
    clock = ManualClock()
    store = MemoryLease(clock)
    asked = 0

    async def seen() -> int:
        nonlocal asked
        asked += 1
        return floor

    first, second = (Candidate(label, store, SLOW, floor=seen, clock=clock) for label in "ab")
    async with running(first), running(second):
        await clock.advance(10)
        assert first.term is not None
        assert (first.term.token, asked) == (token, 1)


@pytest.mark.invariant(3)
def test_an_old_leader_is_let_in_until_the_new_one_has_begun_a_transaction(tmp_path: Path) -> None:
    """To be elected shuts nobody out; an empty transaction does, and what is read in it stays true."""
    with a_database(tmp_path / "a.db") as database:
        old, new = (
            Term("report", holder, token, policy=SLOW, clock=ManualClock(), sent=0.0)
            for holder, token in (("old", 33), ("new", 34))
        )
        write(database, old, "old leader, after the new one was elected")
        with database.transaction(new.token, new.holder):
            pass
        with pytest.raises(StaleToken):
            write(database, old, "old leader, after the new one began")


@pytest.mark.invariant(3)
async def test_a_floor_above_which_the_store_cannot_count_is_refused(server: Server, app: str) -> None:
    """Lua counts in doubles: rather than lead with a used token, `run` raises, and leaves no lease."""

    async def seen() -> int:
        return 2**53

    async with opened(server.url) as client:
        lease = RedisLease("report", client, app=app)
        with pytest.raises(ValueError, match="floor must be <= 4503599627370496, got 9007199254740992"):
            await Candidate("a", lease, LONG, floor=seen).run(at_once)
        assert not await client.exists(lease_key(app))
        assert await lease.acquire("a", 1000, 2**52) == Granted(2**52 + 1)
        await lease.release("a")
        assert await lease.acquire("b", 1000, 0) == Granted(2**52 + 2)


@pytest.mark.invariant(3)
def test_a_refused_or_broken_transaction_leaves_nothing(tmp_path: Path) -> None:
    """What was written before an exception is rolled back, and the next transaction begins afresh."""
    with a_database(tmp_path / "a.db") as database:
        for token in (2, 3):
            with suppress(ZeroDivisionError), database.transaction(token, "a") as sql:
                sql.execute("UPDATE register SET value = 'half'")
                raise ZeroDivisionError
        with suppress(ZeroDivisionError), database.transaction(4, "a") as sql:
            sql.execute("COMMIT")
            raise ZeroDivisionError
        with pytest.raises(StaleToken), database.transaction(3, "b"):
            pass
    assert register(tmp_path / "a.db") == "nothing"


# 4: only its own lease


async def check_touches_only_its_own(make: Make, client: Client, app: str) -> None:
    """A late renewal or release finds the lease run out, or another's, and leaves it as it is."""
    lease = make("report", client, app=app)
    key = lease_key(app)
    await lease.acquire("a", 10_000, 0)
    await client.pexpire(key, 0)
    assert not await lease.renew("a", 10_000), "a lease that had run out was renewed"
    assert not await client.exists(key), "a lease that had run out was revived"
    await lease.acquire("b", 10_000, 0)
    assert not await lease.renew("a", 99_000), "another's lease was renewed"
    assert await client.pttl(key) <= 10_000, "another's lease was extended"
    assert not await lease.release("a"), "another's lease was released"
    assert await client.hget(key, "holder") == b"b", "another's lease was released"
    assert await lease.renew("b", 20_000)
    assert await client.pttl(key) > 10_000
    assert await lease.release("b")
    assert not await lease.release("b")


class ReleasesByDel(RedisLease):
    """The plain DEL at the end of the `with`."""

    async def release(self, holder: str) -> bool:
        return bool(await self._client.delete(self._keys[0]))


class RenewsByPexpire(RedisLease):
    """The plain PEXPIRE of a keep-alive."""

    async def renew(self, holder: str, milliseconds: int) -> bool:
        return bool(await self._client.pexpire(self._keys[0], milliseconds))


class RenewsBySet(RedisLease):
    """A keep-alive that writes what it believes."""

    async def renew(self, holder: str, milliseconds: int) -> bool:
        await self._client.hset(self._keys[0], "holder", holder)
        await self._client.pexpire(self._keys[0], milliseconds)
        return False


@pytest.mark.invariant(4)
async def test_renew_and_release_touch_no_lease_but_ones_own(server: Server, app: str) -> None:
    """After an expiry and after a successor, both answer no and change nothing."""
    async with opened(server.url) as client:
        await check_touches_only_its_own(RedisLease, client, app)


@pytest.mark.naive(4)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [(ReleasesByDel, "released"), (RenewsByPexpire, "renewed"), (RenewsBySet, "revived")],
)
async def test_plain_del_pexpire_and_set_touch_anybodys(
    variant: Make, complaint: str, server: Server, app: str
) -> None:
    """Each of the three commands of a hand-written lock does it to the successor."""
    async with opened(server.url) as client:
        with pytest.raises(AssertionError, match=complaint):
            await check_touches_only_its_own(variant, client, app)


@pytest.mark.invariant(4)
async def test_it_does_the_same_on_a_cluster(cluster: Cluster, app: str) -> None:
    """Tokens, ownership, and one holder among twenty, with the keys of an election in one slot."""
    async with opened(cluster.url) as client:
        await check_tokens_rise(RedisLease, client, f"{app}-3")
        await check_touches_only_its_own(RedisLease, client, f"{app}-4")
        await check_the_store_has_one_holder(RedisLease, client, f"{app}-2")


@pytest.mark.invariant(4)
async def test_a_renewal_that_is_refused_ends_the_term_at_once() -> None:
    """Another holds the lease: the work ends at the next renewal, and nothing is sent to release it."""
    clock, heard = ManualClock(), Recorder()
    store = MemoryLease(clock)
    async with running(Candidate("a", store, SLOW, clock=clock, on_event=heard)):
        await clock.advance(0)
        store.holder = "another"
        await clock.advance(SLOW.retry_period)
        assert [event.reason for event in heard.of(StoppedLeading)] == [Reason.LOST]
        assert [what for _, what in store.requests] == ["acquire", "renew"]


# 5: somebody leads again


async def check_a_leader_is_followed(make_store: Make) -> None:
    """In virtual time: after a death within lease + 1.2 retry, after a resignation within 1.2 retry."""
    for seed in range(5):
        clock = ManualClock()
        store = make_store(clock)
        await store.acquire("the dead", SLOW.lease_ms, 0)
        second = Candidate("b", store, SLOW, clock=clock, rng=random.Random(seed))
        third = Candidate("c", store, SLOW, clock=clock, rng=random.Random(seed + 100))
        async with running(second):
            await clock.advance(SLOW.lease_duration - 0.01)
            assert not second.is_leader
            await clock.advance(0.01 + SLOW.retry_period * 1.2)
            assert second.is_leader, "nobody follows a leader that died"
            waiting = asyncio.create_task(third.run(forever))
            await clock.advance(20)
            assert not third.is_leader
        try:
            await clock.advance(SLOW.retry_period * 1.2)
            assert third.is_leader, "a leader that resigned still stands in the way"
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)


class NeverRunsOut(MemoryLease):
    """SETNX without an expiry."""

    def _current(self) -> str:
        return self.holder if self.ends > -math.inf else ""


class IsNotGivenBack(MemoryLease):
    """Nobody releases: the lease will run out by itself."""

    async def release(self, holder: str) -> bool:
        return True


@pytest.mark.invariant(5)
async def test_a_dead_or_resigned_leader_is_followed_in_time() -> None:
    """Five seeds of jitter, to the hundredth of a second."""
    await check_a_leader_is_followed(MemoryLease)


@pytest.mark.naive(5)
@pytest.mark.parametrize(
    ("variant", "complaint"), [(NeverRunsOut, "nobody follows"), (IsNotGivenBack, "stands in the way")]
)
async def test_a_lock_without_expiry_or_release_stands_in_the_way(variant: Make, complaint: str) -> None:
    """One waits for the dead for ever, the other for a whole lease after each resignation."""
    with pytest.raises(AssertionError, match=complaint):
        await check_a_leader_is_followed(variant)


# 6: the work and the callbacks


class Diary:
    """What happened to one candidate, in order."""

    def __init__(self, make: Make, clock: ManualClock) -> None:
        self.lines: list[str] = []
        self.clock = clock
        self.store = MemoryLease(clock)
        self.candidate = make("a", self.store, SLOW, clock=clock)

    async def work(self, term: Term) -> None:
        self.lines.append("started")
        try:
            await asyncio.Event().wait()
        finally:
            self.lines.append("cancelled")
            await self.clock.sleep(3)  # to put things in order, longer than a retry period
            self.lines.append(f"ended, lease {'held' if self.held else 'gone'}")

    async def fail(self, term: Term) -> None:
        self.lines.append("started")
        raise ZeroDivisionError

    def stopped(self, term: Term) -> None:
        self.lines.append(f"stopped, lease {'held' if self.held else 'given up'}")

    @property
    def held(self) -> bool:
        return self.store._current() != ""


async def check_the_work_ends_before_the_lease(make: Make) -> None:
    """Resigned, lost, failed: started once, cancelled and ended with the lease held, stopped once."""
    in_order = ["started", "cancelled", "ended, lease held", "stopped, lease given up"]
    clock = ManualClock()
    resigns = Diary(make, clock)
    task = asyncio.create_task(resigns.candidate.run(resigns.work, on_stopped=resigns.stopped))
    await clock.advance(20)
    task.cancel()
    await clock.advance(3)
    assert resigns.lines == in_order, f"on resigning: {resigns.lines}"
    with pytest.raises(asyncio.CancelledError):
        await task

    loses = Diary(make, clock)
    task = asyncio.create_task(loses.candidate.run(loses.work, on_stopped=loses.stopped))
    await clock.advance(1)
    loses.store.down = True
    await clock.advance(SLOW.renew_deadline + 3)
    loses.store.ends = -math.inf
    assert loses.lines[:3] == in_order[:3], f"on losing the store: {loses.lines}"
    assert len(loses.lines) == 4, f"on losing the store: {loses.lines}"
    loses.store.down = False
    await clock.advance(3)
    assert loses.lines[4:] == ["started"], f"it did not campaign again: {loses.lines}"
    task.cancel()
    await clock.advance(3)
    await asyncio.gather(task, return_exceptions=True)

    fails = Diary(make, clock)
    with pytest.raises(ZeroDivisionError):
        await fails.candidate.run(fails.fail, on_stopped=fails.stopped)
    assert fails.lines == ["started", "stopped, lease given up"], f"on failing: {fails.lines}"


class GivesUpFirst(Candidate):
    """The lease is released, and then the work is told."""

    async def run(self, work: Any, *, on_stopped: Any = None) -> Any:
        term = await self._campaign()
        tasks = [asyncio.ensure_future(work(term)), asyncio.create_task(self._renew_until_lost(term))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._release(term.holder)
            on_stopped(term)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class ExpectsNoErrors(Candidate):
    """An error of the work ends the process's interest, and not the term."""

    async def _lead(self, term: Term, working: Any) -> Reason:
        await asyncio.sleep(0)
        if working.done() and working.exception() is not None:
            return Reason.FAILED
        return await super()._lead(term, working)


@pytest.mark.invariant(6)
async def test_the_work_ends_before_the_lease_is_given_up() -> None:
    """Three ends of a term: what happened is in the right order, and nothing happened twice."""
    await check_the_work_ends_before_the_lease(Candidate)


@pytest.mark.naive(6)
@pytest.mark.parametrize(
    ("variant", "complaint"), [(GivesUpFirst, "on resigning"), (ExpectsNoErrors, "on failing")]
)
async def test_giving_up_first_or_expecting_no_errors_is_wrong(variant: Make, complaint: str) -> None:
    """The work runs on beside the next leader's, or a failure leaves the lease and tells nobody."""
    with pytest.raises(AssertionError, match=complaint):
        await check_the_work_ends_before_the_lease(variant)


@pytest.mark.invariant(6)
async def test_who_waits_for_the_work_to_end_may_be_cancelled_again() -> None:
    """Each cancellation reaches the work, which keeps its lease until it ends; its error is not lost."""
    clock, heard = ManualClock(), Recorder()
    store = MemoryLease(clock)
    cancellations = 0

    async def stubborn(term: Term) -> None:
        nonlocal cancellations
        while cancellations < 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancellations += 1
        raise KeyError("while it was cleaning up")

    candidate = Candidate("a", store, SLOW, clock=clock, on_event=heard)
    task = asyncio.create_task(candidate.run(stubborn))
    await clock.advance(1)
    for _ in range(3):
        assert candidate.is_leader
        task.cancel()
        await clock.advance(20)
    with pytest.raises(KeyError):
        await task
    assert [event.reason for event in heard.of(StoppedLeading)] == [Reason.CANCELLED]
    assert store._current() == ""


@pytest.mark.invariant(6)
async def test_a_cancellation_while_the_lease_is_released_is_not_lost() -> None:
    """The work has returned, the release hangs, and the caller gives up: stopped once, and cancelled."""
    clock = ManualClock()
    store, stopped = MemoryLease(clock), list[Term]()
    finish = asyncio.Event()

    async def work(term: Term) -> None:
        await finish.wait()

    candidate = Candidate("a", store, SLOW, clock=clock)
    task = asyncio.create_task(candidate.run(work, on_stopped=stopped.append))
    await clock.advance(1)
    store.silent = True
    finish.set()
    await clock.advance(1)
    assert not stopped
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(stopped) == 1
    assert not stopped[0].valid


@pytest.mark.invariant(6)
@pytest.mark.parametrize("error", [LeadershipLost("report", 1), StaleToken(1, "a", 2, "b")])
async def test_work_that_finds_its_term_over_makes_the_candidate_campaign_again(error: Exception) -> None:
    """LeadershipLost and StaleToken are a loss, not a failure; a retry period lies between the terms."""
    clock, heard = ManualClock(), Recorder()
    candidate = Candidate("a", MemoryLease(clock), SLOW, clock=clock, on_event=heard)

    async def work(term: Term) -> int:
        if term.token == 1:
            raise error
        return clock.monotonic() >= SLOW.retry_period

    task = asyncio.create_task(candidate.run(work))
    await clock.advance(SLOW.retry_period * 1.2)
    assert await task is True
    assert [event.reason for event in heard.of(StoppedLeading)] == [Reason.LOST, Reason.ENDED]


@pytest.mark.invariant(6)
async def test_an_error_of_on_stopped_does_not_hide_that_of_the_work() -> None:
    """It ends the run, raised in the context of what the work raised; the lease is given back."""
    store = MemoryLease(ManualClock())

    async def fail(term: Term) -> None:
        raise KeyError("the work")

    def fail_too(term: Term) -> None:
        raise ZeroDivisionError

    candidate = Candidate("a", store, SLOW, clock=store.clock)
    with pytest.raises(ZeroDivisionError) as caught:
        await candidate.run(fail, on_stopped=fail_too)
    assert isinstance(caught.value.__context__, KeyError)
    assert store._current() == ""
    assert await candidate.run(at_once) == 2


@pytest.mark.invariant(6)
async def test_work_that_cancels_itself_has_failed() -> None:
    """The caller gets the CancelledError, and the lease is given up."""
    clock, heard = ManualClock(), Recorder()
    store = MemoryLease(clock)

    async def work(term: Term) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await Candidate("a", store, SLOW, clock=clock, on_event=heard).run(work)
    assert [event.reason for event in heard.of(StoppedLeading)] == [Reason.FAILED]
    assert store._current() == ""


@pytest.mark.invariant(6)
async def test_work_that_overran_its_term_says_so() -> None:
    """Cancelled at 10 s, it went on to 30, and its term was over at 14.848: nobody else is told in time."""
    clock, heard = ManualClock(), Recorder()
    store = MemoryLease(clock)
    candidate = Candidate("a", store, SLOW, clock=clock, on_event=heard)

    async def work(term: Term) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await clock.sleep(20)

    async with running(candidate, work):
        await clock.advance(0)
        store.down = True
        await clock.advance(30)
        (stopped,) = heard.of(StoppedLeading)
        assert stopped.reason is Reason.LOST
        assert stopped.overran_seconds == pytest.approx(30 - SLOW.believed_seconds)


# 7: lost replies


async def check_a_lost_reply_blocks_nobody(make: Make, make_store: Make) -> None:
    """The reply to the acquisition is lost: the candidate leads after all, or leaves no lease behind."""
    clock = ManualClock()
    store = make_store(clock)
    store.lose_replies = 2
    candidate = make("a", store, SLOW, clock=clock)
    async with running(candidate):
        await clock.advance(2 * SLOW.retry_period * 1.2)
        assert candidate.is_leader, "it does not recognise its own lease"
        assert store.token == 1
    store.lose_replies = 1
    task = asyncio.create_task(make("b", store, SLOW, clock=clock).run(forever))
    await clock.advance(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert store._current() == "", "it stopped campaigning and left a lease behind"
    for seed in range(5):
        store = make_store(clock)
        deaf = make("a", Deaf(store), SLOW, clock=clock, rng=random.Random(seed))
        other = make("b", store, SLOW, clock=clock, rng=random.Random(seed + 100))
        async with running(deaf), running(other):
            await clock.advance(3 * SLOW.lease_duration)
            assert other.is_leader, "one that hears no reply keeps the lease from all others"


class Deaf(MemoryLease):
    """The way to a store on which every request arrives and no reply comes back."""

    def __init__(self, store: MemoryLease) -> None:
        super().__init__(store.clock)
        self.store = store

    async def acquire(self, holder: str, milliseconds: int, floor: int) -> Granted | Refused:
        await self.store.acquire(holder, milliseconds, floor)
        raise OutcomeUnknown("EVALSHA", "the reply was lost")

    async def release(self, holder: str) -> bool:
        await self.store.release(holder)
        raise OutcomeUnknown("EVALSHA", "the reply was lost")


class ExtendsWhenAskedAgain(MemoryLease):
    """GET == mine, so PEXPIRE: the first idea of how to recognise one's own lease."""

    def _acquire(self, holder: str, milliseconds: int, floor: int) -> Granted | Refused:
        answer = super()._acquire(holder, milliseconds, floor)
        if isinstance(answer, Granted):
            self.ends = self.clock.monotonic() + milliseconds / 1000
        return answer


class SetNx(MemoryLease):
    """SET NX knows only "there is one already"."""

    def _acquire(self, holder: str, milliseconds: int, floor: int) -> Granted | Refused:
        if self._current():
            return Refused(self.holder, self.ends - self.clock.monotonic())
        return super()._acquire(holder, milliseconds, floor)


class LeavesAtOnce(Candidate):
    """Cancelled is cancelled."""

    async def _campaign(self) -> Term:
        while True:
            answer = await self._try("b", self._now())
            if isinstance(answer, Term):
                self.term = answer
                return answer
            await self._clock.sleep(self._pause(answer))


class KeepsItsName(Candidate):
    """One name for ever, released at the end."""

    async def _campaign(self) -> Term:
        try:
            while True:
                answer = await self._try(self.label, self._now())
                if isinstance(answer, Term):
                    self.term = answer
                    return answer
                await self._clock.sleep(self._pause(answer))
        except asyncio.CancelledError:
            await self._release(self.label)
            raise


@pytest.mark.invariant(7)
async def test_a_candidate_recognises_its_own_lease() -> None:
    """After two lost replies it leads; one that gives up releases; one that hears nothing blocks nobody."""
    await check_a_lost_reply_blocks_nobody(Candidate, MemoryLease)


@pytest.mark.naive(7)
@pytest.mark.parametrize(
    ("variant", "store", "complaint"),
    [
        (Candidate, SetNx, "recognise"),
        (LeavesAtOnce, MemoryLease, "left a lease behind"),
        (KeepsItsName, ExtendsWhenAskedAgain, "keeps the lease from all others"),
    ],
)
async def test_set_nx_locks_out_its_own_holder(variant: Make, store: Make, complaint: str) -> None:
    """SET NX and a campaign that ends without a release block all for a lease, an extension for ever."""
    with pytest.raises(AssertionError, match=complaint):
        await check_a_lost_reply_blocks_nobody(variant, store)


@pytest.mark.invariant(7)
async def test_a_lease_that_is_old_when_it_is_recognised_is_renewed_at_once() -> None:
    """Replies are lost for longer than renew_deadline less a retry period: the term goes on all the same."""
    for seed in range(5):
        clock, heard = ManualClock(), Recorder()
        store = MemoryLease(clock)
        store.lose_replies = 4
        rng = random.Random(seed)
        async with running(Candidate("a", store, SLOW, clock=clock, rng=rng, on_event=heard)):
            await clock.advance(SLOW.renew_deadline)
            assert len(heard.of(StartedLeading)) == 1
            await clock.advance(5 * SLOW.retry_period)
            assert not heard.of(StoppedLeading), "it was recognised, and given up without a try to renew it"


# 8: load


async def check_the_load_is_bounded(make: Make) -> None:
    """Twelve candidates, 40 s, one death: N / retry_period requests a second, and not all at one time."""
    clock = ManualClock()
    store = MemoryLease(clock)
    await store.acquire("the dead", SLOW.lease_ms, 0)
    store.requests.clear()
    tasks = [
        asyncio.create_task(make(f"c{n}", store, SLOW, clock=clock, rng=random.Random(n)).run(forever))
        for n in range(12)
    ]
    try:
        while clock.monotonic() < 40:
            await clock.advance(5)
            # And one at the start, and one when the lease ran out.
            most = 12 * (clock.monotonic() / SLOW.retry_period + 2)
            so_far = f"{len(store.requests)} requests in {clock.monotonic():.0f} s"
            assert len(store.requests) <= most, f"{so_far}, at most {most:.0f} allowed"
        sent = store.requests.copy()
        assert len(sent) > 12 * 40 / SLOW.retry_period / 2
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    crowds = Counter(round(when, 2) for when, _ in sent if when > 20)
    assert max(crowds.values()) <= 4, f"{max(crowds.values())} of 12 came within one hundredth of a second"


class PollsLikeALock(Candidate):
    """redis-py's Lock: blocking, sleep=0.1."""

    def _pause(self, answer: Refused | None = None) -> float:
        return 0.1


class MarchesInStep(Candidate):
    """A fixed period without jitter."""

    def _pause(self, answer: Refused | None = None) -> float:
        return self.policy.retry_period


@pytest.mark.invariant(8)
async def test_the_load_grows_with_candidates_over_retry_period() -> None:
    """Counted over 40 virtual seconds, with the busiest hundredth of a second."""
    await check_the_load_is_bounded(Candidate)


@pytest.mark.naive(8)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [(PollsLikeALock, "requests in 5 s, at most 54"), (MarchesInStep, "12 of 12 came")],
)
async def test_polling_and_marching_in_step_are_a_herd(variant: Make, complaint: str) -> None:
    """A fixed 0.1 s is twenty times the load, and without jitter all come at one time."""
    with pytest.raises(AssertionError, match=complaint):
        await check_the_load_is_bounded(variant)


# 9: a store that hangs


async def check_a_hung_store_ends_the_work_in_time(make: Make) -> None:
    """No answer and no error: the work has ended at the deadline, while the store still keeps the lease."""
    clock = ManualClock()
    store = MemoryLease(clock)
    ended: list[float] = []

    async def work(term: Term) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(clock.monotonic())

    async with running(make("a", store, SLOW, clock=clock), work):
        await clock.advance(5)  # renewed at 4
        store.silent = True
        await clock.advance(SLOW.lease_duration - 1)
        assert ended, "the work still runs when the lease has run out"
        assert ended[0] == pytest.approx(4 + SLOW.renew_deadline)
        assert ended[0] < store.ends
        asked = [when for when, what in store.requests if what == "renew" and 4 < when < ended[0]]
        assert len(asked) == 4, "a request that hangs must not stand in the way of the next"


class WaitsForTheReply(Candidate):
    """kubernetes #44887: an API time-out of 60 s, a lease of 15."""

    async def _renew_until_lost(self, term: Term) -> None:
        while True:
            await self._clock.sleep(self.policy.retry_period)
            async with self._clock.timeout(60):
                if not await self._lease.renew(term.holder, self.policy.lease_ms):
                    return


@pytest.mark.invariant(9)
async def test_a_hung_store_cannot_keep_the_work_going() -> None:
    """Four renewals are tried, each for a retry period; the work ends 10 s after the last that worked."""
    await check_a_hung_store_ends_the_work_in_time(Candidate)


@pytest.mark.naive(9)
async def test_a_request_without_a_limit_outlasts_the_lease() -> None:
    """A renewal that may take 60 s keeps the work going until long after the lease of 15 s."""
    with pytest.raises(AssertionError, match="still runs when the lease has run out"):
        await check_a_hung_store_ends_the_work_in_time(WaitsForTheReply)


# events, errors, bad input


async def test_events_tell_the_story_of_two_candidates() -> None:
    """One leads, renews, and resigns; the other observes, tries in vain, and leads."""
    clock = ManualClock()
    store = MemoryLease(clock)
    heard = Recorder()
    first, second = (Candidate(name, store, SLOW, clock=clock, on_event=heard) for name in "ab")
    async with running(first):
        await clock.advance(0)
        task = asyncio.create_task(second.run(at_once))
        await clock.advance(3)
        store.down = True
        await clock.advance(2)
        store.down = False
        assert second.leader == first.leader
    await clock.advance(3)
    assert await task == 2
    assert heard.names()[:3] == ["StartedLeading", "LeaderObserved", "LeaseRenewed"]
    assert heard.of(StartedLeading)[0] == StartedLeading("a", 1, 0.0)
    assert heard.of(LeaderObserved)[0].holder.startswith("a/")
    assert heard.of(LeaseRenewed)[0] == LeaseRenewed("a", 1, 0.0)
    assert set(heard.of(RequestFailed)) == {
        RequestFailed("a", Request.RENEW, "ConnectionError"),
        RequestFailed("b", Request.ACQUIRE, "ConnectionError"),
    }
    assert [(e.source, e.reason) for e in heard.of(StoppedLeading)] == [
        ("a", Reason.CANCELLED),
        ("b", Reason.ENDED),
    ]
    assert len(heard.of(LeaderObserved)) == 1, "told once per holder, not once per try"


async def test_a_candidate_that_was_granted_too_late_does_not_lead() -> None:
    """It was paused between the grant and the reply: by its own clock the term would be over."""
    clock = ManualClock()
    store = MemoryLease(clock)
    store.reply_after = 1.0
    candidate = Candidate("a", store, SLOW, clock=clock)
    async with running(candidate):
        await clock.advance(0)
        clock.jump(100)
        await clock.advance(0)
        assert not candidate.is_leader
        await clock.advance(SLOW.retry_period * 1.2 + 1)
        assert candidate.is_leader


async def test_a_lease_without_an_end_is_asked_for_at_the_usual_pace(server: Server, app: str) -> None:
    """Somebody made the key by hand: the answer says that it has no end, and nobody leads."""
    async with opened(server.url) as client:
        await client.hset(lease_key(app), "holder", "by hand")
        lease = RedisLease("report", client, app=app)
        assert await lease.acquire("a", 100, 0) == Refused("by hand", None)
        candidate = Candidate("a", lease, SLOW)
        assert SLOW.retry_period <= candidate._pause(Refused("by hand", None)) <= SLOW.retry_period * 1.2


async def test_an_error_of_the_store_that_nobody_foresaw_ends_the_run() -> None:
    """A bug in a LeaseStore is no lost reply: the work ends, the lease is given back, the error raised."""
    clock = ManualClock()
    store = MemoryLease(clock)

    async def broken(holder: str, milliseconds: int) -> bool:
        raise ZeroDivisionError

    store.renew = broken  # type: ignore[method-assign]  # the bug
    task = asyncio.create_task(Candidate("a", store, SLOW, clock=clock).run(forever))
    await clock.advance(3)
    with pytest.raises(ZeroDivisionError):
        await task
    assert store._current() == ""


async def test_a_candidate_runs_once_at_a_time() -> None:
    """A second `run` beside the first is an error; after it, it is not."""
    clock = ManualClock()
    candidate = Candidate("a", MemoryLease(clock), SLOW, clock=clock)
    assert await candidate.run(at_once) == 1
    async with running(candidate):
        await clock.advance(0)
        with pytest.raises(RuntimeError, match="candidate 'a' is running already"):
            await candidate.run(at_once)
    with pytest.raises(ValueError, match="label must not be empty"):
        Candidate("", MemoryLease(clock), SLOW)
    waits = MemoryLease(clock)
    waits.wait_seconds = 2.0
    with pytest.raises(ValueError, match=r"retry_period must be > the lease's wait_seconds 2, got 2\.0"):
        Candidate("a", waits, SLOW)


async def test_work_that_is_no_coroutine_gives_the_lease_back() -> None:
    """A plain function is found out in the term, which then ends."""
    store = MemoryLease(ManualClock())
    plain: Any = lambda term: term.token  # noqa: E731  # a work that is not async
    with pytest.raises(TypeError, match="await"):
        await Candidate("a", store, SLOW).run(plain)
    assert store._current() == ""


@pytest.mark.parametrize(
    "error",
    [LeadershipLost("report", 3), NotReplicated(2, 1), StaleToken(1, "a", 2, "b")],
)
def test_errors_cross_processes(error: Exception) -> None:
    """They survive pickling with their text and fields."""
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), vars(copy)) == (str(error), vars(error))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"lease_duration": 10.0}, "lease_duration less its margin"),
        ({"lease_duration": 10.05}, "must be > renew_deadline 10"),
        ({"renew_deadline": 2.4}, r"renew_deadline must be > retry_period \* 1.2 = 2.4, got 2.4"),
        ({"retry_period": 0.001}, "retry_period must be >= 0.002 seconds, got 0.001"),
        ({"retry_period": -1}, "retry_period must be a finite number >= 0, got -1"),
        ({"lease_duration": math.inf}, "lease_duration must be a finite number"),
        ({"lease_duration": 1e16}, r"lease_duration must be <= 1e\+09 seconds, got 1e\+16"),
        ({"renew_deadline": math.nan}, "renew_deadline must be a finite number"),
        ({"lease_duration": "15"}, "lease_duration must be a finite number"),
        ({"lease_duration": True}, "lease_duration must be a finite number"),
        ({"clock_drift": 1}, r"clock_drift must be in \[0, 1\), got 1"),
        ({"clock_drift": 0.5}, "lease_duration less its margin for drift, 7.498"),
    ],
)
def test_a_bad_policy_names_field_value_and_bound(changes: dict[str, Any], complaint: str) -> None:
    """client-go's rules hold, and one for the margin."""
    with pytest.raises(ValueError, match=complaint):
        Policy(**changes)


@pytest.mark.parametrize(
    "bad", [{"wait_replicas": -1}, {"wait_replicas": 1.5}, {"wait_replicas": True}, {"wait_seconds": 0}]
)
async def test_a_bad_lease_names_field_value_and_bound(bad: dict[str, Any], server: Server) -> None:
    """Replicas are counted, and waited for a while."""
    async with opened(server.url) as client:
        with pytest.raises(ValueError, match=next(iter(bad))):
            RedisLease("report", client, app="a", **bad)


# replicas


async def test_wait_replicas_counts_only_what_replicas_have(app: str) -> None:
    """With its replica it is granted and renewed; without, neither, also not at a try after a lost reply."""
    with Server() as primary, Server(replica_of=primary) as replica:
        async with opened(primary.url) as client:
            lease = RedisLease("report", client, app=app, wait_replicas=1, wait_seconds=0.1)
            assert await lease.acquire("a", 10_000, 0) == Granted(1)
            assert replica.command("HGET", lease_key(app), "holder") == "a"
            assert await lease.renew("a", 10_000)
            assert isinstance(await lease.acquire("b", 10_000, 0), Refused)
            replica.stop()  # it hears nothing, and is counted as connected
            async with opened(primary.url) as lost:
                await RedisLease("again", lost, app=app).acquire("a", 10_000, 0)
            async with opened(primary.url) as other:
                again = RedisLease("again", other, app=app, wait_replicas=1, wait_seconds=0.1)
                with pytest.raises(NotReplicated):
                    await again.acquire("a", 10_000, 0)  # WAIT counts writes of its own connection only
            replica.kill()
            await eventually(lambda: "connected_slaves:0" in primary.command("INFO", "replication"), within=5)
            with pytest.raises(NotReplicated, match="0 replicas have the lease, 1 were asked for"):
                await lease.renew("a", 10_000)
            assert isinstance(await lease.acquire("b", 10_000, 0), Refused), "a refusal needs no replica"
            assert not await lease.renew("b", 10_000)
            await lease.release("a")
            with pytest.raises(NotReplicated):
                await lease.acquire("b", 10_000, 0)
            assert not await client.exists(lease_key(app))


async def test_wait_replicas_asks_the_node_that_has_the_lease(
    cluster: Cluster, app: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster too; and where the slot has moved, WAIT of the wrong node does not count."""
    async with opened(cluster.url) as client:
        lease = RedisLease("report", client, app=app, wait_replicas=1, wait_seconds=2)
        assert await lease.acquire("a", 10_000, 0) == Granted(1)
        assert await lease.renew("a", 10_000)
        right = cluster.primary_of(lease_key(app)).port
        wrong = next(node.port for node in cluster.nodes[:3] if node.port != right)
        there: Any = client
        with monkeypatch.context() as patched:
            patched.setattr(client, "get_node_from_key", lambda key: there.get_node("127.0.0.1", wrong))
            with pytest.raises(NotReplicated):
                await lease.renew("a", 10_000)
        assert await lease.renew("a", 10_000)


# real processes


def candidates(
    spawn: Callable[..., Worker], labels: str, policy: Policy, *, url: str, app: str, path: Path
) -> dict[str, Worker]:
    """Start candidates that write their label and token to `path` while they lead."""
    lease = ["--lease", policy.lease_duration, "--deadline", policy.renew_deadline]
    rest = ["--retry", policy.retry_period, "--database", path, "--app", app, "--every", 0.02]
    return {
        label: spawn(PROCESS, "report", "--label", label, *lease, *rest, env={"REDIS_URL": url})
        for label in labels
    }


def leader_of(path: Path) -> tuple[int, str]:
    """Return the token and the label of the newest heartbeat."""
    sql = sqlite3.connect(path)
    with suppress(sqlite3.OperationalError):  # there is no table yet
        row = sql.execute("SELECT token, label FROM beats ORDER BY rowid DESC LIMIT 1").fetchone()
        sql.close()
        return row or (0, "")
    sql.close()
    return 0, ""


async def next_leader(path: Path, after: int, within: float = 15) -> tuple[int, str]:
    """Wait for a heartbeat with a token above `after`."""

    def newer() -> tuple[int, str] | None:
        found = leader_of(path)
        return found if found[0] > after else None

    return await eventually(newer, within=within) or (0, "")


async def all_have_started(workers: Iterable[Worker]) -> None:
    """Wait until each process follows or leads."""

    def asked() -> bool:
        return all("Observed" in worker.output or "Started" in worker.output for worker in workers)

    await eventually(asked, within=15)


@pytest.mark.fault("SIGKILL of the leader")
async def test_a_killed_leader_is_followed(
    server: Server, app: str, tmp_path: Path, spawn: Callable[..., Worker], ledger: Callable[..., Ledger]
) -> None:
    """Five leaders are killed in their work; within lease + 1.2 retry another one works, with a new token."""
    kills = 5
    bound = FAST.lease_duration + 1.2 * FAST.retry_period
    book = ledger(
        within=bound + SLACK, bound=f"lease + 1.2 retry = {bound:g} s, and {SLACK:g} s as the machine is busy"
    )
    path = tmp_path / "beats.db"
    alive = candidates(spawn, "abcdefg", FAST, url=server.url, app=app, path=path)
    await all_have_started(alive.values())
    async with opened(server.url) as client:
        await client.set(f"{app}:naive", "held by a process that was killed", nx=True)
        for kill in range(kills):
            token, label = await next_leader(path, kill)
            alive.pop(label).kill()
            book.injected()
            new, _ = await next_leader(path, token)
            book.recovered()
            book.acked(f"term {new}")
        stuck = await client.exists(f"{app}:naive")
    sql = sqlite3.connect(path)
    for token, labels in sql.execute("SELECT token, count(DISTINCT label) FROM beats GROUP BY token"):
        book.effect(f"term {token}", labels)
    rows = [token for (token,) in sql.execute("SELECT token FROM beats ORDER BY rowid")]
    sql.close()
    assert rows == sorted(rows), "a token went back"
    book.held(f"another process led in time, {kills} of {kills} times, with a higher token")
    assert stuck
    book.naive(f"a lock without expiry: {stuck} lock, held by the dead after {kills} kills")


@pytest.mark.fault("SIGSTOP for longer than the lease, between the look at it and the write")
async def test_a_paused_leader_writes_nothing_stale(
    server: Server, app: str, tmp_path: Path, spawn: Callable[..., Worker], ledger: Callable[..., Ledger]
) -> None:
    """Ten pauses: with the fence each late write is refused, without it each overwrites the successor's."""
    book = ledger(bound="every stale write refused")
    naive = book.without("no fence, the successor's write is overwritten")
    await asyncio.gather(
        paused_between_look_and_write("fenced", book, 10, server.url, app, tmp_path / "a.db", spawn),
        paused_between_look_and_write(
            "unfenced", naive, 10, server.url, f"{app}-n", tmp_path / "b.db", spawn
        ),
    )
    assert naive.lost == 10
    book.held("the resource refused the late write each time")


async def paused_between_look_and_write(
    kind: str, book: Ledger, pauses: int, url: str, app: str, path: Path, spawn: Callable[..., Worker]
) -> None:
    """Pause a leader, let another one write, continue the first, and look whose value stands."""
    with a_database(path) as database:
        old = spawn(paused_leader.__name__, kind, url, app, path)
        process = psutil.Process(old.pid)
        async with opened(url) as client:
            lease = RedisLease("report", client, app=app)
            for turn in range(pauses):

                async def work(term: Term, value: str = f"new leader {turn}") -> None:
                    write(database, term, value)

                await old.said("sure of its lease", within=15)
                await eventually(lambda: process.status() == psutil.STATUS_STOPPED, within=5)
                book.injected()
                await Candidate("new leader", lease, paused_leader.FAST).run(work)
                book.acked(turn)
                old.cont()
                await old.said("was refused" if kind == "fenced" else "has written", within=5)
                if register(path) == f"new leader {turn}":
                    book.effect(turn)


@pytest.mark.fault("SIGTERM to the leader")
async def test_a_leader_that_is_told_to_end_resigns(
    server: Server, app: str, tmp_path: Path, spawn: Callable[..., Worker], ledger: Callable[..., Ledger]
) -> None:
    """It ends its work, gives the lease back, and exits with 0; the next one need not wait for the lease."""
    book = ledger(within=1.2 * LONG.retry_period + SLACK, bound="1.2 retry = 0.12 s, not a lease of 10 s")
    path = tmp_path / "beats.db"
    alive = candidates(spawn, "abcd", LONG, url=server.url, app=app, path=path)
    await all_have_started(alive.values())
    for turn in range(3):
        token, label = await next_leader(path, turn)
        ends = alive.pop(label)
        ends.terminate()
        book.injected()
        await next_leader(path, token)
        book.recovered()
        book.acked(turn)
        if await ends.ended(within=5) == 0 and "reason=<Reason.CANCELLED" in ends.output:
            book.effect(turn)
    book.held("the work ended, the lease was released, the exit code was 0")


async def test_the_process_in_this_process(
    server: Server,
    app: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`main` leads, says so line by line, and ends in good order at SIGTERM."""
    monkeypatch.setenv("REDIS_URL", server.url)
    path = tmp_path / "beats.db"
    arguments = ["report", "--label", "a", "--database", str(path), "--app", app, "--every", "0.01"]
    task = asyncio.create_task(main(arguments))
    assert await next_leader(path, 0) == (1, "a")
    os.kill(os.getpid(), signal.SIGTERM)
    await task
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("(")[0] for line in lines] == ["StartedLeading", "StoppedLeading"]


# faults on the way to Redis


async def another_renewal(heard: Recorder) -> None:
    """Wait until the leader has renewed once more."""
    before = len(heard.of(LeaseRenewed))
    await eventually(lambda: len(heard.of(LeaseRenewed)) > before, within=5)


@pytest.mark.fault("the reply to the acquisition is lost")
async def test_a_lost_reply_to_an_acquisition_blocks_nobody(
    server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """Ten times: the candidate leads at its next try, in its own lease; SET NX is locked out by itself."""
    book = ledger(within=1.2 * LONG.retry_period + SLACK, bound="leads at the next try")
    naive = book.without("SET NX, shut out by its own lock")
    async with opened(server.url) as direct:
        warm = RedisLease("warm", direct, app=app)
        await warm.acquire("a", 1, 0)
        await warm.release("a")
        async with proxy(server.port, book) as way, opened(way.url) as client:
            for number in range(10):
                lease = RedisLease(f"report {number}", client, app=app)
                with way.lose_reply(b"EVALSHA"):
                    token = await Candidate("a", lease, LONG).run(at_once)
                book.recovered()
                book.acked(number)
                if token == 1:
                    book.effect(number)
        async with proxy(server.port, naive) as way, opened(way.url) as client:
            for number in range(10):
                naive.acked(number)
                with way.lose_reply(b"$3\r\nSET\r\n"), pytest.raises(OutcomeUnknown):
                    await client.set(f"{app}:naive {number}", "a", nx=True, px=10_000)
                naive.recovered()
                if await client.set(f"{app}:naive {number}", "a", nx=True, px=10_000):
                    naive.effect(number)
                assert await direct.get(f"{app}:naive {number}") == b"a"
    book.held("each candidate recognised its own lease, and led with its first token")


class WaitsForSocketTimeout(Candidate):
    """The renewal is limited by the client's own time-out only, of five seconds."""

    _renew_until_lost = WaitsForTheReply._renew_until_lost


@pytest.mark.fault("Redis falls silent (black hole) while a leader works")
async def test_the_work_ends_before_a_silent_redis_forgets_the_lease(
    server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """Three times: the work has ended while the store still keeps the lease."""
    book = ledger(bound="work ended with the lease still held")
    naive = book.without("a socket time-out of 5 s only, at work when the lease is gone")
    await asyncio.gather(
        silence(Candidate, book, server, app), silence(WaitsForSocketTimeout, naive, server, f"{app}-n")
    )
    book.held("the work was cancelled at the renew deadline, in time")


async def silence(make: Make, book: Ledger, server: Server, app: str) -> None:
    """Let Redis fall silent three times, and look whether the work ended before the lease did."""
    async with opened(server.url) as direct, proxy(server.port, book) as way, opened(way.url) as client:
        for number in range(3):
            works, ended = asyncio.Event(), asyncio.Event()
            name = f"report {number}"

            async def work(term: Term, works: asyncio.Event = works, ended: asyncio.Event = ended) -> None:
                works.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.set()

            async def is_over(ended: asyncio.Event = ended, key: str = lease_key(app, name)) -> bool:
                return ended.is_set() or not await direct.exists(key)

            async with running(make("a", RedisLease(name, client, app=app), FAST), work):
                await works.wait()
                with way.hole("down"):
                    await eventually(is_over, within=5)
                    book.acked(number)
                    if ended.is_set():
                        book.effect(number)


@pytest.mark.fault("connections reset while a leader works")
async def test_resets_do_not_end_a_term(server: Server, app: str, ledger: Callable[..., Ledger]) -> None:
    """Ten resets: the leader renews over a new connection, in the same term."""
    book = ledger(within=2 * LONG.retry_period + SLACK, bound="the same term throughout")
    heard = Recorder()
    async with proxy(server.port, book) as way, opened(way.url) as client:
        candidate = Candidate("a", RedisLease("report", client, app=app), LONG, on_event=heard)
        async with running(candidate):
            for number in range(10):
                await another_renewal(heard)
                assert await way.reset_all()
                await another_renewal(heard)
                book.recovered()
                book.acked(number)
                if candidate.is_leader and len(heard.of(StartedLeading)) == 1:
                    book.effect(number)
    book.held("renewed over a new connection each time, one term")


@pytest.mark.fault("release and renewal by who does not hold the lease")
async def test_a_foreign_release_does_nothing(
    server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """Ten of each, against the holder's lease; a plain DEL takes it away."""
    book = ledger(bound="the holder keeps its lease")
    naive = book.without("plain DEL, the holder loses its lease")
    async with opened(server.url) as client:
        for number in range(10):
            for books, make in ((book, RedisLease), (naive, ReleasesByDel)):
                lease = make(f"{make.__name__} {number}", client, app=app)
                await lease.acquire("owner", 60_000, 0)
                await lease.renew("stranger", 99_000)
                await lease.release("stranger")
                books.injected(2)
                books.acked(number)
                if await lease.renew("owner", 60_000):
                    books.effect(number)
    book.held("both were refused")


# Redis forgets


class OnlyLowerTokens(LetsEqualTokensIn):
    """Refuses lower tokens only."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "CREATE TABLE IF NOT EXISTS register (value)")


async def a_term(client: Client, app: str, label: str, database: FencedDatabase | None) -> Term:
    """Return the term of a leader that has been elected and then does nothing, as one that is paused."""
    floor = None if database is None else database.floor
    return await Candidate(label, RedisLease("report", client, app=app), LONG, floor=floor)._campaign()


@pytest.mark.fault("Redis killed and back without its data, while a leader works")
async def test_a_restarted_redis_lets_no_stale_write_in(
    fresh_server: Server, app: str, tmp_path: Path, ledger: Callable[..., Ledger]
) -> None:
    """Three restarts: lease and counter are gone, the next leader is above the floor, the old is refused."""
    book = ledger(bound="every stale write refused")
    naive = book.without("no floor and equal tokens let in, the successor's write is overwritten")
    for books, make, name in ((book, FencedDatabase, "a.db"), (naive, OnlyLowerTokens, "b.db")):
        path = tmp_path / name
        with a_database(path):
            database = make(path)
            known = database if books is book else None
            for turn in range(3):
                async with opened(fresh_server.url) as client:
                    old = await a_term(client, app, "old", known)
                    fresh_server.kill()
                    fresh_server.restart()
                    books.injected()
                    lease = RedisLease("report", client, app=app)
                    new = Candidate("new", lease, FAST, floor=known.floor if known else None)
                    await superseded(books, turn, old, new, database, path)
                    await client.flushall()  # this server is the test's own
            database.close()
    book.held("the new leader's token was above the floor, the late write was refused")


@pytest.mark.fault("failover to a replica that had not heard of the lease")
async def test_a_failover_repeats_a_token_and_the_floor_stops_it(
    app: str, tmp_path: Path, ledger: Callable[..., Ledger]
) -> None:
    """Two valid terms with one token, three times over; with the floor the second has a higher one."""
    book = ledger(bound="every stale write refused")
    naive = book.without("no floor and equal tokens let in, the successor's write is overwritten")
    repeated = sum(
        await asyncio.gather(
            fail_over_three_times(book, FencedDatabase, tmp_path / "a.db", app),
            fail_over_three_times(naive, OnlyLowerTokens, tmp_path / "b.db", app),
        )
    )
    assert repeated >= 4, "the failover was to repeat a token"
    book.held(f"the floor; after each of 6 failovers two terms were valid, in {repeated} with one token")


async def fail_over_three_times(books: Ledger, make: Make, path: Path, app: str) -> int:
    """Promote a replica that has not heard of the lease; return how often a token came again."""
    repeated = 0
    with a_database(path):
        database = make(path)
        known = database if make is FencedDatabase else None
        for turn in range(3):
            async with a_cut_off_replica() as (primary, replica), opened(primary.url) as client:
                strict = RedisLease("report", client, app=f"{app}-w", wait_replicas=1, wait_seconds=0.05)
                with pytest.raises(NotReplicated):
                    await strict.acquire("a", 500, 0)
                old = await a_term(client, app, "old", known)
                primary.kill()
                replica.command("REPLICAOF", "NO", "ONE")
                books.injected()
                async with opened(replica.url) as promoted:
                    same = await a_term(promoted, app, "same", None)
                    assert old.valid
                    assert same.valid
                    repeated += same.token == old.token
                    lease = RedisLease("report", promoted, app=app)
                    await promoted.delete(*lease._keys)
                    new = Candidate("new", lease, FAST, floor=known.floor if known else None)
                    await superseded(books, turn, old, new, database, path)
        database.close()
    return repeated


@asynccontextmanager
async def a_cut_off_replica() -> AsyncIterator[tuple[Server, Server]]:
    """A primary, and a replica that was in sync and has heard nothing since."""
    primary = Server()
    await asyncio.to_thread(primary.__enter__)
    try:
        async with proxy(primary.port) as way:
            replica = Server(replica_of=("127.0.0.1", way.port))
            await asyncio.to_thread(replica.__enter__)
            try:
                with way.hole("down"):
                    primary.command("SET", "something", "for the hole")
                    yield primary, replica
            finally:
                await asyncio.to_thread(replica.close)
    finally:
        await asyncio.to_thread(primary.close)


async def superseded(
    books: Ledger, turn: int, old: Term, new: Candidate, database: FencedDatabase, path: Path
) -> None:
    """The old leader writes, the new one comes and writes, and the old one, late, tries to write again."""
    write(database, old, "old leader")

    async def work(term: Term) -> None:
        write(database, term, f"new leader {turn}")
        books.acked(turn)

    async with running(new, work) as task:
        await asyncio.wait({task}, timeout=2)
    with suppress(StaleToken):
        write(database, old, "old leader, late")
    if register(path) == f"new leader {turn}":
        books.effect(turn)


@pytest.mark.fault("SIGKILL of the cluster's primary that has the lease")
async def test_a_replica_that_had_the_lease_goes_on_with_it(
    app: str, tmp_path: Path, ledger: Callable[..., Ledger]
) -> None:
    """The promoted replica knows the counter, so the next leader's token is higher without any floor."""
    book = ledger(within=15, bound="the token rises")
    path = tmp_path / "a.db"
    heard = Recorder()
    with Cluster("--cluster-node-timeout", "1000") as own, a_database(path) as database:
        async with opened(own.url) as client:
            known = RedisLease(
                "report", client, app=app, wait_replicas=1, wait_seconds=0.05
            )  # until the failover
            plain = RedisLease("report", client, app=app)

            async def work(term: Term) -> None:
                write(database, term, term.token)
                book.acked(term.token)
                await asyncio.Event().wait()

            async with running(Candidate("a", known, FAST, on_event=heard), work):
                # On a busy machine WAIT may time out at first; each new acquisition then has a new token.
                await eventually(lambda: register(path) != "nothing", within=20)
                async with running(Candidate("b", plain, FAST, on_event=heard), work):
                    await eventually(lambda: heard.of(LeaderObserved), within=5)
                    own.primary_of(lease_key(app)).kill()
                    book.injected()
                    await eventually(lambda: len(heard.of(StartedLeading)) > 1, within=15)
                    book.recovered()
    for event in heard.of(StartedLeading):
        book.effect(event.token)
    first, second = heard.of(StartedLeading)
    assert (first.source, second.source) == ("a", "b")
    assert second.token > first.token
    book.held(f"the replica had lease and counter; token {second.token} came after {first.token}")


# the server's clock


@contextmanager
def a_server_with_a_movable_clock(needs: Callable[[str], str]) -> Iterator[Server]:
    """Start one, or skip where libfaketime is missing."""
    try:
        server = Server(movable_clock=True).__enter__()
    except NoFakeTime:
        needs("faketime")
        raise
    try:
        yield server
    finally:
        server.close()


@pytest.mark.fault("the server's clock jumps one hour ahead")
async def test_a_clock_that_jumps_ahead_makes_two_leaders_and_no_stale_write(
    app: str, tmp_path: Path, ledger: Callable[..., Ledger], needs: Callable[[str], str]
) -> None:
    """Three jumps: the lease is gone at once, two terms are valid, and the old leader's write is refused."""
    book = ledger(bound="every stale write refused")
    naive = book.without("no fence, the successor's write is overwritten")
    both_valid = 0
    with a_server_with_a_movable_clock(needs) as server:
        async with opened(server.url) as client:
            for books, make, name in ((book, FencedDatabase, "a.db"), (naive, NoFence, "b.db")):
                path = tmp_path / name
                with a_database(path):
                    database = make(path)
                    for turn in range(3):
                        lease = RedisLease("report", client, app=f"{app}-{name}")
                        old = await Candidate("old", lease, LONG)._campaign()
                        server.set_clock(3600 * (turn + 1))
                        books.injected()
                        await superseded(books, turn, old, Candidate("new", lease, FAST), database, path)
                        both_valid += old.valid
                    server.set_clock(0)
                    await client.flushall()  # this server is the test's own
                    database.close()
    assert both_valid == 6
    book.held(f"the fence; two terms were valid at once after {both_valid} of 6 jumps")


class NoFence(TrustsItsCallers):
    """No token is compared."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "")


@pytest.mark.fault("the server's clock is set back two hours")
async def test_a_clock_set_back_keeps_a_living_leader_and_a_dead_ones_lease(
    app: str, ledger: Callable[..., Ledger], needs: Callable[[str], str]
) -> None:
    """Three steps back: the leader renews in the same term; but a lease nobody renews stays for two hours."""
    book = ledger(bound="the same term throughout")
    heard = Recorder()
    with a_server_with_a_movable_clock(needs) as server:
        async with opened(server.url) as client:
            candidate = Candidate("a", RedisLease("report", client, app=app), LONG, on_event=heard)
            async with running(candidate):
                for step in range(3):
                    await another_renewal(heard)
                    server.set_clock(-7200 * (step + 1))
                    book.injected()
                    await another_renewal(heard)
                    book.acked(step)
                    if candidate.is_leader and len(heard.of(StartedLeading)) == 1:
                        book.effect(step)
            dead = RedisLease("dead", client, app=app)
            await dead.acquire("a", FAST.lease_ms, 0)
            server.set_clock(-7200 * 4)
            answer = await dead.acquire("b", FAST.lease_ms, 0)
            assert isinstance(answer, Refused)
            assert answer.remaining is not None
            assert answer.remaining > 7000, "a lease nobody renews was to stay"
            minutes = int(answer.remaining // 60)
    book.held(f"the living leader renewed; a dead one's lease of 0.5 s stays {minutes} minutes: delete it")


# containers


@pytest.mark.containers
@pytest.mark.slow
@pytest.mark.invariant(2, 4)
async def test_the_pod_keeps_what_the_processes_promise(pods: Pods, server: Server, app: str) -> None:
    """A leader's container that is killed is followed in time, and what it still had to write is refused."""
    fast = {"LEASE": FAST.lease_duration, "DEADLINE": FAST.renew_deadline, "RETRY": FAST.retry_period}
    config = {"REDIS_URL": server.url, "APP": app, "EVERY": 0.02, **fast}
    bound = FAST.lease_duration + 1.2 * FAST.retry_period + SLACK
    with pods.played("container/leader_election", config=config) as pod:
        path = Path(pod.inspect("a")["Mounts"][0]["Source"], "beats.db")
        await eventually(lambda: sum("Observed" in pod.text(each) for each in "abc") >= 2, within=20)
        token, killed = await next_leader(path, 0)
        pod.kill(killed)
        after, label = await next_leader(path, token, within=bound)
        assert (after > token, label != killed) == (True, True)
        refused(path, token, killed)
        await eventually(lambda: pod.pid(killed) != 0, within=20)
        await eventually(lambda: "LeaderObserved" in last_run(pod, killed), within=20)
        assert [each for each in "abc" if pod.restarts(each)] == [killed]
        pod.stop()
        assert {each: pod.exit_code(each) for each in "abc"} == dict.fromkeys("abc", 0)
        sql = sqlite3.connect(path)
        rows = sql.execute("SELECT token, label FROM beats ORDER BY rowid").fetchall()
        sql.close()
    tokens = [token for token, _ in rows]
    assert tokens == sorted(tokens), "a token went back"
    assert len(set(rows)) == len(set(tokens)), "two wrote with one token"


def refused(path: Path, token: int, holder: str) -> None:
    """Write with the token of a dead leader to the database of the living one, in vain."""
    database = FencedDatabase(path)
    with pytest.raises(StaleToken), database.transaction(token, holder):
        pass
    database.close()


def last_run(pod: Pod, container: str) -> str:
    """Return what a container has written since it was last started."""
    started = datetime.fromisoformat(pod.inspect(container)["State"]["StartedAt"][:26] + "+00:00").timestamp()
    return "\n".join(text for at, text in pod.logs(container) if at >= started)
