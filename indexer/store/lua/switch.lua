-- Switch a stream to a new generation, whose blocks were written before. If nothing was written this drops the stream's blocks, at a cost that does
-- not depend on how many there were.
--
-- KEYS  1 state  2 log  3 streams  4 incarnation  5 lease  6–12 the new generation's hash of each part  13… those of old generations
-- ARGV  1 fence  2 owner  3 generation  4 number afterwards  5 head  6 log entry  7 maximum length of the log
--       8 TTL of the state and 9 of the blocks, ms  10 until when the stream is trusted, ms; 0 if it is not  11 name of the stream
--       12 incarnation to set if there is none  13… what changed since the new hashes were written, see prelude.lua
--
-- Returns {1, length of each new hash} done, {0} another owner has the stream: nothing was changed.
-- If there is no state the lease decides: then Redis lost its data, or the stream is new.

local fence = redis.call('HGET', KEYS[1], 'fence')
if fence then
  if fence ~= ARGV[1] then return {0} end
elseif redis.call('HGET', KEYS[5], 'owner') ~= ARGV[2] then
  return {0}
end

redis.call('PEXPIRE', KEYS[1], ARGV[8])
for old = 13, #KEYS do
  redis.call('UNLINK', KEYS[old])
end
local parts = read_parts(13)
set_parts(parts, 6)
delete_parts(parts, 6)
redis.call('SET', KEYS[4], ARGV[12], 'NX', 'PX', ARGV[9])
local fields = {'gen', ARGV[3], 'fence', ARGV[1], 'number', ARGV[4], 'head', ARGV[5], 'lengths', lengths(6)}
record(KEYS[1], KEYS[2], KEYS[3], fields, ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[11], ARGV[10])
local result = {1}
for part = 6, 5 + PARTS do
  redis.call('PEXPIRE', KEYS[part], ARGV[9])
  result[part - 4] = redis.call('HLEN', KEYS[part])
end
return result
