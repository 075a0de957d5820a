-- Append one change to a stream: blocks, state and log entry, all of it or nothing.
--
-- KEYS  1 state  2 log  3 streams  4… the generation's hash of each part
-- ARGV  1 fence  2 number that the state should have  3 generation  4 number afterwards  5 head  6 log entry  7 maximum length of the log
--       8 TTL of the state and 9 of the blocks, ms  10 until when the stream is trusted, ms; 0 if it is not  11 name of the stream
--       12 1 if the stream grows  13 1 to empty the gpu hash first  14… what to set and delete, see prelude.lua
--
-- Returns {1} done, {0} another owner has the stream, {-1} there is no state, {-2} another generation, {-3, number} another number.
--         Nothing is changed unless it returns {1}.
-- The owner computes until when the stream is trusted, from what it knows of this clock: a call that was sent long ago and is executed now,
-- because Redis hung, must not make its content look fresh.
-- Never writes under another owner's fence. A full Redis refuses a change that grows before anything is written, and accepts one that shrinks.

local held = redis.call('HMGET', KEYS[1], 'gen', 'fence', 'number')
if not held[1] then return {-1} end
if held[2] ~= ARGV[1] then return {0} end
if held[1] ~= ARGV[3] then return {-2} end
if held[3] ~= ARGV[2] then return {-3, held[3]} end

local parts = read_parts(14)
local grows = ARGV[12] == '1'
if not grows then
  redis.call('PEXPIRE', KEYS[1], ARGV[8])
end
if ARGV[13] == '1' then
  redis.call('UNLINK', KEYS[4])
end
if grows then
  set_parts(parts, 4)
  delete_parts(parts, 4)
else
  delete_parts(parts, 4)
  set_parts(parts, 4)
end
for part, words in ipairs(parts) do
  if is_setting(words) then
    redis.call('PEXPIRE', KEYS[part + 3], ARGV[9])
  end
end
record(KEYS[1], KEYS[2], KEYS[3], {'number', ARGV[4], 'head', ARGV[5], 'lengths', lengths(4)}, ARGV[6], ARGV[7], ARGV[8],
  ARGV[9], ARGV[11], ARGV[10])
return {1}
