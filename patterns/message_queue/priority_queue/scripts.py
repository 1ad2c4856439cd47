"""The transitions of a priority queue, each one script; all its keys are in one slot.

KEYS of every script, in this order:

1. `ready`     sorted set: since and id, by rank
2. `delayed`   sorted set: id, by the time it becomes ready
3. `leases`    sorted set: id, by the end of its lease
4. `dead`      sorted set: id, by the time it was given up
5. `jobs`      hash: id -> priority, since, deliveries, owner
6. `payloads`  hash: id -> what was pushed
7. `history`   hash: id -> a line for each delivery that failed
8. `last`      string: the last id given out
9. `step`      string: microseconds that a step of priority is worth, 0 where the order is strict
10. `wake`     stream of one entry: its last id tells a consumer whether something has come since it looked

PUSH may have an 11th: `once-<hash of the producer's id>`, a string with a TTL: the id of the job.

All times are the server's, in microseconds, as 16 digits. An id is the time of the push, or one more than the
last id: it rises also where Redis has forgotten the last one. `since` is the time at which a job was ready
first, and never changes; nor does `rank`, which is since + priority * step, or the priority alone.

Doubles hold whole numbers exactly up to 2^53. A time reaches that in 2255, a rank (a step times the highest
priority is at most 10^15) in 2223; a push that would go beyond is refused. Between equal ranks a sorted set
goes by the member, which begins with `since` in digits of one length.

Redis 7 or Valkey: the first line of a script says what it may do when the memory is full.
"""

from __future__ import annotations

import functools

from patterns.keyspace import Script

__all__ = [
    "ACKNOWLEDGE",
    "CANCEL",
    "CHANGE",
    "DEAD",
    "EXTEND",
    "PUSH",
    "RELEASE",
    "RESOLVE",
    "STATS",
    "TAKE",
    "acknowledge_with",
]

# --8<-- [start:shared]
_SHARED = """
local ready, delayed, leases, dead, jobs = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local payloads, history, last, step, wake = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local function digits(number) return string.format('%016.0f', number) end
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end
local function rank(priority, since)
  local worth = tonumber(redis.call('GET', step) or 0)
  return worth > 0 and digits(since + priority * worth) or priority
end
local function job(id)
  local record = redis.call('HGET', jobs, id)
  if record then return string.match(record, '^(%d+) (%d+) (%d+) (.*)$') end
end
local function keep(id, priority, since, count, owner)
  redis.call('HSET', jobs, id, priority .. ' ' .. since .. ' ' .. count .. ' ' .. owner)
end
local function wake_up() redis.call('XADD', wake, 'MAXLEN', 1, '*', 'w', '1') end
local function show(id, priority, since) -- whoever waits has seen an empty set, so he need be told only then
  if redis.call('ZCARD', ready) == 0 then wake_up() end
  redis.call('ZADD', ready, rank(priority, since), since .. id)
end
local function hide(id, due)
  local first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2]
  if not first or due < tonumber(first) then wake_up() end
  redis.call('ZADD', delayed, digits(due), id)
end
local function forget(id)
  redis.call('ZREM', leases, id)
  redis.call('HDEL', jobs, id)
  redis.call('HDEL', payloads, id)
  redis.call('HDEL', history, id)
end
-- A lease is over and the work is not done: back to its place, or to the dead. Returns 1 or 2.
local function back(id, priority, since, count, why, most, due)
  redis.call('ZREM', leases, id)
  keep(id, priority, since, count, '')
  if why ~= '' then
    local past = redis.call('HGET', history, id)
    redis.call('HSET', history, id, (past and past .. '\\n' or '') .. count .. ' ' .. why)
  end
  if tonumber(count) >= most then
    redis.call('ZADD', dead, digits(now()), id)
    return 2
  end
  if due then hide(id, due) else show(id, priority, since) end
  return 1
end
"""
# --8<-- [end:shared]

# A full Redis must let consumers work, or it stays full; a push is refused there before it begins.
_MAY = {"push": "", "stats": " flags=no-writes", "dead": " flags=no-writes"}


def _script(name: str, source: str) -> Script:
    return Script(f"priority_queue.{name}", f"#!lua{_MAY.get(name, ' flags=allow-oom')}{_SHARED}{source}")


