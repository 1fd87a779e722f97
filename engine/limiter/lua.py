"""The book that all processes share: `book.BucketState`'s rules in Lua, run by Redis or Valkey, each script atomic.

The clock is Redis's own TIME, so processes need not agree about theirs. What an account and model keeps is one hash
and two sorted sets, named `{em:pace:<account>|<model>}`, `…:under-way` and `…:processes`; all expire when nobody has
called for a while, and the braces keep them on one node of a cluster.

The hash: `at` (seconds; when the debts were right), `tokens`, `requests` (debts), `gate` (seconds; closed until then),
`shut` (1: from a 429 until a probe is answered), `probe` (its slot), `probe_until`, `strikes` (429s in a row), `places`
(calls that may be under way), `cut_at`, `learned` (shares of the quotas, to which calls keep since 429s have shown
them, each with the second at which it fell last: `1=tokens:at 2=requests:at`), `bucket`, `bucket_tokens`,
`bucket_requests` (what was accepted in the 5 s that run), `u0`-`u12` (in those before: `bucket:tokens:requests`).

`under-way` scores each call's slot with the second at which it is given up for lost; `processes` scores each process
with the second at which it was last heard of.

ASK     KEYS  1 hash, 2 under-way, 3 processes
        ARGV  1 now in seconds, 0 for Redis's own clock (tests give one)
              2 slot, 3 interactive (1 or 0), 4 tokens, 5 patience in seconds, 6 paid (1 or 0)
              7 most under way, 8 seconds until a slot counts as lost
              9-12 tokens' rate, burst, bulk, credit; 13-16 the same of requests; rate 0: no such quota
              17 process to be counted, '': none, 18 seconds that one counts after it was heard of
              19, 20 least debts of tokens and requests, 21, 22 shares of their quotas that the process knows;
              23 whether these hold even where the hash knows others
        Returns verdict ('go', 'quota', 'gate', 'busy'), wait in seconds, processes (-1: not counted), debt of
              tokens, debt of requests, places, and shares of tokens and requests where one is below 1. Numbers that
              are not whole come as strings.

END     KEYS  1 hash, 2 under-way
        ARGV  1 now, 2 slot, 3 lesson, 4 tokens and 5 requests to add to the debts, 6 seconds of the gate, -1: not said
              7 jitter, 8 brake (1 or 0), 9-16 as in ASK, 17 most under way
              18 the quota that a 429 names: 'tokens', 'requests' or ''
              19 tokens of a call that the provider accepted, -1: it did not
        Returns seconds until the gate opens (0: it is open), places, and shares as in ASK.

RENEW   A call's slot is a lease: its process renews it, so the slots of a process that died are free again soon, and a
        Redis that has lost its data learns of the calls under way.
        KEYS  1 under-way; ARGV 1 seconds until the slots count as lost, 2… slots

ACTIVE_STATUSES  KEYS 1 under-way. Returns all slots.

WATCH   Accounts without a quota are not asked for here, until one of them is refused: then all processes must know.
        KEYS  1 sorted set of such accounts and models, scored with the second until which they are watched
        ARGV  1 name to be added, '' for none, 2 seconds to watch it
        Returns the names that are watched.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.limiter.bucket import (
    AGAIN_GATE_CAP_S,
    AIMD_MIN_INTERVAL_S,
    BLIND_GATE_CAP_S,
    BULK_HEADROOM,
    BUSY_ASK_S,
    CUT,
    DEFAULT_COOLDOWN_S,
    PROBE_ASK_S,
    AcquireRequest,
    CallResult,
)
from engine.limiter.learned_quota import (
    AGAIN,
    AGAIN_S,
    BUCKET_S,
    BUCKETS,
    LEAST,
    LONGEST_MINUTE_S,
    MOST_AT_ONCE,
    ONCE,
    QUIET_S,
    RISE_PER_S,
    SPARE,
)
from engine.limiter.quota import NEARLY_EMPTY, BucketParams

PREFIX = "em:pace:"
WATCHED = "em:pace:watched"
KEPT_S = 300  # longer than any debt, gate or slot lasts
LEARNED_KEPT_S = 3600  # longer than a share takes to rise to the whole

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
local function stated_shapes()
  local shapes = {{}}
  for i = 1, 2 do
    local at = 5 + 4 * i
    shapes[i] = {{ rate = tonumber(ARGV[at]), burst = tonumber(ARGV[at + 1]), bulk = tonumber(ARGV[at + 2]),
      credit = tonumber(ARGV[at + 3]) }}
  end
  return shapes
end
local KEPT_S = {KEPT_S}
local function risen(share, at)
  if share >= 1 then return 1 end
  return math.min(1, share + {RISE_PER_S} * math.max(0, now - at - {QUIET_S}))
end
local learned = {{ {{ 1, 1, 0 }}, {{ 1, 1, 0 }} }}  -- of tokens, of requests: share now, when it fell, and when
local function read_learned(cell)
  if not cell then return end
  for i, share, at in string.gmatch(cell, '(%d)=([^:]+):(%S+)') do
    learned[tonumber(i)] = {{ risen(tonumber(share), tonumber(at)), tonumber(share), tonumber(at) }}
  end
end
local function write_learned()
  local cell = string.format('1=%.6f:%.6f 2=%.6f:%.6f', learned[1][2], learned[1][3], learned[2][2], learned[2][3])
  redis.call('HSET', KEYS[1], 'learned', cell)
  redis.call('EXPIRE', KEYS[1], {LEARNED_KEPT_S})
end
local function scale(shapes)
  for i, shape in ipairs(shapes) do
    local share = learned[i][1]
    if share < 1 and shape.rate > 0 then
      shape.rate, shape.bulk, shape.credit = shape.rate * share, shape.bulk * share, shape.credit * share
      shape.burst = i - 1 + share * (shape.burst - i + 1)  -- one request at the least
    end
  end
end
local function shares()  -- of tokens and of requests; nothing where they are whole
  if learned[1][1] < 1 or learned[2][1] < 1 then return text(learned[1][1]), text(learned[2][1]) end
end
local function kept(least_s)
  return (learned[1][1] < 1 or learned[2][1] < 1) and {LEARNED_KEPT_S} or math.ceil(least_s)
end
"""

