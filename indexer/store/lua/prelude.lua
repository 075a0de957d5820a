-- Put in front of every script when it is loaded.
--
-- What a script writes is in ARGV, from `at` on, for each part in turn:
--   plain blocks, concatenated: 8 bytes of field and 18 of value each
--   number of words to set, and these words (field, value, field, value …): all blocks that are not plain
--   fields to delete, concatenated: 8 bytes each, those of the lead group
--   further fields to delete, concatenated: 9 bytes each, those of other groups
-- They are packed because a word costs the sender as much as all else that it does for a block.
-- Lua's unpack fails near 8,000 values: 2,000 at a time are well below.

local PIECE = 2000
-- A hash per tier, one for parked blocks and one for removed ones.
local PARTS = 7

local function in_pieces(command, key, words, first, last)
  for from = first, last, PIECE do
    redis.call(command, key, unpack(words, from, math.min(from + PIECE - 1, last)))
  end
end

-- Returns for each part where its words are: {plain, first set, last set, deleted of 8 bytes, deleted of 9 bytes}.
local function read_parts(at)
  local parts = {}
  for part = 1, PARTS do
    local sets = tonumber(ARGV[at + 1])
    parts[part] = {at, at + 2, at + 1 + sets, at + 2 + sets, at + 3 + sets}
    at = at + 4 + sets
  end
  return parts
end

local function is_setting(words)
  return #ARGV[words[1]] > 0 or words[3] >= words[2]
end

local function set_parts(parts, first_key)
  for part, words in ipairs(parts) do
    local key, plain = KEYS[first_key + part - 1], ARGV[words[1]]
    local sub, pairs = string.sub, {}
    for from = 1, #plain, 26 do
      pairs[#pairs + 1] = sub(plain, from, from + 7)
      pairs[#pairs + 1] = sub(plain, from + 8, from + 25)
    end
    in_pieces('HSET', key, pairs, 1, #pairs)
    in_pieces('HSET', key, ARGV, words[2], words[3])
  end
end

local function delete_parts(parts, first_key)
  for part, words in ipairs(parts) do
    local fields = {}
    for width = 8, 9 do
      local gone = ARGV[words[width - 4]]
      for from = 1, #gone, width do
        fields[#fields + 1] = string.sub(gone, from, from + width - 1)
      end
    end
    in_pieces('HDEL', KEYS[first_key + part - 1], fields, 1, #fields)
  end
end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- The number of fields of each part, as the state records it: what does not fit any more was lost.
local function lengths(first_key)
  local found = {}
  for part = 0, PARTS - 1 do
    found[part + 1] = redis.call('HLEN', KEYS[first_key + part])
  end
  return table.concat(found, ',')
end

-- Everything that a change writes besides blocks: the state, the log entry, and their TTL.
local function record(state, log, streams, fields, entry, log_max, state_ttl, blocks_ttl, stream, trusted)
  redis.call('HSET', state, unpack(fields))
  redis.call('PEXPIRE', state, state_ttl)
  redis.call('XADD', log, 'MAXLEN', '~', log_max, '*', 'e', entry)
  redis.call('PEXPIRE', log, state_ttl)
  -- Blocks outlive a lease: who says that they are trusted for longer knew the clock before it was set back.
  if trusted ~= '0' and trusted - blocks_ttl <= now_ms() then
    redis.call('ZADD', streams, trusted, stream)
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
