-- One request of a key, against its limits and budget, all or nothing. shared.py documents what is kept and calls it.
-- KEYS: limits, budget, held
-- ARGV: requests a minute (0: no limit), tokens a minute (0), tokens wanted of them, monthly tokens (-1: no budget), monthly nano USD (-1),
--       cost in tokens, cost in nano USD, tokens and nano USD that the database says are spent, lease, milliseconds that a lease lasts,
--       requests wanted: 1, or 0 when this one was counted already
-- Returns what refused ('' if nothing did), requests left, tokens left, tokens spent, nano USD spent, tokens held, nano USD held.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local rpm, tpm, wanted, arrives = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[12])
local found = redis.call('HMGET', KEYS[1], 'requests', 'tokens', 'at')
local passed = math.max(0, now - tonumber(found[3] or now))
local requests = math.min(rpm, tonumber(found[1] or rpm) + passed * rpm / 60000)
local tokens = math.min(tpm, tonumber(found[2] or tpm) + passed * tpm / 60000)

local month_tokens, month_usd, cost_tokens, cost_usd = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local budgeted = month_tokens >= 0 or month_usd >= 0
local spent_tokens, spent_usd, held_tokens, held_usd, own_tokens, own_usd = 0, 0, 0, 0, 0, 0
if budgeted then
  local spent = redis.call('HMGET', KEYS[2], 'tokens', 'nano_usd')
  spent_tokens = math.max(tonumber(spent[1] or 0), tonumber(ARGV[8]))
  spent_usd = math.max(tonumber(spent[2] or 0), tonumber(ARGV[9]))
  local leases = redis.call('HGETALL', KEYS[3])
  for i = 1, #leases, 2 do
    local lease_tokens, lease_usd, ends = string.match(leases[i + 1], '^(%-?%d+) (%-?%d+) (%d+)$')
    if tonumber(ends) < now then
      redis.call('HDEL', KEYS[3], leases[i])
    else
      held_tokens, held_usd = held_tokens + lease_tokens, held_usd + lease_usd
      if leases[i] == ARGV[10] then own_tokens, own_usd = tonumber(lease_tokens), tonumber(lease_usd) end
    end
  end
end

local refused = ''
if rpm > 0 and requests < arrives then
  refused = 'requests'
elseif tpm > 0 and tokens < wanted then
  refused = 'tokens'
elseif month_tokens >= 0 and spent_tokens + held_tokens + cost_tokens > month_tokens then
  refused = 'budget'
elseif month_usd >= 0 and cost_usd > 0 and spent_usd + held_usd + cost_usd > month_usd then
  refused = 'budget'
else
  requests, tokens = requests - arrives, tokens - wanted
  if rpm > 0 or tpm > 0 then
    redis.call('HSET', KEYS[1], 'at', now)
    if rpm > 0 then redis.call('HSET', KEYS[1], 'requests', requests) end
    if tpm > 0 then redis.call('HSET', KEYS[1], 'tokens', tokens) end
    -- Forgotten once it is full again, which changes nothing.
    redis.call('PEXPIRE', KEYS[1], 120000 + math.ceil(math.max(0, -tokens) * 60000 / math.max(1, tpm)))
  end
  if budgeted then
    local own = string.format('%.0f %.0f %.0f', own_tokens + cost_tokens, own_usd + cost_usd, now + ARGV[11])
    redis.call('HSET', KEYS[3], ARGV[10], own)
    redis.call('PEXPIRE', KEYS[3], ARGV[11] * 2)
  end
end
return {refused, tostring(requests), tostring(tokens), string.format('%.0f', spent_tokens), string.format('%.0f', spent_usd),
  string.format('%.0f', held_tokens), string.format('%.0f', held_usd)}
