-- One part of a batch: what belongs to one model version. Either all of it is applied, or nothing where the writer must
-- send more first (names of signatures, bodies of requests that the store does not have).
local bounds = message.bounds
local most, other = message.most, message.other

if call('GET', base .. ':done:' .. message.writer) == message.number then
  return pack({ again = true })
end
read_totals()

local function wants_sample(one, row)
  if not row or not row[AT] then return true end
  if one[6] == 'proven' and row[OUTCOME] ~= 'proven' then return true end
  if one[7] or one[2] ~= row[TOKEN] then return one[7] end
  if not bounds or one[6] ~= row[OUTCOME] or one[3] - row[AT] > bounds.refresh then return true end
  -- Of another shape: it must be so much more frequent over all writers, not only where it comes from.
  local mine, theirs = row[BY_SHAPE][one[5]] or 0, row[BY_SHAPE][row[SHAPES]] or 0
  return one[5] == row[SHAPES] or mine >= bounds.lead * math.max(theirs, 1)
end

-- Of all calls in the window the ones with the smallest draws. Before it was ever full all enter; after some have left
-- it by their age it is filled again at the rate of the window, so that it does not lean to the newest.
local REFILLING, FULL = 1, 2
local calls_in_window
local function threshold()
  if total.full == FULL then
    local largest = call('ZRANGE', DRAWS, -1, -1, 'WITHSCORES')
    if largest[2] then return tonumber(largest[2]) end
  end
  if total.full ~= REFILLING then return 1 end
  if not calls_in_window then
    calls_in_window = 0
    local first = math.floor((message.now - bounds.seconds) / 3600)
    local found = call('HGETALL', CALLS)
    for at = 1, #found, 2 do
      if tonumber(found[at]) >= first then calls_in_window = calls_in_window + tonumber(found[at + 1]) end
    end
  end
  return bounds.requests / math.max(calls_in_window, bounds.requests, 1)
end
local function wants_further(one, row)
  return one[4] and (not row or row[FURTHER] == '' or one[6] - row[FURTHER_AT] > bounds.refresh)
end

if bounds and total.full == REFILLING and call('ZCARD', DRAWS) >= bounds.requests then total.full = FULL end

