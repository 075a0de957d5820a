-- Apply one change of a stream and record how far it goes, as a whole or not at all.
--
-- KEYS  1 state  2 log  3 streams  4… the generation's hash of each part
-- ARGV  1 fence  2 number that the state should have  3 generation  4 number afterwards  5 head  6 entry of the log  7 entries that the log keeps
--       8 state's and 9 blocks' time to live, ms  10 until when the stream is vouched for; 0 where it is not  11 the stream's name
--       12 1 where it grows  13 1 where the gpu's hash is emptied first  14… what to set and delete, see prelude.lua
--
-- Returns {1} done, {0} another owner has the stream, {-1} there is no such state, {-2} another generation,
--         {-3, number} another number: nothing was changed.
-- Until when it is vouched for the owner says, by what it knows of this clock: a call that was sent long ago and is carried out now, since Redis hung,
-- must not make its content pass for fresh.
-- Never writes under another's fence. A full Redis refuses what grows before anything is written; what shrinks is let through.

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
  ARGV[11], ARGV[10])
return {1}
