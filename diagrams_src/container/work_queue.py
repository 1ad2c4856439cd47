"""A source container lists names and serves items over HTTP; the manager compares its list with the state.

It creates a job in Redis for each item that has none. Any number of worker Pods lease jobs: the
worker-manager fetches the item, writes it to a file and calls the application container, whose exit code is
the result.
"""

from diagrams.onprem.inmemory import Redis

from tools.diagrams import box, canvas, cluster, edge, icon

with canvas("Work Queue", direction="LR"):
    with cluster("Pod of the queue"):
        source = box("source", "lists names,\nserves items", tone="good", width="1.2")
        manager = box("manager", "compares,\nkeeps nothing", tone="quiet", width="1.2")
    redis = icon(Redis, "Redis", "done, failed,\nleases")
    with cluster("Pod of a worker: any number"):
        worker = box("worker-manager", "lease, heartbeat", tone="warn", width="1.3")
        application = box("application", "exit code", tone="good", width="1.2")

    source >> edge("list", tone="good", constraint="false") >> manager
    manager >> edge("jobs", tone="quiet") >> redis
    redis >> edge("claim", tone="warn", dir="both") >> worker
    worker >> edge("file", tone="warn", constraint="false") >> application
    source >> edge("item", tone="good", dashed=True, constraint="false") >> worker
