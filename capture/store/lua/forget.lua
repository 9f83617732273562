-- Delete the signatures last seen before a time, with all they have; and held-out requests of the same age.
read_totals()
local gone, kept = {}, false
for _, digest in ipairs(call('HKEYS', ROWS)) do
  local row = row_of(digest)
  if row and row[LAST] < message.before then gone[digest] = true else kept = true end
end
if not kept then
  drop_all()
  return pack({ bytes = 0, empty = true })
end
if next(gone) then forget(gone) end
if message.held_before > 0 then
  for _, id in ipairs(call('ZRANGEBYSCORE', AGES, '-inf', '(' .. string.format('%.17g', message.held_before))) do
    set_roles(id, false, false)
    total.full = 1
  end
end
write_rows()
write_totals()
return pack({ bytes = total.bytes, empty = false })
