"""Callers reach two dependencies, each through a bulkhead of its own with a limited number of permits.

The permits of the dependency that hangs are all out: a few further calls wait in its line, and the rest are
refused at once with BulkheadFull. The other dependency has its own permits, and its calls pass as ever. Each
refusal goes to metrics as an event. A limit may be shared with other processes by leases in Redis.
"""

from diagrams.onprem.client import Client
from diagrams.onprem.compute import Server
from diagrams.onprem.inmemory import Redis
from diagrams.onprem.monitoring import Prometheus

from tools.diagrams import box, canvas, cluster, edge, icon

with canvas("Bulkhead", direction="LR"):
    callers = icon(Client, "Callers")
    with cluster('Bulkhead("search")'):
        free = box("permits", "some are free", tone="good", width="1.2")
    with cluster('Bulkhead("maps")') as maps:
        line = box("the line", "max_waiting places", tone="warn", width="1.4")
        taken = box("permits", "all are out", tone="bad", width="1.2")
        line >> edge("handed over", tone="quiet") >> taken
    healthy = icon(Server, "search", "is well")
    hanging = icon(Server, "maps", "hangs")
    redis = icon(Redis, "Redis")
    metrics = icon(Prometheus, "Metrics")

    callers >> edge("call", tone="good") >> free
    free >> edge("every call", tone="good") >> healthy
    callers >> edge("wait, or get\nBulkheadFull", tone="bad") >> line
    taken >> edge("limit calls at most", tone="bad") >> hanging
    taken >> edge("if shared", tone="quiet", dashed=True, ltail=maps) >> redis
    taken >> edge("events", tone="quiet", dashed=True, ltail=maps) >> metrics
