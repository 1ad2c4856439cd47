"""Callers ask one ReadThrough for keys and never see the source: it owns load and load_all.

Many callers in two processes ask their ReadThrough by get and get_all. It reads Redis, by one MGET on one
server or a pipeline for each node of a cluster. What is missing joins one flight for each key; the flight
asks Redis for the leases, and only the process that gets them calls load or load_all of the source, then
fills Redis if nothing was invalidated meanwhile. The other process waits for the entries. Whoever changes
the source calls invalidate.
"""

from diagrams.onprem.client import Users
from diagrams.onprem.compute import Server
from diagrams.onprem.database import PostgreSQL
from diagrams.onprem.inmemory import Redis

from tools.diagrams import box, canvas, cluster, edge, icon

with canvas("Read-Through"):
    callers = icon(Users, "Callers", "know keys only")
    with cluster("ReadThrough, one process"):
        ask = box("get(key)\nget_all(keys)", tone="good", width="1.5")
        flights = box("flights: one\nfor each miss", tone="warn", width="1.5")
        loader = box("load\nload_all", tone="warn", width="1.5")
    redis = icon(Redis, "Redis", "value, generation, lock")
    others = icon(Server, "Other\nprocesses")
    source = icon(PostgreSQL, "Source")

    callers >> edge("ask", tone="good") >> ask
    ask >> edge("hits: one\nexchange", tone="good") >> redis
    ask >> edge("misses", tone="warn") >> flights
    flights >> edge("leases", tone="warn") >> redis
    flights >> edge("with the lease,\nmax_loads at once", tone="warn") >> loader
    loader >> edge("one question", tone="warn") >> source
    redis << edge("wait", tone="quiet", dashed=True) << others
