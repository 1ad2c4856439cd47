"""The command side: an append-only log in Redis, and appends that know which version they build upon.

Keys, one slot per partition:

- `<app>:{cqrs:<name>/<partition>}:log`              stream: the facts, ids `1-0`, `2-0`, ...; never trimmed
- `<app>:{cqrs:<name>/<partition>}:of.<aggregate>`   list: the positions of one aggregate's facts
- `<app>:{cqrs:<name>/<partition>}:by.<aggregate>`   hash: its commands, and the version after each
- `<app>:{cqrs:<name>}:partitions`                   string: how many there are, for it must never change

The partition of an aggregate is the CRC-32 of its name, modulo the number of partitions. An entry carries a
hash over itself and all before it, so that who has read to a position can tell whether the log is still the
one that was read: after a failover the same position may hold another fact.
"""

from __future__ import annotations

import re
import uuid
import zlib
from typing import TYPE_CHECKING, Any

from patterns.bounds import text, whole
from patterns.data_management.cqrs.events import AppendConflicted, Appended
from patterns.data_management.cqrs.facts import Fact, HistoryLost, Position, Receipt, Recorded
from patterns.data_management.cqrs.scripts import APPEND, HISTORY
from patterns.entry import JSON, Codec, Unreadable
from patterns.events import Listener, emit, ignore
from patterns.keyspace import Client, Keyspace, OutcomeUnknown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["EventStore", "NotRecordable", "PartitionsDiffer", "VersionConflict"]

_PAGE = 500  # facts in one reply
_MOST_FACTS = 1000  # of one command, and
_MOST_BYTES = 1_048_576  # of all of them, with their names: while a script runs, its shard does nothing else


class VersionConflict(Exception):
    """Somebody else has changed the aggregate: read it again, and decide again.

    Attributes:
        aggregate: which.
        expected: version on which the append was to build.
        actual: version that it has.
    """

    def __init__(self, aggregate: str, expected: int, actual: int) -> None:
        super().__init__(f"{aggregate!r} has version {actual}, not {expected}")
        self.aggregate, self.expected, self.actual = aggregate, expected, actual


