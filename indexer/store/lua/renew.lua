-- Renew what an owner has of one model, and see whether it still has it.
--
-- KEYS  1 streams  2 log  3 incarnation, then for each stream: lease, state, the generation's hash of each part (7)
-- ARGV  1 owner  2 lease, ms  3 TTL of the state and 4 of the blocks, ms, then for each stream: name, fence, status,
--       1 if its engine is connected (else its TTL runs on), until when it is trusted, generation and number as written.
--       A stream is trusted only if its state has this generation, at least this number, and all of its blocks, and for a lease at most:
--       its owner's estimate of this clock is never ahead of it, so one that is further ahead was made before the clock was set back.
--
-- Returns {time in ms, incarnation or false, result of each stream …}; a result is {1, generation, number, 1 if all of its blocks are there else 0,
--         member that asks for it or false}, {0} another owner has it, or {-1} there is no state.
-- PEXPIRE comes first: a full Redis allows it, and then all that follows.

local now = now_ms()
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
redis.call('PEXPIRE', KEYS[3], ARGV[4])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - ARGV[3]))
local result = {string.format('%.0f', now), redis.call('GET', KEYS[3])}
local count = (#KEYS - 3) / (2 + PARTS)
for number = 1, count do
  local key, at = 4 + (number - 1) * (2 + PARTS), 5 + (number - 1) * 7
  local lease = redis.call('HMGET', KEYS[key], 'owner', 'want')
  local state = redis.call('HMGET', KEYS[key + 1], 'gen', 'fence', 'number', 'lengths')
  if (lease[1] and lease[1] ~= ARGV[1]) or (state[2] and state[2] ~= ARGV[at + 1]) then
    result[number + 2] = {0}
  else
    if not lease[1] then
      redis.call('HSET', KEYS[key], 'owner', ARGV[1])
    end
    redis.call('PEXPIRE', KEYS[key], ARGV[2])
    if not state[1] then
      result[number + 2] = {-1}
    else
      redis.call('HSET', KEYS[key + 1], 'status', ARGV[at + 2])
      if ARGV[at + 3] == '1' then
        redis.call('PEXPIRE', KEYS[key + 1], ARGV[3])
        for part = key + 2, key + 1 + PARTS do
          redis.call('PEXPIRE', KEYS[part], ARGV[4])
        end
      end
      local is_whole = lengths(key + 2) == state[4]
      if is_whole and state[1] == ARGV[at + 5] and tonumber(state[3]) >= tonumber(ARGV[at + 6]) and ARGV[at + 4] - ARGV[2] <= now then
        redis.call('ZADD', KEYS[1], ARGV[at + 4], ARGV[at])
      end
      result[number + 2] = {1, state[1], state[3], is_whole and 1 or 0, lease[2]}
    end
  end
end
return result
