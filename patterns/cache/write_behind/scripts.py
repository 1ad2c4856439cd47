"""The transitions of a shard, each one script; all its keys are in one slot.

KEYS of every script, in this order:

1. `changes`   hash: version -> key and entry
2. `latest`    hash: key -> version of its newest change
3. `queue`     sorted set: version, by the version of the oldest write that waits for it
4. `version`   string: the last version given out
5. `attempts`  hash: version -> failures
6. `parked`    hash: version -> why
7. `lease`     string: who flushes; PX

AGREE has one key, which only the first shard has: `shards`, a string.

A version is the server's time in microseconds, or one more than the last: it rises also where Redis has
forgotten the last one, and it tells when the write was. Doubles hold it exactly until the year 2255.

Redis 7 or Valkey: the first line of a script says what it may do when the memory is full, and whether it
may run where nothing can be written.
"""

from __future__ import annotations

from patterns.keyspace import Script

__all__ = ["AGREE", "FAIL", "LIST", "PEEK", "PUT", "RELEASE", "RESOLVE", "SETTLE", "STATS", "TAKE"]

_KEYS = """
local changes, latest, queue, version = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local attempts, parked, lease = KEYS[5], KEYS[6], KEYS[7]
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end
local function forget(id)
  redis.call('HDEL', changes, id)
  redis.call('ZREM', queue, id)
  redis.call('HDEL', attempts, id)
  redis.call('HDEL', parked, id)
end
"""


AGREE = Script(
    "write_behind.agree",
    """#!lua flags=allow-oom
-- ARGV[1] number of shards; returns the number that is agreed upon
redis.call('SET', KEYS[1], ARGV[1], 'NX')
return redis.call('GET', KEYS[1])
""",
)

# A full Redis must let flushers work, or it stays full; a put is refused there before it begins. Readers are
# answered also by a primary that has lost its replicas (min-replicas-to-write), or its disk.
_MAY = {"put": "", "peek": " flags=no-writes", "stats": " flags=no-writes", "list": " flags=no-writes"}


def _script(name: str, source: str) -> Script:
    return Script(f"write_behind.{name}", f"#!lua{_MAY.get(name, ' flags=allow-oom')}{_KEYS}{source}")


# --8<-- [start:put]
PUT = _script(
    "put",
    """
-- ARGV[1] key, ARGV[2] key and entry, ARGV[3] capacity, ARGV[4] coalesce
-- returns {version or nothing where it is full, whether one was replaced}
local old = redis.call('HGET', latest, ARGV[1])
local replaces = old and ARGV[4] == '1'
if not replaces and redis.call('HLEN', changes) >= tonumber(ARGV[3]) then return {'', 0} end
local new = math.max(tonumber(redis.call('GET', version) or 0) + 1, now())
local id = string.format('%.0f', new)
local since = id
if replaces then
  since = redis.call('ZSCORE', queue, old) or id -- it keeps its place; a parked one has none
  forget(old)
end
redis.call('SET', version, id)
redis.call('HSET', changes, id, ARGV[2])
redis.call('HSET', latest, ARGV[1], id)
redis.call('ZADD', queue, since, id)
return {id, replaces and 1 or 0}
""",
)
# --8<-- [end:put]

PEEK = _script(
    "peek",
    """
-- ARGV[1] key; returns key and entry, or nothing
local id = redis.call('HGET', latest, ARGV[1])
return id and redis.call('HGET', changes, id)
""",
)

# --8<-- [start:take]
TAKE = _script(
    "take",
    """
-- ARGV[1] holder, ARGV[2] lease ms, ARGV[3] delay microseconds, ARGV[4] how many, ARGV[5] half the capacity,
-- ARGV[6] most bytes, and versions to leave where they are
-- returns {0, ms left of another's lease}, or {1, newly ours, ms until one is due or -1, microseconds that
-- the oldest waits, {version, key and entry, attempts, ...}, {versions that were left}}
local holder = redis.call('GET', lease)
if holder and holder ~= ARGV[1] then return {0, redis.call('PTTL', lease)} end
redis.call('SET', lease, ARGV[1], 'PX', ARGV[2])
local time, delay, most = now(), tonumber(ARGV[3]), tonumber(ARGV[4])
if redis.call('HLEN', changes) >= tonumber(ARGV[5]) then delay = 0 end
local held = {}
for at = 7, #ARGV do held[ARGV[at]] = true end
local many = most + #ARGV - 6
local ids = redis.call('ZRANGEBYSCORE', queue, '-inf', string.format('%.0f', time - delay), 'LIMIT', 0, many)
if #ids < many then -- a clock that was set back: what is from the future waits for nothing
  local ahead = string.format('(%.0f', time)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', queue, ahead, '+inf', 'LIMIT', 0, many - #ids)) do
    ids[#ids + 1] = id
  end
end
local taken, left, bytes = {}, {}, 0
for _, id in ipairs(ids) do
  if held[id] then
    left[#left + 1] = id
  elseif #taken < 3 * most and bytes < tonumber(ARGV[6]) then
    local record = redis.call('HGET', changes, id)
    if record then
      bytes = bytes + #record
      taken[#taken + 1] = id
      taken[#taken + 1] = record
      taken[#taken + 1] = redis.call('HGET', attempts, id) or '0'
    else
      redis.call('ZREM', queue, id)
    end
  end
end
local first, due, age = redis.call('ZRANGE', queue, 0, 0, 'WITHSCORES')[2], -1, 0
if first then
  age = math.max(0, time - first)
  due = math.max(0, math.ceil((delay - age) / 1000))
end
return {1, holder and 0 or 1, due, age, taken, left}
""",
)
# --8<-- [end:take]

