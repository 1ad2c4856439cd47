"""The query side: what readers see, how they wait for their own writes, and how a rebuild takes over.

Key: `<app>:{cqrs:<store>/<name>}:live`, a string: the generation that readers see.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from patterns.bounds import number
from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.data_management.cqrs.events import ModelSwitched
from patterns.data_management.cqrs.model import NotCaughtUp, wait_for
from patterns.data_management.cqrs.scripts import LOOK
from patterns.data_management.cqrs.state import State
from patterns.events import Listener, emit, ignore

if TYPE_CHECKING:
    from patterns.data_management.cqrs.facts import Checkpoint, Position
    from patterns.data_management.cqrs.store import EventStore
    from patterns.keyspace import Client

__all__ = ["NotLive", "View"]


class NotLive(LookupError):
    """No generation of the read model has been switched to yet."""


class View:
    """The read model as its readers see it: the live generation.

    Args:
        name: of the model.
        store: whose facts it is made of.
        client: where the rows are, if not beside the log.
        poll: seconds between two looks while it waits.
        refresh: seconds for which it believes which generation is live; the one before is whole, too.
        clock: where it waits.
        on_event: hears ModelSwitched.
    """

    def __init__(
        self,
        name: str,
        store: EventStore,
        *,
        client: Client | None = None,
        poll: float = 0.02,
        refresh: float = 1.0,
        clock: Clock = SYSTEM_CLOCK,
        on_event: Listener = ignore,
    ) -> None:
        State(name, store, generation=1, client=client)  # or it raises
        self.name = name
        self._store = store
        self._client = client or store.client
        self._poll = number("poll", poll, at_least=0.001)
        self._refresh = number("refresh", refresh, at_least=0)
        self._clock = clock
        self._seen: tuple[float, State] | None = None
        self._on_event = on_event
        self._live_key = store.space.key(f"{store.name}/{name}", "live")

    async def live(self) -> int:
        """Return the generation that readers see.

        Raises:
            NotLive: there is none yet.
        """
        now = self._clock.monotonic()
        found: Any = await self._client.get(self._live_key)
        if found is None:
            raise NotLive(f"{self.name}: no generation was switched to")
        self._seen = now, self._generation(int(found))
        return int(found)

    async def _believed(self) -> State:
        if self._seen is None or self._clock.monotonic() >= self._seen[0] + self._refresh:
            return self._generation(await self.live())
        return self._seen[1]

    # --8<-- [start:get]
    async def get(self, key: str, *, at: Position | None = None, within: float = 0.0) -> Any:
        """Return the row of `key`, which is an aggregate's name; None if there is none.

        Args:
            key: of the row.
            at: a position of which the answer must know, as the receipt of the reader's own command says.
            within: seconds to wait for it.

        Raises:
            NotCaughtUp: the model has not come to `at` in time; a TimeoutError.
            NotLive: no generation was switched to.
        """
        return await self._row(self._store.partition_of(key), key, at, within)

    async def get_each(self, key: str, *, at: Position | None = None, within: float = 0.0) -> list[Any]:
        """Return the rows of `key` in all partitions that have one: for rows that are no aggregate's."""
        rows = [await self._row(each, key, at, within) for each in range(self._store.partitions)]
        return [row for row in rows if row is not None]

    async def _row(self, partition: int, key: str, at: Position | None, within: float) -> Any:
        deadline = self._clock.monotonic() + number("within", within, at_least=0, finite=False)
        state = await self._believed()
        while True:
            known = 0
            if at is not None and at.partition != partition:  # before the row: a checkpoint only grows
                known = (await state.checkpoint(at.partition)).number
            position, row = await LOOK(self._client, keys=state.keys(partition)[:2], args=[key])
            if at is not None and at.partition == partition:
                known = int(position or 0)
            there = at is None or known >= at.number
            if not (there and position):  # is it the live one, and has it not been dropped?
                before, state = state, self._generation(await self.live())
                if state.generation != before.generation:
                    continue
            if at is None or there:
                return self._store.codec.decode(row) if row else None
            if (left := deadline - self._clock.monotonic()) <= 0:
                raise NotCaughtUp(at, known)
            await self._clock.sleep(min(self._poll, left))

    # --8<-- [end:get]

    async def checkpoint(self, partition: int) -> Checkpoint:
        """Return how far the live generation has come in a partition."""
        return await self._generation(await self.live()).checkpoint(partition)

    async def wait_for(self, position: Position, *, within: float) -> None:
        """Return once the live generation has come to `position`.

        Raises:
            NotCaughtUp: it has not in `within` seconds; a TimeoutError.
            NotLive: no generation was switched to.
        """
        await wait_for(self, position, within=within, poll=self._poll, clock=self._clock)

    # --8<-- [start:switch]
    async def switch(self, generation: int, *, max_lag: int = 0) -> None:
        """Let readers see `generation` from now on: all of it at once, for it is one key that changes.

        Args:
            generation: which its projector has brought to the end of the log.
            max_lag: by how many facts it may be behind in each partition.

        Raises:
            NotCaughtUp: it is further behind; nothing was changed.
        """
        state = self._generation(generation)
        for partition in range(self._store.partitions):
            end, _ = await self._store.end(partition)
            at = await state.checkpoint(partition)
            if end.number - at.number > max_lag:
                raise NotCaughtUp(end, at.number)
        await self._client.set(self._live_key, generation)
        self._seen = None
        emit(self._on_event, ModelSwitched(self.name, generation))

    # --8<-- [end:switch]

    async def drop(self, generation: int) -> None:
        """Delete a generation that readers do not see; a projector that still follows it is refused.

        Raises:
            ValueError: they do see it.
        """
        state = self._generation(generation)
        if await self._client.get(self._live_key) == b"%d" % generation:
            raise ValueError(f"{self.name}: generation {generation} is live")
        await state.drop()

    async def rows(self, partition: int) -> dict[str, Any]:
        """Return all rows of a partition of the live generation, by key."""
        return await self._generation(await self.live()).rows(partition)

    def _generation(self, generation: int) -> State:
        return State(self.name, self._store, generation=generation, client=self._client)
