"""A root asks the leaves of all shards at once, and gives its caller one answer by the deadline.

The shard east has two replicas: the first is late, so the second is asked too, if the hedge budget has a
token, and its answer counts; the first is cancelled. The shard west answers. The shard north is down, so the
answer names it as missing.
"""

from diagrams.onprem.client import Client

from tools.diagrams import box, canvas, cluster, edge, icon

with canvas("Scatter/Gather", direction="LR"):
    caller = icon(Client, "Caller")
    with cluster("Root"):
        root = box("ScatterGather", "deadline, limit,\nmin_results", width="1.4")
        budget = box("Budget", "tokens for\nhedges", tone="warn", width="1.2")
        root >> edge("take()", tone="warn", constraint="false") >> budget
    with cluster("Leaf east: two replicas"):
        late = box("replica 0", "late: cancelled", tone="bad", width="1.4")
        hedge = box("replica 1", "asked after delay", tone="good", width="1.4")
    with cluster("Leaf west"):
        west = box("replica 0", "answers", tone="good", width="1.4")
    with cluster("Leaf north"):
        north = box("replica 0", "down: missing", tone="quiet", width="1.4")

    caller >> edge("gather(request)\nvalues, errors") >> root
    root >> edge("ask", tone="bad", dashed=True) >> late
    root >> edge("hedge", tone="good") >> hedge
    root >> edge("ask", tone="good") >> west
    root >> edge("ask", tone="quiet", dashed=True) >> north
