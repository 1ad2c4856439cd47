"""The first process of the sidecar's container: `python3 -P start.py`.

The kernel drops a signal for process 1 of a container as long as that has no handler for it, and Python
imports for a while before there is one. A SIGTERM of that time would be lost, and with it, at the end of the
grace, the lines that were not shipped. So it is kept back until `main` has its handlers. What remains is the
moment in which the interpreter itself starts.
"""

import runpy
import signal

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    runpy.run_module("patterns.container.sidecar", run_name="__main__", alter_sys=True)