-- What must be sent first?
local evicting = {}
for _, digest in ipairs(message.evicted) do evicting[digest] = true end
local names, bodies, cut = {}, {}, bounds and threshold()
local coming, digests = {}, {}
for place, one in ipairs(message.seen) do digests[place] = one[1] end
read_rows(digests)
for _, one in ipairs(message.seen) do
  coming[one[1]] = true
  -- Who has a row has a name.
  if not one[2] and not row_of(one[1]) then names[#names + 1] = one[1] end
end
for _, one in ipairs(message.samples) do
  local row = row_of(one[1])
  if (row or coming[one[1]]) and one[8] == 0 and (evicting[one[1]] or wants_sample(one, row)) then
    bodies[#bodies + 1] = one[1]
  end
end
for _, one in ipairs(message.held) do
  local row = row_of(one[2])
  if (row or coming[one[2]]) and one[7] == 0 then
    if not bounds or wants_further(one, row) or (one[3] and one[3] < cut) then bodies[#bodies + 1] = one[1] end
  end
end
if #names > 0 or #bodies > 0 then return pack({ names = names, bodies = bodies }) end

call('SET', base .. ':done:' .. message.writer, message.number, 'EX', message.keep)
local told = { samples = {}, refused = {}, evicted = {}, turned_away = {}, lacking = {} }

-- The signatures that are not evicted, the least useful last: looked at only where room must be made.
local ranked
local function below(a, b)
  for place = 1, 3 do
    if a[place] ~= b[place] then return a[place] > b[place] end
  end
  return a[4] > b[4]
end
local function lowest(besides)
  if not ranked then
    ranked = {}
    for _, digest in ipairs(call('HKEYS', ROWS)) do
      local row = row_of(digest)
      if row and not row[EVICTED] then
        ranked[#ranked + 1] = { row[SEEN_HOURS], row[PROVEN] + row[UNPROVEN], row[FIRST], digest }
      end
    end
    table.sort(ranked, below)
  end
  for place = #ranked, 1, -1 do
    local one = ranked[place]
    local row = row_of(one[4])
    if not row or row[EVICTED] then
      table.remove(ranked, place)
    elseif not besides or not besides[one[4]] then
      return one
    end
  end
end
local function make_room(besides)
  local one = lowest(besides)
  if not one then return false end
  evict_wholly(one[4])
  told.evicted[#told.evicted + 1] = one[4]
  return true
end

-- Signatures that are new, in this order.
local added = {}
local function admitted(first)
  if not bounds then return true end
  local hour = math.floor(first / 3600)
  if total.new_hour ~= hour then total.new_hour, total.new = hour, 0 end
  if total.live >= bounds.signatures then
    if total.new >= bounds.new_per_hour or call('HLEN', ROWS) + #added >= 5 * bounds.signatures then return false end
    if not make_room(coming) then return false end
  end
  total.new = total.new + 1
  return true
end

local function add_names(map, more)
  local count = size_of(map)
  for at = 1, #more, 2 do
    local name = more[at]
    if map[name] == nil then
      if count >= most then name = other end
      if map[name] == nil then count = count + 1 end
    end
    map[name] = (map[name] or 0) + more[at + 1]
  end
end
-- Calls by client, by hour and signature: those of an hour are read and written together.
local blocks = {}
local function add_blocks(digest, more)
  for at = 1, #more, 3 do
    local here = blocks[more[at]]
    if not here then
      here = { digests = {}, calls = {} }
      blocks[more[at]] = here
    end
    if not here.calls[digest] then
      here.calls[digest] = {}
      here.digests[#here.digests + 1] = digest
    end
    local calls = here.calls[digest]
    calls[#calls + 1], calls[#calls + 2] = more[at + 1], more[at + 2]
  end
end
local function write_blocks()
  for hour, here in pairs(blocks) do
    local key, fields = block_key(hour), {}
    local found = read_fields(key, here.digests)
    for place, digest in ipairs(here.digests) do
      local clients, calls = found[place] and unpacked(found[place]) or {}, here.calls[digest]
      if bounds and not found[place] then
        local row = row_of(digest)
        row[SEEN_HOURS] = row[SEEN_HOURS] + 1
      end
      for at = 1, #calls, 2 do
        local client = calls[at]
        if clients[client] == nil and size_of(clients) >= most then client = other end
        if clients[client] == nil then total.blocks = total.blocks + 1 end
        clients[client] = (clients[client] or 0) + calls[at + 1]
      end
      fields[#fields + 1] = digest
      fields[#fields + 1] = pack(clients)
    end
    write_fields(key, fields)
    call('ZADD', HOURS, hour, string.format('%.0f', hour))
  end
end
local proven_by_hour = {}

for _, one in ipairs(message.seen) do
  local digest, row = one[1], row_of(one[1])
  if not row and not admitted(one[3]) then
    told.turned_away[#told.turned_away + 1] = digest
    total.turned_away = total.turned_away + 1
  else
    if not row then
      row = { 0, 0, one[3], one[4], 0, false, false, 0, '', '', '', '', 0, {}, {} }
      rows[digest] = row
      added[#added + 1] = digest
      call('HSET', NAMES, digest, one[2])
      total.live = total.live + 1
    end
    row[FIRST], row[LAST] = math.min(row[FIRST], one[3]), math.max(row[LAST], one[4])
    row[PROVEN] = row[PROVEN] + one[5]
    row[UNPROVEN] = math.max(0, row[UNPROVEN] + one[6])
    local hour = math.floor(one[4] / 3600)
    -- Every writer that saw it in an hour says so, perhaps late: an hour counts once. Blocks know who came first.
    add_blocks(digest, one[10])
    if not bounds then row[SEEN_HOURS] = row[SEEN_HOURS] + one[7] end
    if one[5] > 0 then proven_by_hour[hour] = (proven_by_hour[hour] or 0) + one[5] end
    add_names(row[BY_SHAPE], one[8])
    add_names(row[BY_SENDER], one[9])
    changed[digest] = true
  end
end

for hour, calls in pairs(proven_by_hour) do
  call('HINCRBY', CALLS, string.format('%.0f', hour), string.format('%.0f', calls))
end
write_blocks()

for _, digest in ipairs(message.evicted) do evict(digest) end

for _, one in ipairs(message.samples) do
  local digest, row = one[1], row_of(one[1])
  local taken = false
  if row and one[8] > 0 and wants_sample(one, row) then
    taken = true
    if row[EVICTED] and bounds and total.live >= bounds.signatures then
      -- It comes back when it has outgrown the least of what is kept.
      local least = lowest()
      local mine = { row[SEEN_HOURS], row[PROVEN] + row[UNPROVEN], row[FIRST], digest }
      taken = least ~= nil and below(mine, least) and make_room()
    end
    if taken then
      if row[EVICTED] then total.live, row[EVICTED] = total.live + 1, false end
      total.bytes = total.bytes + one[4] - row[SIZE]
      row[AT], row[SIZE], row[SHAPES], row[OUTCOME], row[TOKEN] = one[3], one[4], one[5], one[6], message.token
      call('HSET', SAMPLES, digest, ARGV[1 + one[8]])
      changed[digest] = true
    end
  end
  if row and not taken then
    told.samples[#told.samples + 1] = { digest, row[AT], row[SIZE], row[SHAPES], row[OUTCOME], row[TOKEN] }
  end
end

local function shrink()
  while call('ZCARD', DRAWS) > bounds.requests or total.drawn > bounds.bytes do
    local id = call('ZRANGE', DRAWS, -1, -1)[1]
    if not id then return end
    total.full = FULL
    set_roles(id, false, unpacked(call('HGET', HELD, id))[FOR_SIGNATURE])
  end
  if call('ZCARD', DRAWS) >= bounds.requests then total.full = FULL end
end

if bounds then
  for _, id in ipairs(call('ZRANGEBYSCORE', AGES, '-inf', '(' .. string.format('%.17g', message.now - bounds.seconds))) do
    total.full = REFILLING
    set_roles(id, false, false)
  end
  local first = math.floor((message.now - bounds.seconds) / 3600)
  if call('HLEN', CALLS) > bounds.seconds / 3600 + 2 then
    for _, hour in ipairs(call('HKEYS', CALLS)) do
      if tonumber(hour) < first then call('HDEL', CALLS, hour) end
    end
  end
end

for _, one in ipairs(message.held) do
  local id, digest, draw, for_signature = one[1], one[2], one[3], one[4]
  local row = row_of(digest)
  if bounds then
    for_signature = row and wants_further(one, row)
    if not draw or draw >= threshold() then draw = false end
  end
  if row and one[7] > 0 and (draw or for_signature or not bounds) then
    if bounds and for_signature and row[FURTHER] ~= '' then
      local text = call('HGET', HELD, row[FURTHER])
      if text then set_roles(row[FURTHER], unpacked(text)[DRAW], false) end
    end
    set_roles(id, false, false) -- one of this id, from before
    call('HSET', HELD, id, pack({ digest, draw, for_signature, one[5], one[6] }))
    call('HSET', BODIES, id, ARGV[1 + one[7]])
    call('ZADD', AGES, string.format('%.17g', one[6]), id)
    if draw then
      if not bounds and total.full == 0 then total.full = REFILLING end
      call('ZADD', DRAWS, string.format('%.17g', draw), id)
      total.drawn = total.drawn + one[5]
    end
    total.bytes = total.bytes + one[5]
    if for_signature then row[FURTHER], row[FURTHER_AT] = id, one[6] end
    changed[digest] = true
    if bounds then shrink() end
  end
  if call('HEXISTS', HELD, id) == 0 then told.refused[#told.refused + 1] = id end
end

for _, one in ipairs(message.released) do set_roles(one[1], one[2], one[3]) end

if total.blocks > message.max_blocks then
  while total.blocks > message.max_blocks * 0.9 do
    local hour = call('ZRANGE', HOURS, 0, 0)[1]
    if not hour then break end
    drop_hour(tonumber(hour))
  end
end
if bounds then
  local tell = {}
  for _, digest in ipairs(told.evicted) do tell[digest] = true end
  for _, one in ipairs(message.seen) do
    local row = row_of(one[1])
    if row and row[EVICTED] and not tell[one[1]] then told.evicted[#told.evicted + 1] = one[1] end
    if row and not row[EVICTED] and (not row[AT] or row[FURTHER] == '') then
      told.lacking[#told.lacking + 1] = { one[1], not row[AT], row[FURTHER] == '' }
    end
  end
  told.cut = threshold()
end
write_rows()
write_totals()
told.bytes = total.bytes
return pack(told)
