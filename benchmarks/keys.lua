-- GETs of ever other keys: wrk -s keys.lua 'http://HOST:PORT/?KEYS'
local keys, number = 1, 0

function init(args)
   keys = tonumber(string.match(wrk.path, "%?(%d+)"))
end

function request()
   number = (number + 7919) % keys
   local owner, file = math.floor(number / 10), number % 10
   return wrk.format("GET", "/v1/metadata/model-" .. owner .. "/_base/file-" .. file .. ".json")
end
