"""Writers put changes into queues in Redis and are told at once; flushers bring them to the source.

A put changes value, version and queue of one shard in one script. A get looks into the queue first, then
into the source. A flusher has a shard by a lease, takes a batch of what is due, stores it where the row's
version is lower, and settles it. Another flusher takes over when the lease ends. What the source refuses too
often is parked in the shard, for people to redrive or discard.
"""

from diagrams.onprem.client import User, Users
from diagrams.onprem.compute import Server
from diagrams.onprem.database import PostgreSQL

from tools.diagrams import box, canvas, cluster, edge, icon

with canvas("Write-Behind"):
    writers = icon(Users, "Writers", "and readers")
    with cluster("Redis: one of the shards"):
        queue = box("queue", "each key once,\ncapacity, lag", tone="good", width="1.5")
        parked = box("parked", "refused\nmax_attempts times", tone="bad", width="1.5")
    with cluster("one flusher a shard"):
        flusher = box("Flusher", "has the lease", tone="warn", width="1.5")
        other = icon(Server, "Another", "waits for the lease")
    source = icon(PostgreSQL, "Source", "a version in each row")
    people = icon(User, "People")

    writers >> edge("put, delete:\nacknowledged", tone="good") >> queue
    writers << edge("get", dashed=True) << queue
    queue >> edge("take a batch,\nsettle it", tone="warn", dir="both") >> flusher
    flusher >> edge("store,\nif newer", tone="warn") >> source
    queue >> edge("after the\nlease", tone="quiet", dashed=True) >> other
    queue >> edge("refused", tone="bad", constraint="false") >> parked
    parked >> edge("redrive,\ndiscard", dashed=True, dir="both") >> people
