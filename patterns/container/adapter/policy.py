"""Times and sizes of an adapter."""

from __future__ import annotations

from dataclasses import dataclass

from patterns import bounds

__all__ = ["Policy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How long a scrape may take, and how much a page may hold.

    Attributes:
        timeout: seconds for a scrape whose scraper does not say how long it waits; longer is never allowed.
        offset: seconds of that which are kept to write the page and send it; at most half of them.
        family_series: series of one family of one target that are shown.
        series: series of all applications together that are shown.
        targets: targets of one source that are asked.
        longest_label: characters of a label's value that are shown.
    """

    timeout: float = 10.0
    offset: float = 0.5
    family_series: int = 200
    series: int = 5_000
    targets: int = 100
    longest_label: int = 200

    def __post_init__(self) -> None:
        bounds.number("timeout", self.timeout, above=0, at_most=3600)
        bounds.number("offset", self.offset, above=0, at_most=3600)
        for name in ("family_series", "series", "targets", "longest_label"):
            bounds.whole(name, getattr(self, name), at_least=1, at_most=1_000_000)

    # --8<-- [start:budget]
    def budget(self, within: float | None) -> float:
        """Return the seconds in which the applications must have answered.

        Args:
            within: seconds after which the scraper hangs up, if it said so.

        Raises:
            ValueError: it is no number of seconds > 0.
        """
        seconds = self.timeout
        if within is not None:
            seconds = min(seconds, bounds.number("within", within, above=0))
        return seconds - min(self.offset, seconds / 2)

    # --8<-- [end:budget]
