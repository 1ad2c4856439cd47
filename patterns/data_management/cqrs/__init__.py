"""Record what has happened in one place, and answer questions from another that is derived from it.

A model that is good for deciding is seldom good for showing. With two of them, a system that writes both is
wrong after the first crash between the two writes, and one that derives the second loses facts, or counts
them twice, wherever its checkpoint and its rows are not the same transaction.

Guaranteed, each by a test that rejects a naive variant:

1. Of any number of appends that build upon the same version of an aggregate one is recorded, all its facts
   or none; the others get VersionConflict. So a rule that `execute` decides by is never broken.
2. A command that is repeated under its id, after a lost reply or a day later, is recorded once for its
   aggregate, and gets the same receipt, at whatever version it is repeated.
3. Whatever crashes, and whenever: the rows are those that a replay of the log up to the checkpoint gives.
4. Facts that are delivered again change nothing. Reactions (mails, calls) have a checkpoint of their own: a
   rebuild runs none of them again, nor does a lost reply.
5. The checkpoint passes no fact that was neither applied nor parked.
6. The facts of one aggregate are applied in their order, however many projectors share the partitions.
7. `get(at=position)` and `wait_for(position)` answer from that position or a later one, or raise
   NotCaughtUp, a TimeoutError.
8. A fact that cannot be applied is tried `attempts` times and leaves no trace of it. Then it is parked, with
   what follows of its aggregate while all others go on, or its partition pauses, and `lag` shows it.
9. After another projector has taken a partition, the one that had it writes no more, also if it was paused
   in the middle of a batch.
10. Readers see the old model or the new one, whole, never one that is being built.
11. A log that has lost what a model already holds is found out, also when it has grown again since:
    HistoryLost.
12. What cannot be encoded, is too large, or has no name is refused before anything is written; another
    number of partitions is refused before anything is split.

Not guaranteed. Between command and query time passes: a query without a position may answer from before a
command that has been acknowledged, and several partitions are at different times. Facts of different
partitions have no order. A reaction may run twice after a crash, with the same `fact.id`. A failover of
Redis (replication is asynchronous), or a restart from an old file, may lose facts that were acknowledged;
the models that had seen them raise HistoryLost and are rebuilt, the commands are not repeated by anybody,
and a position from before may stand for another fact. A model whose Redis was emptied stops its projector
(TakenOver); the next one fills it up before its readers' eyes, and a reaction begins as `from_now` says. Log
and models must not be evicted (`maxmemory-policy noeviction`), and the log is never trimmed.

To read it in one sitting: `facts`, `store` with `scripts`; then `model` (what a projector asks of one),
`projector`, `hashes`; then `view`. `tables` and `reaction` are other models, `policy` and `events` are short.

Redis keys: see `store` (the log), `state` (checkpoint, rows, parked facts) and `view` (which model is live).

For the tasks of one event loop; each partition has one projector at a time, the newest.

>>> import asyncio
>>> from patterns.keyspace import opened
>>> def count(rows: dict[str, int], fact: Recorded) -> None:
...     rows[fact.aggregate] = rows.get(fact.aggregate, 0) + fact.data
>>> async def main() -> None:
...     async with opened() as redis:
...         store = EventStore("doctest", redis, app="doctest", partitions=2)
...         await store.execute("tea", lambda history: [Fact("Delivered", 5)], command="c1")
...         sold = await store.execute("tea", lambda history: [Fact("Sold", -2)], command="c2")
...         model = HashModel("stock", store, count)
...         await Projector(store, model, Policy(on_poison=OnPoison.PAUSE)).catch_up()
...         view = View("stock", store)
...         await view.switch(1)
...         print(await view.get("tea", at=sold.position))
>>> asyncio.run(main())
3

Sources: Young, "CQRS Documents" (2010); Fowler, "CQRS"; Marten, "Projections" (checkpoint and documents
in one transaction, rebuild); KurrentDB, "Checkpoints"; Axon, "Event Processors" (tokens, sequenced dead
letters).
"""

from __future__ import annotations

from patterns.data_management.cqrs.events import (
    AppendConflicted,
    Appended,
    FactFailed,
    FactParked,
    FactsApplied,
    ModelSwitched,
    PartitionStopped,
    PartitionTaken,
    ProjectionPaused,
    ProjectionResumed,
    ProjectionStalled,
)
from patterns.data_management.cqrs.facts import Checkpoint, Fact, HistoryLost, Position, Receipt, Recorded
from patterns.data_management.cqrs.hashes import HashModel
from patterns.data_management.cqrs.model import (
    Dropped,
    Model,
    Moved,
    NotCaughtUp,
    Parked,
    TakenOver,
    Unapplied,
    wait_for,
)
from patterns.data_management.cqrs.policy import OnPoison, Policy
from patterns.data_management.cqrs.projector import Projector
from patterns.data_management.cqrs.reaction import Reaction
from patterns.data_management.cqrs.store import EventStore, NotRecordable, PartitionsDiffer, VersionConflict
from patterns.data_management.cqrs.tables import TableModel
from patterns.data_management.cqrs.view import NotLive, View

__all__ = [
    "AppendConflicted",
    "Appended",
    "Checkpoint",
    "Dropped",
    "EventStore",
    "Fact",
    "FactFailed",
    "FactParked",
    "FactsApplied",
    "HashModel",
    "HistoryLost",
    "Model",
    "ModelSwitched",
    "Moved",
    "NotCaughtUp",
    "NotLive",
    "NotRecordable",
    "OnPoison",
    "Parked",
    "PartitionStopped",
    "PartitionTaken",
    "PartitionsDiffer",
    "Policy",
    "Position",
    "ProjectionPaused",
    "ProjectionResumed",
    "ProjectionStalled",
    "Projector",
    "Reaction",
    "Receipt",
    "Recorded",
    "TableModel",
    "TakenOver",
    "Unapplied",
    "VersionConflict",
    "View",
    "wait_for",
]