ASK = (
    _COMMON
    + f"""
local slot, interactive, paid = ARGV[2], ARGV[3] == '1', ARGV[6] == '1'
local cost, patience, most, slot_s = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[7]), tonumber(ARGV[8])
local shapes = stated_shapes()
shapes[1].cost, shapes[2].cost = cost, 1
local h = redis.call('HMGET', KEYS[1],
  'at', 'tokens', 'requests', 'gate', 'shut', 'probe_until', 'places', 'learned')
local at = tonumber(h[1] or now)
read_learned(h[8])
if not h[1] or ARGV[23] == '1' then
  for i = 1, 2 do
    local known = tonumber(ARGV[20 + i])
    if known < learned[i][1] then learned[i] = {{ known, known, now }} end
  end
  if learned[1][1] < 1 or learned[2][1] < 1 then write_learned() end
end
scale(shapes)
local debts = {{
  drained(tonumber(h[2] or 0), shapes[1].rate, at),
  drained(tonumber(h[3] or 0), shapes[2].rate, at),
}}
if not h[1] or ARGV[23] == '1' then
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
  return {{ verdict, text(wait), processes, text(debts[1]), text(debts[2]), text(places), shares() }}
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
  if not interactive then room = room - math.floor(room / {BULK_HEADROOM}) end
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
redis.call('EXPIRE', KEYS[1], kept(KEPT_S + slot_s))
return answer('go', wait)
"""
)

