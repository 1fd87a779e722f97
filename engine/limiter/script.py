"""The book that all processes share: `book.Book`'s rules in Lua, run by Redis or Valkey, each script atomic.

The clock is Redis's own TIME, so processes need not agree about theirs. What an account and model keeps is one hash
and two sorted sets, named `{em:pace:<account>|<model>}`, `…:under-way` and `…:processes`; all expire when nobody has
called for a while, and the braces keep them on one node of a cluster.

The hash: `at` (seconds; when the debts were right), `tokens`, `requests` (debts), `gate` (seconds; closed until then),
`shut` (1: from a 429 until a probe is answered), `probe` (its slot), `probe_until`, `strikes` (429s in a row), `places`
(calls that may be under way), `cut_at`. `under-way` scores each call's slot with the second at which it is given up for
lost; `processes` scores each process with the second at which it was last heard of.

ASK     KEYS  1 hash, 2 under-way, 3 processes
        ARGV  1 now in seconds, 0 for Redis's own clock (tests give one)
              2 slot, 3 interactive (1 or 0), 4 tokens, 5 patience in seconds, 6 paid (1 or 0)
              7 most under way, 8 seconds until a slot counts as lost
              9-12 tokens' rate, burst, bulk, credit; 13-16 the same of requests; rate 0: no such quota
              17 process to be counted, '': none, 18 seconds that one counts after it was heard of
              19, 20 least debts of tokens and requests; 21 whether they hold even where the hash knows others
        Returns verdict ('go', 'quota', 'gate', 'busy'), wait in seconds, processes (-1: not counted), debt of
              tokens, debt of requests, places. Numbers that are not whole come as strings.

END     KEYS  1 hash, 2 under-way
        ARGV  1 now, 2 slot, 3 lesson, 4 tokens and 5 requests to add to the debts, 6 seconds of the gate, -1: not said
              7 jitter, 8 brake (1 or 0), 9-16 as in ASK, 17 most under way
        Returns seconds until the gate opens (0: it is open), places.

WATCH   Accounts without a quota are not asked for here, until one of them is refused: then all processes must know.
        KEYS  1 sorted set of such accounts and models, scored with the second until which they are watched
        ARGV  1 name to be added, '' for none, 2 seconds to watch it
        Returns the names that are watched.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.limiter.book import (
    AGAIN_GATE_CAP_S,
    BLIND_GATE_CAP_S,
    BLIND_GATE_S,
    BULK_LEAVES,
    BUSY_ASK_S,
    CUT,
    CUT_EVERY_S,
    PROBE_ASK_S,
    Ask,
    End,
)
from engine.limiter.quota import Shape

PREFIX = "em:pace:"
WATCHED = "em:pace:watched"
KEPT_S = 300  # longer than any debt, gate or slot lasts

_COMMON = f"""
local now = tonumber(ARGV[1])
if now == 0 then
  local time = redis.call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1e6
end
local function drained(debt, rate, since)
  if debt <= 0 then return debt end
  return math.max(0, debt - rate * math.max(0, now - since))
end
local function text(number) return string.format('%.6f', number) end
local KEPT_S = {KEPT_S}
"""

ASK = (
    _COMMON
    + f"""
local slot, interactive, paid = ARGV[2], ARGV[3] == '1', ARGV[6] == '1'
local cost, patience, most, slot_s = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[7]), tonumber(ARGV[8])
local shapes = {{
  {{ rate = tonumber(ARGV[9]), burst = tonumber(ARGV[10]), bulk = tonumber(ARGV[11]), cost = cost }},
  {{ rate = tonumber(ARGV[13]), burst = tonumber(ARGV[14]), bulk = tonumber(ARGV[15]), cost = 1 }},
}}
local h = redis.call('HMGET', KEYS[1], 'at', 'tokens', 'requests', 'gate', 'shut', 'probe_until', 'places')
local at = tonumber(h[1] or now)
local debts = {{
  drained(tonumber(h[2] or 0), shapes[1].rate, at),
  drained(tonumber(h[3] or 0), shapes[2].rate, at),
}}
if not h[1] or ARGV[21] == '1' then
  debts[1] = math.max(debts[1], tonumber(ARGV[19]))
  debts[2] = math.max(debts[2], tonumber(ARGV[20]))
