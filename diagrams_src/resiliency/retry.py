"""A caller reaches a dependency through a Retry, which decides after each failed attempt.

An error that is worth it, a budget that still has a token and enough time lead to a wait, spread by chance,
and then to the next attempt, with the same idempotency key. Otherwise the retry gives up, and the caller
gets the last error itself. The budget is shared by all callers of the dependency, in one process or, through
Redis, in many. What happened to each attempt goes to metrics as events.
"""

from diagrams.onprem.client import Client
from diagrams.onprem.compute import Server
from diagrams.onprem.inmemory import Redis
from diagrams.onprem.monitoring import Prometheus

from tools.diagrams import box, canvas, cluster, edge, icon

with canvas("Retry"):
    caller = icon(Client, "Caller")
    with cluster("Retry, one layer of a call") as retry:
        attempt = box("attempt", "one key for all", tone="good", width="1.7")
        decide = box("decide", "worth it? time left?", width="1.7")
        wait = box("wait", "backoff and jitter", tone="warn", width="1.7")
    budget = box("Budget", "one per dependency", tone="warn")
    dependency = icon(Server, "Dependency")
    redis = icon(Redis, "Redis")
    metrics = icon(Prometheus, "Metrics")

    caller >> edge("call; a result,\nor the last error", dir="both") >> attempt
    attempt >> edge("request", tone="good") >> dependency
    attempt >> edge("failed", tone="bad") >> decide
    decide >> edge("again") >> wait
    wait >> edge("number + 1", constraint="false") >> attempt
    decide >> edge("withdraw") >> budget
    budget >> edge("tokens, if shared", tone="quiet", dashed=True) >> redis
    wait >> edge("events", tone="quiet", dashed=True, ltail=retry) >> metrics
