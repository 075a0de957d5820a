-- Claim a stream: become its owner, or ask its owner for it.
--
-- KEYS  1 lease  2 state  3 incarnation
-- ARGV  1 member  2 lease, ms  3 new fence  4 TTL of the state, ms  5 incarnation to set if there is none
--       6 mode: "free" only if it has no owner, "want" the same and else ask the owner for it, "force" in any case
--
-- Returns {0, owner} another member owns it; {1, incarnation} claimed, there is no state; or
--         {1, incarnation, generation, former fence, number, head, lengths} claimed with this state: the fence keeps its former owner out.

local owner = redis.call('HGET', KEYS[1], 'owner')
-- No owner asks for so long: the clock was set back, and a dead owner's lease would last until it is past that time again.
if redis.call('PTTL', KEYS[1]) > ARGV[2] + ARGV[4] then owner = false end
if owner and owner ~= ARGV[1] and ARGV[6] ~= 'force' then
  if ARGV[6] == 'want' then
    redis.call('PEXPIRE', KEYS[1], redis.call('PTTL', KEYS[1]))
    redis.call('HSET', KEYS[1], 'want', ARGV[1])
  end
  return {0, owner}
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('HSET', KEYS[1], 'owner', ARGV[1])
redis.call('HDEL', KEYS[1], 'want')
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('SET', KEYS[3], ARGV[5], 'NX', 'PX', ARGV[4])
local incarnation = redis.call('GET', KEYS[3])
local state = redis.call('HMGET', KEYS[2], 'gen', 'fence', 'number', 'head', 'lengths')
if not state[1] then return {1, incarnation} end
redis.call('HSET', KEYS[2], 'fence', ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return {1, incarnation, state[1], state[2], state[3], state[4], state[5]}
