"""What is done, failed, or being worked on: the only memory of a work queue, and every transition of it.

Nothing here says what there is to do: that is the source's business. What Redis forgets is made again from
the source's list, at the price of doing items again that were done.

Redis keys, all in one slot. Each round of a manager lets them live for another `Policy.keep` seconds; a key
that is made after it lives as long from then:

- `<app>:{work_queue:<queue>}:rules`     hash: the policy, as the last round has written it
- `<app>:{work_queue:<queue>}:waiting`   sorted set: job -> when it may be taken, server's ms
- `<app>:{work_queue:<queue>}:leases`    sorted set: job -> when its lease runs out, server's ms
- `<app>:{work_queue:<queue>}:names`     hash: job -> item, of those that wait or run
- `<app>:{work_queue:<queue>}:attempts`  hash: job -> attempts begun
- `<app>:{work_queue:<queue>}:holders`   hash: job -> token, and token -> job, of those that run
- `<app>:{work_queue:<queue>}:ended`     sorted set: job -> when the source last listed it, server's ms
- `<app>:{work_queue:<queue>}:failed`    hash: job -> report (JSON) of those in `ended` that failed for good
- `<app>:{work_queue:<queue>}:counts`    hash: totals, and when the source was last listed to the end
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from patterns.keyspace import Client, Keyspace, Script

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patterns.container.work_queue.policy import Policy

__all__ = ["Ended", "Failure", "Job", "Settled", "State", "Status", "job_id"]


def job_id(queue: str, item: str) -> str:
    """Return the job of an item: the same for every manager, and 32 characters safe in any path or name.

    A name is the source's text: it may be "..", 300 bytes long, or differ from another's in a slash only.
    """
    return hashlib.blake2b(f"{len(queue)}:{queue}{item}".encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt at one item, leased to whoever holds the token.

    Attributes:
        id: of the item, the same for each attempt.
        item: its name in the source.
        attempt: counted from 1, at the claim.
        token: of this attempt alone.
        lease: seconds that it lasts without a heartbeat.
        timeout: seconds that the application may take.
    """

    id: str
    item: str
    attempt: int
    token: str
    lease: float
    timeout: float


class Ended(Enum):
    """What the state made of a worker's report."""

    DONE = "done"  # the item is done
    LATE = "late"  # done, by a worker that had lost its lease
    AGAIN = "again"  # the attempt failed, and another one will be made
    FAILED = "failed"  # the item has failed for good
    OVER = "over"  # the item had ended before; nothing was changed
    LOST = "lost"  # another attempt has the item; nothing was changed


