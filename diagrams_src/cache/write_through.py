"""Callers read and write through one cache, which owns the way to the source.

A put goes three steps: it marks the key in Redis, so that the old value ends with the lease of the write; it
stores the value in the source, which gives it a version; and it keeps value and version in Redis, unless
something newer is there. A get is one HGET to Redis; on a miss one load goes to the source, and is filled in
if no write overlapped with it. Another process writes the same way, and the versions decide.
"""

from diagrams.onprem.client import Users
from diagrams.onprem.compute import Server
from diagrams.onprem.database import PostgreSQL
from diagrams.onprem.inmemory import Redis

from tools.diagrams import box, canvas, cluster, edge, icon

with canvas("Write-Through"):
    callers = icon(Users, "Callers")
    with cluster("one process"):
        get = box("get", "one load\nper key", tone="good", width="1.5")
        put = box("put, delete", "max_writes\nat once", tone="warn", width="1.5")
    redis = icon(Redis, "Redis", "value, generation, writes")
    source = icon(PostgreSQL, "Source", "load, store, delete")
    others = icon(Server, "Other\nprocesses")

    callers >> edge("reads", tone="good") >> get
    callers >> edge("changes", tone="warn") >> put
    get >> edge("a hit: HGET", tone="good") >> redis
    get >> edge("a miss: load()", tone="quiet", dashed=True) >> source
    put >> edge("1. mark\n3. keep, if newest", tone="warn") >> redis
    put >> edge("2. store():\na version", tone="warn") >> source
    redis << edge("the same", tone="quiet", dashed=True) << others
