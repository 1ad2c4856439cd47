"""Readers get the old value at once, while one task in the background loads the next one.

Many callers ask RefreshAhead. Its get reads value and time left from Redis in one exchange and returns the
value. If it is due, get leaves a task behind and goes on. The task claims the attempt and takes the lease
in Redis, so that one process refreshes; it loads from the source, behind a bulkhead, and fills Redis if
nothing was invalidated meanwhile. Other processes read the old value until then.
"""

from diagrams.onprem.client import Users
from diagrams.onprem.compute import Server
from diagrams.onprem.database import PostgreSQL
from diagrams.onprem.inmemory import Redis

from tools.diagrams import box, canvas, cluster, edge, icon

with canvas("Refresh-Ahead"):
    callers = icon(Users, "Callers", "never wait for it")
    with cluster("RefreshAhead, one process"):
        get = box("get", "value, time left", tone="good", width="1.5")
        task = box("refresh", "one per key,\nmax_refreshes at once", tone="warn", width="1.8")
    redis = icon(Redis, "Redis", "value, generation,\nlock, pause")
    others = icon(Server, "Other\nprocesses")
    source = icon(PostgreSQL, "Source")

    callers >> edge("reads", tone="good") >> get
    get >> edge("one exchange", tone="good") >> redis
    get >> edge("due", tone="warn", dashed=True) >> task
    task >> edge("claim, lease; fill,\nif not outdated", tone="warn") >> redis
    task >> edge("load", tone="warn") >> source
    redis << edge("the old value\nuntil then", tone="quiet", dashed=True) << others
