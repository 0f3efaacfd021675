-- What workers call. Every verb is one atomic step, by the server's own time.

-- args: worker, lease_s, identity, revisions, lines. What it held before goes to others.
local function register(keys, args)
  begin(keys)
  local worker = args[1]
  drop_worker(worker, false)
  call('ZADD', P .. ':workers', NOW + args[2], worker)
  call('HSET', P .. ':w:' .. worker, 'identity', args[3], 'revisions', args[4], 'lines', args[5])
  call('HSET', P .. ':room', worker, 0)
  keep_shared(P .. ':workers', P .. ':w:' .. worker, P .. ':room', P .. ':n')
end

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

-- Hand over what this worker is to have now.
local function take(worker, limit, is_shared)
  local lines, held, taken = lines_of(worker), call('SCARD', P .. ':own:' .. worker), {}
  if call('HEXISTS', P .. ':w:' .. worker, 'alone') == 1 then
    return taken
  end
  local alone, is_kept = last_chance(worker, lines, held)
  if alone then
    call('HSET', P .. ':w:' .. worker, 'alone', alone.id)
    return {hand_over(alone, worker)}
  elseif is_kept then
    return taken
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
  return taken
end

-- args: worker, most requests, lease_s, '1' to take a fair share alone, a number of this claim: asked again under the
-- same, because an answer was lost, it answers the same. Answers whether more waits for this worker, and the claims:
-- epoch, body, prompt, log, seconds queued.
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
  for _, r in ipairs(take(worker, limit, args[4] == '1')) do
    table.insert(claims, described(r))
    table.insert(ids, r.id)
  end
  if #ids > 0 then
    call('HSET', about, 'claim', args[5], 'claimed', table.concat(ids, ' '))
  end
  call('HSET', P .. ':room', worker, limit - #ids)
  return {num_waiting(lines_of(worker)) > 0 and 1 or 0, claims}
end

-- Append tokens where the log ends. Answers whether it did end there.
local function append(id, base, tokens)
  local log = P .. ':t:' .. id
  local length = #tokens > 0 and call('APPEND', log, tokens) or call('STRLEN', log)
  if length == base * 4 + #tokens then
    return true
  elseif length > #tokens then -- the rare case pays for both: what should not have been appended goes again
    call('SET', log, call('GETRANGE', log, 0, length - #tokens - 1), 'KEEPTTL')
  else
    call('DEL', log)
  end
  return false
end

-- Whether the log has these very tokens at their place: a retry.
local function holds(id, base, tokens)
  return #tokens == 0 or call('GETRANGE', P .. ':t:' .. id, base * 4, base * 4 + #tokens - 1) == tokens
end

-- Keep what came beside tokens: scores of the prompt, log-probabilities of each token, an end.
local function keep_beside(id, beside)
  local ttl_ms = call('PTTL', P .. ':r:' .. id)
  if beside[2] ~= '' then
    call('SET', P .. ':s:' .. id, beside[2], 'NX', 'PX', ttl_ms)
  end
  if #beside > 2 then
    call('RPUSH', P .. ':l:' .. id, unpack(beside, 3))
    call('PEXPIRE', P .. ':l:' .. id, ttl_ms)
  end
  if beside[1] ~= '' then
    local r = load(id)
    leave_worker(r)
    count('drained', r.cost)
    close(r, beside[1])
  end
end

-- The status of an emission whose fence is not, or no longer, the request's.
local function refuse(id, fence, base, tokens, packed_end)
  local r = load(id)
  if r and r.worker .. ':' .. r.epoch == fence then
    leave_worker(r)
    call_off(r, unwanted(r))
    return 'C'
  end
  local is_retry = r and packed_end ~= '' and r['end'] == packed_end and string.match(fence, '%d+$') == r.epoch .. ''
  return is_retry and holds(id, base, tokens) and 'O' or 'F'
end

local MAX_PASSES = 10000
local passes, num_passes = {}, 0 -- what was read of the texts of passes, which stay the same from token to token

-- What lets an emission pass, as long as it runs: its fence, "<worker>:<epoch>", its deadline, the token at which it is
-- no suspect any more ("-": it is none), and its gateways.
local function read_pass(text)
  local fence, deadline, cleared_at, gateways = string.match(text, '(%S+) (%S+) (%S+) (.*)')
  local pass = {fence = fence, deadline = tonumber(deadline), cleared_at = tonumber(cleared_at)}
  pass.gateways = words(gateways or '')
  if num_passes == MAX_PASSES then
    passes, num_passes = {}, 0
  end
  passes[text], num_passes = pass, num_passes + 1
  return pass
end

-- Let a suspect be an ordinary request again, and let its worker know that there may be room for others.
local function clear(id)
  local r = load(id)
  if r.worker ~= '' then
    call('HDEL', P .. ':w:' .. r.worker, 'alone')
    local pass = table.concat({r.worker .. ':' .. r.epoch, r.deadline, '-', r.gateways}, ' ')
    call('HSET', P .. ':r:' .. id, 'attempts', 0, 'pass', pass)
    call('PUBLISH', P .. ':work', r.line)
  end
end

local function emit_one(id, fence, base, tokens, update, beside, news)
  local text = call('HGET', P .. ':r:' .. id, 'pass') or ''
  local pass = passes[text] or read_pass(text)
  if pass.fence ~= fence or pass.deadline <= NOW then
    return refuse(id, fence, base, tokens, beside and beside[1] or '')
  elseif not append(id, base, tokens) then
    if (not beside or beside[1] == '') and holds(id, base, tokens) then
      return 'O'
    end
    take_back(load(id), false)
    return 'G'
  end
  if base == 0 and #tokens > 0 then
    call('PEXPIRE', P .. ':t:' .. id, call('PTTL', P .. ':r:' .. id))
  end
  if beside then
    keep_beside(id, beside)
  end
  if update ~= '' then
    note(news, pass.gateways, update)
  end
  if pass.cleared_at and base + #tokens / 4 >= pass.cleared_at then
    clear(id)
  end
  return 'O'
end

-- args: worker, lease_s; then for each emission id, fence, base, tokens, update ('' when there is no news), the number of
-- what is beside these: none, or an end ('' for none), scores of the prompt ('' too), log-probabilities of each token.
-- Answers a letter each: O ok, C cancel, F fenced, G gap.
local function emit(keys, args)
  begin(keys)
  local at, statuses, news, num_fenced = 3, {}, {}, 0
  renew_lease(args[1], tonumber(args[2]))
  while at < #args do
    local num_beside = tonumber(args[at + 5])
    local beside = num_beside > 0 and {unpack(args, at + 6, at + 5 + num_beside)} or nil
    local status = emit_one(args[at], args[at + 1], tonumber(args[at + 2]), args[at + 3], args[at + 4], beside, news)
    num_fenced = num_fenced + (status == 'F' and 1 or 0)
    statuses[#statuses + 1] = status
    at = at + 6 + num_beside
  end
  if num_fenced > 0 then
    count('fenced', num_fenced)
    keep_shared(P .. ':n') -- it may be new: everything else was flushed
  end
  tell(news)
  return table.concat(statuses)
end

-- args: worker, lease_s. Answers how many requests it holds by our account, or -1 when the lease was lost.
local function renew(keys, args)
  begin(keys)
  keep_shared(P .. ':workers', P .. ':w:' .. args[1], P .. ':own:' .. args[1], P .. ':room', P .. ':n', P .. ':lines')
  return renew_lease(args[1], tonumber(args[2])) and call('SCARD', P .. ':own:' .. args[1]) or -1
end

-- args: worker, and all that it holds by its own account. The rest waits again: a server that lost its last moments may
-- have forgotten an end, and would wait for it as long as the worker lives.
local function keep(keys, args)
  begin(keys)
  local held = {}
  for i = 2, #args do
    held[args[i]] = true
  end
  for _, id in ipairs(call('SMEMBERS', P .. ':own:' .. args[1])) do
    local r = not held[id] and load(id)
    if r then
      take_back(r, false)
    end
  end
end

-- args: worker. It claims no more and keeps what it has.
local function retire(keys, args)
  begin(keys)
  if call('ZSCORE', P .. ':workers', args[1]) then
    drop_reservations(args[1])
    call('HSET', P .. ':w:' .. args[1], 'lines', '', 'revisions', EMPTY_REVISIONS)
  end
  call('HDEL', P .. ':room', args[1])
end

-- args: worker. It hands back everything.
local function release(keys, args)
  begin(keys)
  drop_worker(args[1], false)
end
