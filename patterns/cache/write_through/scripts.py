"""The transitions of an entry, each one script; all keys of a key are in one slot.

`writes` has a field for each write under way: its token, and the time at which its lease ends. An old value
lives no longer than the first of them, so a writer that dies takes it along. `until` is when the value would
end if nobody were writing.
"""

from __future__ import annotations

from patterns.keyspace import Script

__all__ = ["BEGIN", "DROP", "FILL", "KEEP", "MARK", "UNMARK"]

_KEYS = "-- KEYS[1] hash value, KEYS[2] string generation, KEYS[3] hash writes\n"
# --8<-- [start:settle]
_HEAD = """
local value, generation, writes = KEYS[1], KEYS[2], KEYS[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
for key, kind in pairs({[value] = 'hash', [generation] = 'string', [writes] = 'hash'}) do
  if redis.call('TYPE', key).ok ~= kind then redis.call('DEL', key) end -- somebody else's, or nothing
end
local function newer(a, b) -- versions have more digits than Lua's numbers
  return not b or #a > #b or #a == #b and a > b
end
local function under_way()
  local deadlines, all = {}, redis.call('HGETALL', writes)
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 2) == 'w:' then deadlines[all[i]] = tonumber(all[i + 1]) end
  end
  return deadlines
end
local function settle() -- the value ends with the first write under way whose writer may have died
  local ends = tonumber(redis.call('HGET', value, 'until') or 0)
  for _, deadline in pairs(under_way()) do
    if deadline > now and deadline < ends then ends = deadline end
  end
  redis.call('PEXPIREAT', value, string.format('%.0f', math.floor(ends)))
end
local function put(version, entry, ms)
  redis.call('DEL', value)
  if entry == '' then return end
  redis.call('HSET', value, 'version', version, 'entry', entry, 'until', string.format('%.0f', now + ms))
  settle()
end
"""
# --8<-- [end:settle]


def _script(name: str, arguments: str, body: str) -> Script:
    return Script(f"write_through.{name}", f"{_KEYS}{arguments}{_HEAD}{body}")


# --8<-- [start:write]
MARK = _script(
    "mark",
    "-- ARGV[1] token, ARGV[2] lease ms",
    """
redis.call('DEL', generation) -- what is being loaded will not be kept
redis.call('HSET', writes, 'w:' .. ARGV[1], string.format('%.3f', now + ARGV[2]))
if redis.call('PTTL', writes) < 2 * ARGV[2] then redis.call('PEXPIRE', writes, 2 * ARGV[2]) end
settle()
""",
)

KEEP = _script(
    "keep",
    "-- ARGV[1] token, ARGV[2] lease ms, ARGV[3] version, ARGV[4] entry or nothing, ARGV[5] ms to live",
    """
local me, version = 'w:' .. ARGV[1], ARGV[3]
local mine = tonumber(redis.call('HGET', writes, me) or 0)
local marked = mine - ARGV[2]
redis.call('HDEL', writes, me)
redis.call('DEL', generation)
-- Sure is what can be compared: our mark is there, and nothing was dropped since.
local sure = mine > now and marked > tonumber(redis.call('HGET', writes, 'dropped') or 0)
local others = false
for token, deadline in pairs(under_way()) do
  if deadline > now then others = true
  elseif deadline + ARGV[2] <= now then redis.call('HDEL', writes, token) -- nobody here overlapped with it
  else
    others = true
    if deadline > marked then sure = false end -- it died, and may have written after us
  end
end
local stored, floor = redis.call('HGET', value, 'version'), redis.call('HGET', writes, 'floor')
local latest = newer(version, floor)
if others then
  if latest then redis.call('HSET', writes, 'floor', version) end
else
  redis.call('DEL', writes)
end
if sure and latest then -- what is there is older, whatever it says: versions may begin anew
  put(version, ARGV[4], ARGV[5])
  return ARGV[4] ~= '' and 1 or 0
end
if newer(version, stored) then redis.call('DEL', value) else settle() end
return 0
""",
)

# --8<-- [end:write]
UNMARK = _script(
    "unmark",
    "-- ARGV[1] token",
    """
redis.call('HDEL', writes, 'w:' .. ARGV[1])
settle()
""",
)

DROP = _script(
    "drop",
    "",
    """
redis.call('DEL', value, generation)
if redis.call('EXISTS', writes) == 1 then
  redis.call('HSET', writes, 'dropped', string.format('%.3f', now))
end
""",
)

# --8<-- [start:read]
BEGIN = _script(
    "begin",
    "-- ARGV[1] a new generation, ARGV[2] its ms, ARGV[3] sha1 of what cannot be read; {entry, generation}",
    """
local entry = redis.call('HGET', value, 'entry')
if entry and redis.sha1hex(entry) ~= ARGV[3] then return {entry, ''} end
redis.call('DEL', value)
for _, deadline in pairs(under_way()) do
  if deadline > now then return {'', ''} end -- the write will bring its value itself
end
redis.call('SET', generation, ARGV[1], 'PX', ARGV[2], 'NX')
return {'', redis.call('GET', generation)}
""",
)

FILL = _script(
    "fill",
    "-- ARGV[1] generation, ARGV[2] version, ARGV[3] entry or nothing, ARGV[4] ms to live",
    """
if redis.call('GET', generation) ~= ARGV[1] then return 0 end
if not newer(ARGV[2], redis.call('HGET', value, 'version')) then return 0 end
put(ARGV[2], ARGV[3], ARGV[4])
return 1
""",
)
# --8<-- [end:read]
