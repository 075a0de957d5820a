-- Forget a pod: nobody follows it any more, also where a flag names it, for as long as it is remembered as forgotten.
--
-- KEYS  1 pods  2 forgotten  3 incarnation  4 specs
-- ARGV  1 pod  2 how long it is remembered, ms
--
-- Returns 1 where it was registered, else 0.

local was_known = redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[4], ARGV[1])
redis.call('ZADD', KEYS[2], string.format('%.0f', now_ms() + ARGV[2]), ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('DEL', KEYS[4])
  redis.call('PEXPIRE', KEYS[3], ARGV[2])
end
return was_known
