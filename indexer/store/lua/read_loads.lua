-- How busy pods of one model are.
--
-- KEYS  each pod's load
--
-- Returns {time in ms, load or false …}; a load is when it was measured, in ms, a blank, and what was, in msgpack.

return {string.format('%.0f', now_ms()), unpack(redis.call('MGET', unpack(KEYS)))}
