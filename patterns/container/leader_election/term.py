"""One term of leadership, as its holder's own clock sees it. No I/O.

A term is believed for as long as the store surely keeps the lease: `lease_duration` from the moment *before*
the request was sent that acquired or renewed it, less a margin for clocks that run at different rates. When
the reply came does not matter, nor when the holder looks: a process that was paused finds the term over.

Source: client-go, `tools/leaderelection` (names, defaults, validation); Redis, "Distributed locks" (validity
time, drift).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patterns.clock import Clock

__all__ = ["JITTER_FACTOR", "LeadershipLost", "Policy", "Term"]

JITTER_FACTOR = 1.2
"""A try comes after one to this many retry periods."""

_LONGEST = 1e9  # seconds: for an expiry that Redis cannot count, the lease would have none
_ROUNDING = 0.002  # seconds: the store keeps whole milliseconds, and so may the holder's clock


# --8<-- [start:policy]
@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How long a lease lasts and how often it is asked for; the same for all candidates of an election.

    Defaults are those of client-go, and so is lease_duration > renew_deadline > retry_period * 1.2.

    Attributes:
        lease_duration: seconds that the others leave a silent leader alone.
        renew_deadline: seconds without a renewal after which the leader's work is cancelled.
        retry_period: seconds between two renewals, and between two tries of a follower.
        clock_drift: share by which the rates of the holder's and the store's clock may differ.
    """

    lease_duration: float = 15.0
    renew_deadline: float = 10.0
    retry_period: float = 2.0
    clock_drift: float = 0.01
    # --8<-- [end:policy]

    def __post_init__(self) -> None:
        for field in fields(self):
            value: object = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"{field.name} must be a finite number >= 0, got {value!r}")
        if not self.retry_period >= _ROUNDING:
            raise ValueError(f"retry_period must be >= {_ROUNDING} seconds, got {self.retry_period!r}")
        if not self.lease_duration <= _LONGEST:
            raise ValueError(f"lease_duration must be <= {_LONGEST:g} seconds, got {self.lease_duration!r}")
        if not self.clock_drift < 1:
            raise ValueError(f"clock_drift must be in [0, 1), got {self.clock_drift!r}")
        if not self.renew_deadline > self.retry_period * JITTER_FACTOR:
            raise ValueError(
                f"renew_deadline must be > retry_period * {JITTER_FACTOR} = "
                f"{self.retry_period * JITTER_FACTOR:g}, got {self.renew_deadline!r}"
            )
        if not self.believed_seconds > self.renew_deadline:
            raise ValueError(
                f"lease_duration less its margin for drift, {self.believed_seconds:g}, must be > "
                f"renew_deadline {self.renew_deadline:g}, got {self.lease_duration!r}"
            )

    @property
    def believed_seconds(self) -> float:
        """For how long the holder believes in a lease: its duration less the margin."""
        return self.lease_duration * (1 - self.clock_drift) - _ROUNDING

    @property
    def lease_ms(self) -> int:
        """What the store is asked to keep: whole milliseconds, rounded up."""
        return math.ceil(self.lease_duration * 1000)


class LeadershipLost(Exception):
    """The term is over: somebody else may lead by now.

    Attributes:
        election: its name.
        token: the fencing token of the term that is over.
    """

    def __init__(self, election: str, token: int) -> None:
        super().__init__(f"the term with token {token} of election {election!r} is over")
        self.election = election
        self.token = token

    def __reduce__(self) -> tuple[type[LeadershipLost], tuple[str, int]]:
        return type(self), (self.election, self.token)


class Term:
    """One term, from an acquisition until it is lost or given up.

    Args:
        election: its name.
        holder: who leads; unique to this term.
        token: the fencing token, to be sent with every write.
        policy: how long the lease lasts.
        clock: the holder's.
        sent: reading of that clock before the request left that acquired the lease.

    Attributes:
        over: the lease is known to be another's, or was given up.
    """

    __slots__ = ("_cancel_at", "_ends_at", "_now", "_policy", "election", "holder", "over", "token")

    def __init__(
        self, election: str, holder: str, token: int, *, policy: Policy, clock: Clock, sent: float
    ) -> None:
        self.election = election
        self.holder = holder
        self.token = token
        self.over = False
        self._policy = policy
        self._now = clock.monotonic
        self._ends_at = self._cancel_at = 0.0
        self.renewed(sent)

    # --8<-- [start:decide]
    def renewed(self, sent: float) -> None:
        """The store has renewed the lease, at a request that left after `sent`."""
        if self.over:
            return
        self._ends_at = sent + self._policy.believed_seconds
        self._cancel_at = sent + self._policy.renew_deadline

    def end(self) -> None:
        """The lease is another's, or is about to be given up: the term is over now."""
        self.over = True
        self._ends_at = min(self._ends_at, self._now())

    @property
    def remaining(self) -> float:
        """Seconds for which the lease is surely held; zero or less: since when the term is over."""
        return self._ends_at - self._now()

    @property
    def valid(self) -> bool:
        """Whether the lease is surely held now; worth as long as nothing pauses this process."""
        return self.remaining > 0

    @property
    def patience(self) -> float:
        """Seconds left for a renewal to succeed before the work is cancelled."""
        return self._cancel_at - self._now()

    def check(self) -> None:
        """Raise LeadershipLost unless the term is valid: before each of a leader's steps."""
        if not self.valid:
            raise LeadershipLost(self.election, self.token)

    # --8<-- [end:decide]
