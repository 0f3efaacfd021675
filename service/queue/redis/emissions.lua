-- What a worker says of what it holds: tokens, appended where the log ends, and ends; who lost a request is refused.

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

-- Let a suspect be an ordinary request again.
local function clear(id)
  local r = load(id)
  if r.worker ~= '' then
    make_room(r)
    local pass = table.concat({r.worker .. ':' .. r.epoch, r.deadline, '-', r.gateways}, ' ')
    call('HSET', P .. ':r:' .. id, 'attempts', 0, 'pass', pass)
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
