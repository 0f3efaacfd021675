-- What gateways call. Every verb is one atomic step, by the server's own time.

local FIELDS = {'tenant', 'priority', 'line', 'cost', 'deadline', 'choices'}

local function accept(gateway, keep_ms, max_attempts, joined, args, at)
  local r = {id = args[at], submitted = NOW, epoch = 0, attempts = 0, worker = '', cancelled = '0', queued = ''}
  for i, field in ipairs(FIELDS) do
    r[field] = args[at + i]
  end
  local ttl_ms = math.ceil(r.deadline * 1000 + keep_ms) + SHARED_TTL_MS
  r.deadline, r.cost, r.keep, r.max = NOW + r.deadline, tonumber(r.cost), keep_ms, max_attempts
  r.arrival = call('HINCRBY', P .. ':n', 'arrivals', 1)
  r.gateways, r.joined = gateway, joined
  local flat = {'pass', ''} -- first, for every emission looks for it
  for field, value in pairs(r) do
    table.insert(flat, field)
    table.insert(flat, value)
  end
  call('HSET', P .. ':r:' .. r.id, unpack(flat))
  call('PEXPIRE', P .. ':r:' .. r.id, ttl_ms)
  call('SET', P .. ':b:' .. r.id, args[at + 7], 'PX', ttl_ms)
  call('SET', P .. ':p:' .. r.id, args[at + 8], 'PX', ttl_ms)
  call('ZADD', P .. ':deadlines', r.deadline, r.id)
  enqueue(r)
end

-- args: gateway, caps of requests, tokens and a tenant's requests, keep_ms, max_attempts, tenant, idempotency key, its
-- digest, TTL of the key in ms; then for each request id, FIELDS (deadline: in seconds from now), body, prompt.
local function submit(keys, args)
  begin(keys)
  local first, width = 11, 9
  local joined = P .. ':i:' .. args[7] .. ':' .. args[8]
  local known = args[8] ~= '' and call('HMGET', joined, 'digest', 'ids') or {}
  if known[1] and call('EXISTS', P .. ':r:' .. string.match(known[2], '%S+')) == 1 then
    return known[1] == args[9] and {'ok', known[2]} or {'conflict'}
  end
  local new, tokens, ids, seen = {}, 0, {}, {}
  for at = first, #args, width do
    table.insert(ids, args[at])
    if not seen[args[at]] and call('EXISTS', P .. ':r:' .. args[at]) == 0 then
      seen[args[at]] = true
      table.insert(new, at)
      tokens = tokens + tonumber(args[at + 4])
    end
  end
  local counts = call('HMGET', P .. ':n', 'waiting', 'waiting_tokens')
  local waiting, waiting_tokens = tonumber(counts[1] or 0), tonumber(counts[2] or 0)
  local tenants = tonumber(call('HGET', P .. ':tenants', args[7]) or 0)
  local over = waiting + #new > tonumber(args[2]) or waiting_tokens + tokens > tonumber(args[3])
  if #new > 0 and (over or tenants + #new > tonumber(args[4])) then
    return {'full', waiting, waiting_tokens, over and '' or args[7]}
  end
  for _, at in ipairs(new) do
    accept(args[1], tonumber(args[5]), args[6], joined, args, at)
  end
  if args[8] ~= '' then
    call('HSET', joined, 'digest', args[9], 'ids', table.concat(ids, ' '))
    call('PEXPIRE', joined, args[10])
  end
  keep_shared(P .. ':n', P .. ':deadlines')
  return {'ok', table.concat(ids, ' ')}
end

-- args: gateway, then ids. Answers for each the whole log, so that a reader can compare what it has yielded, and tells
-- from now on that gateway of it; false where nothing is known of the request.
local function watch(keys, args)
  begin(keys)
  local answers = {}
  for at = 2, #args do
    local id = args[at]
    local r = call('HMGET', P .. ':r:' .. id, 'gateways', 'queued', 'end', 'pass')
    if r[1] then
      if not string.find(' ' .. r[1] .. ' ', ' ' .. args[1] .. ' ', 1, true) then
        local pass = r[4] ~= '' and r[4] .. ' ' .. args[1] or ''
        call('HSET', P .. ':r:' .. id, 'gateways', r[1] .. ' ' .. args[1], 'pass', pass)
      end
      table.insert(answers, {
        call('GET', P .. ':t:' .. id) or '', call('LRANGE', P .. ':l:' .. id, 0, -1), call('GET', P .. ':s:' .. id),
        r[2], r[3],
      })
    else
      table.insert(answers, false)
    end
  end
  return answers
end

-- args: id of an answer. Answers the bodies and prompts of its requests, in turn.
local function find(keys, args)
  begin(keys)
  local parts = {}
  for choice = 0, tonumber(call('HGET', P .. ':r:' .. args[1] .. '-0', 'choices') or 0) - 1 do
    local id = args[1] .. '-' .. choice
    table.insert(parts, call('GET', P .. ':b:' .. id) or '')
    table.insert(parts, call('GET', P .. ':p:' .. id) or '')
  end
  return parts
end

-- args: id.
local function cancel(keys, args)
  begin(keys)
  local r = load(args[1])
  if r and not r['end'] then
    r.cancelled = '1'
    call('HSET', P .. ':r:' .. r.id, 'cancelled', '1', 'pass', '')
    if r.worker == '' then
      leave_line(r, false)
      call_off(r, unwanted(r))
    end
  end
end

-- Answers the counts in the order of `counted`, the seconds in which something ran, and the revisions of each worker whose
-- lease holds.
local function stats(keys)
  begin(keys)
  local counted = {'waiting', 'running', 'waiting_tokens', 'resumed', 'fenced', 'quarantined', 'drained'}
  local busy = call('HMGET', P .. ':n', 'busy_s', 'busy_since', 'running')
  local busy_s = tonumber(busy[1] or 0) + (tonumber(busy[3] or 0) > 0 and NOW - busy[2] or 0)
  local workers = {}
  for _, worker in ipairs(call('ZRANGEBYSCORE', P .. ':workers', '(' .. NOW, '+inf')) do
    table.insert(workers, call('HGET', P .. ':w:' .. worker, 'revisions'))
  end
  return {call('HMGET', P .. ':n', unpack(counted)), tostring(busy_s), workers}
end

local function dead(keys)
  begin(keys)
  return call('LRANGE', P .. ':dead', 0, -1)
end

-- args: workers that are dead for certain. Answers those that are left, each with its identity.
local function reap(keys, args)
  begin(keys)
  for _, worker in ipairs(args) do
    drop_worker(worker, true)
  end
  for _, worker in ipairs(call('ZRANGEBYSCORE', P .. ':workers', '-inf', NOW)) do
    drop_worker(worker, false)
  end
  for _, id in ipairs(call('ZRANGEBYSCORE', P .. ':deadlines', '-inf', NOW, 'LIMIT', 0, 1000)) do
    local r = load(id)
    if r and not r['end'] then
      if r.worker == '' then
        leave_line(r, false)
      else
        leave_worker(r)
      end
      call_off(r, unwanted(r))
    end
    call('ZREM', P .. ':deadlines', id)
  end
  local left = {}
  for _, worker in ipairs(call('ZRANGE', P .. ':workers', 0, -1)) do
    table.insert(left, worker)
    table.insert(left, call('HGET', P .. ':w:' .. worker, 'identity'))
  end
  return left
end
