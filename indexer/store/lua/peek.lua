-- Read a stream's state together with the log offset that it belongs to: entries behind that offset have to be applied on top of it.
--
-- KEYS  1 state  2 log
--
-- Returns {last identifier of the log, generation, fence, number, head}; all but the first are false if there is no state.

local state = redis.call('HMGET', KEYS[1], 'gen', 'fence', 'number', 'head')
return {last_identifier(KEYS[2]), state[1], state[2], state[3], state[4]}
