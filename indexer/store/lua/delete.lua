-- Delete a stream with all that it holds; who follows the log is told.
--
-- KEYS  1 state  2 log  3 streams  4… the generation's hash of each part, none where there is no state
-- ARGV  1 fence, empty where anybody's will do  2 generation, empty where there is no state  3 the stream's name  4 entry of the log
--       5 entries that the log keeps  6 log's time to live, ms
--
-- Returns {1} done, {0} another owner has it, {-2, generation} it has another generation: nothing was changed.

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
