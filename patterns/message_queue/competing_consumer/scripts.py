"""The transitions of one partition, each one script; all its keys are in one slot.

KEYS of every script begin with:

1. `stream`   stream: messages that are not done; group `workers`, made from 0
2. `history`  hash: entry -> a line for each delivery that failed
3. `dead`     stream: messages that were given up

SEND has a fourth, where there is a `dedupe_id`: a string, the message's id, PX. AGREE has only
`partitions`, a string, which the first partition has.

An entry has the fields `payload`, and where they were given `key` and `dedupe`; `of` is the message's id
where it is not the entry's own. Who owns a message is what the group's pending entries list says: the
consumer's name and the delivery count. Both are compared in the script that acts on them.

Redis 7 or Valkey: the first line of a script says what it may do when the memory is full, and whether it
may run where nothing can be written.
"""

from __future__ import annotations

from functools import lru_cache

from patterns.keyspace import Script

__all__ = [
    "ACKNOWLEDGE",
    "AGREE",
    "DEAD",
    "DISCARD",
    "GROUP",
    "LEAVE",
    "RECEIVE",
    "REDRIVE",
    "REJECT",
    "RELEASE",
    "RENEW",
    "SEND",
    "STATS",
    "with_effect",
]

GROUP = "workers"
NOBODY = "nobody"  # has what was given back; a worker's name has a dot in it

_KEYS = f"""
local stream, history, dead = KEYS[1], KEYS[2], KEYS[3]
local group, nobody = '{GROUP}', '{NOBODY}'
"""

_OWNED = """
-- Whether this consumer still has this very delivery.
local function owned(id, consumer, deliveries)
  local found = redis.pcall('XPENDING', stream, group, id, id, 1)
  local entry = not found.err and found[1]
  return entry and entry[2] == consumer and entry[4] == tonumber(deliveries)
end
local noted = redis.call('EXISTS', history) == 1
local function done(id)
  redis.call('XACK', stream, group, id)
  redis.call('XDEL', stream, id)
  if noted then redis.call('HDEL', history, id) end
end
"""

_BURY = """
local function note(id, deliveries, why)
  local past = redis.call('HGET', history, id)
  past = (past and past .. '\\n' or '') .. deliveries .. ' ' .. why
  redis.call('HSET', history, id, past)
  return past
end
local function bury(id, fields, deliveries, why)
  local past = redis.call('HGET', history, id) or ''
  local letter = {'deliveries', deliveries, 'why', why, 'history', past, 'entry', id}
  for _, each in ipairs(fields) do letter[#letter + 1] = each end
  redis.call('XADD', dead, '*', unpack(letter))
  redis.call('XACK', stream, group, id)
  redis.call('XDEL', stream, id)
  redis.call('HDEL', history, id)
end
local function fields_of(id)
  local entry = redis.call('XRANGE', stream, id, id)[1]
  return entry and entry[2]
end
"""

AGREE = Script(
    "competing_consumer.agree",
    """#!lua flags=allow-oom
-- ARGV[1] number of partitions; returns the number that is agreed upon
redis.call('SET', KEYS[1], ARGV[1], 'NX')
return redis.call('GET', KEYS[1])
""",
)

# A full Redis must let workers work, or it stays full; a send is refused there before it begins.
_MAY = {"send": "", "stats": " flags=no-writes", "dead": " flags=no-writes"}


def _script(name: str, source: str) -> Script:
    return Script(f"competing_consumer.{name}", f"#!lua{_MAY.get(name, ' flags=allow-oom')}{_KEYS}{source}")


# --8<-- [start:send]
SEND = _script(
    "send",
    """
-- ARGV[1] capacity, ARGV[2] window in ms, ARGV[3] how many, then for each: how many fields, and these
-- KEYS[4], where there is one: who was sent under this dedupe_id. Returns {ids, whether it is an old one},
-- or nothing where there is no room
local old = KEYS[4] and redis.call('GET', KEYS[4])
if old then return {{old}, 1} end
if redis.call('XLEN', stream) + ARGV[3] > tonumber(ARGV[1]) then return false end
local ids, at = {}, 4
while at <= #ARGV do
  local many = tonumber(ARGV[at])
  ids[#ids + 1] = redis.call('XADD', stream, '*', unpack(ARGV, at + 1, at + many))
  at = at + many + 1
end
if KEYS[4] then redis.call('SET', KEYS[4], ids[1], 'PX', ARGV[2]) end
return {ids, 0}
""",
)
# --8<-- [end:send]

