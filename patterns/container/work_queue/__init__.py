"""Do every item that a source lists, each once if nothing breaks, with workers that know nothing of queues.

Most of a work queue has nothing to do with the work: list, hand out, watch, try again, count. Here that
part is written once, as containers with two narrow interfaces. A source container serves names and bytes over
HTTP. An application container is called with one file and answers with an exit code. Between them stand a
manager, which compares what the source lists with what is known to be done, and worker-managers, which lease
items.

Guaranteed, each by a test that rejects a naive variant:

1. Whenever managers are killed, the rounds of the next one bring every listed item to an end: done, or
   failed for good. A manager holds nothing that its next round does not read again.
2. A job is the hash of queue and item: any number of managers create at most one for an item. What has ended
   is not run again, although the source still lists it. Any text is a safe name, two names are two jobs.
3. At most `parallelism` items are leased at any time, over all managers and workers.
4. The application sees one file, read-only. Exit code 0 is done; anything else is tried again after a
   growing pause, `attempts` times, and has then failed for good, with the end of what it wrote. A timeout
   kills all its processes.
5. When a worker's heartbeat stops its item is given to another, once; a worker that loses its lease stops
   its application. A late completion counts if the item has not ended; what has ended never changes.
6. A source that fails, hangs, lists nonsense, names twice, or lists what is gone, stops no other item and
   costs none an attempt.
7. Sources and applications are exchanged without a change to manager or worker.
8. The backlog stays bounded if, and only if, workers exceed arrival rate times service time; the scaling rule
   comes to such a number and stays there.

Not guaranteed: that an application runs once. A worker may die between the application's commit and its
report, and one that is paused past its lease runs beside its successor: write under WORK_ITEM_ID, so that
twice is once. Nor an order, nor that an item which changes under its old name is done again. Redis replicates
asynchronously: what a failover loses of "done" is done again, a lost lease is a second worker on one item; no
item is lost, because the source is the truth.

Redis keys: see `patterns.container.work_queue.state`.

Assumptions: `noeviction`; one policy for all managers of a queue; one queue is one slot, so one shard: where
that is not enough, take several queues.

>>> Policy(parallelism=4).attempts
5
>>> job_id("photos", "../holiday.jpg") == job_id("photos", "holiday.jpg")
False

Sources: Burns, "Designing Distributed Systems", chapter 10 (work queue systems); Kubernetes, "Jobs".
"""

from __future__ import annotations

from patterns.container.work_queue.call import ApplicationDown, FileCall, Folders, Result
from patterns.container.work_queue.events import (
    ApplicationMissing,
    HeartbeatFailed,
    HeartbeatLost,
    ItemDone,
    ItemFailed,
    ItemGivenUp,
    ItemLost,
    ItemRejected,
    ItemReturned,
    ItemStarted,
    JobCreated,
    RequestFailed,
    RoundFailed,
)
from patterns.container.work_queue.manager import Manager, Round
from patterns.container.work_queue.policy import Policy
from patterns.container.work_queue.scaling import Scaler, Scaling
from patterns.container.work_queue.source import (
    HttpSource,
    ItemTooLarge,
    ItemVanished,
    Page,
    Source,
    SourceFailed,
)
from patterns.container.work_queue.sources import folder_source, items_key, redis_source
from patterns.container.work_queue.state import Ended, Failure, Job, Settled, State, Status, job_id
from patterns.container.work_queue.worker import Application, WorkerManager

__all__ = [
    "Application",
    "ApplicationDown",
    "ApplicationMissing",
    "Ended",
    "Failure",
    "FileCall",
    "Folders",
    "HeartbeatFailed",
    "HeartbeatLost",
    "HttpSource",
    "ItemDone",
    "ItemFailed",
    "ItemGivenUp",
    "ItemLost",
    "ItemRejected",
    "ItemReturned",
    "ItemStarted",
    "ItemTooLarge",
    "ItemVanished",
    "Job",
    "JobCreated",
    "Manager",
    "Page",
    "Policy",
    "RequestFailed",
    "Result",
    "Round",
    "RoundFailed",
    "Scaler",
    "Scaling",
    "Settled",
    "Source",
    "SourceFailed",
    "State",
    "Status",
    "WorkerManager",
    "folder_source",
    "items_key",
    "job_id",
    "redis_source",
]
