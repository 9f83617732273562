-- What the scripts share. KEYS[1] is the base of one model version's keys, ARGV[1] the message (MessagePack), further
-- arguments are requests, opaque to the server. All keys are KEYS[1] with a suffix, so that they lie in its slot.
local base = KEYS[1]
local message = cmsgpack.unpack(ARGV[1])
local call, pack, unpacked = redis.call, cmsgpack.pack, cmsgpack.unpack
local ROWS, NAMES, SAMPLES = base .. ':rows', base .. ':names', base .. ':samples'
local HELD, BODIES, DRAWS, AGES = base .. ':held', base .. ':bodies', base .. ':draws', base .. ':ages'
local CALLS, HOURS = base .. ':calls', base .. ':hours'
-- Places in a row of ROWS: see docs/store.md.
local PROVEN, UNPROVEN, FIRST, LAST, SEEN_HOURS, EVICTED, AT, SIZE, SHAPES, OUTCOME, TOKEN, FURTHER, FURTHER_AT,
  BY_SHAPE, BY_SENDER = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
-- Places in an entry of HELD.
local DIGEST, DRAW, FOR_SIGNATURE, HELD_SIZE, HELD_AT = 1, 2, 3, 4, 5

-- Totals of this model version, kept at the base key itself.
local TOTALS = { 'bytes', 'drawn', 'live', 'full', 'new_hour', 'new', 'blocks', 'turned_away' }
local total = {}
local function read_totals()
  local found = call('HMGET', base, unpack(TOTALS))
  for place, name in ipairs(TOTALS) do total[name] = tonumber(found[place] or 0) or 0 end
