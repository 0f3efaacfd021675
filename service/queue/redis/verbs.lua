-- What can be called from outside, under names that end in the library's version.

local VERBS = {
  {'submit', submit}, {'watch', watch}, {'find', find}, {'cancel', cancel}, {'stats', stats}, {'dead', dead},
  {'reap', reap}, {'register', register}, {'claim', claim}, {'emit', emit}, {'renew', renew}, {'retire', retire},
  {'keep', keep}, {'release', release},
}
for i = 1, #VERBS do
  local name, verb = VERBS[i][1], VERBS[i][2]
  -- Where memory is short nothing more is submitted, and what was accepted still comes to its end.
  local flags = name == 'submit' and {} or {'allow-oom'}
  redis.register_function({function_name = name .. '_' .. VERSION, callback = verb, flags = flags})
end
