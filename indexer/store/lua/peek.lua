-- A stream's state, and the place in the log that it belongs to: what comes behind that place has to be applied on top of it.
--
-- KEYS  1 state  2 log
--
-- Returns {last identifier of the log, generation, fence, number, head}; generation and all behind it are false where there is no state.

local state = redis.call('HMGET', KEYS[1], 'gen', 'fence', 'number', 'head')
return {last_identifier(KEYS[2]), state[1], state[2], state[3], state[4]}
