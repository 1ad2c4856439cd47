"""The fault harness: break a real connection, process or server on purpose, and keep the books.

`proxy` stands between a client and a server and breaks what passes; `workers` starts real processes and
kills or pauses them in a job; `ledger` counts what was injected, lost, doubled and left unsure; `leaks`
looks for what was left behind. Servers are killed, paused and cut by `patterns.embedded`.
"""

from tests.faults.ledger import Broken, Ledger
from tests.faults.proxy import Proxy, proxy
from tests.faults.workers import Worker, worker

__all__ = ["Broken", "Ledger", "Proxy", "Worker", "proxy", "worker"]