# --8<-- [start:receive]
RECEIVE = _script(
    "receive",
    _BURY
    + """
-- ARGV[1] consumer, ARGV[2] how many, ARGV[3] visibility ms, ARGV[4] max_deliveries,
-- ARGV[5] where to go on looking for silent owners, or ''
-- returns {where to go on, whether the group was made, {id, deliveries, fields, ...}, {id, deliveries, ...}}
-- the last are those that were given up
local consumer, most = ARGV[1], tonumber(ARGV[2])
local function group_there(reply)
  if type(reply) ~= 'table' or not reply.err then return true end
  if not string.find(reply.err, 'NOGROUP', 1, true) then error(reply) end
  redis.call('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')
  return false
end
local found, given_up, made, cursor = {}, {}, 0, ARGV[5]
if cursor ~= '' then
  local claimed = redis.pcall('XAUTOCLAIM', stream, group, consumer, ARGV[3], cursor, 'COUNT', most)
  cursor = '0-0'
  if not group_there(claimed) then
    made = 1
  else
    cursor = claimed[1]
    for _, entry in ipairs(claimed[2]) do
      local id = entry[1]
      local count = redis.call('XPENDING', stream, group, id, id, 1)[1][4]
      local past = '\\n' .. (redis.call('HGET', history, id) or '')
      if count > 1 and not string.find(past, '\\n' .. (count - 1) .. ' ', 1, true) then
        note(id, count - 1, 'fell silent')
      end
      if count > tonumber(ARGV[4]) then
        bury(id, entry[2], count - 1, 'delivered too often')
        given_up[#given_up + 1] = id
        given_up[#given_up + 1] = count - 1
      else
        found[#found + 1] = {id, count, entry[2]}
      end
    end
  end
end
if #found < most then
  local read = {'XREADGROUP', 'GROUP', group, consumer, 'COUNT', most - #found, 'STREAMS', stream, '>'}
  local new = redis.pcall(unpack(read))
  if not group_there(new) then
    made = 1
    new = redis.call(unpack(read))
  end
  for _, entry in ipairs(new and new[1][2] or {}) do found[#found + 1] = {entry[1], 1, entry[2]} end
end
return {cursor, made, found, given_up}
""",
)
# --8<-- [end:receive]

RENEW = _script(
    "renew",
    _OWNED
    + """
-- ARGV[1] consumer, then id, deliveries, ...; returns the ids that are lost
local lost = {}
for at = 2, #ARGV, 2 do
  if owned(ARGV[at], ARGV[1], ARGV[at + 1]) then
    redis.call('XCLAIM', stream, group, ARGV[1], 0, ARGV[at], 'JUSTID')
  else
    lost[#lost + 1] = ARGV[at]
  end
end
return lost
""",
)

# --8<-- [start:acknowledge]
ACKNOWLEDGE = _script(
    "acknowledge",
    _OWNED
    + """
-- ARGV[1] consumer, then id, deliveries, ...; returns the ids that are lost
local lost = {}
for at = 2, #ARGV, 2 do
  if owned(ARGV[at], ARGV[1], ARGV[at + 1]) then done(ARGV[at]) else lost[#lost + 1] = ARGV[at] end
end
return lost
""",
)
# --8<-- [end:acknowledge]


# --8<-- [start:effect]
@lru_cache(maxsize=256)
def with_effect(source: str) -> Script:
    """Return the script that makes an effect and acknowledges the message, if it is still the consumer's."""
    return _script(
        "acknowledge_with",
        _OWNED
        + f"""
-- ARGV[1] consumer, ARGV[2] id, ARGV[3] deliveries; KEYS[4...] and ARGV[4...] are the effect's
if not owned(ARGV[2], ARGV[1], ARGV[3]) then return {{ARGV[2]}} end
(function(KEYS, ARGV)
{source}
end)({{unpack(KEYS, 4)}}, {{unpack(ARGV, 4)}})
done(ARGV[2])
return {{}}
""",
    )


