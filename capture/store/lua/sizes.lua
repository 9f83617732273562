-- What model versions hold now, after something was taken from them.
local bytes = 0
for _, one in ipairs(message.sizes) do bytes = set_size(one[1], one[2]) end
return bytes
