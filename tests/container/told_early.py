"""Runs the sidecar and tells it to end while it still imports: `told_early.py start` or `... module`.

Of a container's first process the kernel drops a signal for which it has no handler; of this one it does what
the signal asks for, which shows as well that nobody kept it.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path

START = Path(__file__).resolve().parents[2] / "patterns" / "container" / "sidecar" / "start.py"


class Tells:
    """Looks for no module, but notices when redis is looked for."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "redis":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.meta_path.insert(0, Tells())
    if sys.argv.pop(1) == "start":
        runpy.run_path(str(START), run_name="__main__")
    else:
        runpy.run_module("patterns.container.sidecar", run_name="__main__", alter_sys=True)
