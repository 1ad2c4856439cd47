"""Do what is urgent first, let nothing wait for ever, and lose no job with the consumer that had it.

A queue that is first come, first served makes a customer wait behind a nightly export. A list for each
priority, polled from the top, lets the export wait for as long as there are customers. And BZPOPMIN on a
sorted set hands out the most urgent job, and loses it if the consumer dies.

Guaranteed, each by a test that rejects a naive variant:

1. `receive` lends the ready job of the smallest rank: since + priority * aging, where `since` is when the job
   was ready first, or the priority alone where `aging` is infinite. Concurrent pushes and receives do not
   change that, nor does a due job that nobody has looked at yet.
2. Jobs of one priority are lent in the order in which they became ready: pushed in one microsecond, beyond
   2^31 of them, and after the server's clock was set back.
3. What becomes ready more than `priority * aging` after a job is lent after it, however urgent and however
   much: a flood holds up a job for that time, and for the work that is there by then, and no longer.
4. A job is lent, not removed. Who falls silent loses it after `lease`, and it is back at its old place. Only
   its owner can renew, acknowledge or give it back. Deliveries are counted; after `max_deliveries` the job is
   dead, once, with its payload and history, until it is redriven or discarded.
5. `cancel` and `change_priority` act on a job that waits, or not at all, and say which. A changed job stands
   where it would if it had been pushed so.
6. A delayed job is lent to nobody before its time, by the server's clock: those of the clients do not count.
7. A consumer that waits gets a job as soon as one is ready, pushed, delayed, given back or taken from another
   that fell silent, and also if it comes between its look and its wait. It asks once for each, and not again
   and again.
8. Waiting changes no rank: of two jobs the same stays first. Nothing is rewritten as jobs grow older.
9. Of several pushes with one `dedupe_id` within the window one is done, also where the reply of the first
   was lost.
10. A payload that cannot be encoded, decoded again or is larger than `max_bytes`, and a priority that is no
   whole number of the policy's, raise NotSendable before anything is written. What a consumer cannot decode
   is dead, and the others go on.

Not guaranteed. A job may be delivered twice, whenever a lease ends before the work does: handlers must bear
that, or make their effect with the acknowledgement. What a consumer has in hand no urgent job overtakes, so
priorities are only as good as its prefetch is small. Jobs that are worked on side by side end in any order.
Time is the server's clock: a step of it puts off, or brings forward, what 3, 4 and 6 say by that much. Redis
replicates asynchronously: a failover loses the last pushes, and brings back jobs whose acknowledgement it
lost; it does not reorder those that are there. A restart loses what was not on disk. An effect whose script
raises halfway is half done, and its job not acknowledged.

One queue is in one slot, so one server's work; spread independent work over several names. Redis keys: see
`patterns.message_queue.priority_queue.scripts`. None but `once-...` expires, so Redis (7, or Valkey) must not
evict (`noeviction`).

Consumers run in `patterns.message_queue.competing_consumer.Worker`, which renews, retries and stops:
`Worker(queue.lanes, handle, timeout=60)`. For the tasks of one event loop.

>>> import asyncio
>>> from patterns import keyspace
>>> async def main() -> None:
...     async with keyspace.opened() as redis:
...         jobs = PriorityQueue("jobs", redis, Policy(aging=60), app="doctest")
...         await jobs.push("export", priority=9)
...         await jobs.push("order", priority=0)
...         while lent := await jobs.receive("me", wait=False):
...             print(lent[0].payload)
...             await jobs.acknowledge(lent[0])
>>> asyncio.run(main())
order
export

Sources: Microsoft, "Priority Queue pattern" (one queue or several, starvation); RabbitMQ, "Priority Support
in Queues" (prefetch); J. R. Jackson, "Some Problems in Queueing with Dynamic Priorities", 1960 (the time of
arrival plus an urgency number); Liu and Layland, 1973 (earliest deadline first, which is the same order).
"""

from __future__ import annotations

from patterns.message_queue.competing_consumer.delivery import Dead, Delivery
from patterns.message_queue.competing_consumer.effect import Effect
from patterns.message_queue.competing_consumer.errors import LeaseLost, NotSendable
from patterns.message_queue.competing_consumer.events import MessageDead, MessageSent
from patterns.message_queue.priority_queue.errors import OtherAging
from patterns.message_queue.priority_queue.events import JobCancelled, JobDelivered, PriorityChanged
from patterns.message_queue.priority_queue.job import Receipt, Stats
from patterns.message_queue.priority_queue.policy import Policy
from patterns.message_queue.priority_queue.queue import PriorityQueue

__all__ = [
    "Dead",
    "Delivery",
    "Effect",
    "JobCancelled",
    "JobDelivered",
    "LeaseLost",
    "MessageDead",
    "MessageSent",
    "NotSendable",
    "OtherAging",
    "Policy",
    "PriorityChanged",
    "PriorityQueue",
    "Receipt",
    "Stats",
]