END = (
    _COMMON
    + f"""
local slot, lesson, most = ARGV[2], ARGV[3], tonumber(ARGV[17])
local changes, gate_s = {{ tonumber(ARGV[4]), tonumber(ARGV[5]) }}, tonumber(ARGV[6])
local shapes = stated_shapes()
local h = redis.call('HMGET', KEYS[1], 'at', 'tokens', 'requests', 'gate', 'shut', 'probe', 'probe_until', 'strikes',
  'places', 'cut_at', 'learned', 'bucket', 'bucket_tokens', 'bucket_requests')
read_learned(h[11])
scale(shapes)
local bucket, accepted = math.floor(now / {BUCKET_S}), tonumber(ARGV[19])
local number, tokens, requests = tonumber(h[12] or bucket), tonumber(h[13] or 0), tonumber(h[14] or 0)
if number ~= bucket then
  redis.call('HSET', KEYS[1], 'u' .. number % {BUCKETS}, number .. ':' .. tokens .. ':' .. requests)
  tokens, requests = 0, 0
end
if accepted >= 0 then tokens, requests = tokens + accepted, requests + 1 end
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

local function lower()
  local fields, tokens, requests, oldest = {{}}, tokens, requests, bucket - {BUCKETS - 1}
  for i = 0, {BUCKETS - 1} do fields[i + 1] = 'u' .. i end
  for i, each in ipairs(redis.call('HMGET', KEYS[1], unpack(fields))) do
    local number, had_tokens, had_requests = string.match(each or '', '^(%d+):(%S+):(%S+)$')
    number = tonumber(number or -1)
    if number >= oldest and number < bucket then
      local part = number == oldest and bucket + 1 - now / {BUCKET_S} or 1
      tokens, requests = tokens + had_tokens * part, requests + had_requests * part
    end
  end
  local used, fullness = {{ tokens, requests }}, {{}}
  for i = 1, 2 do
    local stated = tonumber(ARGV[7 + 4 * i]) / {NEARLY_EMPTY}
    used[i] = stated > 0 and used[i] / stated or false
    fullness[i] = used[i] and used[i] / learned[i][1] or -1
  end
  local kind = ARGV[18] == 'tokens' and 1 or ARGV[18] == 'requests' and 2 or 0
  local fuller = used[kind] and kind or fullness[2] > fullness[1] and 2 or 1
  if not used[fuller] then return end
  local share, passed, other = learned[fuller][1], now - learned[fuller][3], 3 - fuller
  local most = share * (passed < {AGAIN_S} and {AGAIN} or {ONCE})
  share = math.max({LEAST}, share * {MOST_AT_ONCE}, math.min(used[fuller], most))
  learned[fuller] = {{ share, share, now }}
  if kind == 0 and used[other] and passed < {AGAIN_S} then
    local spare = math.max({LEAST}, math.min(learned[other][1], used[other] * {SPARE}))
    if spare < 1 then learned[other] = {{ spare, spare, now }} end
  end
  write_learned()
end

local in_use = redis.call('ZCARD', KEYS[2])
redis.call('ZREM', KEYS[2], slot)
local probing = shut and probe == slot
if lesson == 'limited' then
  if probing or not shut then strikes = strikes + 1 end
  if not shut and gate_s <= {LONGEST_MINUTE_S} then lower() end
  local blind_s = math.min({BLIND_GATE_CAP_S}, {DEFAULT_COOLDOWN_S} * 2 ^ (strikes - 1)) * (1 + tonumber(ARGV[7]))
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
elseif (lesson == 'limited' or lesson == 'slow' or lesson == 'strained') and now - cut_at >= {AIMD_MIN_INTERVAL_S} then
  places, cut_at = math.max(1, places * {CUT}), now
end
redis.call('HSET', KEYS[1], 'at', text(math.max(at, now)), 'tokens', text(debts[1]), 'requests', text(debts[2]),
  'gate', text(gate), 'shut', shut and '1' or '0', 'probe', probe, 'probe_until', text(probe_until),
  'strikes', strikes, 'places', text(places), 'cut_at', text(cut_at),
  'bucket', bucket, 'bucket_tokens', tokens, 'bucket_requests', requests)
redis.call('EXPIRE', KEYS[1], kept(KEPT_S))
return {{ text(math.max(0, gate - now)), text(places), shares() }}
"""
)

RENEW = """
local time = redis.call('TIME')
local until_s = tonumber(time[1]) + tonumber(time[2]) / 1e6 + tonumber(ARGV[1])
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], string.format('%.6f', until_s), ARGV[i]) end
redis.call('EXPIRE', KEYS[1], 300)
return {}
"""

ACTIVE_STATUSES = """
return redis.call('ZRANGE', KEYS[1], 0, -1)
"""

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
    ask: AcquireRequest,
    *,
    most_under_way: int,
    slot_s: float,
    shapes: Sequence[BucketParams],
    process: str = "",
    seen_s: float = 30.0,
    least_debts: tuple[float, float] = (0.0, 0.0),
    shares: tuple[float, float] = (1.0, 1.0),
    insist: bool = False,
    now: float = 0.0,
) -> list[str | float | int]:
    """ARGV of ASK."""
    head: list[str | float | int]
    head = [now, ask.slot, int(ask.interactive), ask.tokens, ask.patience_s, int(ask.paid), most_under_way, slot_s]
    return [*head, *_numbers(shapes), process, seen_s, *least_debts, *shares, int(insist)]


def end_arguments(
    end: CallResult, *, most_under_way: int, shapes: Sequence[BucketParams], now: float = 0.0
) -> list[str | float | int]:
    """ARGV of END."""
    gate_s = -1.0 if end.gate_s is None else end.gate_s
    head: list[str | float | int]
    head = [now, end.slot, end.lesson.value, end.tokens, end.requests, gate_s, end.jitter, int(end.brake)]
    return [*head, *_numbers(shapes), most_under_way, end.kind, -1.0 if end.accepted is None else end.accepted]


def _numbers(shapes: Sequence[BucketParams]) -> list[float]:
    return [number for each in shapes for number in (each.rate, each.burst, each.bulk, each.credit)]
