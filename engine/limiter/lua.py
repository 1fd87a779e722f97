"""The rate-limit state that all processes share: the rules of `bucket.BucketState` in Lua, each script atomic.

Redis or Valkey runs the scripts. The clock is Redis's own TIME, so processes need not agree about theirs. The state of
an account and model is one hash and two sorted sets, named `{em:pace:<account>|<model>}`, `…:under-way` and
`…:processes`; all expire when nobody has called for a while, and the braces keep them on one node of a cluster.

The hash:
    updated_at          seconds; the time for which the debts are right
    tokens, requests    debts
    cooldown_until      seconds; the circuit is open until then
    is_tripped          1 from a 429 until a probe succeeds
    probe_slot, probe_deadline    the probe of the half-open circuit
    consecutive_429s
    concurrency_limit, decreased_at
    learned             shares of the quotas that calls may use, each with the second at which it was lowered last:
                        `1=tokens:at 2=requests:at`
    period, period_tokens, period_requests    what was accepted in the running 5 s
    u0 … u12            and in the 5 s before: `period:tokens:requests`

`under-way` scores each call's slot with the second at which it counts as lost; `processes` scores each process with
the second of its last request.

ACQUIRE     KEYS  1 hash, 2 under-way, 3 processes
            ARGV  1 now in seconds, 0 for Redis's own clock (tests pass one)
                  2 slot, 3 interactive (1 or 0), 4 tokens, 5 longest wait in seconds, 6 is charged (1 or 0)
                  7 max concurrency, 8 seconds until a slot counts as lost
                  9-12 tokens' rate, burst, bulk threshold, max credit; 13-16 the same of requests; rate 0: no quota
                  17 process to be counted, '': none, 18 seconds that a process counts after a request
                  19, 20 lower bounds of the debts of tokens and requests, 21, 22 shares that the process knows;
                  23 whether 19-22 override the hash (1 or 0), else they fill a hash that is missing
            Returns verdict (bucket.Verdict), wait in seconds, processes (-1: not counted), debt of tokens, debt of
                  requests, concurrency limit, and shares of tokens and requests where one is below 1. Numbers that
                  are not whole come as strings.

SETTLE      KEYS  1 hash, 2 under-way
            ARGV  1 now, 2 slot, 3 signal (bucket.CallSignal), 4 tokens and 5 requests to add to the debts
                  6 cooldown in seconds, -1: the provider did not say, 7 jitter, 8 is the quota nearly spent (1 or 0)
                  9-16 as in ACQUIRE, 17 max concurrency
                  18 the quota that a 429 names: 'tokens', 'requests' or ''
                  19 tokens of a call that the provider accepted, -1: it did not
            Returns seconds of the cooldown (0: none), concurrency limit, and shares as in ACQUIRE.

RENEW_SLOTS A call's slot is a lease that its process renews. So the slots of a process that died are free again soon,
            and a Redis that has lost its data learns of the calls under way.
            KEYS  1 under-way; ARGV 1 seconds until the slots count as lost, 2… slots

LIST_SLOTS  KEYS 1 under-way. Returns all slots.

RECENT_429S Accounts without a quota use no shared state until one of them has a 429: then all processes must know.
            KEYS  1 sorted set of such accounts and models, scored with the second until which they are paced
            ARGV  1 name to be added, '' for none, 2 seconds to pace it
            Returns the names in the set.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.limiter.bucket import (
    AIMD_DECREASE,
    AIMD_MIN_INTERVAL_S,
    AT_CAPACITY_RETRY_S,
    BULK_HEADROOM,
    DEFAULT_COOLDOWN_CAP_S,
    DEFAULT_COOLDOWN_S,
    HALF_OPEN_RETRY_S,
    REPEATED_COOLDOWN_CAP_S,
    AcquireRequest,
    CallResult,
)
from engine.limiter.learned_quota import (
    BUCKET_S,
    BUCKETS,
    FIRST_DECREASE,
    MAX_QUOTA_COOLDOWN_S,
    MIN_FACTOR,
    MIN_SHARE,
    OTHER_QUOTA_MARGIN,
    RECOVERY_PER_S,
    REPEATED_DECREASE,
    REPEATED_WITHIN_S,
    STEADY_S,
)
from engine.limiter.quota import NEARLY_EMPTY, BucketParams

PREFIX = "em:pace:"
RECENT_429S_KEY = "em:pace:watched"
KEY_TTL_S = 300  # longer than any debt, cooldown or slot lasts
LEARNED_TTL_S = 3600  # longer than a share takes to recover

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
local function stated_buckets()
  local buckets = {{}}
  for i = 1, 2 do
    local first = 5 + 4 * i
    buckets[i] = {{ rate = tonumber(ARGV[first]), burst = tonumber(ARGV[first + 1]),
      bulk_threshold = tonumber(ARGV[first + 2]), max_credit = tonumber(ARGV[first + 3]) }}
  end
  return buckets
end
local KEY_TTL = {KEY_TTL_S}
local function recovered(share, lowered_at)
  if share >= 1 then return 1 end
  return math.min(1, share + {RECOVERY_PER_S} * math.max(0, now - lowered_at - {STEADY_S}))
end
local learned = {{ {{ 1, 1, 0 }}, {{ 1, 1, 0 }} }}  -- tokens, requests: share now, share when lowered, and when
local function read_learned(field)
  if not field then return end
  for i, share, lowered_at in string.gmatch(field, '(%d)=([^:]+):(%S+)') do
    learned[tonumber(i)] = {{ recovered(tonumber(share), tonumber(lowered_at)), tonumber(share), tonumber(lowered_at) }}
  end
end
local function write_learned()
  local field = string.format('1=%.6f:%.6f 2=%.6f:%.6f', learned[1][2], learned[1][3], learned[2][2], learned[2][3])
  redis.call('HSET', KEYS[1], 'learned', field)
  redis.call('EXPIRE', KEYS[1], {LEARNED_TTL_S})
end
local function scale(buckets)
  for i, bucket in ipairs(buckets) do
    local share = learned[i][1]
    if share < 1 and bucket.rate > 0 then
      bucket.rate, bucket.bulk_threshold = bucket.rate * share, bucket.bulk_threshold * share
      bucket.max_credit = bucket.max_credit * share
      bucket.burst = i - 1 + share * (bucket.burst - i + 1)  -- admits at least one request
    end
  end
end
local function shares()  -- of tokens and of requests; nothing where they are whole
  if learned[1][1] < 1 or learned[2][1] < 1 then return text(learned[1][1]), text(learned[2][1]) end
end
local function ttl(min_ttl)
  return (learned[1][1] < 1 or learned[2][1] < 1) and {LEARNED_TTL_S} or math.ceil(min_ttl)
end
"""

