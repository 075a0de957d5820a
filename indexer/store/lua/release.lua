-- Release a lease.
--
-- KEYS  1 lease
-- ARGV  1 owner
--
-- Returns 1 done, 0 another member has it or it is free. Never touches another owner's lease.

if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
return redis.call('UNLINK', KEYS[1])
