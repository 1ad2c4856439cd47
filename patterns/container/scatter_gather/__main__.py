"""The processes: `python -m patterns.container.scatter_gather root`, and `... leaf`.

Environment of both: PORT.
The root: LEAVES, as `east=http://10.0.0.1:80|http://10.0.0.2:80 west=http://10.0.0.3:80`; MIN_RESULTS;
DEADLINE and HEDGE_AFTER in seconds.
A leaf: SHARD of SHARDS (numbers from 0), DOCUMENTS (a text, one document a line: `id: words`), and for tied
requests REPLICAS, the URLs of all replicas of the shard by number, with a `|` between them.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

from patterns.container.scatter_gather import Hedge, Policy
from patterns.container.scatter_gather.leaf import leaf_application
from patterns.container.scatter_gather.replica import BadAnswer, Refused
from patterns.container.scatter_gather.root import root_application
from patterns.container.scatter_gather.shard import Shard, documents_of, part_of
from patterns.serving import Server, serve

try:
    import aiohttp
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"patterns.container.scatter_gather needs {error.name}: pip install executable-patterns[container]"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import web

    from patterns.container.scatter_gather.merge import Page

__all__ = ["leaf_of", "main", "root_of"]


def root_of(env: Mapping[str, str]) -> web.Application:
    """Return the root that the environment describes."""
    leaves = {
        name: urls.split("|") for name, _, urls in (each.partition("=") for each in env["LEAVES"].split())
    }
    policy = Policy(
        deadline=float(env.get("DEADLINE", "1")),
        min_results=int(env.get("MIN_RESULTS", "1")),
        limit=2 * len(leaves),
        idempotent=True,  # a search changes nothing
    )
    hedge = None
    if any(len(urls) > 1 for urls in leaves.values()):
        delay = float(env.get("HEDGE_AFTER", "0.1"))
        hedge = Hedge(delay, on=(aiohttp.ClientError, Refused, BadAnswer))
    return root_application(leaves, policy, hedge=hedge)


def leaf_of(env: Mapping[str, str]) -> web.Application:
    """Return the leaf that the environment describes."""
    documents = documents_of(env["DOCUMENTS"])
    shard = Shard(part_of(documents, int(env["SHARD"]), int(env["SHARDS"])))

    async def search(query: str, k: int) -> Page:
        return shard.search(query, k)

    return leaf_application(search, replicas=[url for url in env.get("REPLICAS", "").split("|") if url])


def main(arguments: list[str], env: Mapping[str, str]) -> int:
    """Serve until SIGTERM; return the exit code."""
    roles = {"root": root_of, "leaf": leaf_of}
    if len(arguments) != 1 or arguments[0] not in roles:
        sys.stderr.write("usage: python -m patterns.container.scatter_gather root|leaf\n")
        return 2
    app = roles[arguments[0]](env)

    def ready(server: Server) -> None:
        sys.stdout.write(f"ready: {server.url}\n")
        sys.stdout.flush()

    asyncio.run(
        serve(app, port=int(env.get("PORT", "0")), grace=5.0, cancel_on_disconnect=True, on_ready=ready)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
