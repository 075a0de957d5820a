-- Delete a pod for all indexers, also where a setting names it, for as long as it is remembered as forgotten.
--
-- KEYS  1 pods  2 forgotten  3 incarnation  4 specs  5 marks
-- ARGV  1 pod  2 how long it is remembered as forgotten, ms  3 1 if it was deleted before, and this may have been lost
--       4 then the mark that it had: a pod with another mark, or none, was registered since, and stays
--
-- Returns {1 if it was registered else 0, its mark or ''}, or {-1} if it stays.

local mark = redis.call('HGET', KEYS[5], ARGV[1]) or ''
if ARGV[3] == '1' and redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 and (mark == '' or mark ~= ARGV[4]) then return {-1} end
local was_known = redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[4], ARGV[1])
redis.call('HDEL', KEYS[5], ARGV[1])
redis.call('ZADD', KEYS[2], string.format('%.0f', now_ms() + ARGV[2]), ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('DEL', KEYS[4], KEYS[5])
  redis.call('PEXPIRE', KEYS[3], ARGV[2])
end
return {was_known, mark}
