-- What belongs to no model version: refusals, what was ignored, the counters of a run, the list of model versions.
-- KEYS[1] is a hash: format, forgotten, folded.
if already(message.writer, message.number, message.keep) then
  return pack({ again = true })
end
local OWNERS, RUNS, SEEN, COUNTED = base .. ':owners', base .. ':runs', base .. ':seen', base .. ':counted'

-- Where it is not there, the server has lost what it had.
local anew = call('HSETNX', base, 'format', message.format) == 1
local function add(key, fields, most, rest)
  for _, one in ipairs(fields) do
    local field = one[1]
    if call('HLEN', key) >= most and call('HEXISTS', key, field) == 0 then field = one[3] or rest end
    call('HINCRBY', key, field, one[2])
  end
end
add(base .. ':refusals', message.refusals, message.most, message.other)
add(base .. ':ignored', message.ignored, message.most, message.other)

for _, one in ipairs(message.owners) do
  call('ZADD', OWNERS, 'GT', string.format('%.17g', one[2]), one[1])
  if one[3] then set_size(one[1], one[3]) end
end

local function add_all(to, more)
  for name, value in pairs(more) do to[name] = (to[name] or 0) + value end
end
for _, one in ipairs(message.by_hour) do call('HINCRBY', COUNTED, one[1], one[2]) end
if message.run then
  local text = call('HGET', RUNS, message.run)
  local known = text and unpacked(text)[2] or {}
  local hour = string.format('%.0f', math.floor(message.at / 3600))
  for _, name in ipairs(message.counted) do
    local grown = (message.counters[name] or 0) - (known[name] or 0)
    if grown > 0 then call('HINCRBY', COUNTED, hour .. '/' .. name, string.format('%.0f', grown)) end
  end
  call('HSET', RUNS, message.run, pack({ message.at, message.counters }))
  -- A file that was ingested is known by its run.
  if string.sub(message.run, 1, #message.kept) ~= message.kept then
    call('ZADD', SEEN, string.format('%.17g', message.at), message.run)
  end
  -- Runs that ended long ago are one sum.
  local old = call('ZRANGEBYSCORE', SEEN, '-inf', string.format('%.17g', message.at - message.run_seconds), 'LIMIT', 0, 10)
  if #old > 0 then
    local sum = call('HGET', base, 'folded')
    sum = sum and unpacked(sum)[2] or {}
    for _, run in ipairs(old) do
      local gone = call('HGET', RUNS, run)
      if gone then add_all(sum, unpacked(gone)[2]) end
      call('HDEL', RUNS, run)
      call('ZREM', SEEN, run)
    end
    call('HSET', base, 'folded', pack({ 0, sum }))
  end
end

if call('HLEN', COUNTED) > message.max_counted then
  local hours = {}
  local fields = call('HKEYS', COUNTED)
  for _, field in ipairs(fields) do hours[#hours + 1] = tonumber(string.match(field, '^(%d+)/')) end
  table.sort(hours)
  local first = hours[math.floor(#hours / 10) + 1]
  for _, field in ipairs(fields) do
    if tonumber(string.match(field, '^(%d+)/')) < first then call('HDEL', COUNTED, field) end
  end
end

-- Who wrote lately: what each may ask of the server depends on it.
local writers = call('ZCOUNT', SEEN, string.format('%.17g', message.at - message.lately), '+inf')
local told = { bytes = 0, forget = false, anew = anew, writers = writers }
if message.forget_before > 0 then
  local last = tonumber(call('HGET', base, 'forgotten') or 0)
  -- One of many writers does it.
  if message.forget_before - last >= message.forget_every then
    call('HSET', base, 'forgotten', string.format('%.17g', message.forget_before))
    told.forget = true
  end
end
told.bytes = tonumber(call('HGET', base, 'bytes') or 0)
return pack(told)
