-- Who waits where. The keys, all under one prefix P with one hash tag, so that a call touches one shard of a cluster:
--
--   P:r:<id>  hash: one request (fields: FIELDS and more)   P:b:<id>  its body, a msgpack Request without its prompt
--   P:p:<id>  prompt, u32 ids        P:t:<id>  the token log, u32 ids: its length / 4 is the next base
--   P:l:<id>  list: log-probabilities of each logged token      P:s:<id>  those of the prompt
--   P:q:<line>:<priority>:<tenant>   zset: arrival → id of what waits
--   P:a:<line>:<priority>            zset: tenants that wait → start tag;  P:f:…  hash: finish tags;  P:v:…  virtual time
--   P:suspects:<line>, P:last:<line> zsets: arrival → id of suspects, and of those that have a last chance
--   P:reserved:<line>                the worker that empties itself for a last chance
--   P:workers zset: lease end; P:w:<worker> hash; P:own:<worker> set of ids; P:room hash: what each had left when it claimed
--   P:deadlines zset · P:n hash of counts · P:tenants hash: how many wait · P:lines hash: how many wait
--   P:i:<tenant>:<key> hash: an idempotency key's digest and ids · P:dead list · channels P:work and P:gw:<gateway>
--
-- The rules of order and of suspects stand in service/queue/rules.py.

local call, P, NOW -- of the call that runs; there is no redis.call while a library is loaded
local SHARED_TTL_MS = 2 * 86400 * 1000
local PRIORITIES = {'high', 'normal', 'bulk'}

local function begin(keys)
  call = redis.call
  local time = call('TIME')
  P, NOW = keys[1], tonumber(time[1]) + tonumber(time[2]) / 1e6
end

local function words(text)
  local found = {}
  for word in string.gmatch(text, '%S+') do
    found[#found + 1] = word
  end
  return found
end

local function count(what, by)
  call('HINCRBY', P .. ':n', what, by)
end

-- Count what runs, and the seconds in which anything does: those in which work can be done.
local function count_running(by)
  local running = call('HINCRBY', P .. ':n', 'running', by)
  if running == 1 and by == 1 then
    call('HSET', P .. ':n', 'busy_since', NOW)
  elseif running == 0 then
    call('HINCRBYFLOAT', P .. ':n', 'busy_s', NOW - call('HGET', P .. ':n', 'busy_since'))
  end
end

local function keep_shared(...)
  for _, key in ipairs({...}) do
    call('PEXPIRE', key, SHARED_TTL_MS)
  end
end

-- A request's hash, as a table with numbers where numbers are meant; nil when it is not there.
local function load(id)
  local flat = call('HGETALL', P .. ':r:' .. id)
  if #flat == 0 then
    return nil
  end
  local r = {id = id}
  for i = 1, #flat, 2 do
    r[flat[i]] = flat[i + 1]
  end
  for _, field in ipairs({'epoch', 'attempts', 'arrival', 'cost', 'submitted', 'deadline', 'max', 'keep'}) do
    r[field] = tonumber(r[field])
  end
  return r
end

local function is_last_chance(r)
  return r.attempts >= 1 and r.attempts >= r.max - 1
end

-- The zset in which `r` waits, and the keys of its line and priority when it is an ordinary one.
local function place(r)
  if is_last_chance(r) then
    return P .. ':last:' .. r.line
  elseif r.attempts >= 1 then
    return P .. ':suspects:' .. r.line
  end
  local line = r.line .. ':' .. r.priority
  return P .. ':q:' .. line .. ':' .. r.tenant, P .. ':a:' .. line, P .. ':f:' .. line, P .. ':v:' .. line
end

-- Count by name in a hash that has only those of which there are any.
local function count_in(hash, name, by)
  if call('HINCRBY', hash, name, by) == 0 then
    call('HDEL', hash, name)
  end
end

local function count_waiting(r, by)
  count('waiting', by)
  count('waiting_tokens', by * r.cost)
  count_in(P .. ':lines', r.line, by)
  count_in(P .. ':tenants', r.tenant, by)
end

local function enqueue(r)
  local queue, active, finish, virtual = place(r)
  call('ZADD', queue, r.arrival, r.id)
  if active and not call('ZSCORE', active, r.tenant) then
    local start = math.max(tonumber(call('GET', virtual) or 0), tonumber(call('HGET', finish, r.tenant) or 0))
    call('ZADD', active, start, r.tenant)
    keep_shared(active)
  end
  count_waiting(r, 1)
  keep_shared(queue, P .. ':tenants', P .. ':lines')
  call('PUBLISH', P .. ':work', r.line)
end

-- Take `r` out of its line; `served`: because a worker gets it.
local function leave_line(r, served)
  local queue, active, finish, virtual = place(r)
  call('ZREM', queue, r.id)
  count_waiting(r, -1)
  if is_last_chance(r) then
    call('DEL', P .. ':reserved:' .. r.line)
  end
  if not active then
    return
  end
  local tag = tonumber(call('ZSCORE', active, r.tenant))
  if served then
    call('SET', virtual, tag, 'PX', SHARED_TTL_MS)
    tag = tag + r.cost
  end
  if call('EXISTS', queue) == 1 then
    call('ZADD', active, tag, r.tenant)
    return
  end
  call('ZREM', active, r.tenant)
  if call('EXISTS', active) == 1 then
    call('HSET', finish, r.tenant, tag)
    keep_shared(finish)
  else
    call('DEL', finish, virtual)
  end
end

-- The id that is first in any of the zsets `prefix .. line`; nil when all are empty.
local function first_of(prefix, lines)
  local first, least
  for _, line in ipairs(lines) do
    local head = call('ZRANGE', prefix .. line, 0, 0, 'WITHSCORES')
    if head[1] and (not least or tonumber(head[2]) < least) then
      first, least = head[1], tonumber(head[2])
    end
  end
  return first
end

-- The next ordinary request of these lines; nil when none waits.
local function next_ordinary(lines)
  local best, best_due
  for _, line in ipairs(lines) do
    for _, priority in ipairs(PRIORITIES) do
      local name = line .. ':' .. priority
      local tenant = call('ZRANGE', P .. ':a:' .. name, 0, 0)[1]
      local r = tenant and load(call('ZRANGE', P .. ':q:' .. name .. ':' .. tenant, 0, 0)[1])
      local due = r and r.submitted + PATIENCE[priority]
      if r and (not best or due < best_due or (due == best_due and r.arrival < best.arrival)) then
        best, best_due = r, due
      end
    end
  end
  return best
end
