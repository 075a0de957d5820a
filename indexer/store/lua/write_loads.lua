-- Write the load of pods of one model.
--
-- KEYS  load of each pod
-- ARGV  1 TTL, ms, then for each pod: age of the measurement in ms, and the load in msgpack
--
-- Returns the number of pods.

local now = now_ms()
for pod = 1, #KEYS do
  redis.call('SET', KEYS[pod], string.format('%.0f', now - ARGV[2 * pod]) .. ' ' .. ARGV[2 * pod + 1], 'PX', ARGV[1])
end
return #KEYS
