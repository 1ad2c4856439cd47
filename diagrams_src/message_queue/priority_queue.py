"""Producers push jobs with priorities into sets in Redis, and consumers borrow the first in line.

A push puts a job into ready, by since plus priority times aging, or into delayed until its time has come. A
consumer takes the first of ready, and the job moves to leases. An acknowledgement removes it. When the lease
ends, or the job is given back, it returns to its old place; after max_deliveries it is dead, for people to
redrive or discard. A stream called wake tells consumers that wait that something has come.
"""

from diagrams.onprem.client import User, Users
from diagrams.onprem.compute import Server

from tools.diagrams import box, canvas, cluster, edge, icon

with canvas("Priority Queue"):
    producers = icon(Users, "Producers")
    with cluster("Redis"):
        delayed = box("delayed", "by when\nit is due", tone="quiet", width="1.5")
        ready = box("ready", "by since +\npriority x aging", tone="good", width="1.5")
        leases = box("leases", "by when\nthey end", tone="warn", width="1.5")
        dead = box("dead", "max_deliveries", tone="bad", width="1.5")
    consumers = icon(Server, "Consumers", "one job each")
    people = icon(User, "People")

    producers >> edge("push", tone="good") >> ready
    producers >> edge("push,\ndelay", dashed=True) >> delayed
    delayed >> edge("due", dashed=True) >> ready
    ready >> edge("take the\nfirst", tone="good") >> leases
    leases >> edge("lent", tone="warn") >> consumers
    leases >> edge("lease over,\nreleased", tone="warn", dashed=True, constraint="false") >> ready
    leases >> edge("too often", tone="bad") >> dead
    consumers >> edge("acknowledge", tone="good", constraint="false") >> leases
    ready >> edge("wake", tone="quiet", dashed=True, constraint="false") >> consumers
    dead >> edge("redrive,\ndiscard", dashed=True, dir="both") >> people