ACQUIRE = (
    _COMMON
    + f"""
local slot, interactive, is_charged = ARGV[2], ARGV[3] == '1', ARGV[6] == '1'
local cost, max_wait = tonumber(ARGV[4]), tonumber(ARGV[5])
local max_concurrency, slot_ttl = tonumber(ARGV[7]), tonumber(ARGV[8])
local buckets = stated_buckets()
buckets[1].cost, buckets[2].cost = cost, 1
local h = redis.call('HMGET', KEYS[1],
  'updated_at', 'tokens', 'requests', 'cooldown_until', 'is_tripped', 'probe_deadline', 'concurrency_limit', 'learned')
local updated_at = tonumber(h[1] or now)
read_learned(h[8])
if not h[1] or ARGV[23] == '1' then
  for i = 1, 2 do
    local share = tonumber(ARGV[20 + i])
    if share < learned[i][1] then learned[i] = {{ share, share, now }} end
  end
  if learned[1][1] < 1 or learned[2][1] < 1 then write_learned() end
end
scale(buckets)
local debts = {{
  drained(tonumber(h[2] or 0), buckets[1].rate, updated_at),
  drained(tonumber(h[3] or 0), buckets[2].rate, updated_at),
}}
if not h[1] or ARGV[23] == '1' then
  debts[1] = math.max(debts[1], tonumber(ARGV[19]))
  debts[2] = math.max(debts[2], tonumber(ARGV[20]))
end
local cooldown_until, is_tripped, probe_deadline = tonumber(h[4] or 0), h[5] == '1', tonumber(h[6] or 0)
local concurrency_limit = math.min(tonumber(h[7] or max_concurrency), max_concurrency)

local processes = -1
if ARGV[17] ~= '' then
  redis.call('ZADD', KEYS[3], text(now), ARGV[17])
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', text(now - tonumber(ARGV[18])))
  redis.call('EXPIRE', KEYS[3], KEY_TTL)
  processes = redis.call('ZCARD', KEYS[3])
end

local function decision(verdict, wait)
  return {{ verdict, text(wait), processes, text(debts[1]), text(debts[2]), text(concurrency_limit), shares() }}
end

if now < cooldown_until then return decision('cooling_down', cooldown_until - now) end
if is_tripped and now < probe_deadline then
  return decision('cooling_down', math.min({HALF_OPEN_RETRY_S}, probe_deadline - now))
end

local wait = 0
if not is_charged then
  local headroom_wait = 0
  for i, bucket in ipairs(buckets) do
    if bucket.rate > 0 then
      wait = math.max(wait, (debts[i] + bucket.cost - bucket.burst) / bucket.rate)
      if not interactive then
        headroom_wait = math.max(headroom_wait, (debts[i] - bucket.bulk_threshold) / bucket.rate)
      end
    end
  end
  if headroom_wait > 0 or wait > max_wait then return decision('over_quota', math.max(wait, headroom_wait)) end
end
if wait <= 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', text(now))
  local limit = math.floor(concurrency_limit)
  if not interactive then limit = limit - math.floor(limit / {BULK_HEADROOM}) end
  if redis.call('ZCARD', KEYS[2]) >= math.max(1, limit) then return decision('at_capacity', {AT_CAPACITY_RETRY_S}) end
  redis.call('ZADD', KEYS[2], text(now + slot_ttl), slot)
  redis.call('EXPIRE', KEYS[2], math.ceil(KEY_TTL + slot_ttl))
  if is_tripped then redis.call('HSET', KEYS[1], 'probe_slot', slot, 'probe_deadline', text(now + slot_ttl)) end
end
if not is_charged then
  for i, bucket in ipairs(buckets) do
    if bucket.rate > 0 then
      local beyond = math.max(0, bucket.cost - bucket.burst)
      debts[i] = math.max(debts[i], bucket.rate * wait - beyond) + bucket.cost + beyond
    end
  end
end
redis.call('HSET', KEYS[1],
  'updated_at', text(math.max(updated_at, now)), 'tokens', text(debts[1]), 'requests', text(debts[2]))
redis.call('EXPIRE', KEYS[1], ttl(KEY_TTL + slot_ttl))
return decision('allow', wait)
"""
)

