"""An application that knows nothing of Redis or of a sidecar: it takes orders, and logs each to a file.

Environment: LOG_FILE; ORDERS (0: until SIGTERM), PACE (seconds between two), LOG_BYTES and LOG_FILES (size
and number of rotated files).
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import sys
import threading
from logging.handlers import RotatingFileHandler

__all__ = ["main"]


def main() -> None:
    """Take orders until there are no more, or until told to stop."""
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    log = logging.getLogger("orders")
    log.setLevel(logging.INFO)
    handler = RotatingFileHandler(
        os.environ["LOG_FILE"],
        maxBytes=int(os.environ.get("LOG_BYTES", "1000000")),
        backupCount=int(os.environ.get("LOG_FILES", "5")),
    )
    handler.setFormatter(logging.Formatter("%(created).6f %(message)s"))
    log.addHandler(handler)
    log.info("begin, pid %d", os.getpid())
    orders, pace = int(os.environ.get("ORDERS", "0")), float(os.environ.get("PACE", "0.01"))
    for number in itertools.count(1) if orders == 0 else range(1, orders + 1):
        if told.wait(pace):
            break
        log.info("order %d", number)
    log.info("end, pid %d", os.getpid())


if __name__ == "__main__":
    if not os.environ.get("LOG_FILE"):
        sys.exit("application: the environment variable LOG_FILE must be set")
    main()