@dataclass(frozen=True, slots=True)
class Settled:
    """What a round found of workers that fell silent: items given back, and items whose attempts are used up.

    Attributes:
        again: names of the items that wait again.
        failed: names of those that have failed for good.
    """

    again: tuple[str, ...]
    failed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Status:
    """The queue in numbers.

    Attributes:
        ready: jobs that a worker could take now.
        delayed: jobs that wait for their next attempt.
        running: jobs that are leased.
        done: items that are done, of those that are remembered.
        failed: items that have failed for good, of those that are remembered.
        created: jobs created, ever.
        finished: attempts that were reported, ever.
        busy_seconds: time that those took, together.
        oldest_seconds: how long the first of the ready ones could have been taken.
    """

    ready: int
    delayed: int
    running: int
    done: int
    failed: int
    created: int
    finished: int
    busy_seconds: float
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an item has failed for good; `report` is what the last attempt left."""

    item: str
    report: dict[str, Any]


class State:
    """The state of one queue.

    Args:
        queue: its name.
        client: from `patterns.keyspace`.
        app: first part of the keys.
    """

    def __init__(self, queue: str, client: Client, *, app: str) -> None:
        keys = Keyspace(app, "work_queue")
        self.queue = queue
        self._client = client
        self._keys = [keys.key(queue, role) for role in _ROLES]

    # the manager's

    async def settle(self, policy: Policy) -> Settled:
        """Write the rules, and take items back from workers whose lease has run out."""
        rules = {
            "parallelism": policy.parallelism,
            "attempts": policy.attempts,
            "backoff": _ms(policy.backoff),
            "backoff_cap": _ms(policy.backoff_cap),
            "lease": _ms(policy.lease),
            "timeout": _ms(policy.timeout),
            "keep": _ms(policy.keep),
        }
        args = [part for pair in rules.items() for part in pair]
        again, failed = await self._run(_SETTLE, *args)
        return Settled(tuple(map(_text, again)), tuple(map(_text, failed)))

    async def offer(self, items: Sequence[str], backlog: int) -> list[str]:
        """Create a job for each item that has none and has not ended, up to `backlog` waiting ones.

        Returns:
            the items that were given a job.
        """
        if not items:
            return []
        args = [part for item in items for part in (job_id(self.queue, item), item)]
        return [_text(item) for item in await self._run(_OFFER, backlog, *args)]

    async def listed(self, keep: float) -> int:
        """The source has been listed to the end: forget what it has not listed for `keep` seconds.

        Returns:
            how many items were forgotten.
        """
        return int(await self._run(_LISTED, _ms(keep)))

    async def retry(self, item: str) -> bool:
        """Let an item that failed for good be tried again from its first attempt; say whether it had."""
        return bool(await self._run(_RETRY, job_id(self.queue, item)))

    async def status(self) -> Status:
        """Return the queue in numbers."""
        ready, delayed, running, ended, failed, created, finished, busy, oldest = map(
            int, await self._run(_STATUS)
        )
        return Status(
            ready, delayed, running, ended - failed, failed, created, finished, busy / 1000, oldest / 1000
        )

    async def failures(self) -> list[Failure]:
        """Return the items that have failed for good, by name."""
        reports = await self._client.hvals(self._keys[_ROLES.index("failed")])
        found = [json.loads(report) for report in reports]
        return sorted(
            (Failure(report.pop("item"), report) for report in found), key=lambda failure: failure.item
        )

    # the worker's

    async def claim(self, token: str) -> Job | None:
        """Take a job that is due, if fewer than `parallelism` run; the same token is given the same job."""
        reply = await self._run(_CLAIM, token)
        if not reply:
            return None
        job, item, attempt, lease, timeout = reply
        return Job(_text(job), _text(item), int(attempt), token, int(lease) / 1000, int(timeout) / 1000)

    async def renew(self, job: Job) -> bool:
        """Make the lease last from now; False if the job is another attempt's, or has ended."""
        return bool(await self._run(_RENEW, job.id, job.token))

    async def done(self, job: Job, seconds: float = 0.0) -> Ended:
        """The application has done the item: that counts, whoever holds the lease by now."""
        return Ended(_text(await self._run(_DONE, job.id, job.token, _ms(seconds))))

    async def failed(
        self,
        job: Job,
        report: dict[str, Any],
        *,
        seconds: float = 0.0,
        spread: float = 1.0,
        final: bool = False,
    ) -> Ended:
        """The attempt has failed; only its holder may say so.

        Args:
            job: what failed.
            report: what is kept if it was the last attempt; JSON.
            seconds: how long it took.
            spread: factor of the pause, from 0 to 1.
            final: no further attempt can succeed.
        """
        text = json.dumps({"item": job.item, "attempts": job.attempt, **report})
        took = _ms(seconds)
        return Ended(_text(await self._run(_FAILED, job.id, job.token, took, spread, int(final), text)))

    async def release(self, job: Job, pause: float = 0.0) -> bool:
        """Give the job back unharmed, to be taken in `pause` seconds: this attempt does not count."""
        return bool(await self._run(_RELEASE, job.id, job.token, _ms(pause)))

    async def drop(self, job: Job) -> bool:
        """The source has the item no more: forget the job; if it is listed again it is a new one."""
        return bool(await self._run(_RELEASE, job.id, job.token, -1))

    async def _run(self, script: Script, *args: str | float) -> Any:
        return await script(self._client, keys=self._keys, args=args)


