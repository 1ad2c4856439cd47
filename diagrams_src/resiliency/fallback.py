"""A caller calls through a fallback and gets an answer with its source, whether it is degraded, and its age.

The fallback asks the primary, a service, first. If that fails with a listed error it asks level 1, here the
last good value in Redis or in the process, unless it is older than max_age; if there is none, level 2, here a
database, with a limit of calls at once and a time-out. The primary's answers alone feed the last good value.
Each substitute and each exercise goes to metrics as an event.
"""

from diagrams.onprem.client import Client
from diagrams.onprem.compute import Server
from diagrams.onprem.database import Postgresql
from diagrams.onprem.inmemory import Redis
from diagrams.onprem.monitoring import Prometheus

from tools.diagrams import box, canvas, cluster, edge, icon

with canvas("Fallback"):
    caller = icon(Client, "Caller")
    with cluster("Fallback, outermost") as fallback:
        primary = box("primary", "as it is", tone="good", width="1.7")
        first = box("level 1", "max_age", tone="warn", width="1.7")
        second = box("level 2", "limit, timeout", tone="warn", width="1.7")
    service = icon(Server, "Service")
    database = icon(Postgresql, "Database")
    copies = icon(Redis, "Last good")
    metrics = icon(Prometheus, "Metrics")

    caller >> edge("call", lhead=fallback) >> first
    first >> edge("Answer: source,\ndegraded, age", ltail=fallback) >> caller
    primary >> edge("error", tone="bad", constraint="false") >> first
    first >> edge("error", tone="bad", constraint="false") >> second
    primary >> edge("every call", tone="good") >> service
    primary >> edge("feeds", tone="good", dashed=True) >> copies
    first >> edge("Stale(value, age)", tone="warn") >> copies
    second >> edge("10 at once", tone="warn") >> database
    second >> edge("events", tone="quiet", dashed=True, ltail=fallback) >> metrics
