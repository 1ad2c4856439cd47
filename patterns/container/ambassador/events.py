"""What an ambassador answers by itself, and what it tells of.

The tokens are those of RFC 9209: an answer that the ambassador made has them in `Proxy-Status`, so that the
application can tell it from one of the upstream.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from patterns.events import Event

__all__ = [
    "Broken",
    "NotConnected",
    "ProxyError",
    "Refused",
    "RequestForwarded",
    "RequestRefused",
    "ResponseCut",
    "UpstreamFailed",
]


class ProxyError(Enum):
    """What went wrong, in the words of RFC 9209, section 2.3."""

    REQUEST = "http_request_error"  # malformed, or without what it needs
    DENIED = "http_request_denied"  # no such upstream, or a method that is not forwarded
    LIMIT = "connection_limit_reached"  # every permit is out, and every place to wait taken
    UNAVAILABLE = "destination_unavailable"  # the guard refused
    DNS = "dns_error"
    CONNECTION_REFUSED = "connection_refused"
    CONNECTION_TIMEOUT = "connection_timeout"
    CERTIFICATE = "tls_certificate_error"
    TLS = "tls_protocol_error"
    TERMINATED = "connection_terminated"  # broken off before the answer began
    PROTOCOL = "http_protocol_error"  # the answer is no HTTP, or could not be passed on unchanged
    TIMEOUT = "http_response_timeout"
    INCOMPLETE = "http_response_incomplete"  # broken off after the answer began


class Refused(Exception):
    """The request is answered by the ambassador itself.

    Attributes:
        error: what `Proxy-Status` says.
        status: of the answer.
        retry_after: seconds that the caller is asked to stay away; None asks for nothing.
    """

    def __init__(
        self, error: ProxyError, status: int, detail: str, *, retry_after: float | None = None
    ) -> None:
        super().__init__(detail)
        self.error = error
        self.status = status
        self.retry_after = retry_after


class UpstreamFailed(Exception):
    """An attempt brought no answer; not to be repeated, unless it is one of the two below.

    Attributes:
        error: what `Proxy-Status` says if it was the last one.
    """

    def __init__(self, error: ProxyError, detail: str) -> None:
        super().__init__(detail)
        self.error = error


class NotConnected(UpstreamFailed):
    """No byte of the request has left, so any method may be tried again."""


class Broken(UpstreamFailed):
    """The request may have been carried out."""


@dataclass(frozen=True, slots=True)
class RequestForwarded(Event):
    """An answer of the upstream was passed on whole, after `attempts`; `source` is the upstream."""

    status: int
    attempts: int
    duration_seconds: float


@dataclass(frozen=True, slots=True)
class RequestRefused(Event):
    """The ambassador answered by itself, after `attempts` at the upstream."""

    error: ProxyError
    status: int
    attempts: int


@dataclass(frozen=True, slots=True)
class ResponseCut(Event):
    """An answer had begun and could not be finished; the application's connection was cut, so it can tell."""

    error: ProxyError