# --8<-- [start:push]
PUSH = _script(
    "push",
    """
-- ARGV[1] priority, ARGV[2] delay in microseconds, ARGV[3] step, ARGV[4] payload, ARGV[5] ms to know its id
-- returns {id, 1}, {id of the job that was pushed under this id, 0} or {'', step of this queue}
if KEYS[11] then
  local known = redis.call('GET', KEYS[11])
  if known then return {known, 0} end
end
if redis.call('HLEN', jobs) == 0 then
  redis.call('SET', step, ARGV[3])
elseif redis.call('GET', step) ~= ARGV[3] then
  return {'', redis.call('GET', step)}
end
local time, delay = now(), tonumber(ARGV[2])
local id = math.max(tonumber(redis.call('GET', last) or 0) + 1, time)
local since = math.max(id, time + delay)
if since + ARGV[1] * ARGV[3] >= 2 ^ 53 then return redis.error_reply('RANGE the ranks are used up') end
id, since = digits(id), digits(since)
redis.call('SET', last, id)
keep(id, ARGV[1], since, 0, '')
redis.call('HSET', payloads, id, ARGV[4])
if delay > 0 then hide(id, time + delay) else show(id, ARGV[1], since) end
if KEYS[11] then redis.call('SET', KEYS[11], id, 'PX', ARGV[5]) end
return {id, 1}
""",
)
# --8<-- [end:push]

# --8<-- [start:take]
TAKE = _script(
    "take",
    """
-- ARGV[1] owner, ARGV[2] lease in microseconds, ARGV[3] how many, ARGV[4] most deliveries,
-- ARGV[5] most bytes, ARGV[6] most that is moved at once, and owners whose reply was lost
-- returns {{id, priority, since, deliveries, payload, ...}, {id, deliveries, 1 or 2 (dead), ...} whose lease
-- has run out, ms until the next look or -1, last id of wake, time}
local time, most, lost = now(), tonumber(ARGV[4]), {}
if ARGV[7] then -- nobody knows that these were delivered
  local owed = {}
  for at = 7, #ARGV do owed[ARGV[at]] = true end
  for _, id in ipairs(redis.call('ZRANGE', leases, 0, -1)) do
    local priority, since, count, owner = job(id)
    if owed[owner] then back(id, priority, since, string.format('%.0f', count - 1), '', most) end
  end
end
local ended = redis.call('ZRANGEBYSCORE', leases, '-inf', digits(time), 'LIMIT', 0, ARGV[6])
for _, id in ipairs(ended) do
  local priority, since, count = job(id)
  for _, each in ipairs({id, count, back(id, priority, since, count, 'fell silent', most)}) do
    lost[#lost + 1] = each
  end
end
local due = redis.call('ZRANGEBYSCORE', delayed, '-inf', digits(time), 'LIMIT', 0, ARGV[6])
for _, id in ipairs(due) do
  local priority, since = job(id)
  redis.call('ZREM', delayed, id)
  show(id, priority, since)
end
-- The smallest of what is ready can be told only when all that is due is there.
if #ended == tonumber(ARGV[6]) or #due == tonumber(ARGV[6]) then return {{}, lost, 0, '', time} end
local taken, bytes = {}, 0
while #taken < 5 * ARGV[3] and bytes < tonumber(ARGV[5]) do
  local member = redis.call('ZPOPMIN', ready)[1]
  if not member then break end
  local id = string.sub(member, 17)
  local priority, since, count = job(id)
  local payload = redis.call('HGET', payloads, id)
  count = string.format('%.0f', count + 1)
  keep(id, priority, since, count, ARGV[1])
  redis.call('ZADD', leases, digits(time + ARGV[2]), id)
  bytes = bytes + #payload
  for _, each in ipairs({id, priority, since, count, payload}) do taken[#taken + 1] = each end
end
if #taken > 0 then return {taken, lost, -1, '', digits(time)} end
local wait = math.huge -- and no longer than until somebody else's lease ends
for _, set in ipairs({delayed, leases}) do
  local first = redis.call('ZRANGE', set, 0, 0, 'WITHSCORES')[2]
  if first then wait = math.min(wait, math.ceil((first - time) / 1000)) end
end
local entry = redis.call('XREVRANGE', wake, '+', '-', 'COUNT', 1)[1]
return {{}, lost, wait < math.huge and math.max(1, wait) or -1, entry and entry[1] or '0-0', digits(time)}
""",
)
# --8<-- [end:take]

# --8<-- [start:owner]
EXTEND = _script(
    "extend",
    """
-- ARGV[1] microseconds from now, and id, owner; and so on. Returns those that are another's.
local lost = {}
for at = 2, #ARGV, 2 do
  local _, _, _, owner = job(ARGV[at])
  if owner == ARGV[at + 1] then
    redis.call('ZADD', leases, digits(now() + ARGV[1]), ARGV[at])
  else
    lost[#lost + 1] = ARGV[at]
  end
end
return lost
""",
)

