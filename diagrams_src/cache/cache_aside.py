"""Readers and writers of an application reach Redis and the source through CacheAside, one per process.

A reader calls get, and a hit is one GET to Redis. On a miss the process asks Redis for the lease; one process
gets it and loads from the source, behind a bulkhead, and fills Redis if the generation is unchanged. The
other processes wait for the entry. A writer stores in the source first, and then deletes value, generation
and lock in Redis. Without Redis every process loads directly.
"""

from diagrams.onprem.client import Users
from diagrams.onprem.compute import Server
from diagrams.onprem.database import PostgreSQL
from diagrams.onprem.inmemory import Redis

from tools.diagrams import box, canvas, cluster, edge, icon

with canvas("Cache-Aside"):
    callers = icon(Users, "Callers")
    with cluster("one process"):
        get = box("get", "one flight\nper entity", tone="good", width="1.5")
        load = box("load", "with the lease,\nmax_loads at once", tone="warn", width="1.5")
        write = box("write", "store, then\ninvalidate", width="1.5")
    redis = icon(Redis, "Redis", "value, generation, lock")
    others = icon(Server, "Other\nprocesses")
    source = icon(PostgreSQL, "Source")

    callers >> edge("reads", tone="good") >> get
    callers >> edge("changes") >> write
    get >> edge("a hit: GET", tone="good") >> redis
    get >> edge("a miss", tone="warn", constraint="false") >> load
    load >> edge("load()", tone="warn") >> source
    load >> edge("fill, if not\noutdated", tone="warn") >> redis
    write >> edge("1. store()") >> source
    write >> edge("2. delete all three", tone="bad") >> redis
    redis << edge("wait", tone="quiet", dashed=True) << others
