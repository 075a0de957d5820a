-- Record the heartbeat of an indexer, and read the state of the others.
--
-- KEYS  1 members  2 models  3 pods  4 forgotten  5 incarnation  6 specs  7 shards
-- ARGV  1 member  2 how long it counts as alive, ms; 0 if it may own no stream  3 TTL of all else, ms  4 incarnation to set if there is none
--       5 into how many shards the member splits models  6… its models
--
-- Returns {time in ms, incarnation, living members, {pod, specs, …}, forgotten pods, {pod, specs with all keys, …}}; or
--         {number of shards} where models of others are split into another number: nothing of the member was recorded.

local now = now_ms()
local text = string.format('%.0f', now)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', text)
local shards = redis.call('GET', KEYS[7])
-- Where there is one shard nothing says so.
if not shards and redis.call('EXISTS', KEYS[2]) == 1 then shards = '1' end
if shards and shards ~= ARGV[5] then return {shards} end
if ARGV[5] ~= '1' then redis.call('SET', KEYS[7], ARGV[5], 'PX', ARGV[3]) end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', text)
-- No member announces itself for so long: the clock was set back.
redis.call('ZREMRANGEBYSCORE', KEYS[1], string.format('%.0f', now + ARGV[2] + ARGV[3]), '+inf')
if ARGV[2] == '0' then
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2]), ARGV[1])
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
for model = 6, #ARGV do
  redis.call('ZADD', KEYS[2], string.format('%.0f', now + ARGV[3]), ARGV[model])
end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', text)
redis.call('SET', KEYS[5], ARGV[4], 'NX')
local pods = redis.call('HGETALL', KEYS[3])
if #pods > 0 then
  redis.call('PERSIST', KEYS[5])
else
  redis.call('PEXPIRE', KEYS[5], ARGV[3])
end
return {text, redis.call('GET', KEYS[5]), redis.call('ZRANGE', KEYS[1], 0, -1), pods, redis.call('ZRANGE', KEYS[4], 0, -1), redis.call('HGETALL', KEYS[6])}
