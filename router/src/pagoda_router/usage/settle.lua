-- What one router's requests used and gave back since its last batch. A batch that comes twice counts once. shared.py calls it.
-- KEYS: the router's batch number
-- ARGV: prefix of keys, batch number, milliseconds that a lease lasts, seconds that a month is kept, then for each key and lease:
--       key id, month, tokens for this minute that come back (or are owed), tokens and nano USD spent, lease, tokens and nano USD released
-- Each lease that is named goes on; one whose time is over is not there any more, and nothing is taken from it.
if tonumber(redis.call('GET', KEYS[1]) or 0) >= tonumber(ARGV[2]) then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', 86400)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 5, #ARGV, 8 do
  local id, month, back, spent_tokens, spent_usd, lease = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5]
  local limits, budget, held = ARGV[1] .. 'limits:' .. id, ARGV[1] .. 'budget:' .. id .. ':' .. month, ARGV[1] .. 'held:' .. id
  if back ~= '0' and redis.call('EXISTS', limits) == 1 then redis.call('HINCRBYFLOAT', limits, 'tokens', back) end
  if spent_tokens ~= '0' or spent_usd ~= '0' then
    redis.call('HINCRBY', budget, 'tokens', spent_tokens)
    redis.call('HINCRBY', budget, 'nano_usd', spent_usd)
    redis.call('EXPIRE', budget, ARGV[4])
  end
  local own = lease ~= '' and redis.call('HGET', held, lease)
  if own then
    local tokens, usd, ends = string.match(own, '^(%-?%d+) (%-?%d+) (%d+)$')
    tokens, usd = tokens - ARGV[i + 6], usd - ARGV[i + 7]
    if tonumber(ends) < now or (tokens <= 0 and usd <= 0) then
      redis.call('HDEL', held, lease)
    else
      redis.call('HSET', held, lease, string.format('%.0f %.0f %.0f', tokens, usd, now + ARGV[3]))
      redis.call('PEXPIRE', held, ARGV[3] * 2)
    end
  end
end
return 1
