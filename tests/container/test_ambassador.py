"""The proof of patterns/container/ambassador: each invariant, and a naive variant that breaks it."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from patterns.container.ambassador import ranked
from tests.container.ambassador_checks import (
    check_a_broken_answer_shows,
    check_a_client_that_hangs_up_ends_the_attempt,
    check_amplification,
    check_bounded,
    check_certificates,
    check_deadline_shrinks,
    check_failures_are_typed,
    check_few_keys_move,
    check_header_in_two_cases,
    check_leads_nowhere_else,
    check_nothing_is_smuggled,
    check_sent_once,
    check_shards_agree,
    check_streams,
    check_transparent,
)
from tests.container.ambassador_ground import certificates, ours, tls_origin
from tests.container.ambassador_naive import passes_bytes_on, with_flags

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@pytest.mark.invariant(1)
async def test_transparent(rng: random.Random) -> None:
    """Method, target, headers, body, status and reason pass unchanged, whatever they are."""
    await check_transparent(ours, rng)
    await check_header_in_two_cases(ours)


@pytest.mark.naive(1)
async def test_naive_transparent(rng: random.Random) -> None:
    """A proxy with a dict of headers loses the second of two, and passes hop-by-hop ones on."""
    with pytest.raises(AssertionError):
        await check_transparent(with_flags(), rng)


@pytest.mark.invariant(1)
async def test_streams() -> None:
    """Bodies are streamed both ways at the same time."""
    await check_streams(ours)


@pytest.mark.naive(1)
async def test_naive_streams() -> None:
    """A proxy that reads the whole body first makes the first piece wait for the last."""
    with pytest.raises(AssertionError):
        await check_streams(with_flags())


@pytest.mark.invariant(1)
async def test_a_broken_answer_shows() -> None:
    """An answer that broke off at the upstream breaks off for the application too."""
    await check_a_broken_answer_shows(ours)


@pytest.mark.naive(1)
async def test_naive_broken_answer() -> None:
    """A proxy that passes on what it has makes half an answer look whole."""
    with pytest.raises(AssertionError):
        await check_a_broken_answer_shows(with_flags())


@pytest.mark.invariant(2)
async def test_sent_once() -> None:
    """A POST reaches an upstream once, whatever fails after its first byte; a GET is tried again."""
    await check_sent_once(ours)


@pytest.mark.naive(2)
async def test_naive_sent_once() -> None:
    """A proxy that retries everything pays twice."""
    with pytest.raises(AssertionError):
        await check_sent_once(with_flags(tries=3))


@pytest.mark.invariant(3)
async def test_amplification() -> None:
    """When everything fails, 100 requests are at most 110 attempts with a budget of 10."""
    await check_amplification(ours)


@pytest.mark.naive(3)
async def test_naive_amplification() -> None:
    """Three tries each are three times the load."""
    with pytest.raises(AssertionError):
        await check_amplification(with_flags(tries=3))


@pytest.mark.invariant(4)
async def test_deadline_shrinks() -> None:
    """The deadline that upstreams are told shrinks with each attempt and hop, and holds."""
    await check_deadline_shrinks(ours)


@pytest.mark.naive(4)
async def test_naive_deadline() -> None:
    """A time-out of the hop's own grants the upstream more than the application has."""
    with pytest.raises(AssertionError):
        await check_deadline_shrinks(lambda *origins, **_: with_flags(tries=1)(*origins, deadline=1.0))


@pytest.mark.invariant(5)
async def test_a_client_that_hangs_up_ends_the_attempt() -> None:
    """An application that hangs up ends what was done for it."""
    await check_a_client_that_hangs_up_ends_the_attempt(ours)


@pytest.mark.naive(5)
async def test_naive_hang_up() -> None:
    """A handler that is not cancelled goes on for nobody."""
    with pytest.raises(AssertionError):
        await check_a_client_that_hangs_up_ends_the_attempt(
            lambda *origins: with_flags(cancels=False)(*origins, deadline=3.0)
        )


@pytest.mark.invariant(6)
def test_shards() -> None:
    """Every process agrees on a key's shard, and a new shard takes only its share of the keys."""
    check_shards_agree(
        "from patterns.container.ambassador import ranked\ndef shard_of(key, shards): return ranked(key, shards)[0]"
    )
    check_few_keys_move(lambda key, shards: ranked(key, shards)[0])


@pytest.mark.naive(6)
def test_naive_shards() -> None:
    """`hash()` differs from process to process, and modulo moves nearly every key."""
    with pytest.raises(AssertionError, match="disagree"):
        check_shards_agree("def shard_of(key, shards): return shards[hash(key) % len(shards)]")
    with pytest.raises(AssertionError, match="moved"):
        check_few_keys_move(modulo)


def modulo(key: bytes, shards: Sequence[str]) -> str:
    return shards[int.from_bytes(key, "big") % len(shards)]


@pytest.mark.invariant(7)
async def test_bounded() -> None:
    """Requests beyond what may run and wait are refused at once with Retry-After."""
    await check_bounded(ours)


@pytest.mark.naive(7)
async def test_naive_bounded() -> None:
    """A proxy without a bound passes every request on."""
    with pytest.raises(AssertionError):
        await check_bounded(with_flags())


@pytest.mark.invariant(8)
async def test_nothing_is_smuggled() -> None:
    """Whatever two servers could read in two ways is refused, and its connection closed."""
    assert await check_nothing_is_smuggled(ours) >= 20


@pytest.mark.naive(8)
async def test_naive_smuggling() -> None:
    """A proxy that passes bytes on lets a second request through in the body of the first."""
    with pytest.raises(AssertionError):
        await check_nothing_is_smuggled(passes_bytes_on)


@pytest.mark.invariant(8)
async def test_leads_nowhere_else() -> None:
    """Nothing but the upstream's name decides whom the ambassador asks."""
    await check_leads_nowhere_else(ours)


@pytest.mark.naive(8)
async def test_naive_leads_elsewhere() -> None:
    """A proxy that follows redirects fetches what only the machine may fetch."""
    with pytest.raises(AssertionError):
        await check_leads_nowhere_else(with_flags(follows=True))


@pytest.mark.invariant(9)
async def test_failures_are_typed() -> None:
    """Each answer that the ambassador made says so, and why, in the words of RFC 9209."""
    await check_failures_are_typed(ours)


@pytest.mark.naive(9)
async def test_naive_failures() -> None:
    """A bare 502 may be anybody's."""
    with pytest.raises(AssertionError):
        await check_failures_are_typed(with_flags())


@pytest.mark.invariant(9)
async def test_certificates(tmp_path: Path) -> None:
    """A certificate of another name, or of a stranger, gets a typed 502 and no request."""
    context, signer = certificates(tmp_path, "other.example")
    _, stranger = certificates(tmp_path, "localhost")
    async with tls_origin(context) as origin:
        await check_certificates(ours, origin, signer)
    right, _ = certificates(tmp_path, "localhost")
    async with tls_origin(right) as origin:
        await check_certificates(ours, origin, signer)
    del stranger


@pytest.mark.naive(9)
async def test_naive_certificates(tmp_path: Path) -> None:
    """A proxy that verifies nothing hands the password to whoever answers."""
    context, signer = certificates(tmp_path, "other.example")
    async with tls_origin(context) as origin:
        with pytest.raises(AssertionError):
            await check_certificates(with_flags(trusts=True), origin, signer)


