-- Register a pod for all indexers, or replace what was registered.
--
-- KEYS  1 pods  2 forgotten  3 incarnation  4 specs  5 marks
-- ARGV  1 pod  2 specs, JSON  3 incarnation to set where there is none  4 1 where a pod that is there stays as it is, and one that was forgotten too
--       5 specs with the keys that older versions cannot read, empty where there are none  6 this registration's mark
--
-- Returns 1 where it was not registered, else 0.

if ARGV[4] == '1' and (redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 or redis.call('ZSCORE', KEYS[2], ARGV[1])) then return 0 end
local is_new = redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[5], ARGV[1], ARGV[6])
if ARGV[5] == '' then
  redis.call('HDEL', KEYS[4], ARGV[1])
else
  redis.call('HSET', KEYS[4], ARGV[1], ARGV[5])
end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('SET', KEYS[3], ARGV[3], 'NX')
redis.call('PERSIST', KEYS[3])
return is_new