SETTLE = (
    _COMMON
    + f"""
local slot, signal, max_concurrency = ARGV[2], ARGV[3], tonumber(ARGV[17])
local changes, cooldown_s = {{ tonumber(ARGV[4]), tonumber(ARGV[5]) }}, tonumber(ARGV[6])
local buckets = stated_buckets()
local h = redis.call('HMGET', KEYS[1], 'updated_at', 'tokens', 'requests', 'cooldown_until', 'is_tripped',
  'probe_slot', 'probe_deadline', 'consecutive_429s', 'concurrency_limit', 'decreased_at', 'learned',
  'period', 'period_tokens', 'period_requests')
read_learned(h[11])
scale(buckets)
local period, accepted = math.floor(now / {BUCKET_S}), tonumber(ARGV[19])
local number, tokens, requests = tonumber(h[12] or period), tonumber(h[13] or 0), tonumber(h[14] or 0)
if number ~= period then
  redis.call('HSET', KEYS[1], 'u' .. number % {BUCKETS}, number .. ':' .. tokens .. ':' .. requests)
  tokens, requests = 0, 0
end
if accepted >= 0 then tokens, requests = tokens + accepted, requests + 1 end
local updated_at = tonumber(h[1] or now)
local debts = {{ tonumber(h[2] or 0), tonumber(h[3] or 0) }}
for i, bucket in ipairs(buckets) do
  local debt = drained(debts[i], bucket.rate, updated_at)
  if changes[i] >= 0 then debt = debt + changes[i]
  else debt = math.max(debt + changes[i], math.min(debt, -bucket.max_credit)) end
  if ARGV[8] == '1' then debt = math.max(debt, bucket.burst) end
  debts[i] = debt
end
local cooldown_until, is_tripped = tonumber(h[4] or 0), h[5] == '1'
local probe_slot, probe_deadline, consecutive_429s = h[6] or '', tonumber(h[7] or 0), tonumber(h[8] or 0)
local concurrency_limit = math.min(tonumber(h[9] or max_concurrency), max_concurrency)
local decreased_at = tonumber(h[10] or 0)

local function lower_quota()
  local fields, tokens, requests, oldest = {{}}, tokens, requests, period - {BUCKETS - 1}
  for i = 0, {BUCKETS - 1} do fields[i + 1] = 'u' .. i end
  for i, each in ipairs(redis.call('HMGET', KEYS[1], unpack(fields))) do
    local number, old_tokens, old_requests = string.match(each or '', '^(%d+):(%S+):(%S+)$')
    number = tonumber(number or -1)
    if number >= oldest and number < period then
      local part = number == oldest and period + 1 - now / {BUCKET_S} or 1
      tokens, requests = tokens + old_tokens * part, requests + old_requests * part
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
  local ceiling = share * (passed < {REPEATED_WITHIN_S} and {REPEATED_DECREASE} or {FIRST_DECREASE})
  share = math.max({MIN_SHARE}, share * {MIN_FACTOR}, math.min(used[fuller], ceiling))
  learned[fuller] = {{ share, share, now }}
  if kind == 0 and used[other] and passed < {REPEATED_WITHIN_S} then
    local other_share = math.max({MIN_SHARE}, math.min(learned[other][1], used[other] * {OTHER_QUOTA_MARGIN}))
    if other_share < 1 then learned[other] = {{ other_share, other_share, now }} end
  end
  write_learned()
end

local in_use = redis.call('ZCARD', KEYS[2])
redis.call('ZREM', KEYS[2], slot)
local is_probe = is_tripped and probe_slot == slot
if signal == 'rate_limited' then
  if is_probe or not is_tripped then consecutive_429s = consecutive_429s + 1 end
  if not is_tripped and cooldown_s <= {MAX_QUOTA_COOLDOWN_S} then lower_quota() end
  local backoff_s = {DEFAULT_COOLDOWN_S} * 2 ^ (consecutive_429s - 1)
  backoff_s = math.min({DEFAULT_COOLDOWN_CAP_S}, backoff_s) * (1 + tonumber(ARGV[7]))
  if cooldown_s < 0 then cooldown_s = backoff_s
  elseif consecutive_429s > 1 then
    cooldown_s = math.max(cooldown_s, math.min(backoff_s, {REPEATED_COOLDOWN_CAP_S}))
  end
  cooldown_until = math.max(cooldown_until, now + cooldown_s)
  is_tripped, probe_slot, probe_deadline = true, '', 0
elseif is_probe and (signal == 'success' or signal == 'slow' or signal == 'client_error') then
  is_tripped, consecutive_429s, probe_slot = false, 0, ''
elseif is_probe then
  probe_deadline = 0
end
if signal == 'success' then
  if in_use * 2 >= concurrency_limit then
    concurrency_limit = math.min(max_concurrency, concurrency_limit + 1 / concurrency_limit)
  end
elseif (signal == 'rate_limited' or signal == 'slow' or signal == 'overloaded')
    and now - decreased_at >= {AIMD_MIN_INTERVAL_S} then
  concurrency_limit, decreased_at = math.max(1, concurrency_limit * {AIMD_DECREASE}), now
end
redis.call('HSET', KEYS[1],
  'updated_at', text(math.max(updated_at, now)), 'tokens', text(debts[1]), 'requests', text(debts[2]),
  'cooldown_until', text(cooldown_until), 'is_tripped', is_tripped and '1' or '0',
  'probe_slot', probe_slot, 'probe_deadline', text(probe_deadline),
  'consecutive_429s', consecutive_429s,
  'concurrency_limit', text(concurrency_limit), 'decreased_at', text(decreased_at),
  'period', period, 'period_tokens', tokens, 'period_requests', requests)
redis.call('EXPIRE', KEYS[1], ttl(KEY_TTL))
return {{ text(math.max(0, cooldown_until - now)), text(concurrency_limit), shares() }}
"""
)

