-- Survey the streams of one model: their states, together with the log offset that these belong to.
--
-- KEYS  1 streams  2 log  3 incarnation  4… states
--
-- Returns {time in ms, last identifier of the log, incarnation or false, {stream, trusted until, …}, state …}; a state is
--         {generation, fence, number, status}, all false if there is none.

local result = {
  string.format('%.0f', now_ms()), last_identifier(KEYS[2]), redis.call('GET', KEYS[3]), redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES'),
}
for state = 4, #KEYS do
  result[state + 1] = redis.call('HMGET', KEYS[state], 'gen', 'fence', 'number', 'status')
end
return result
