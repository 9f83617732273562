-- The source's part of a move: calls that were counted here are of another model version, which has them already.
if already(message.writer, message.number, message.keep) then return pack({ again = true }) end
read_totals()
local digest, other = message.digest, message.other
local row = row_of(digest)
if not row then return pack({ bytes = total.bytes }) end
local function less(map, gone)
  for at = 1, #gone, 2 do
    local name = map[gone[at]] and gone[at] or other
    local left = (map[name] or 0) - gone[at + 1]
    map[name] = left > 0 and left or nil
  end
end
row[PROVEN] = math.max(0, row[PROVEN] - message.proven)
row[UNPROVEN] = math.max(0, row[UNPROVEN] - message.unproven)
less(row[BY_SHAPE], message.shapes)
less(row[BY_SENDER], message.senders)
if message.proven > 0 then
  local hour = string.format('%.0f', math.floor(message.last / 3600))
  local left = tonumber(call('HGET', CALLS, hour) or 0) - message.proven
  if left > 0 then call('HSET', CALLS, hour, string.format('%.0f', left)) else call('HDEL', CALLS, hour) end
end
for at = 1, #message.blocks, 3 do
  local key = block_key(message.blocks[at])
  local text = call('HGET', key, digest)
  if text then
    local clients = unpacked(text)
    local before = size_of(clients)
    local name = clients[message.blocks[at + 1]] and message.blocks[at + 1] or other
    local left = (clients[name] or 0) - message.blocks[at + 2]
    clients[name] = left > 0 and left or nil
    total.blocks = total.blocks + size_of(clients) - before
    if next(clients) then call('HSET', key, digest, pack(clients)) else call('HDEL', key, digest) end
  end
end
changed[digest] = true
for _, id in ipairs(message.held) do
  set_roles(id, false, false)
  if message.refill then total.full = 1 end
end
if row[PROVEN] == 0 and row[UNPROVEN] == 0 then
  local left = false
  for _, text in ipairs(call('HVALS', HELD)) do left = left or unpacked(text)[DIGEST] == digest end
  if not left then forget({ [digest] = true }) end
end
write_rows()
write_totals()
return pack({ bytes = total.bytes })
