"""The transitions of log and read model, each one script whose keys are in one slot."""

from __future__ import annotations

from patterns.keyspace import Script

__all__ = ["APPEND", "COMMIT", "DROP", "HISTORY", "LOOK", "TAKE"]

# --8<-- [start:append]
APPEND = Script(
    "cqrs.append",
    """
-- KEYS[1] stream log, KEYS[2] list positions of the aggregate's facts: as many as its version
-- KEYS[3] hash its commands, and the version after each
-- ARGV[1] aggregate, ARGV[2] expected version, ARGV[3] command, then kind and data of each fact
-- returns {1 recorded | 2 was recorded | 0 conflict, version, position}
local known = redis.call('HGET', KEYS[3], ARGV[3])
if known then return {2, tonumber(known), redis.call('LINDEX', KEYS[2], known - 1)} end
local version = redis.call('LLEN', KEYS[2])
if version ~= tonumber(ARGV[2]) then return {0, version, 0} end
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local position, chain = 0, ''
if last then position, chain = tonumber(string.match(last[1], '^%d+')), last[2][14] end
local now = redis.call('TIME')
local at = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000))
for i = 4, #ARGV, 2 do
  position, version = position + 1, version + 1
  chain = redis.sha1hex(table.concat({chain, ARGV[1], version, ARGV[3], ARGV[i], ARGV[i + 1], at}, '\\n'))
  redis.call('XADD', KEYS[1], position .. '-0', 'aggregate', ARGV[1], 'version', version,
    'command', ARGV[3], 'kind', ARGV[i], 'data', ARGV[i + 1], 'at', at, 'chain', chain)
  redis.call('RPUSH', KEYS[2], position)
end
redis.call('HSET', KEYS[3], ARGV[3], version)
return {1, version, position}
""",
)
# --8<-- [end:append]

HISTORY = Script(
    "cqrs.history",
    """
-- KEYS[1] stream log, KEYS[2] list positions of the aggregate's facts; ARGV[1] first, ARGV[2] last index
local found = {}
for _, at in ipairs(redis.call('LRANGE', KEYS[2], ARGV[1], ARGV[2])) do
  found[#found + 1] = redis.call('XRANGE', KEYS[1], at, at)[1]
end
return found
""",
)

# --8<-- [start:commit]
TAKE = Script(
    "cqrs.take",
    """
-- KEYS[1] hash state: owner, position, chain; ARGV[1] owner, ARGV[2] position and ARGV[3] chain to begin at
if redis.call('HEXISTS', KEYS[1], 'dropped') == 1 then return 0 end
redis.call('HSET', KEYS[1], 'owner', ARGV[1])
redis.call('HSETNX', KEYS[1], 'position', ARGV[2])
redis.call('HSETNX', KEYS[1], 'chain', ARGV[3])
return redis.call('HMGET', KEYS[1], 'position', 'chain')
""",
)

COMMIT = Script(
    "cqrs.commit",
    """
-- KEYS[1] hash state: owner, position, chain, KEYS[2] hash rows, KEYS[3] hash parked, by position
-- ARGV[1] owner, ARGV[2] position before, ARGV[3] position after, ARGV[4] chain, ARGV[5] what is parked,
-- ARGV[6] how many rows are set, then key and row of each, then the keys of rows that go
-- returns 1 done | 0 the position is another | -1 the owner is another
local state = redis.call('HMGET', KEYS[1], 'owner', 'position')
if state[1] ~= ARGV[1] then return -1 end
if state[2] ~= ARGV[2] then return 0 end
local gone = 7 + 2 * tonumber(ARGV[6])
for i = 7, gone - 2, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
for i = gone, #ARGV do redis.call('HDEL', KEYS[2], ARGV[i]) end
if ARGV[5] ~= '' then redis.call('HSET', KEYS[3], ARGV[3], ARGV[5]) end
redis.call('HSET', KEYS[1], 'position', ARGV[3], 'chain', ARGV[4])
return 1
""",
)
# --8<-- [end:commit]

DROP = Script(
    "cqrs.drop",
    """
-- KEYS[1] hash state, KEYS[2] hash rows, KEYS[3] hash parked; what stays says that it may not begin anew
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3])
redis.call('HSET', KEYS[1], 'dropped', 1)
""",
)

LOOK = Script(
    "cqrs.look",
    """
-- KEYS[1] hash state, KEYS[2] hash rows; ARGV[1] key of a row; returns {position or '', row or ''}
return {redis.call('HGET', KEYS[1], 'position') or '', redis.call('HGET', KEYS[2], ARGV[1]) or ''}
""",
)
