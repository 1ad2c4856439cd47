"""A caller reaches a dependency only through a circuit breaker, which is in one of three states.

Closed: every call passes to the dependency, and its outcome is counted. Half-open: a few probes pass. Open:
no call passes; the caller gets CircuitOpen at once, and how long to wait. Each change of state goes to
metrics as an event. The state may be shared with other processes through Redis.
"""

from diagrams.onprem.client import Client
from diagrams.onprem.compute import Server
from diagrams.onprem.inmemory import Redis
from diagrams.onprem.monitoring import Prometheus

from tools.diagrams import box, canvas, cluster, edge, icon

with canvas("Circuit Breaker"):
    caller = icon(Client, "Caller")
    with cluster("CircuitBreaker, one per dependency") as breaker:
        closed = box("closed", "counts outcomes", tone="good", width="1.7")
        half_open = box("half-open", "tries again", tone="warn", width="1.7")
        opened = box("open", "refuses at once", tone="bad", width="1.7")
    dependency = icon(Server, "Dependency")
    redis = icon(Redis, "Redis")
    metrics = icon(Prometheus, "Metrics")

    caller >> edge("call", lhead=breaker) >> half_open
    opened >> edge("CircuitOpen\nretry_after", tone="bad") >> caller
    closed >> edge("every call", tone="good") >> dependency
    half_open >> edge("a few probes", tone="warn") >> dependency
    opened >> edge("state, if shared", tone="quiet", dashed=True, ltail=breaker) >> redis
    opened >> edge("events", tone="quiet", dashed=True, ltail=breaker) >> metrics
