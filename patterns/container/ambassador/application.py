"""An application that knows one address for everything it calls, and nothing of retries, shards or TLS.

Each line on standard output is the answer to one call. Environment: SHOP_URL, CUSTOMERS (comma separated) and
PACE (seconds between two rounds).
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

__all__ = ["main"]


def main(url: str, customers: list[str], pace: float) -> None:
    """Ask for each customer's basket, round by round, until SIGTERM."""
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    for number in itertools.count(1):
        for customer in customers:
            sys.stdout.write(f"{number} {customer} {basket(url, customer)}\n")
        sys.stdout.flush()
        if told.wait(pace):
            return


# --8<-- [start:application]
def basket(url: str, customer: str) -> str:
    """Return what the shop says, or why it says nothing."""
    request = Request(f"{url}/basket", headers={"X-Customer": customer, "X-Request-Timeout-Ms": "1000"})  # noqa: S310  the URL is the operator's
    try:
        with urlopen(request, timeout=2) as answer:  # noqa: S310  as above
            return str(answer.read().decode())
    except HTTPError as error:
        with error:
            return f"{error.code} {error.headers['Proxy-Status']}"
    except (URLError, OSError):
        return "nobody there"
    # --8<-- [end:application]


if __name__ == "__main__":
    main(
        os.environ["SHOP_URL"],
        os.environ.get("CUSTOMERS", "ada,grace,alan").split(","),
        float(os.environ.get("PACE", "0.2")),
    )
