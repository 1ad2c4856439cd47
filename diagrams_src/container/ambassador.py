"""In one Pod, the application calls one loopback address, and the ambassador calls the services for it.

The application knows one address and plain HTTP. The ambassador checks each request, keeps deadline and retry
budget, and chooses the server: a key's shard, or a replica. It reaches only the services that its list names,
over TLS; an address that is not on the list is never asked.
"""

from tools.diagrams import box, canvas, cluster, edge

with canvas("Ambassador", direction="LR"):
    with cluster("Pod: one loopback, one life"):
        application = box("application", "knows one\naddress", tone="good", width="1.2")
        ambassador = box("ambassador", "check, Retry, Budget,\ndeadline, ranked", tone="warn", width="1.7")
    with cluster("upstream shop, by customer"):
        first = box("shard 0", "", tone="quiet", width="1.0")
        second = box("shard 1", "", tone="quiet", width="1.0")
    payments = box("payments", "TLS: name and\nsigner checked", tone="quiet", width="1.3")
    other = box("any other address", "not on the list", tone="bad", width="1.5")

    application >> edge("HTTP", tone="good") >> ambassador
    ambassador >> edge("its key", tone="warn") >> first
    ambassador >> edge(tone="warn") >> second
    ambassador >> edge("POST: once", tone="warn") >> payments
    ambassador >> edge("never", tone="bad", dashed=True) >> other
