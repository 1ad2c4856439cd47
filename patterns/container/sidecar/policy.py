"""Sizes and times of a sidecar."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Policy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How much to hold, how much to send at once, how long to wait.

    Attributes:
        buffer_lines: lines that may wait in memory; with `longest_line` the bound in bytes.
        batch_lines: lines sent in one script.
        longest_line: bytes kept of a line.
        stream_length: entries that the stream keeps, about.
        keep: seconds that Redis keeps stream and position after the last line.
        poll: seconds between two looks at the file.
        timeout: seconds that one script may take.
        retry: seconds until a failed script is tried again; doubled each time, up to `retry_cap`.
        retry_cap: longest such pause in seconds.
        grace: seconds from `stop` to the end of `run`.
    """

    buffer_lines: int = 2_000
    batch_lines: int = 500
    longest_line: int = 16_384
    stream_length: int = 100_000
    keep: float = 604_800.0
    poll: float = 0.1
    timeout: float = 2.0
    retry: float = 0.1
    retry_cap: float = 5.0
    grace: float = 10.0

    def __post_init__(self) -> None:
        for name in ("buffer_lines", "batch_lines", "longest_line", "stream_length"):
            count = getattr(self, name)
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise ValueError(f"{name} must be a whole number >= 1, got {count!r}")
        for name in ("keep", "poll", "timeout", "retry", "retry_cap", "grace"):
            seconds = getattr(self, name)
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 1e9:
                raise ValueError(f"{name} must be seconds > 0 and < 1e9, got {seconds!r}")
        if self.batch_lines > self.buffer_lines:
            raise ValueError(
                f"batch_lines must be <= buffer_lines {self.buffer_lines}, got {self.batch_lines!r}"
            )
        if self.retry_cap < self.retry:
            raise ValueError(f"retry_cap must be >= retry {self.retry!r}, got {self.retry_cap!r}")
