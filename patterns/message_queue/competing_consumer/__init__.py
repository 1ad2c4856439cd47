"""Hand each message to one of many workers, and to another one if that falls silent.

A list that workers pop from loses the job of each worker that dies. One that they do not pop from gives the
same job to two. Whoever is slow is taken for dead, and acknowledges what is another's by now; a job that
kills its worker kills the next one too.

Guaranteed, each by a test that rejects a naive variant:

1. A message whose `send` has returned is delivered until it is acknowledged or is a dead letter. Killing
   senders and workers loses none, whatever they were at; a group that is missing is made again, from the
   first message.
2. A delivery is its receiver's for `visibility`, from its receipt or its last renewal, and a Worker renews
   for as long as the handler takes. When renewals stop, another receiver that is waiting has the message
   within `visibility` + `poll`.
3. Only the receiver of the newest delivery can acknowledge, extend, release or reject it. Anybody else gets
   LeaseLost, and nothing is done.
4. Deliveries are counted when they are handed out. A message that was delivered `max_deliveries` times, is
   rejected, or cannot be read, is once among the dead letters, with its payload and what became of each
   delivery, and not in the stream. `redrive` sends it again, under its own id.
5. Two sends of one `dedupe_id` within `dedupe_window` are one message, and return one id. An Effect is made
   in one step with the acknowledgement, by the owner only: once, however often the message is delivered.
6. What is acknowledged leaves the stream, and with it the list of what is pending. Nothing else is trimmed,
   ever. A partition takes no more than `capacity` messages: then `send` raises QueueFull. A consumer is
   forgotten only when it has nothing.
7. A Worker has at most `concurrency` * `batch` + `prefetch` messages, or one for each lane if that is more.
   One that closes gives back at once, uncounted, what no handler has begun, lets handlers end for `drain`
   seconds, and gives back the rest.
8. A worker that waits is given a message as soon as it is sent. Messages of one `key` are in one partition,
   and are handed out in order; one that comes back may come after later ones.
9. A payload that the codec cannot encode and read again, or that is larger than `max_bytes`, raises
   NotSendable before anything is written. No bytes at all are a payload.

Not guaranteed. A message may be handled twice: its worker did it and died before it said so, or was paused
beyond its time. What must happen once is an Effect, or is kept with the message's id in one transaction of
wherever it happens (an inbox). Redis replicates asynchronously: a failover loses the last sends, which are
lost jobs, and the last acknowledgements, which are jobs done again; who sends from a record of his own finds
out by comparing, and sends again. A restart loses what was not on disk: all of it without an append-only
file. The visibility time-out runs by the server's clock: set forward, leases end early, and messages are
delivered twice. A handler that blocks the event loop blocks renewals too: run it in a thread or a process.
A handler that never returns keeps its message for ever, unless it has a `timeout`. With several workers,
messages of one key are handled at the same time.

Redis keys: see `patterns.message_queue.competing_consumer.lane`; Redis (7, or Valkey) must not evict
(`noeviction`). All processes of one queue have one policy.

For the tasks of one event loop.

>>> import asyncio
>>> from patterns.keyspace import opened
>>> async def main() -> None:
...     async with opened() as redis:
...         mails = Queue("mails", redis, Policy(visibility=30), app="doctest")
...         done = asyncio.Event()
...         async def send_mail(delivery: Delivery) -> None:
...             print("to", delivery.payload["to"])
...             done.set()
...         await mails.send({"to": "ann"}, dedupe_id="order 17")
...         await mails.send({"to": "ann"}, dedupe_id="order 17")
...         async with Worker(mails.lanes, send_mail, timeout=10, concurrency=4):
...             await done.wait()
...         print(await mails.stats())
>>> asyncio.run(main())
to ann
Stats(depth=0, pending=0, dead=0, oldest_seconds=0.0)

Sources: Redis, "Streams" (consumer groups, XAUTOCLAIM); Amazon SQS, "Visibility timeout" and "Dead-letter
queues"; Hohpe and Woolf, "Competing Consumers" and "Idempotent Receiver".
"""

from __future__ import annotations

from patterns.entry import JSON, Codec, Json
from patterns.message_queue.competing_consumer.delivery import Dead, Delivery, Returned, Stats
from patterns.message_queue.competing_consumer.effect import Effect
from patterns.message_queue.competing_consumer.errors import (
    LeaseLost,
    NotSendable,
    OtherPartitions,
    QueueFull,
    Reject,
)
from patterns.message_queue.competing_consumer.events import (
    GroupCreated,
    LeaseEnded,
    MessageDead,
    MessageFailed,
    MessageHandled,
    MessageReleased,
    MessageSent,
    QueueLost,
    QueueRegained,
    WorkerStopped,
)
from patterns.message_queue.competing_consumer.lane import Lane
from patterns.message_queue.competing_consumer.policy import Policy
from patterns.message_queue.competing_consumer.queue import Queue
from patterns.message_queue.competing_consumer.raw import RAW, Raw
from patterns.message_queue.competing_consumer.source import Source
from patterns.message_queue.competing_consumer.worker import Worker

__all__ = [
    "JSON",
    "RAW",
    "Codec",
    "Dead",
    "Delivery",
    "Effect",
    "GroupCreated",
    "Json",
    "Lane",
    "LeaseEnded",
    "LeaseLost",
    "MessageDead",
    "MessageFailed",
    "MessageHandled",
    "MessageReleased",
    "MessageSent",
    "NotSendable",
    "OtherPartitions",
    "Policy",
    "Queue",
    "QueueFull",
    "QueueLost",
    "QueueRegained",
    "Raw",
    "Reject",
    "Returned",
    "Source",
    "Stats",
    "Worker",
    "WorkerStopped",
]