end
local gate, shut, probe_until = tonumber(h[4] or 0), h[5] == '1', tonumber(h[6] or 0)
local places = math.min(tonumber(h[7] or most), most)

local processes = -1
if ARGV[17] ~= '' then
  redis.call('ZADD', KEYS[3], text(now), ARGV[17])
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', text(now - tonumber(ARGV[18])))
  redis.call('EXPIRE', KEYS[3], KEPT_S)
  processes = redis.call('ZCARD', KEYS[3])
end

local function answer(verdict, wait)
  return {{ verdict, text(wait), processes, text(debts[1]), text(debts[2]), text(places) }}
end

if now < gate then return answer('gate', gate - now) end
if shut and now < probe_until then return answer('gate', math.min({PROBE_ASK_S}, probe_until - now)) end

local wait = 0
if not paid then
  local refused = 0
  for i, shape in ipairs(shapes) do
    if shape.rate > 0 then
      wait = math.max(wait, (debts[i] + shape.cost - shape.burst) / shape.rate)
      if not interactive then refused = math.max(refused, (debts[i] - shape.bulk) / shape.rate) end
    end
  end
  if refused > 0 or wait > patience then return answer('quota', math.max(wait, refused)) end
end
if wait <= 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', text(now))
  local room = math.floor(places)
  if not interactive then room = room - math.floor(room / {BULK_LEAVES}) end
  if redis.call('ZCARD', KEYS[2]) >= math.max(1, room) then return answer('busy', {BUSY_ASK_S}) end
  redis.call('ZADD', KEYS[2], text(now + slot_s), slot)
  redis.call('EXPIRE', KEYS[2], math.ceil(KEPT_S + slot_s))
  if shut then redis.call('HSET', KEYS[1], 'probe', slot, 'probe_until', text(now + slot_s)) end
end
if not paid then
  for i, shape in ipairs(shapes) do
    if shape.rate > 0 then
      local beyond = math.max(0, shape.cost - shape.burst)
      debts[i] = math.max(debts[i], shape.rate * wait - beyond) + shape.cost + beyond
    end
  end
end
redis.call('HSET', KEYS[1], 'at', text(math.max(at, now)), 'tokens', text(debts[1]), 'requests', text(debts[2]))
redis.call('EXPIRE', KEYS[1], math.ceil(KEPT_S + slot_s))
return answer('go', wait)
"""
)

END = (
    _COMMON
    + f"""
local slot, lesson, most = ARGV[2], ARGV[3], tonumber(ARGV[17])
local changes, gate_s = {{ tonumber(ARGV[4]), tonumber(ARGV[5]) }}, tonumber(ARGV[6])
local shapes = {{
  {{ rate = tonumber(ARGV[9]), burst = tonumber(ARGV[10]), credit = tonumber(ARGV[12]) }},
  {{ rate = tonumber(ARGV[13]), burst = tonumber(ARGV[14]), credit = tonumber(ARGV[16]) }},
}}
local h = redis.call('HMGET', KEYS[1],
  'at', 'tokens', 'requests', 'gate', 'shut', 'probe', 'probe_until', 'strikes', 'places', 'cut_at')
local at = tonumber(h[1] or now)
local debts = {{ tonumber(h[2] or 0), tonumber(h[3] or 0) }}
for i, shape in ipairs(shapes) do
  local debt = drained(debts[i], shape.rate, at)
  if changes[i] >= 0 then debt = debt + changes[i]
  else debt = math.max(debt + changes[i], math.min(debt, -shape.credit)) end
  if ARGV[8] == '1' then debt = math.max(debt, shape.burst) end
  debts[i] = debt
