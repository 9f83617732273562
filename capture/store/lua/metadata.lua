-- What a model server said of one version; its text is sent only where the store has another one. KEYS[1] is the base
-- of what belongs to no model version; message.stamp tells one text from another.
local TEXTS, TIMES, STAMPS = base .. ':metadata', base .. ':metadata:times', base .. ':metadata:stamps'
if call('HGET', STAMPS, message.owner) ~= message.stamp then
  if not ARGV[2] then return 0 end
  call('HSET', TEXTS, message.owner, ARGV[2])
  call('HSET', STAMPS, message.owner, message.stamp)
end
call('ZADD', TIMES, string.format('%.17g', message.at), message.owner)
local surplus = call('ZCARD', TIMES) - message.most
if surplus > 0 then
  for _, owner in ipairs(call('ZRANGE', TIMES, 0, surplus - 1)) do
    call('ZREM', TIMES, owner)
    call('HDEL', TEXTS, owner)
    call('HDEL', STAMPS, owner)
  end
end
return 1
