"""The transitions of a shared circuit breaker, each one script.

KEYS of all: hash state, hash window, set probes; one slot. Time is the server's.
"""

from __future__ import annotations

from patterns.keyspace import Script

__all__ = ["COMMAND", "EXCHANGE", "PROBE", "RESULT"]

# Every script begins by letting time pass, and ends by returning
# {admitted, state, generation, milliseconds until the state ends by itself or -1, failure rate, slow rate}.
_BEGIN = """
-- KEYS[1] hash state, KEYS[2] hash window, KEYS[3] set probes; ARGV[1..7] the policy
local failure_threshold, slow_threshold = tonumber(ARGV[1]), tonumber(ARGV[2])
local minimum, slice, wait = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local permitted, longest = tonumber(ARGV[6]), tonumber(ARGV[7])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local saved = redis.call('HMGET', KEYS[1], 'state', 'generation', 'ends')
-- The first generation is the time: permits of a past that was forgotten do not fit it.
local state, generation = saved[1] or 'closed', tonumber(saved[2] or now)
local ends = tonumber(saved[3] or -1)
if not saved[2] then redis.call('HSET', KEYS[1], 'state', state, 'generation', generation, 'ends', ends) end
local latest = now + (state == 'open' and wait or longest)
if ends > latest then -- the clock was set back
  ends = latest
  redis.call('HSET', KEYS[1], 'ends', ends)
end
local failure_rate, slow_rate = 0, 0
local function change(new, new_ends)
  state, generation, ends = new, generation + 1, new_ends
  redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
  redis.call('HSET', KEYS[1], 'state', state, 'generation', generation, 'ends', ends)
end
local function judge(total, failed, slow, needed)
  if total < needed then return false end
  failure_rate, slow_rate = failed / total, slow / total
  if failure_rate >= failure_threshold or slow_rate >= slow_threshold then change('open', now + wait) end
  return true
end
while ends >= 0 and now >= ends do
  if state == 'open' then
    change('half_open', -1)
  else
    change('open', ends + wait)
  end
end
local admitted = 0
-- A permit comes back; while no probe is out, half-open may last.
local function give_back(probe)
  if redis.call('SREM', KEYS[3], probe) == 0 then return false end
  if redis.call('SCARD', KEYS[3]) == 0 then
    ends = -1
    redis.call('HSET', KEYS[1], 'ends', ends)
  end
  return true
end
"""

_END = """
if state == 'closed' or state == 'open' or state == 'half_open' then
  for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], 86400000) end
else
  redis.call('PERSIST', KEYS[1])
end
local remaining = ends < 0 and -1 or ends - now
return {admitted, state, generation, remaining, tostring(failure_rate), tostring(slow_rate)}
"""

EXCHANGE = Script(
    "circuit_breaker.exchange",
    _BEGIN
    + """
-- ARGV[8] the generation counted in, ARGV[9..11] total, failed, slow since the last exchange,
-- ARGV[12] ms since the oldest of them, ARGV[13..] probes that ended while nobody could say so
for i = 13, #ARGV do give_back(ARGV[i]) end
if state == 'closed' and generation == tonumber(ARGV[8]) then
  local newest = math.floor(now / slice)
  local at = math.floor((now - tonumber(ARGV[12])) / slice)
  if tonumber(ARGV[9]) > 0 and at > newest - 10 then
    redis.call('HINCRBY', KEYS[2], at .. ':total', ARGV[9])
    redis.call('HINCRBY', KEYS[2], at .. ':failed', ARGV[10])
    redis.call('HINCRBY', KEYS[2], at .. ':slow', ARGV[11])
  end
  local sums = {total = 0, failed = 0, slow = 0}
  local counts = redis.call('HGETALL', KEYS[2])
  for i = 1, #counts, 2 do
    local at, what = string.match(counts[i], '^(%d+):(%a+)$')
    at = tonumber(at)
    if at <= newest - 10 or at > newest then
      redis.call('HDEL', KEYS[2], counts[i])
    else
      sums[what] = sums[what] + tonumber(counts[i + 1])
    end
  end
  judge(sums.total, sums.failed, sums.slow, minimum)
end
"""
    + _END,
)

PROBE = Script(
    "circuit_breaker.probe",
    _BEGIN
    + """
-- ARGV[8] the probe's id; asking again with the same id takes no second permit
if state == 'closed' or state == 'disabled' then
  admitted = 2
elseif state == 'half_open' then
  local reported = tonumber(redis.call('HGET', KEYS[1], 'total') or 0)
  if redis.call('SISMEMBER', KEYS[3], ARGV[8]) == 1 then
    admitted = 1
  elseif redis.call('SCARD', KEYS[3]) + reported < permitted then
    if redis.call('SCARD', KEYS[3]) == 0 then
      ends = now + longest
      redis.call('HSET', KEYS[1], 'ends', ends)
    end
    redis.call('SADD', KEYS[3], ARGV[8])
    admitted = 1
  end
end
"""
    + _END,
)

RESULT = Script(
    "circuit_breaker.result",
    _BEGIN
    + """
-- ARGV[8] the probe's id, ARGV[9] its generation, ARGV[10] its outcome: bits 1 failed, 2 slow; -1 abandoned
local outcome = tonumber(ARGV[10])
if state == 'half_open' and generation == tonumber(ARGV[9]) and give_back(ARGV[8]) and outcome >= 0 then
  local total = redis.call('HINCRBY', KEYS[1], 'total', 1)
  local failed = redis.call('HINCRBY', KEYS[1], 'failed', outcome % 2)
  local slow = redis.call('HINCRBY', KEYS[1], 'slow', math.floor(outcome / 2))
  if judge(total, failed, slow, permitted) and state == 'half_open' then change('closed', -1) end
end
"""
    + _END,
)

COMMAND = Script(
    "circuit_breaker.command",
    _BEGIN
    + """
-- ARGV[8] the state to set
if state ~= ARGV[8] or state == 'closed' then change(ARGV[8], -1) end
"""
    + _END,
)