# --8<-- [start:settle]
SETTLE = _script(
    "settle",
    """
-- ARGV key, version, newer version that the source has or 0; and so on. Returns what was parked.
local refused = {}
for at = 1, #ARGV, 3 do
  local key, id, found = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local newest = redis.call('HGET', latest, key)
  if tonumber(found) > tonumber(redis.call('GET', version) or 0) then redis.call('SET', version, found) end
  if redis.call('HEXISTS', changes, id) == 1 then
    if newest == id and tonumber(found) > tonumber(id) then
      -- Redis has forgotten a write that the source has: which of the two is newer only people can tell.
      redis.call('ZREM', queue, id)
      redis.call('HDEL', latest, key)
      redis.call('HSET', parked, id, 'the source has version ' .. found)
      refused[#refused + 1] = id
    else
      forget(id)
      if newest == id then redis.call('HDEL', latest, key) end
    end
  end
  if newest and newest ~= id then -- written again meanwhile: that one waits since then
    local since = redis.call('ZSCORE', queue, newest)
    if since and tonumber(since) <= tonumber(id) then
      redis.call('ZADD', queue, 'XX', string.format('%.0f', id + 1), newest)
    end
  end
end
return refused
""",
)
# --8<-- [end:settle]

FAIL = _script(
    "fail",
    """
-- ARGV[1] holder, ARGV[2] version, ARGV[3] most attempts, ARGV[4] why
-- returns {attempts, parked}; {0, 0} where it was replaced, or the shard is another's
if redis.call('GET', lease) ~= ARGV[1] or redis.call('HEXISTS', changes, ARGV[2]) == 0 then return {0, 0} end
local failures = redis.call('HINCRBY', attempts, ARGV[2], 1)
if failures < tonumber(ARGV[3]) then return {failures, 0} end
redis.call('ZREM', queue, ARGV[2])
redis.call('HSET', parked, ARGV[2], ARGV[4])
return {failures, 1}
""",
)

RELEASE = _script(
    "release",
    """
-- ARGV[1] holder
if redis.call('GET', lease) == ARGV[1] then redis.call('DEL', lease) end
return 1
""",
)

STATS = _script(
    "stats",
    """
-- returns {how many wait, how many are parked, microseconds since the oldest of those that wait}
local first = redis.call('ZRANGE', queue, 0, 0, 'WITHSCORES')[2]
local age = first and math.max(0, now() - first) or 0
return {redis.call('ZCARD', queue), redis.call('HLEN', parked), age}
""",
)

LIST = _script(
    "list",
    """
-- ARGV[1] queue or parked, ARGV[2] how many
-- returns {version, key and entry, attempts, why, ...}, the oldest first; of the queue no entries
local ids, found = {}, {}
if ARGV[1] == 'queue' then
  ids = redis.call('ZRANGE', queue, 0, ARGV[2] - 1)
else
  ids = redis.call('HKEYS', parked)
  table.sort(ids) -- of one length
end
for at = 1, math.min(#ids, tonumber(ARGV[2])) do
  local id = ids[at]
  local record = redis.call('HGET', changes, id) or ''
  if ARGV[1] == 'queue' then
    local length, colon = string.match(record, '^(%d+)():')
    record = length and string.sub(record, 1, colon + length) or ''
  end
  found[#found + 1] = id
  found[#found + 1] = record
  found[#found + 1] = redis.call('HGET', attempts, id) or '0'
  found[#found + 1] = redis.call('HGET', parked, id) or ''
end
return found
""",
)

RESOLVE = _script(
    "resolve",
    """
-- ARGV[1] redrive or discard; ARGV key, version; and so on. Returns how many were parked until now.
local done = 0
for at = 2, #ARGV, 2 do
  local key, id = ARGV[at], ARGV[at + 1]
  if redis.call('HDEL', parked, id) == 1 then
    done = done + 1
    redis.call('HDEL', attempts, id)
    if ARGV[1] == 'redrive' then
      redis.call('ZADD', queue, id, id)
    else
      forget(id)
      if redis.call('HGET', latest, key) == id then redis.call('HDEL', latest, key) end
    end
  end
end
return done
""",
)
