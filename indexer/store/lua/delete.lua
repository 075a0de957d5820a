-- Delete a stream with all that it holds, and log that it is gone.
--
-- KEYS  1 state  2 log  3 streams  4… the generation's hash of each part, none if there is no state
-- ARGV  1 fence, empty to delete whichever owner it has  2 generation, empty if there is no state  3 name of the stream  4 log entry
--       5 maximum length of the log  6 TTL of the log, ms
--
-- Returns {1} done, {0} another owner has the stream, {-2, generation} another generation. Nothing is changed unless it returns {1}.

local held = redis.call('HMGET', KEYS[1], 'gen', 'fence')
if held[1] and ARGV[1] ~= '' and held[2] ~= ARGV[1] then return {0} end
if (held[1] or '') ~= ARGV[2] then return {-2, held[1]} end
redis.call('UNLINK', KEYS[1])
for part = 4, #KEYS do
  redis.call('UNLINK', KEYS[part])
end
redis.call('ZREM', KEYS[3], ARGV[3])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[5], '*', 'e', ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[6])
return {1}