class NotRecordable(ValueError):
    """The facts cannot be recorded, and none was; the text says why, without their data.

    Attributes:
        kind: of the fact that is at fault.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(f"{kind}: {reason}")
        self.kind = kind


class PartitionsDiffer(ValueError):
    """The store was made with another number of partitions; with two, an aggregate would have two histories.

    Attributes:
        ours: what was asked for.
        theirs: what the store has.
    """

    def __init__(self, name: str, ours: int, theirs: int) -> None:
        super().__init__(f"{name} has {theirs} partitions, not {ours}")
        self.ours, self.theirs = ours, theirs


class EventStore:
    """Facts by aggregate, and a log of them per partition.

    Args:
        name: of the store, as "bank".
        client: from `patterns.keyspace`.
        app: first part of the keys.
        partitions: in how many logs the aggregates are spread; it can never be changed.
        codec: turns data into bytes and back.
        max_bytes: most bytes of one fact's encoded data, at most 1 MiB, which is the most of one command too.
        on_event: hears Appended and AppendConflicted.
    """

    def __init__(
        self,
        name: str,
        client: Client,
        *,
        app: str,
        partitions: int,
        codec: Codec = JSON,
        max_bytes: int = 65_536,
        on_event: Listener = ignore,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise ValueError(f"name must be letters, digits, '_', '.' and '-', at least one, got {name!r}")
        self.name = name
        self.client = client
        self.space = Keyspace(app, "cqrs")
        self.partitions = whole("partitions", partitions, at_least=1, at_most=4096)
        self.codec = codec
        self._max_bytes = whole("max_bytes", max_bytes, at_least=1, at_most=_MOST_BYTES)
        self._on_event = on_event
        self._agreed = False

    def partition_of(self, aggregate: str) -> int:
        """Return where the facts of `aggregate` are recorded.

        Raises:
            ValueError: it is empty, or has a lone surrogate.
        """
        return zlib.crc32(_utf8("aggregate", aggregate)) % self.partitions

    # --8<-- [start:append]
    async def append(self, aggregate: str, facts: Sequence[Fact], *, expected: int, command: str) -> Receipt:
        """Record `facts` of `aggregate`, all or none, if its version is still `expected`.

        Args:
            aggregate: whose facts they are.
            facts: at least one.
            expected: the version on which they build; 0 for an aggregate that does not exist yet.
            command: id of the command. Who got no answer repeats the call with the same id, as often as it
                takes: for one aggregate it is recorded once, whatever `expected` says then.

        Raises:
            VersionConflict: the version is another, and this command has not been recorded.
            NotRecordable: a fact cannot be encoded, or is too large, or all together are.
            OutcomeUnknown: recorded or not; repeat it.
        """
        whole("expected", expected, at_least=0)
        partition, keys = self._keys(aggregate)
        names = _utf8("aggregate", aggregate), _utf8("command", command)
        args: list[bytes | int] = [names[0], expected, names[1]]
        if not 0 < len(facts) <= _MOST_FACTS:
            raise ValueError(f"facts must be 1 to {_MOST_FACTS}, got {len(facts)}")
        size = 0
        for fact in facts:
            args += (each := [_utf8("kind", fact.kind), self._encoded(fact)])
            size += sum(map(len, (*names, *each)))
            if size > _MOST_BYTES:
                raise NotRecordable(fact.kind[:100], f"with it the command has more than {_MOST_BYTES} bytes")
        await self._agree()
        outcome, version, number = await APPEND(self.client, keys=keys, args=args)
        if outcome == 0:
            emit(self._on_event, AppendConflicted(self.name, aggregate, expected, version))
            raise VersionConflict(aggregate, expected, version)
        emit(self._on_event, Appended(self.name, aggregate, version, outcome == 2))
        return Receipt(Position(partition, int(number)), version, outcome == 2)

    # --8<-- [end:append]

    # --8<-- [start:execute]
    async def execute(
        self,
        aggregate: str,
        decide: Callable[[list[Recorded]], Sequence[Fact]],
        *,
        command: str | None = None,
        attempts: int = 5,
    ) -> Receipt:
        """Record what `decide` makes of the history of `aggregate`.

        Args:
            aggregate: whose history.
            decide: takes the facts so far and returns new ones, or raises if the rules forbid it. It may be
                called several times, so it only decides.
            command: id of the command; the same id is recorded once, however late it is repeated.
            attempts: how often to decide again after a conflict, or to find out after a lost reply.

        Raises:
            VersionConflict: others were quicker, `attempts` times.
            OutcomeUnknown: the last reply was lost; repeat it with the same `command`.
            Exception: whatever `decide` raised; nothing was recorded.
        """
        whole("attempts", attempts, at_least=1)
        command = uuid.uuid4().hex if command is None else command
        while True:
            attempts -= 1
            try:
                history = await self.history(aggregate)
                if done := [fact for fact in history if fact.command == command]:
                    return Receipt(done[-1].position, done[-1].version, repeated=True)
                facts = decide(history)
                if not facts:
                    nowhere = Position(self.partition_of(aggregate), 0)
                    return Receipt(history[-1].position if history else nowhere, len(history))
                return await self.append(aggregate, facts, expected=len(history), command=command)
            except (VersionConflict, OutcomeUnknown):
                if attempts <= 0:
                    raise

    # --8<-- [end:execute]

    async def history(self, aggregate: str, *, after: int = 0) -> list[Recorded]:
        """Return the facts of `aggregate` whose version is greater than `after`, in order.

        Raises:
            HistoryLost: one of them is missing.
            Unreadable: the codec cannot decode one of them.
        """
        whole("after", after, at_least=0)
        partition, keys = self._keys(aggregate)
        await self._agree()
        found: list[Recorded] = []
        while True:
            first = after + len(found)
            page = await HISTORY(self.client, keys=keys[:2], args=[first, first + _PAGE - 1])
            for entry in page:
                fact = self._recorded(partition, entry)
                if fact.version != after + len(found) + 1:
                    raise HistoryLost(fact.position)
                if fact.error:
                    raise Unreadable(fact.data, f"fact {fact.id}: {fact.error}")
                found.append(fact)
            if len(page) < _PAGE:
                return found

    # --8<-- [start:read]
    async def read(self, after: Position, *, chain: str = "", count: int = 100) -> list[Recorded]:
        """Return up to `count` facts of a partition that come after a position, in order.

        Args:
            after: where to go on; number 0 is the beginning.
            chain: that of the fact at `after`, to be sure that it still is the same log.
            count: most facts.

        Raises:
            HistoryLost: the fact at `after` is not there, or is another.
        """
        whole("count", count, at_least=1)
        await self._agree()
        start = max(1, after.number)
        entries: Any = await self.client.xrange(
            self._log(after.partition), f"{start}-0", "+", count=count + (after.number > 0)
        )
        facts = [self._recorded(after.partition, entry) for entry in entries]
        if after.number:
            if not facts or facts[0].position != after or (chain and facts[0].chain != chain):
                raise HistoryLost(after)
            del facts[0]
        return facts

    # --8<-- [end:read]

    async def end(self, partition: int) -> tuple[Position, str]:
        """Return the position of the last fact of a partition, and its chain; 0 and "" if there is none."""
        entries: Any = await self.client.xrevrange(self._log(partition), count=1)
        if not entries:
            return Position(partition, 0), ""
        last = self._recorded(partition, entries[0])
        return last.position, last.chain

    def _log(self, partition: int) -> str:
        return self.space.key(f"{self.name}/{partition}", "log")

    def _keys(self, aggregate: str) -> tuple[int, list[str]]:
        partition = self.partition_of(aggregate)
        entity, name = (
            f"{self.name}/{partition}",
            "".join(
                chr(byte) if (chr(byte).isalnum() and byte < 128) or byte in b"_-" else f".{byte:02x}"
                for byte in aggregate.encode()
            ),
        )
        return partition, [self.space.key(entity, role) for role in ("log", f"of.{name}", f"by.{name}")]

    def _encoded(self, fact: Fact) -> bytes:
        try:
            data: Any = self.codec.encode(fact.data)
            if isinstance(data, bytes) and len(data) <= self._max_bytes:
                self.codec.decode(data)
        except Exception as error:
            raise NotRecordable(fact.kind, f"the codec raised {type(error).__name__}") from error
        if not isinstance(data, bytes):
            raise NotRecordable(fact.kind, f"the codec gave {type(data).__name__}, not bytes")
        if len(data) > self._max_bytes:
            raise NotRecordable(fact.kind, f"{len(data)} bytes are more than max_bytes={self._max_bytes}")
        return data

    def _recorded(self, partition: int, entry: Any) -> Recorded:
        key, fields = entry
        if not isinstance(fields, dict):  # from a script
            fields = dict(zip(fields[::2], fields[1::2], strict=True))
        data, error = fields[b"data"], ""
        try:
            data = self.codec.decode(data)
        except Exception as failure:  # whoever applies it finds out, and the log goes on behind it
            error = f"the codec raised {type(failure).__name__}"
        return Recorded(
            self.name,
            Position(partition, int(key.partition(b"-")[0])),
            fields[b"aggregate"].decode(),
            int(fields[b"version"]),
            fields[b"command"].decode(),
            fields[b"kind"].decode(),
            data,
            int(fields[b"at"]),
            fields[b"chain"].decode(),
            error,
        )

    async def _agree(self) -> None:
        if self._agreed:
            return
        key = self.space.key(self.name, "partitions")
        await self.client.set(key, self.partitions, nx=True)
        theirs = int(await self.client.get(key) or self.partitions)
        if theirs != self.partitions:
            raise PartitionsDiffer(self.name, self.partitions, theirs)
        self._agreed = True


def _utf8(field: str, value: str) -> bytes:
    try:
        return text(field, value).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{field} must be text that UTF-8 can hold, got a lone surrogate") from None
