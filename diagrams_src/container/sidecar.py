"""Two containers of one Pod share a folder: the application writes its log there, the sidecar ships it.

The application only writes app.log, which is rotated. The sidecar reads the log, holds a bounded buffer, and
appends lines and its position to a Redis Stream, from where it goes on after a restart. The kubelet starts
the sidecar first and stops it last, and asks for its health on the loopback address.
"""

from diagrams.k8s.controlplane import Kubelet
from diagrams.onprem.inmemory import Redis

from tools.diagrams import box, canvas, cluster, edge, icon

with canvas("Sidecar", direction="LR"):
    with cluster("Pod: one folder, one loopback, one life"):
        application = box("application", "knows a file,\nnothing else", tone="good", width="1.3")
        log = box("app.log", "rotated files:\nlong buffer", tone="quiet", shape="folder", width="1.2")
        sidecar = box("sidecar", "Tail, Buffer:\nbounded", tone="warn", width="1.2")
    redis = icon(Redis, "Redis", "stream, position")
    kubelet = icon(Kubelet, "kubelet", "sidecar first up,\nlast down")

    application >> edge("writes", tone="good") >> log
    log >> edge("reads", tone="warn") >> sidecar
    sidecar >> edge("append,\nonce", tone="warn") >> redis
    kubelet >> edge(tone="quiet", dashed=True, constraint="false") >> application
    kubelet >> edge("/readyz, /livez", tone="quiet", dashed=True, constraint="false") >> sidecar