end
local function write_totals()
  local fields = {}
  for _, name in ipairs(TOTALS) do
    fields[#fields + 1] = name
    fields[#fields + 1] = string.format('%.0f', total[name])
  end
  call('HSET', base, unpack(fields))
end

-- Each row is read once and written once.
local rows, changed = {}, {}
local function row_of(digest)
  if rows[digest] == nil then
    local text = call('HGET', ROWS, digest)
    rows[digest] = text and unpacked(text) or false
  end
  return rows[digest]
end
-- Fields of a hash, many in one command: commands are what a script's time goes into.
local AT_ONCE = 1000
local function read_fields(key, fields)
  local found = {}
  for first = 1, #fields, AT_ONCE do
    local some = call('HMGET', key, unpack(fields, first, math.min(first + AT_ONCE - 1, #fields)))
    for at = 1, #some do found[first + at - 1] = some[at] end
  end
  return found
end
local function write_fields(key, pairs_of)
  for first = 1, #pairs_of, 2 * AT_ONCE do
    call('HSET', key, unpack(pairs_of, first, math.min(first + 2 * AT_ONCE - 1, #pairs_of)))
  end
end
local function read_rows(digests)
  local found = read_fields(ROWS, digests)
  for place, digest in ipairs(digests) do rows[digest] = found[place] and unpacked(found[place]) or false end
end
local function write_rows()
  local fields = {}
  for digest in pairs(changed) do
    if rows[digest] then
      fields[#fields + 1] = digest
      fields[#fields + 1] = pack(rows[digest])
    end
  end
  write_fields(ROWS, fields)
end
local function size_of(map)
  local count = 0
  for _ in pairs(map) do count = count + 1 end
  return count
end

local function drop_sample(digest, row)
  if row[AT] then
    total.bytes = total.bytes - row[SIZE]
    call('HDEL', SAMPLES, digest)
    row[AT], row[SIZE], row[SHAPES], row[OUTCOME], row[TOKEN] = false, 0, '', '', ''
    changed[digest] = true
  end
end

-- Give a held-out request these roles; one without any is deleted.
local function set_roles(id, draw, for_signature)
  local text = call('HGET', HELD, id)
  if not text then return end
  local entry = unpacked(text)
  if entry[DRAW] then total.drawn = total.drawn - entry[HELD_SIZE] end
  if draw then
    total.drawn = total.drawn + entry[HELD_SIZE]
    call('ZADD', DRAWS, string.format('%.17g', draw), id)
  else
    call('ZREM', DRAWS, id)
  end
  if not for_signature then
    local row = row_of(entry[DIGEST])
    if row and row[FURTHER] == id then
      row[FURTHER] = ''
      changed[entry[DIGEST]] = true
    end
  end
  if draw or for_signature then
    entry[DRAW], entry[FOR_SIGNATURE] = draw, for_signature
    call('HSET', HELD, id, pack(entry))
  else
    total.bytes = total.bytes - entry[HELD_SIZE]
    call('HDEL', HELD, id)
    call('HDEL', BODIES, id)
    call('ZREM', AGES, id)
  end
end

local function evict(digest)
  local row = row_of(digest)
  if not row then return end
  if not row[EVICTED] then total.live = total.live - 1 end
  row[EVICTED], row[BY_SHAPE], row[BY_SENDER] = true, {}, {}
  changed[digest] = true
  drop_sample(digest, row)
end

-- Evicted by the server's own bounds: the further sample goes too, what is in the reservoir stays.
local function evict_wholly(digest)
  local row = row_of(digest)
  if row and row[FURTHER] ~= '' then
    local text = call('HGET', HELD, row[FURTHER])
    if text then set_roles(row[FURTHER], unpacked(text)[DRAW], false) end
    row[FURTHER] = ''
  end
  evict(digest)
end

local function block_key(hour)
  return base .. ':b:' .. string.format('%.0f', hour)
end
local function drop_hour(hour)
  local key = block_key(hour)
  local found = call('HVALS', key)
  for _, text in ipairs(found) do total.blocks = total.blocks - size_of(unpacked(text)) end
  call('DEL', key)
  call('ZREM', HOURS, string.format('%.0f', hour))
end

local function drop_all()
  for _, hour in ipairs(call('ZRANGE', HOURS, 0, -1)) do call('UNLINK', base .. ':b:' .. hour) end
  call('UNLINK', base, ROWS, NAMES, SAMPLES, HELD, BODIES, DRAWS, AGES, CALLS, HOURS)
end

-- Delete signatures (a set of digests) with all they have.
local function forget(digests)
  local ids = {}
  local held = call('HGETALL', HELD)
  for at = 1, #held, 2 do
    if digests[unpacked(held[at + 1])[DIGEST]] then ids[#ids + 1] = held[at] end
  end
  for _, id in ipairs(ids) do set_roles(id, false, false) end
  local gone = {}
  for digest in pairs(digests) do
    gone[#gone + 1] = digest
    local row = row_of(digest)
    if row then
      if not row[EVICTED] then total.live = total.live - 1 end
      drop_sample(digest, row)
      rows[digest], changed[digest] = false, nil
      call('HDEL', ROWS, digest)
      call('HDEL', NAMES, digest)
    end
  end
  for _, hour in ipairs(call('ZRANGE', HOURS, 0, -1)) do
    local key = base .. ':b:' .. hour
    local dead = {}
    local function is_dead(digest, text)
      dead[#dead + 1] = digest
      total.blocks = total.blocks - size_of(unpacked(text))
    end
    -- Thousands of signatures times hundreds of hours, one call for each, would hold up the server for seconds.
    if #gone < 10 then
      for _, digest in ipairs(gone) do
        local text = call('HGET', key, digest)
        if text then is_dead(digest, text) end
      end
    else
      local found = call('HGETALL', key)
      for at = 1, #found, 2 do
        if digests[found[at]] then is_dead(found[at], found[at + 1]) end
      end
    end
    for at = 1, #dead, 1000 do call('HDEL', key, unpack(dead, at, math.min(at + 999, #dead))) end
  end
end

-- Of the fleet's keys (KEYS[1] is their base): a model version holds so many bytes, -1: it is gone. The sum is kept.
local function set_size(owner, bytes)
  local before = tonumber(call('HGET', base .. ':sizes', owner) or 0)
  if bytes < 0 then
    call('HDEL', base .. ':sizes', owner)
    call('ZREM', base .. ':owners', owner)
  else
    call('HSET', base .. ':sizes', owner, string.format('%.0f', bytes))
  end
  return call('HINCRBY', base, 'bytes', string.format('%.0f', math.max(0, bytes) - before))
end

-- A batch is applied once, however often it is sent: its number is kept for a while.
local function already(writer, number, seconds)
  local key = base .. ':done:' .. writer
  if call('GET', key) == number then return true end
  call('SET', key, number, 'EX', seconds)
  return false
end
