"""The harness can see: six designs that are known to be bad, each caught, and beside each what holds."""

from __future__ import annotations

import hmac
import json
from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.eventually import eventually
from tests.faults import Broken, Ledger, proxy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from patterns.embedded import Server
    from tests.faults import Worker

pytestmark = pytest.mark.slow
KILLS = PAUSES = 3


def connected(port: int, **options: Any) -> Any:  # redis-py types each reply as plain or awaitable
    return redis.Redis(port=port, decode_responses=True, protocol=2, **options)


def settled(book: Ledger, *, lost: int = 0, duplicated: int = 0) -> None:
    """The books show this damage, and only books without any pass."""
    assert (book.lost, book.duplicated) == (lost, duplicated)
    if lost or duplicated:
        with pytest.raises(Broken):
            book.check()
    else:
        book.check()


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize(("kind", "lost"), [("list", KILLS), ("stream", 0)])
async def test_a_list_loses_the_jobs_of_killed_workers(
    kind: str, lost: int, server: Server, app: str, spawn: Callable[..., Worker]
) -> None:
    """BLPOP loses each job that its worker is killed in; a stream acknowledged with the effect loses none."""
    book = Ledger("harness", f"SIGKILL in a job off a {kind}")
    async with connected(server.port) as client:
        if kind == "stream":
            await client.xgroup_create(f"{app}:jobs", "workers", id="0", mkstream=True)
        for job in map(str, range(20)):
            if kind == "list":
                await client.rpush(f"{app}:jobs", job)
            else:
                await client.xadd(f"{app}:jobs", {"job": job})
            book.acked(job)
        for _ in range(KILLS):
            victim = spawn("tests.faults.programs.queue", kind, server.port, app, "hold")
            await victim.said("in job", within=10)
            victim.kill()
            book.injected()
        rest = spawn("tests.faults.programs.queue", kind, server.port, app)
        assert await rest.ended(within=10) == 0, rest.output
        for job in await client.lrange(f"{app}:effects", 0, -1):
            book.effect(job)
    settled(book, lost=lost)


@pytest.mark.parametrize(("kind", "lost"), [("unfenced", PAUSES), ("fenced", 0)])
async def test_a_paused_leader_overwrites_its_successor(
    kind: str, lost: int, server: Server, app: str, spawn: Callable[..., Worker]
) -> None:
    """A leader paused for longer than its lease overwrites its successor, unless the store checks tokens."""
    book = Ledger("harness", f"SIGSTOP longer than the lease, {kind}")
    async with connected(server.port) as client:
        leader = spawn("tests.faults.programs.leader", kind, server.port, app, 200)
        for turn in range(PAUSES):
            await leader.said("sure of its lease", within=10)
            leader.stop()
            await eventually(lambda: client.set(f"{app}:lease", "new leader", nx=True), within=2)
            book.injected()
            token = await client.incr(f"{app}:token")
            await client.hset(f"{app}:register", mapping={"token": token, "value": turn})
            book.acked(turn)
            await client.rpush(f"{app}:go", "go")
            leader.cont()
            await leader.said("has written" if kind == "unfenced" else "was refused", within=5)
            if await client.hget(f"{app}:register", "value") == str(turn):
                book.effect(turn)
            await client.delete(f"{app}:lease")
    settled(book, lost=lost)


@pytest.mark.parametrize(("retry", "duplicated"), [("default", 10), ("none", 0)])
async def test_a_client_that_repeats_commands_doubles_them(
    retry: str, duplicated: int, server: Server, app: str
) -> None:
    """redis-py as it comes doubles an INCR whose reply is lost; without its retries the caller is unsure."""
    book = Ledger("harness", f"reply lost after the commit, retry {retry}")
    options = {} if retry == "default" else {"retry": Retry(NoBackoff(), 0)}
    async with proxy(server.port, book) as p, connected(p.port, **options) as client:
        for number in range(10):
            with p.lose_reply(b"INCR"):
                try:
                    await client.incr(f"{app}:{number}")
                    book.acked(number)
                except RedisConnectionError:
                    book.unsure(number)
            book.effect(number, int(await client.get(f"{app}:{number}")))
        assert p.injected == 10
    assert book.outcomes["unsure"] == (0 if duplicated else 10)
    settled(book, duplicated=duplicated)


