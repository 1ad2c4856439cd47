"""A probe that runs inside a container: does the port that a variable names answer 200?

    livenessProbe:
      exec:
        command: [python3, -P, -m, patterns.probe, HEALTH_PORT, /livez]

Kubernetes can ask over HTTP by itself (`httpGet`), but then the port must listen outside the Pod and stand in
the manifest; podman 4.3 needs curl in the image for it. An image that serves Python has this instead. It
asks loopback only, needs nothing installed, and starts in a few hundredths of a second.

Exit code 0 if the answer is a 200, 1 if it is another or there is none, 2 if the probe is called wrongly.

Source: Kubernetes, "Configure Liveness, Readiness and Startup Probes".
"""

from __future__ import annotations

import http.client
import os
import re
import sys

__all__ = ["ask", "main"]

_LONGEST_ANSWER = 4096  # bytes
_PORT = re.compile(r"[0-9]{1,5}")


def ask(path: str, port: int, *, timeout: float = 1.0) -> str | None:
    """Return what 127.0.0.1:`port` answers to `path` if it is a 200, else None.

    Args:
        path: with its slash.
        port: of this machine or Pod.
        timeout: seconds for each step of the exchange.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read(_LONGEST_ANSWER).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return body if answer.status == http.client.OK else None


def main(arguments: list[str]) -> int:
    """Return the exit code for `VARIABLE PATH`."""
    if len(arguments) != 2 or not arguments[1].startswith("/"):
        print("usage: python3 -m patterns.probe VARIABLE /PATH", file=sys.stderr)  # noqa: T201  the kubelet shows it
        return 2
    variable, path = arguments
    port = os.environ.get(variable, "")
    if not _PORT.fullmatch(port) or not 0 < int(port) < 65_536:
        print(f"{variable} must be a port, got {port!r}", file=sys.stderr)  # noqa: T201  the kubelet shows it
        return 2
    return 0 if ask(path, int(port)) is not None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
