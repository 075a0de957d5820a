-- Put in front of every script when it is loaded.
--
-- Reads from ARGV, from `at` on, for each part in turn:
--   number of words to set (field, value, field, value …), these words, number of fields to delete, these fields
-- Lua hands over at most some 8,000 values at once: 2,000 at a time stays well below.

local PIECE = 2000

local function in_pieces(command, key, first, last)
  for from = first, last, PIECE do
    redis.call(command, key, unpack(ARGV, from, math.min(from + PIECE - 1, last)))
  end
end

-- Returns where the words of each part begin: {first set, last set, first deleted, last deleted}, …
local function read_parts(at, count)
  local parts = {}
  for part = 1, count do
    local sets = tonumber(ARGV[at])
    local dels = tonumber(ARGV[at + 1 + sets])
    parts[part] = {at + 1, at + sets, at + 2 + sets, at + 1 + sets + dels}
    at = at + 2 + sets + dels
  end
  return parts
end

local function set_parts(parts, first_key)
  for part, words in ipairs(parts) do
    in_pieces('HSET', KEYS[first_key + part - 1], words[1], words[2])
  end
end

local function delete_parts(parts, first_key)
  for part, words in ipairs(parts) do
    in_pieces('HDEL', KEYS[first_key + part - 1], words[3], words[4])
  end
end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- How many fields each part has, as it is noted in the state: what does not fit any more was lost.
local function lengths(first_key)
  local found = {}
  for part = 0, 5 do
    found[part + 1] = redis.call('HLEN', KEYS[first_key + part])
  end
  return table.concat(found, ',')
end

-- Everything that a batch leaves behind besides the blocks: the state, the log, and how long they live.
local function record(state, log, streams, fields, entry, log_max, state_ttl, stream, vouched)
  redis.call('HSET', state, unpack(fields))
  redis.call('PEXPIRE', state, state_ttl)
  redis.call('XADD', log, 'MAXLEN', '~', log_max, '*', 'e', entry)
  redis.call('PEXPIRE', log, state_ttl)
  if vouched ~= '0' then
    redis.call('ZADD', streams, string.format('%.0f', now_ms() + vouched), stream)
    redis.call('PEXPIRE', streams, state_ttl)
  end
end

local function last_identifier(log)
  if redis.call('EXISTS', log) == 0 then return '0-0' end
  local info = redis.call('XINFO', 'STREAM', log)
  for at = 1, #info, 2 do
    if info[at] == 'last-generated-id' then return info[at + 1] end
  end
end