@pytest.mark.parametrize("kind", ["unbounded", "bounded"])
async def test_a_buffer_without_a_bound_dies_with_what_it_promised(
    kind: str, server: Server, app: str, spawn: Callable[..., Worker]
) -> None:
    """A buffer in memory loses on SIGTERM what it acknowledged and had not written, unless it drains."""
    book = Ledger("harness", f"SIGTERM with an {kind} buffer")
    writer = spawn("tests.faults.programs.buffer", kind, server.port, app)
    await writer.said("acked 200", within=10)
    writer.terminate()
    book.injected()
    code = await writer.ended(within=10)
    acknowledged = [
        line.split()[1] for line in writer.output.splitlines(keepends=True) if line.endswith("\n")
    ]
    for number in acknowledged:
        book.acked(number)
    async with connected(server.port) as client:
        for number in await client.lrange(f"{app}:effects", 0, -1):
            book.effect(number)
    assert code == (-15 if kind == "unbounded" else 0), writer.output
    settled(book, lost=len(acknowledged) if kind == "unbounded" else 0)


class Signature(bytes):
    """A signature that notices when it is compared byte by byte until the first that differs."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        type(self).compared += 1
        return bytes(self) == other

    __hash__ = bytes.__hash__


GOOD = hmac.new(b"key", b"GET /a", "sha256").hexdigest()
HOSTILE = ["", "0" * 64, GOOD[:-1], GOOD + "0", "é" * 64, "\udcff", "\x00", "ﬀ" * 32]


def by_equality(given: Any) -> bool:
    return bool(given == GOOD.encode())


def by_digest_of_text(given: Any) -> bool:
    return hmac.compare_digest(given.decode("utf-8", "surrogatepass"), GOOD)


def by_digest_of_bytes(given: Any) -> bool:
    return hmac.compare_digest(given, GOOD.encode())


@pytest.mark.parametrize(
    ("verify", "lost"), [(by_equality, len(HOSTILE)), (by_digest_of_text, 3), (by_digest_of_bytes, 0)]
)
def test_a_signature_compared_the_wrong_way(verify: Callable[[Any], bool], lost: int) -> None:
    """`==` tells by its time how much was right, and compare_digest on text answers 500 to an umlaut."""
    book = Ledger("harness", f"hostile signature, {verify.__name__}")
    for number, text in enumerate(HOSTILE):
        book.acked(number)
        book.injected()
        Signature.compared = 0
        try:
            answer = "accepted" if verify(Signature(text.encode("utf-8", "surrogatepass"))) else "403"
        except TypeError:
            answer = "500"
        if answer == "403" and not Signature.compared:
            book.effect(number)
    assert verify(GOOD.encode())
    settled(book, lost=lost)


@pytest.mark.parametrize(("kind", "torn"), [("in_place", 2 * KILLS), ("replaced", 0)])
async def test_a_file_written_in_place_is_read_torn(
    kind: str, torn: int, tmp_path: Path, spawn: Callable[..., Worker]
) -> None:
    """A configuration written in place is broken during the write and after a kill; a replaced one never."""
    book = Ledger("harness", f"SIGKILL in a write, {kind}")
    path = tmp_path / "config.json"
    for kill in range(KILLS):
        path.write_text('{"version": 1}')
        writer = spawn("tests.faults.programs.config_file", kind, path, "hold")
        await writer.said("in the write", within=10)
        _read(path, book, f"during write {kill}")
        writer.kill()
        book.injected()
        _read(path, book, f"after kill {kill}")
    settled(book, lost=torn)
    done = spawn("tests.faults.programs.config_file", kind, path)
    assert await done.ended(within=10) == 0, done.output
    assert json.loads(path.read_text())["version"] == 2


def _read(path: Path, book: Ledger, reading: str) -> None:
    book.acked(reading)
    try:
        if json.loads(path.read_text())["version"] in {1, 2}:
            book.effect(reading)
    except ValueError:
        pass
