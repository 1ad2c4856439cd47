"""The transitions of a shared bulkhead, each one script.

KEYS of all: zset leases; member `<lease in ms>:<holder>`, score when it ends. Time is the server's.
"""

from __future__ import annotations

from patterns.keyspace import Script

__all__ = ["COUNT", "GIVE_BACK", "HOLD"]

# --8<-- [start:hold]
HOLD = Script(
    "bulkhead.hold",
    """
-- KEYS[1] zset leases; ARGV[1] limit, ARGV[2] lease in ms, ARGV[3] how many to give back, then these,
-- then those to hold: to take and to renew are one thing, so asking again after a lost reply does no harm
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local limit, lease, back = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
for i = 4, 3 + back do redis.call('ZREM', KEYS[1], ARGV[i]) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
-- The clock was set back: no lease may end later than its own length from now.
local late = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. (now + lease), '+inf', 'WITHSCORES')
for i = 1, #late, 2 do
  local latest = now + tonumber(string.match(late[i], '^%d+'))
  if tonumber(late[i + 1]) > latest then redis.call('ZADD', KEYS[1], latest, late[i]) end
end
local held = redis.call('ZCARD', KEYS[1])
local answers = {}
for i = 4 + back, #ARGV do
  local mine = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if mine or held < limit then
    redis.call('ZADD', KEYS[1], now + lease, ARGV[i])
    if not mine then held = held + 1 end
    answers[#answers + 1] = 1
  else
    answers[#answers + 1] = 0
  end
end
local last = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if last[2] then redis.call('PEXPIREAT', KEYS[1], last[2]) end
return answers
""",
)
# --8<-- [end:hold]

GIVE_BACK = Script(
    "bulkhead.give_back",
    """
-- KEYS[1] zset leases; ARGV the holders to give back
local back = 0
for i = 1, #ARGV do back = back + redis.call('ZREM', KEYS[1], ARGV[i]) end
return back
""",
)

COUNT = Script(
    "bulkhead.count",
    """
-- KEYS[1] zset leases
local time = redis.call('TIME')
return redis.call('ZCOUNT', KEYS[1], '(' .. (time[1] * 1000 + math.floor(time[2] / 1000)), '+inf')
""",
)