_ROLES = ("rules", "waiting", "leases", "names", "attempts", "holders", "ended", "failed", "counts")


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _text(value: bytes) -> str:
    return value.decode()


# Every script has the same keys, and begins with this.
_KEYS = """
-- KEYS: hash rules, zsets waiting and leases, hashes names, attempts and holders, zset ended,
-- hashes failed and counts
local rules, waiting, leases, names, attempts = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local holders, ended, failed, counts = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function let_go(job)
  local token = redis.call('HGET', holders, job)
  if token then redis.call('HDEL', holders, job, token) end
  redis.call('ZREM', leases, job)
end
-- What a script has made anew has no time to live yet: every script that writes ends with this.
local function expire(reply)
  local keep = redis.call('HGET', rules, 'keep')
  for _, key in ipairs(keep and KEYS or {}) do redis.call('PEXPIRE', key, keep, 'NX') end
  return reply
end
local function end_it(job)
  let_go(job)
  redis.call('ZREM', waiting, job)
  redis.call('HDEL', names, job)
  redis.call('HDEL', attempts, job)
  redis.call('ZADD', ended, now, job)
end
"""

_SETTLE = Script(
    "work_queue.settle",
    _KEYS
    + """
-- ARGV: name and value of each rule
redis.call('HSET', rules, unpack(ARGV))
local most = tonumber(redis.call('HGET', rules, 'attempts'))
local again, over = {}, {}
for _, job in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, 1000)) do
  local item = redis.call('HGET', names, job)
  if tonumber(redis.call('HGET', attempts, job)) >= most then
    local report = {item = item, attempts = most, reason = 'no heartbeat'}
    redis.call('HSET', failed, job, cjson.encode(report))
    end_it(job)
    table.insert(over, item)
  else
    let_go(job)
    local first = redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES')[2] or now
    redis.call('ZADD', waiting, math.min(now, first - 1), job)  -- it has waited long enough
    table.insert(again, item)
  end
end
local keep = redis.call('HGET', rules, 'keep')
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, keep) end
return {again, over}
""",
)

# --8<-- [start:offer]
_OFFER = Script(
    "work_queue.offer",
    _KEYS
    + """
-- ARGV[1] most that may wait; then job and item of each
local room = ARGV[1] - redis.call('ZCARD', waiting)
local created = {}
for i = 2, #ARGV, 2 do
  local job, item = ARGV[i], ARGV[i + 1]
  if redis.call('ZSCORE', ended, job) then
    redis.call('ZADD', ended, now, job)  -- done or failed, and still listed
  elseif room > 0 and redis.call('HSETNX', names, job, item) == 1 then
    redis.call('ZADD', waiting, now, job)
    room = room - 1
    table.insert(created, item)
  end
end
redis.call('HINCRBY', counts, 'created', #created)
return expire(created)
""",
)
# --8<-- [end:offer]

_LISTED = Script(
    "work_queue.listed",
    _KEYS
    + """
-- ARGV[1] ms that what is not listed is remembered
-- After a long silence the first listing only says what is there: one item may have slipped a page.
local last = tonumber(redis.call('HGET', counts, 'listed') or 0)
redis.call('HSET', counts, 'listed', now)
if now - last > ARGV[1] / 2 then return expire(0) end
local old = redis.call('ZRANGEBYSCORE', ended, '-inf', now - ARGV[1], 'LIMIT', 0, 1000)
for _, job in ipairs(old) do
  redis.call('ZREM', ended, job)
  redis.call('HDEL', failed, job)
end
return #old
""",
)

_RETRY = Script(
    "work_queue.retry",
    _KEYS
    + """
-- ARGV[1] job
if redis.call('HDEL', failed, ARGV[1]) == 0 then return 0 end
return redis.call('ZREM', ended, ARGV[1])
""",
)

