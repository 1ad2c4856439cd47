"""Roots and leaves that listen: honest ones as processes, and one that answers whatever a test wants."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web

from patterns.container.scatter_gather import Ask
from patterns.container.scatter_gather.replica import HttpReplica, Query
from patterns.container.scatter_gather.root import root_application
from patterns.deadline import Deadline
from patterns.serving import serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from patterns.container.scatter_gather import Policy
    from tests.faults.workers import Worker

PROGRAM = "patterns.container.scatter_gather"
DOCUMENTS = """\
apple: a red fruit, red outside
brick: a red stone
carmine: red, red, red
dill: a green herb
"""
MEGABYTES = 100


def leaf_process(spawn: Callable[..., Worker], shard: int, *, port: int = 0) -> Worker:
    """Start a leaf."""
    env = {"PORT": str(port), "SHARD": str(shard), "SHARDS": "2", "DOCUMENTS": DOCUMENTS}
    return spawn(PROGRAM, "leaf", env=env)


async def url_of(process: Worker) -> str:
    """Return where a process listens, as soon as it does."""
    return (await process.said("ready: ", within=20)).removeprefix("ready: ")


def port_of(url: str) -> int:
    """Return the port of a URL without a path."""
    return int(url.rpartition(":")[2])


@dataclass
class Root:
    """A root that is asked over HTTP."""

    url: str
    session: aiohttp.ClientSession

    async def search(
        self, words: str, k: int = 3, *, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Return status and answer."""
        query = {"q": words, "k": str(k)}
        async with self.session.get(f"{self.url}/search", params=query, headers=headers) as answer:
            return answer.status, await (answer.json() if answer.status == 200 else answer.text())


@asynccontextmanager
async def rooted(leaves: Mapping[str, Sequence[str]], policy: Policy, **options: Any) -> AsyncIterator[Root]:
    """Serve a root in this process."""
    app = root_application(leaves, policy, **options)
    async with serving(app, cancel_on_disconnect=True) as server, aiohttp.ClientSession() as session:
        yield Root(server.url, session)


@dataclass
class Rogue:
    """A leaf that answers what it is told to.

    Attributes:
        says: which of its answers.
        sent: megabytes that it got rid of.
    """

    says: str = "hits"
    sent: int = 0

    def application(self) -> web.Application:
        """Return it as a server."""
        app = web.Application()
        app.router.add_get("/search", self.search)
        return app

    async def search(self, request: web.Request) -> web.StreamResponse:
        bodies = {
            "hits": '{"hits": [[1.0, "rogue"]], "more": false}',
            "garbage": "\x00\xff<html>",
            "half": '{"hits": [[1.0, "rog',
            "NaN": '{"hits": [[NaN, "rogue"]], "more": false}',
            "endless number": '{"hits": [[1e999, "rogue"]], "more": false}',
            "long number": '{"hits": [[' + "9" * 5000 + ', "rogue"]], "more": false}',
            "true": '{"hits": [[true, "rogue"]], "more": false}',
            "no text": '{"hits": [[1.0, 7]], "more": false}',
            "no flag": '{"hits": [], "more": 0}',
            "deep": "[" * 100_000,
            "list": "[]",
            "worst first": '{"hits": [[1.0, "x"], [2.0, "y"]], "more": false}',
            "too many": '{"hits": [' + ", ".join(f'[1.0, "{n:02}"]' for n in range(20)) + '], "more": false}',
            "holds back": '{"hits": [], "more": true}',
        }
        if self.says in bodies:
            return web.Response(body=bodies[self.says].encode("latin-1"))
        if self.says == "500":
            return web.Response(status=500, text="Traceback (most recent call last)")
        if self.says == "elsewhere":
            raise web.HTTPFound(f"http://{request.host}/search?q=1")
        if self.says == "cut off":
            answer = web.StreamResponse(headers={"Content-Length": "1000"})
            await answer.prepare(request)
            await answer.write(b'{"hits": [')
            assert request.transport is not None
            request.transport.close()
            return answer
        assert self.says == "100 MB"
        answer = web.StreamResponse()
        await answer.prepare(request)
        for _ in range(MEGABYTES):
            await answer.write(b" " * (1 << 20))
            self.sent += 1
        return answer


REFUSED = {
    "garbage": "BadAnswer",
    "half": "BadAnswer",
    "NaN": "BadAnswer",
    "endless number": "BadAnswer",
    "long number": "BadAnswer",
    "true": "BadAnswer",
    "no text": "BadAnswer",
    "no flag": "BadAnswer",
    "deep": "BadAnswer",
    "list": "BadAnswer",
    "worst first": "BadAnswer",
    "too many": "BadAnswer",
    "500": "Refused",
    "elsewhere": "Refused",
    "cut off": "ClientPayloadError",
    "100 MB": "BadAnswer",
}


async def bytes_that_a_trusting_client_reads(url: str) -> int:
    """Read a leaf's answer as most clients do."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/search") as answer:
        return len(await answer.read())


async def plain_gather(leaves: Mapping[str, Sequence[str]], seconds: float) -> str:
    """Ask the first replica of each leaf with asyncio.gather, and say how it went."""
    async with aiohttp.ClientSession() as session:
        asks = {name: Ask(Query("red", 3), Deadline(seconds), name) for name in leaves}
        tasks = [
            asyncio.ensure_future(HttpReplica(session, urls[0])(asks[name])) for name, urls in leaves.items()
        ]
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(*tasks)
        except (aiohttp.ClientError, TimeoutError) as error:
            return f"no answer, {type(error).__name__}"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return "an answer"