RENEW_SLOTS = """
local time = redis.call('TIME')
local until_s = tonumber(time[1]) + tonumber(time[2]) / 1e6 + tonumber(ARGV[1])
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], string.format('%.6f', until_s), ARGV[i]) end
redis.call('EXPIRE', KEYS[1], 300)
return {}
"""

LIST_SLOTS = """
return redis.call('ZRANGE', KEYS[1], 0, -1)
"""

RECENT_429S = """
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
    base = f"{{{PREFIX}{name}}}"
    return base, f"{base}:under-way", f"{base}:processes"


def acquire_arguments(
    request: AcquireRequest,
    *,
    max_concurrency: int,
    slot_ttl_s: float,
    params: Sequence[BucketParams],
    process: str = "",
    process_alive_s: float = 30.0,
    min_debts: tuple[float, float] = (0.0, 0.0),
    shares: tuple[float, float] = (1.0, 1.0),
    overrides: bool = False,
    now: float = 0.0,
) -> list[str | float | int]:
    """ARGV of ACQUIRE."""
    interactive, is_charged = int(request.interactive), int(request.is_charged)
    head: list[str | float | int]
    head = [now, request.slot, interactive, request.tokens, request.max_wait_s, is_charged, max_concurrency, slot_ttl_s]
    return [*head, *_numbers(params), process, process_alive_s, *min_debts, *shares, int(overrides)]


def settle_arguments(
    result: CallResult, *, max_concurrency: int, params: Sequence[BucketParams], now: float = 0.0
) -> list[str | float | int]:
    """ARGV of SETTLE."""
    cooldown_s = -1.0 if result.cooldown_s is None else result.cooldown_s
    accepted = -1.0 if result.accepted_tokens is None else result.accepted_tokens
    is_nearly_spent = int(result.is_quota_nearly_spent)
    head: list[str | float | int]
    head = [now, result.slot, result.signal.value, result.tokens, result.requests]
    head += [cooldown_s, result.jitter, is_nearly_spent]
    return [*head, *_numbers(params), max_concurrency, result.quota_kind, accepted]


def _numbers(params: Sequence[BucketParams]) -> list[float]:
    return [number for each in params for number in (each.rate, each.burst, each.bulk_threshold, each.max_credit)]