_STATUS = Script(
    "work_queue.status",
    _KEYS
    + """
local ready = redis.call('ZCOUNT', waiting, '-inf', now)
local first = redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES')
local count = redis.call('HMGET', counts, 'created', 'finished', 'busy')
return {ready, redis.call('ZCARD', waiting) - ready, redis.call('ZCARD', leases),
  redis.call('ZCARD', ended), redis.call('HLEN', failed),
  tonumber(count[1] or 0), tonumber(count[2] or 0), tonumber(count[3] or 0),
  math.max(0, now - (first[2] or now))}
""",
)

# --8<-- [start:claim]
_CLAIM = Script(
    "work_queue.claim",
    _KEYS
    + """
-- ARGV[1] token of this attempt
local rule = redis.call('HMGET', rules, 'parallelism', 'lease', 'timeout')
if not rule[1] then return nil end  -- no manager has been here
local job = redis.call('HGET', holders, ARGV[1])  -- asked again, since the reply was lost
if not job then
  if redis.call('ZCARD', leases) >= tonumber(rule[1]) then return nil end
  job = redis.call('ZRANGEBYSCORE', waiting, '-inf', now, 'LIMIT', 0, 1)[1]
  if not job then return nil end
  redis.call('ZREM', waiting, job)
  redis.call('HINCRBY', attempts, job, 1)
  redis.call('HSET', holders, job, ARGV[1], ARGV[1], job)
end
redis.call('ZADD', leases, now + rule[2], job)
return expire({job, redis.call('HGET', names, job), redis.call('HGET', attempts, job), rule[2], rule[3]})
""",
)
# --8<-- [end:claim]

_RENEW = Script(
    "work_queue.renew",
    _KEYS
    + """
-- ARGV[1] job, ARGV[2] token
if redis.call('HGET', holders, ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('ZADD', leases, now + redis.call('HGET', rules, 'lease'), ARGV[1])
return 1
""",
)

# --8<-- [start:done]
_DONE = Script(
    "work_queue.done",
    _KEYS
    + """
-- ARGV[1] job, ARGV[2] token, ARGV[3] ms it took
if redis.call('ZSCORE', ended, ARGV[1]) then return 'over' end
local own = redis.call('HGET', holders, ARGV[1]) == ARGV[2]
end_it(ARGV[1])
redis.call('HINCRBY', counts, 'finished', 1)
redis.call('HINCRBY', counts, 'busy', ARGV[3])
return expire(own and 'done' or 'late')
""",
)
# --8<-- [end:done]

_FAILED = Script(
    "work_queue.failed",
    _KEYS
    + """
-- ARGV[1] job, ARGV[2] token, ARGV[3] ms it took, ARGV[4] factor of the pause, ARGV[5] 1 if for good,
-- ARGV[6] report
local job = ARGV[1]
if redis.call('ZSCORE', ended, job) then return 'over' end
if redis.call('HGET', holders, job) ~= ARGV[2] then return 'lost' end
redis.call('HINCRBY', counts, 'finished', 1)
redis.call('HINCRBY', counts, 'busy', ARGV[3])
local rule = redis.call('HMGET', rules, 'attempts', 'backoff', 'backoff_cap')
local made = tonumber(redis.call('HGET', attempts, job))
if ARGV[5] == '1' or made >= tonumber(rule[1]) then
  redis.call('HSET', failed, job, ARGV[6])
  end_it(job)
  return expire('failed')
end
let_go(job)
local pause = math.min(tonumber(rule[3]), rule[2] * 2 ^ math.min(made - 1, 40)) * ARGV[4]
redis.call('ZADD', waiting, now + math.floor(pause), job)
return expire('again')
""",
)

_RELEASE = Script(
    "work_queue.release",
    _KEYS
    + """
-- ARGV[1] job, ARGV[2] token, ARGV[3] ms until it may be taken, -1 to forget it
local job = ARGV[1]
if redis.call('HGET', holders, job) ~= ARGV[2] then return 0 end
let_go(job)
if ARGV[3] == '-1' then
  redis.call('HDEL', names, job)
  redis.call('HDEL', attempts, job)
else
  redis.call('HINCRBY', attempts, job, -1)
  redis.call('ZADD', waiting, now + ARGV[3], job)
end
return expire(1)
""",
)