ACKNOWLEDGE = _script(
    "acknowledge",
    """
-- ARGV id, owner; and so on. Returns those that are another's.
local lost = {}
for at = 1, #ARGV, 2 do
  local _, _, _, owner = job(ARGV[at])
  if owner == ARGV[at + 1] then forget(ARGV[at]) else lost[#lost + 1] = ARGV[at] end
end
return lost
""",
)

RELEASE = _script(
    "release",
    """
-- ARGV[1] most deliveries, and id, owner, microseconds until it is ready, why, whether this delivery counts;
-- and so on. Returns {0 where it is another's, 1, or 2 (dead), ...}
local done = {}
for at = 2, #ARGV, 5 do
  local id, delay = ARGV[at], tonumber(ARGV[at + 2])
  local priority, since, count, owner = job(id)
  if owner ~= ARGV[at + 1] then
    done[#done + 1] = 0
  else
    if ARGV[at + 4] == '0' then count = string.format('%.0f', count - 1) end
    local due = delay > 0 and now() + delay or nil
    done[#done + 1] = back(id, priority, since, count, ARGV[at + 3], tonumber(ARGV[1]), due)
  end
end
return done
""",
)
# --8<-- [end:owner]

_WITH = """
-- ARGV[1] id, ARGV[2] owner, and what the effect is given: KEYS from the 11th, ARGV from the 3rd.
-- Returns whether it was its owner: then the effect is done, and the job.
local _, _, _, owner = job(ARGV[1])
if owner ~= ARGV[2] then return 0 end
local keys, args = {}, {}
for at = 11, #KEYS do keys[#keys + 1] = KEYS[at] end
for at = 3, #ARGV do args[#args + 1] = ARGV[at] end
effect(keys, args)
forget(ARGV[1])
return 1
"""


@functools.lru_cache(maxsize=256)
def acknowledge_with(effect: str) -> Script:
    """Return the script that does an effect and acknowledges: both, or neither where it is another's job."""
    return _script("acknowledge_with", f"local function effect(KEYS, ARGV)\n{effect}\nend\n{_WITH}")


# --8<-- [start:waiting]
CANCEL = _script(
    "cancel",
    """
-- ARGV[1] id; returns whether it waited
local _, since = job(ARGV[1])
if not since then return 0 end
if redis.call('ZREM', ready, since .. ARGV[1]) + redis.call('ZREM', delayed, ARGV[1]) == 0 then return 0 end
forget(ARGV[1])
return 1
""",
)

CHANGE = _script(
    "change",
    """
-- ARGV[1] id, ARGV[2] priority; returns whether it waited
local _, since, count = job(ARGV[1])
if not since then return 0 end
local waits = redis.call('ZREM', ready, since .. ARGV[1]) == 1
if not waits and not redis.call('ZSCORE', delayed, ARGV[1]) then return 0 end
keep(ARGV[1], ARGV[2], since, count, '')
if waits then redis.call('ZADD', ready, rank(ARGV[2], since), since .. ARGV[1]) end
return 1
""",
)
# --8<-- [end:waiting]

STATS = _script(
    "stats",
    """
-- returns {ready, delayed, leased, dead, microseconds that the first in line has been ready}
local time = now()
local first, age = redis.call('ZRANGE', ready, 0, 0)[1], 0
if first then age = math.max(0, time - string.sub(first, 1, 16)) end
local due = redis.call('ZCOUNT', delayed, '-inf', digits(time)) -- the next look makes them ready
return {
  redis.call('ZCARD', ready) + due, redis.call('ZCARD', delayed) - due, redis.call('ZCARD', leases),
  redis.call('ZCARD', dead), age
}
""",
)

DEAD = _script(
    "dead",
    """
-- ARGV[1] how many, ARGV[2] most bytes; the oldest first
-- returns {id, priority, since, deliveries, history, payload, ...}
local found, bytes = {}, 0
for _, id in ipairs(redis.call('ZRANGE', dead, 0, ARGV[1] - 1)) do
  local priority, since, count = job(id)
  local payload = redis.call('HGET', payloads, id)
  bytes = bytes + #payload
  if #found > 0 and bytes > tonumber(ARGV[2]) then break end
  for _, each in ipairs({id, priority, since, count, redis.call('HGET', history, id) or '', payload}) do
    found[#found + 1] = each
  end
end
return found
""",
)

RESOLVE = _script(
    "resolve",
    """
-- ARGV[1] redrive or discard, and ids; returns how many were dead
local done = 0
for at = 2, #ARGV do
  local id = ARGV[at]
  if redis.call('ZREM', dead, id) == 1 then
    done = done + 1
    if ARGV[1] == 'discard' then
      forget(id)
    else
      local priority, since = job(id)
      keep(id, priority, since, 0, '')
      show(id, priority, since)
    end
  end
end
return done
""",
)
