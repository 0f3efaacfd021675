-- How a request ends, and how news of it travels.

-- msgpack by hand, where a value is to be a float at any rate, or the values of an array are encoded already.
local function packed_float(value)
  return '\203' .. struct.pack('>d', value)
end

local function packed_array(values)
  return '\221' .. struct.pack('>I4', #values) .. table.concat(values)
end

local function tell(news)
  for gateway, updates in pairs(news) do
    call('PUBLISH', P .. ':gw:' .. gateway, packed_array(updates))
  end
end

-- Note `update`, a msgpack Hint, for each gateway that watches.
local function note(news, gateways, update)
  for i = 1, #gateways do
    local updates = news[gateways[i]] or {}
    news[gateways[i]] = updates
    updates[#updates + 1] = update
  end
end

-- Let a worker that held a suspect look for others: it may take them now.
local function make_room(r)
  call('HDEL', P .. ':w:' .. r.worker, 'alone')
  call('PUBLISH', P .. ':work', r.line)
end

local function leave_worker(r)
  call('SREM', P .. ':own:' .. r.worker, r.id)
  if r.attempts > 0 then
    make_room(r)
  end
  count_running(-1)
end

-- Let an answer be forgotten, `keep` milliseconds after the last of its requests has ended.
local function expire(r)
  local num_choices, ids = tonumber(r.choices), {r.id}
  if num_choices > 1 then
    local answer = string.match(r.id, '^(.*)%-%d+$')
    if call('HINCRBY', P .. ':r:' .. answer .. '-0', 'num_ended', 1) < num_choices then
      return
    end
    for choice = 0, num_choices - 1 do
      ids[choice + 1] = answer .. '-' .. choice
    end
  end
  call('PEXPIRE', r.joined, r.keep)
  for _, id in ipairs(ids) do
    for _, kind in ipairs({':r:', ':b:', ':p:', ':t:', ':l:', ':s:'}) do
      call('PEXPIRE', P .. kind .. id, r.keep)
    end
  end
end

-- Close a request that neither waits nor runs any more.
local function close(r, packed_end)
  local queued = r.queued ~= '' and r.queued or NOW - r.submitted
  call('HSET', P .. ':r:' .. r.id, 'end', packed_end, 'worker', '', 'pass', '', 'queued', queued)
  call('ZREM', P .. ':deadlines', r.id)
  expire(r)
end

-- Close a request by the queue's own decision, and say so.
local function call_off(r, ending)
  close(r, cmsgpack.pack(ending))
  local base = call('STRLEN', P .. ':t:' .. r.id) / 4
  local news = {}
  note(news, words(r.gateways), cmsgpack.pack({r.id, base, {}, tonumber(r.queued) or NOW - r.submitted, ending}))
  tell(news)
end

-- The end that awaits `r` when nobody wants it any more.
local function unwanted(r)
  if r.cancelled == '1' then
    return {finish_reason = 'abort'}
  elseif r.deadline <= NOW then
    return {finish_reason = 'abort', deadline_passed = true}
  end
end

local function quarantine(r)
  local entry = '\147' .. call('GET', P .. ':b:' .. r.id) .. cmsgpack.pack(r.attempts) .. packed_float(NOW)
  call('LPUSH', P .. ':dead', entry)
  call('LTRIM', P .. ':dead', 0, MAX_DEAD - 1)
  keep_shared(P .. ':dead')
  count('quarantined', 1)
  call_off(r, {finish_reason = 'error', quarantined = true, error = r.attempts .. QUARANTINE_ERROR})
  call('DEL', P .. ':p:' .. r.id)
end

-- Take a request from its worker, which died with it for certain or not: it waits again, or ends.
local function take_back(r, died)
  leave_worker(r)
  r.epoch, r.worker = r.epoch + 1, ''
  r.attempts = r.attempts + (died and 1 or 0)
  call('HSET', P .. ':r:' .. r.id, 'epoch', r.epoch, 'worker', '', 'pass', '', 'attempts', r.attempts)
  local ending = unwanted(r)
  if ending then
    call_off(r, ending)
  elseif r.attempts >= r.max then
    quarantine(r)
  else
    enqueue(r)
  end
end

local last_renewed = {} -- in this server's memory alone: to be without it costs a little time

-- Renew a lease, a tenth of it late at most; false when it was lost.
local function renew_lease(worker, lease_s)
  if call('EXISTS', P .. ':w:' .. worker) == 0 then
    last_renewed[worker] = nil
    return false
  elseif NOW - (last_renewed[worker] or 0) > lease_s / 10 then
    last_renewed[worker] = NOW
    call('ZADD', P .. ':workers', NOW + lease_s, worker)
  end
  return true
end

local function lines_of(worker)
  return words(call('HGET', P .. ':w:' .. worker, 'lines') or '')
end

-- Let others prepare for the last chances for which `worker` was reserved.
local function drop_reservations(worker)
  for _, line in ipairs(lines_of(worker)) do
    if call('GET', P .. ':reserved:' .. line) == worker then
      call('DEL', P .. ':reserved:' .. line)
    end
  end
end

local function drop_worker(worker, died)
  for _, id in ipairs(call('SMEMBERS', P .. ':own:' .. worker)) do
    local r = load(id)
    if r then
      take_back(r, died)
    end
  end
  drop_reservations(worker)
  last_renewed[worker] = nil
  call('ZREM', P .. ':workers', worker)
  call('HDEL', P .. ':room', worker)
  call('DEL', P .. ':w:' .. worker, P .. ':own:' .. worker)
end
