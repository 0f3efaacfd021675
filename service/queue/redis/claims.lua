-- What a worker gets when it asks: a last chance, its quota of suspects, its fair share of ordinary requests.

local function num_waiting(lines)
  local number = 0
  for _, line in ipairs(lines) do
    number = number + tonumber(call('HGET', P .. ':lines', line) or 0)
  end
  return number
end

-- How many of what waits are for this worker, so that all who had room when they last asked hold as many.
local function fair_share(worker, lines, held)
  local total, takers, served = num_waiting(lines) + held, 1, {}
  for _, line in ipairs(lines) do
    served[line] = true
  end
  local rooms = call('HGETALL', P .. ':room')
  for i = 1, #rooms, 2 do
    local other, alike = rooms[i], false
    for _, line in ipairs(other ~= worker and rooms[i + 1] ~= '0' and lines_of(other) or {}) do
      alike = alike or served[line]
    end
    if alike then
      total, takers = total + call('SCARD', P .. ':own:' .. other), takers + 1
    end
  end
  return math.max(0, math.ceil(total / takers) - held)
end

local function hand_over(r, worker)
  leave_line(r, true)
  r.epoch = r.epoch + 1
  local queued = r.queued ~= '' and r.queued or NOW - r.submitted
  local cleared_at = r.attempts > 0 and call('STRLEN', P .. ':t:' .. r.id) / 4 + CLEARED_AFTER or '-'
  local pass = table.concat({worker .. ':' .. r.epoch, r.deadline, cleared_at, r.gateways}, ' ')
  call('HSET', P .. ':r:' .. r.id, 'epoch', r.epoch, 'worker', worker, 'queued', queued, 'pass', pass)
  call('SADD', P .. ':own:' .. worker, r.id)
  keep_shared(P .. ':own:' .. worker)
  count_running(1)
  if r.epoch > 1 then
    count('resumed', 1)
  end
  r.worker, r.queued = worker, tostring(queued)
  return r
end

-- What a worker is told of a request that it holds.
local function described(r)
  local body, prompt = call('GET', P .. ':b:' .. r.id), call('GET', P .. ':p:' .. r.id)
  return {r.epoch, body, prompt, call('GET', P .. ':t:' .. r.id) or '', r.queued}
end

-- What it was told when it asked before, of what it still holds.
local function claimed_before(worker, ids)
  local claims = {}
  for _, id in ipairs(words(ids)) do
    local r = load(id)
    if r and r.worker == worker then
      table.insert(claims, described(r))
    end
  end
  return claims
end

-- What `r` ends with instead of being claimed: true when it did.
local function is_called_off(r)
  local ending = unwanted(r)
  if ending then
    leave_line(r, false)
    call_off(r, ending)
  end
  return ending ~= nil
end

-- The request with a last chance that this worker must take alone, and whether one keeps it from taking others.
local function last_chance(worker, lines, held)
  for _, line in ipairs(lines) do
    local id = first_of(P .. ':last:', {line})
    local r = id and load(id)
    if r and not is_called_off(r) then
      call('SET', P .. ':reserved:' .. line, worker, 'NX', 'PX', SHARED_TTL_MS)
      if call('GET', P .. ':reserved:' .. line) == worker then
        return held == 0 and r or nil, true
      end
    end
  end
  return nil, false
end

local function num_suspects(worker)
  local number = 0
  for _, id in ipairs(call('SMEMBERS', P .. ':own:' .. worker)) do
    number = number + (call('HGET', P .. ':r:' .. id, 'attempts') ~= '0' and 1 or 0)
  end
  return number
end

-- `capacity`: what the worker holds, and the most that it asks for.
local function take_suspects(worker, lines, capacity, limit, taken)
  local id = first_of(P .. ':suspects:', lines)
  local quota = id and math.max(1, math.floor(capacity / 4)) - num_suspects(worker) or 0
  while id and quota > 0 and #taken < limit do
    local r = load(id)
    if not is_called_off(r) then
      table.insert(taken, hand_over(r, worker))
      quota = quota - 1
    end
    id = first_of(P .. ':suspects:', lines)
  end
end

-- Hand over what this worker is to have now. Answers too whether it might have had more, but for its limit or share.
local function take(worker, limit, is_shared)
  local lines, held, taken = lines_of(worker), call('SCARD', P .. ':own:' .. worker), {}
  if call('HEXISTS', P .. ':w:' .. worker, 'alone') == 1 then
    return taken, false
  end
  local alone, is_kept = last_chance(worker, lines, held)
  if alone then
    call('HSET', P .. ':w:' .. worker, 'alone', alone.id)
    return {hand_over(alone, worker)}, false
  elseif is_kept then
    return taken, false
  end
  local share = is_shared and math.min(limit, fair_share(worker, lines, held)) or limit
  take_suspects(worker, lines, held + limit, share, taken)
  while #taken < share do
    local r = next_ordinary(lines)
    if not r then
      break
    elseif not is_called_off(r) then
      table.insert(taken, hand_over(r, worker))
    end
  end
  return taken, #taken == share
end

-- args: worker, most requests, lease_s, '1' to take a fair share alone, a number of this claim: asked again under the
-- same, because an answer was lost, it answers the same. Answers whether to ask again at once may bring more, and the
-- claims: epoch, body, prompt, log, seconds queued.
local function claim(keys, args)
  begin(keys)
  local worker, about = args[1], P .. ':w:' .. args[1]
  if not renew_lease(worker, tonumber(args[3])) then
    return {0, {}}
  end
  local last = call('HMGET', about, 'claim', 'claimed')
  if last[1] == args[5] then
    return {1, claimed_before(worker, last[2])}
  end
  local limit, claims, ids = tonumber(args[2]), {}, {}
  local taken, is_bound = take(worker, limit, args[4] == '1')
  for _, r in ipairs(taken) do
    table.insert(claims, described(r))
    table.insert(ids, r.id)
  end
  if #ids > 0 then
    call('HSET', about, 'claim', args[5], 'claimed', table.concat(ids, ' '))
  end
  call('HSET', P .. ':room', worker, limit - #ids)
  return {is_bound and num_waiting(lines_of(worker)) > 0 and 1 or 0, claims}
end
