-- Say how busy pods of one model are.
--
-- KEYS  each pod's load
-- ARGV  1 time to live, ms, then for each pod: how long ago that was measured, ms, and what was, in msgpack
--
-- Returns how many there were.

local now = now_ms()
for pod = 1, #KEYS do
  redis.call('SET', KEYS[pod], string.format('%.0f', now - ARGV[2 * pod]) .. ' ' .. ARGV[2 * pod + 1], 'PX', ARGV[1])
end
return #KEYS
