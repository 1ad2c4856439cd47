"""Identical processes compete for one lease in Redis, and the database lets only the newest leader write.

Candidate a leads: it renews the lease and writes with its fencing token 34. Candidates b and c follow: they
ask for the lease again and again and are refused. An old leader that was paused, and goes on with token 33,
is refused by the database, which keeps the highest token it has seen.
"""

from diagrams.generic.database import SQL
from diagrams.onprem.inmemory import Redis

from tools.diagrams import box, canvas, cluster, edge, icon

with canvas("Leader Election"):
    with cluster("Candidates, identical processes"):
        paused = box("old leader", "was paused\ntoken 33", tone="bad", width="1.6")
        leader = box("leader a", "renews, works\ntoken 34", tone="good", width="1.6")
        followers = box("b and c", "follow, ask", tone="quiet", width="1.6")
    lease = icon(Redis, "RedisLease", "holder a, token 34\nexpires")
    database = icon(SQL, "FencedDatabase", "highest token 34")

    leader >> edge("renew", tone="good") >> lease
    followers >> edge("acquire:\nRefused", tone="quiet", dashed=True) >> lease
    leader >> edge("write, 34", tone="good") >> database
    paused >> edge("write, 33:\nStaleToken", tone="bad") >> database
