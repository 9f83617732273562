-- A lock that one holder has until it expires. message: token, milliseconds; 0 gives it back.
local holder = call('GET', base)
if message.milliseconds == 0 then
  if holder == message.token then return call('DEL', base) end
  return 0
end
if holder and holder ~= message.token then return 0 end
if not holder and message.renew then return 0 end
call('SET', base, message.token, 'PX', message.milliseconds)
return 1