# --8<-- [end:effect]

RELEASE = _script(
    "release",
    _OWNED
    + _BURY
    + """
-- ARGV[1] consumer, ARGV[2] max_deliveries, then id, deliveries, idle ms to begin with, started, why, ...
-- returns {ids that are lost, ids that were given up}
local lost, given_up = {}, {}
for at = 3, #ARGV, 5 do
  local id, count, started = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 3] == '1'
  if not owned(id, ARGV[1], count) then
    lost[#lost + 1] = id
  else
    if started then note(id, count, ARGV[at + 4]) end
    local fields = fields_of(id)
    if started and count >= tonumber(ARGV[2]) and fields then
      bury(id, fields, count, 'delivered too often')
      given_up[#given_up + 1] = id
    else
      local again = started and count or count - 1
      redis.call('XCLAIM', stream, group, nobody, 0, id, 'IDLE', ARGV[at + 2], 'RETRYCOUNT', again, 'JUSTID')
    end
  end
end
return {lost, given_up}
""",
)

REJECT = _script(
    "reject",
    _OWNED
    + _BURY
    + """
-- ARGV[1] consumer, ARGV[2] id, ARGV[3] deliveries, ARGV[4] why; returns whether it was the consumer's
if not owned(ARGV[2], ARGV[1], ARGV[3]) then return 0 end
note(ARGV[2], ARGV[3], ARGV[4])
local fields = fields_of(ARGV[2])
if fields then
  bury(ARGV[2], fields, ARGV[3], ARGV[4])
else -- somebody trimmed the stream
  noted = true
  done(ARGV[2])
end
return 1
""",
)

LEAVE = _script(
    "leave",
    """
-- ARGV[1] consumer, ARGV[2] visibility ms, ARGV[3] ms after which a silent one that has nothing goes
-- Gives back what the consumer was handed and does not know of: a reply was lost. Only a consumer with
-- nothing pending may go, for XGROUP DELCONSUMER drops what it has. Returns how many were given back.
local left = redis.pcall('XPENDING', stream, group, '-', '+', 1000, ARGV[1])
if left.err then return 0 end
for _, entry in ipairs(left) do
  redis.call('XCLAIM', stream, group, nobody, 0, entry[1], 'IDLE', ARGV[2], 'JUSTID')
end
for _, each in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
  local name, pending, idle = each[2], each[4], each[6]
  if pending == 0 and name ~= nobody and (name == ARGV[1] or idle > tonumber(ARGV[3])) then
    redis.call('XGROUP', 'DELCONSUMER', stream, group, name)
  end
end
return #left
""",
)

STATS = _script(
    "stats",
    """
-- returns {messages, pending, dead letters, ms since the oldest message was sent}
local time = redis.call('TIME')
local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
local age = 0
if first then age = time[1] * 1000 + math.floor(time[2] / 1000) - string.match(first[1], '^%d+') end
local pending = redis.pcall('XPENDING', stream, group)
return {redis.call('XLEN', stream), pending.err and 0 or pending[1], redis.call('XLEN', dead), age}
""",
)

DEAD = _script(
    "dead",
    """
-- ARGV[1] how many; returns entries, the oldest first
return redis.call('XRANGE', dead, '-', '+', 'COUNT', ARGV[1])
""",
)

REDRIVE = _script(
    "redrive",
    """
-- ARGV: entries of `dead`; returns how many there were
local done = 0
for _, at in ipairs(ARGV) do
  local letter = redis.call('XRANGE', dead, at, at)[1]
  if letter then
    local fields, of, first = {}, nil, nil
    for i = 1, #letter[2], 2 do
      local name, value = letter[2][i], letter[2][i + 1]
      if name == 'entry' then first = value elseif name == 'of' then of = value end
      if name == 'payload' or name == 'key' or name == 'dedupe' then
        fields[#fields + 1] = name
        fields[#fields + 1] = value
      end
    end
    redis.call('XADD', stream, '*', 'of', of or first, unpack(fields))
    redis.call('XDEL', dead, at)
    done = done + 1
  end
end
return done
""",
)

DISCARD = _script(
    "discard",
    """
-- ARGV: entries of `dead`; returns how many there were
return redis.call('XDEL', dead, unpack(ARGV))
""",
)
