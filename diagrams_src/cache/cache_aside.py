"""Readers and writers of the application reach Redis and the source through CacheAside, one object per process.

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
        get = box("get", "one flight per entity", tone="good", width="1.7")
        load = box("load", "max_loads at once", tone="warn", width="1.7")
        write = box("write", "store, then invalidate", width="1.7")
    redis = icon(Redis, "Redis", "value, generation, lock")
    others = icon(Server, "Other processes")
    source = icon(PostgreSQL, "Source")

    callers >> edge("reads", tone="good") >> get
    callers >> edge("changes") >> write
    get >> edge("a hit: GET", tone="good") >> redis
    get >> edge("a miss:\nthe lease", tone="warn") >> load
    load >> edge("load()", tone="warn") >> source
    load >> edge("fill, if the\ngeneration is unchanged", tone="warn") >> redis
    write >> edge("1. store()") >> source
    write >> edge("2. delete all three", tone="bad") >> redis
    others >> edge("wait for the entry", tone="quiet", dashed=True) >> redis
