"""What is recorded: facts, where they stand, and which log cannot be trusted."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from patterns.bounds import whole

__all__ = ["BEGINNING", "Checkpoint", "Fact", "HistoryLost", "Position", "Receipt", "Recorded"]


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that has happened to an aggregate: a domain event.

    Attributes:
        kind: in the past tense, as "Withdrawn".
        data: what the codec can encode.
    """

    kind: str
    data: Any = None


@dataclass(frozen=True, slots=True)
class Position:
    """Where a fact stands: a partition and a number that counts up from 1 in it; `str` and `parse` undo it.

    It is what a client takes along from a command to its next query.
    """

    partition: int
    number: int

    def __post_init__(self) -> None:
        whole("partition", self.partition, at_least=0)
        whole("number", self.number, at_least=0)

    def __str__(self) -> str:
        return f"{self.partition}:{self.number}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Return the position that `str` wrote.

        Raises:
            ValueError: it did not.
        """
        if not re.fullmatch(r"[0-9]{1,9}:[0-9]{1,15}", text := str(text)):
            raise ValueError("a position is two numbers, as '3:105'")
        partition, number = text.split(":")
        return cls(int(partition), int(number))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far somebody has come in a partition.

    Attributes:
        number: position of the last fact that is done.
        chain: that fact's chain.
    """

    number: int = 0
    chain: str = ""


BEGINNING = Checkpoint()


@dataclass(frozen=True, slots=True)
class Recorded:
    """A fact in the log.

    Attributes:
        store: name of the store.
        position: where it stands.
        aggregate: whose fact it is.
        version: of the aggregate with this fact; the first has 1.
        command: id of the command that caused it.
        kind: of the fact.
        data: of the fact, decoded; the raw bytes if `error` says why it cannot be.
        at: milliseconds since 1970 by the server's clock.
        chain: a hash over this fact and all before it in the partition.
        error: why `data` could not be decoded; empty if it could.
    """

    store: str
    position: Position
    aggregate: str
    version: int
    command: str
    kind: str
    data: Any
    at: int
    chain: str
    error: str = ""

    @property
    def id(self) -> str:
        """The same on each delivery: an idempotency key for what a reaction does."""
        return f"{self.store}/{self.position}"

    @property
    def checkpoint(self) -> Checkpoint:
        """Of whoever has come so far."""
        return Checkpoint(self.position.number, self.chain)

    def check(self) -> None:
        """Raise ValueError if `data` could not be decoded."""
        if self.error:
            raise ValueError(self.error)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an append returns.

    Attributes:
        position: of the last fact of the command; give it to the next query.
        version: of the aggregate after it.
        repeated: the command had been recorded before.
    """

    position: Position
    version: int
    repeated: bool = False


class HistoryLost(Exception):
    """The log does not hold what has been read from it: a failover or a restore has lost acknowledged facts.

    What was derived from them can only be rebuilt.

    Attributes:
        position: where it ought to be.
    """

    def __init__(self, position: Position) -> None:
        super().__init__(
            f"the log does not hold what was read from it at {position}: rebuild what follows it"
        )
        self.position = position