end
local gate, shut, probe, probe_until = tonumber(h[4] or 0), h[5] == '1', h[6] or '', tonumber(h[7] or 0)
local strikes, places, cut_at = tonumber(h[8] or 0), math.min(tonumber(h[9] or most), most), tonumber(h[10] or 0)

local in_use = redis.call('ZCARD', KEYS[2])
redis.call('ZREM', KEYS[2], slot)
local probing = shut and probe == slot
if lesson == 'limited' then
  if probing or not shut then strikes = strikes + 1 end
  local blind_s = math.min({BLIND_GATE_CAP_S}, {BLIND_GATE_S} * 2 ^ (strikes - 1)) * (1 + tonumber(ARGV[7]))
  if gate_s < 0 then gate_s = blind_s
  elseif strikes > 1 then gate_s = math.max(gate_s, math.min(blind_s, {AGAIN_GATE_CAP_S})) end
  gate, shut, probe, probe_until = math.max(gate, now + gate_s), true, '', 0
elseif probing and (lesson == 'well' or lesson == 'slow' or lesson == 'answered') then
  shut, strikes, probe = false, 0, ''
elseif probing then
  probe_until = 0
end
if lesson == 'well' then
  if in_use * 2 >= places then places = math.min(most, places + 1 / places) end
elseif (lesson == 'limited' or lesson == 'slow' or lesson == 'strained') and now - cut_at >= {CUT_EVERY_S} then
  places, cut_at = math.max(1, places * {CUT}), now
end
redis.call('HSET', KEYS[1], 'at', text(math.max(at, now)), 'tokens', text(debts[1]), 'requests', text(debts[2]),
  'gate', text(gate), 'shut', shut and '1' or '0', 'probe', probe, 'probe_until', text(probe_until),
  'strikes', strikes, 'places', text(places), 'cut_at', text(cut_at))
redis.call('EXPIRE', KEYS[1], KEPT_S)
return {{ text(math.max(0, gate - now)), text(places) }}
"""
)

WATCH = """
local time = redis.call('TIME')
local now = tonumber(time[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if ARGV[1] ~= '' then
  redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[1])
  redis.call('EXPIRE', KEYS[1], 3600)
end
return redis.call('ZRANGE', KEYS[1], 0, -1)
"""


def keys_of(name: str) -> tuple[str, str, str]:
    """The keys of an account and model."""
    own = f"{{{PREFIX}{name}}}"
    return own, f"{own}:under-way", f"{own}:processes"


def ask_arguments(
    ask: Ask,
    *,
    most_under_way: int,
    slot_s: float,
    shapes: Sequence[Shape],
    process: str = "",
    seen_s: float = 30.0,
    least_debts: tuple[float, float] = (0.0, 0.0),
    insist: bool = False,
    now: float = 0.0,
) -> list[str | float | int]:
    """ARGV of ASK."""
    head: list[str | float | int]
    head = [now, ask.slot, int(ask.interactive), ask.tokens, ask.patience_s, int(ask.paid), most_under_way, slot_s]
    return [*head, *_numbers(shapes), process, seen_s, *least_debts, int(insist)]


def end_arguments(
    end: End, *, most_under_way: int, shapes: Sequence[Shape], now: float = 0.0
) -> list[str | float | int]:
    """ARGV of END."""
    gate_s = -1.0 if end.gate_s is None else end.gate_s
    head: list[str | float | int]
    head = [now, end.slot, end.lesson.value, end.tokens, end.requests, gate_s, end.jitter, int(end.brake)]
    return [*head, *_numbers(shapes), most_under_way]


def _numbers(shapes: Sequence[Shape]) -> list[float]:
    return [number for each in shapes for number in (each.rate, each.burst, each.bulk, each.credit)]
