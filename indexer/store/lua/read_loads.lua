-- Read the load of pods of one model.
--
-- KEYS  load of each pod
--
-- Returns {time in ms, load or false …}; a load is the time of the measurement in ms, a blank, and the load in msgpack.

return {string.format('%.0f', now_ms()), unpack(redis.call('MGET', unpack(KEYS)))}
