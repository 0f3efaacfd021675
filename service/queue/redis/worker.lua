-- How a worker comes, stays and goes.

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
