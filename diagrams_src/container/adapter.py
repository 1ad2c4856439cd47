"""An adapter stands between Prometheus and two applications that speak differently.

Prometheus scrapes one page in its own format. At each scrape the adapter asks the legacy warehouse for its
report for people, and every node of a Valkey cluster for INFO, all at once and until a deadline. A target
that does not answer is adapter_up 0 and has no series; the others' series stay.
"""

from diagrams.onprem.inmemory import Redis
from diagrams.onprem.monitoring import Prometheus

from tools.diagrams import box, canvas, cluster, edge, icon

with canvas("Adapter", direction="LR"):
    prometheus = icon(Prometheus, "Prometheus", "waits 10 s")
    with cluster("Pod: one loopback"):
        adapter = box("adapter", "asks, cleans, caps:\nanswers in 9.5 s", tone="good", width="1.6")
        warehouse = box("warehouse", "reports\nto people", tone="quiet", width="1.2")
    with cluster("Valkey cluster: INFO"):
        well = icon(Redis, "node", "adapter_up 1")
        ill = box("node", "silent:\nadapter_up 0", tone="bad", width="1.2")

    prometheus >> edge("GET /metrics", tone="good") >> adapter
    adapter >> edge("status", tone="quiet") >> warehouse
    adapter >> edge(tone="good") >> well
    adapter >> edge("not waited for", tone="bad", dashed=True) >> ill
