-- Give up requests until this model version holds at most so many bytes: its reservoir (largest draws first) where it
-- may, then the least useful signatures, but one; its reservoir last.
read_totals()
local evicted = {}
local function drain()
  while total.bytes > message.bytes do
    local id = call('ZRANGE', DRAWS, -1, -1)[1]
    if not id then return end
    total.full = 2
    set_roles(id, false, unpacked(call('HGET', HELD, id))[FOR_SIGNATURE])
  end
end
if message.reservoir then drain() end
if total.bytes > message.bytes then
  local ranked = {}
  for _, digest in ipairs(call('HKEYS', ROWS)) do
    local row = row_of(digest)
    if row and (row[AT] or row[FURTHER] ~= '') then
      ranked[#ranked + 1] = { row[SEEN_HOURS], row[PROVEN] + row[UNPROVEN], row[FIRST], digest }
    end
  end
  table.sort(ranked, function(a, b)
    for place = 1, 3 do
      if a[place] ~= b[place] then return a[place] < b[place] end
    end
    return a[4] < b[4]
  end)
  for place = 1, #ranked - message.keep do
    if total.bytes <= message.bytes then break end
    evict_wholly(ranked[place][4])
    evicted[#evicted + 1] = ranked[place][4]
  end
  if message.drain then drain() end
end
write_rows()
write_totals()
return pack({ bytes = total.bytes, evicted = evicted })
