"""Senders append to a stream in Redis; workers compete for its messages; what fails too often is put aside.

A send with a dedupe_id appends once. A worker receives a few messages, renews what it holds, and acknowledges
with the effect in one script, which compares the owner. The messages of a worker that falls silent are
another's after the visibility time-out. After max_deliveries, or a Reject, a message is a dead letter, for
people to redrive or discard.
"""

from diagrams.onprem.client import User, Users
from diagrams.onprem.compute import Server

from tools.diagrams import box, canvas, cluster, edge, icon

with canvas("Competing Consumer"):
    senders = icon(Users, "Senders", "with a dedupe_id")
    with cluster("Redis: one of the partitions"):
        stream = box("stream", "each message with\nowner and count", tone="good", width="1.5")
        dead = box("dead", "delivered\ntoo often", tone="bad", width="1.5")
    with cluster("as many as there is work for"):
        worker = icon(Server, "Worker A", "renews what it has")
        other = icon(Server, "Worker B", "waits for a message")
        silent = icon(Server, "Worker C", "fell silent")
    people = icon(User, "People")

    senders >> edge("send", tone="good") >> stream
    stream >> edge("receive;\nacknowledge\nwith the effect", tone="good", dir="both") >> worker
    stream >> edge("after the\nvisibility", tone="warn") >> other
    stream >> edge("too late:\nLeaseLost", tone="bad", dashed=True, dir="both") >> silent
    stream >> edge("given up", tone="bad", constraint="false") >> dead
    dead >> edge("redrive,\ndiscard", dashed=True, dir="both") >> people
