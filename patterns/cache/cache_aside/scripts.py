"""The transitions of an entry, each one script; all keys of an entity are in one slot."""

from __future__ import annotations

from patterns.keyspace import Script

__all__ = ["BEGIN", "FILL", "READ", "RELEASE"]

READ = Script(
    "cache_aside.read",
    """
-- KEYS[1] string value
local value = redis.call('GET', KEYS[1])
if not value then return {'', 0} end
return {value, redis.call('PTTL', KEYS[1])}
""",
)

# --8<-- [start:scripts]
BEGIN = Script(
    "cache_aside.begin",
    """
-- KEYS[1] string value, KEYS[2] string generation, KEYS[3] string lock
-- ARGV[1] token, ARGV[2] lease ms, ARGV[3] generation ms, ARGV[4] sha1 of what cannot be read, ARGV[5] alone,
-- ARGV[6] ms that a fresh entry must have left; returns {fresh entry, generation, ms to wait}
local value = redis.pcall('GET', KEYS[1])
if type(value) == 'table' then -- no string
  redis.call('DEL', KEYS[1])
elseif value then
  local stale = tonumber(string.match(value, '^1 (%d+) [+-]\\n'))
  if not stale or redis.sha1hex(value) == ARGV[4] then
    redis.call('DEL', KEYS[1])
  elseif stale == 0 and ARGV[6] == '0' or redis.call('PTTL', KEYS[1]) > stale + ARGV[6] then
    return {value, '', 0}
  end
end
local holder = redis.call('GET', KEYS[3])
if holder and holder ~= ARGV[1] then
  if ARGV[5] ~= '1' then return {'', '', redis.call('PTTL', KEYS[3])} end
  local generation = redis.call('GET', KEYS[2])
  if generation then return {'', generation, 0} end
else
  redis.call('SET', KEYS[3], ARGV[1], 'PX', ARGV[2])
end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[3])
return {'', ARGV[1], 0}
""",
)

FILL = Script(
    "cache_aside.fill",
    """
-- KEYS[1] string value, KEYS[2] string generation, KEYS[3] string lock
-- ARGV[1] token, ARGV[2] generation, ARGV[3] entry or nothing, ARGV[4] ms to live
if redis.call('GET', KEYS[3]) == ARGV[1] then redis.call('DEL', KEYS[3]) end
if redis.call('GET', KEYS[2]) ~= ARGV[2] then return 0 end
if ARGV[3] ~= '' then redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4]) else redis.call('DEL', KEYS[1]) end
return 1
""",
)
# --8<-- [end:scripts]

RELEASE = Script(
    "cache_aside.release",
    """
-- KEYS[1] string value, KEYS[2] string generation, KEYS[3] string lock; ARGV[1] token
if redis.call('GET', KEYS[3]) == ARGV[1] then redis.call('DEL', KEYS[3]) end
local value = redis.call('GET', KEYS[1])
if not value then return {'', 0} end
return {value, redis.call('PTTL', KEYS[1])}
""",
)
