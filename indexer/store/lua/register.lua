-- Register a pod for all indexers, or replace its registration.
--
-- KEYS  1 pods  2 forgotten  3 incarnation  4 specs  5 marks
-- ARGV  1 pod  2 specs, JSON  3 incarnation to set if there is none  4 1 to change nothing if the pod is registered or was deleted
--       5 specs with the keys that older versions cannot read, empty if there are none  6 mark of this registration
--
-- Returns 1 if the pod was not registered, else 0.

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
