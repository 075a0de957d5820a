-- Asks the service with the client's own body. txn.pod_ip and txn.pod_port say where to go; they stay unset while the service is away.
local SERVICE = "http://127.0.0.1:8080/v1/pick"
-- With --api-token-file: { "the token" }
local TOKEN = nil
local PASSED_ON = { "content-type", "x-session-id", "anthropic-version" }

core.register_action("kv_pick", { "http-req" }, function(txn)
  local given, headers = txn.http:req_get_headers(), {}
  for _, name in ipairs(PASSED_ON) do
    if given[name] then headers[name] = { given[name][0] } end
  end
  headers["x-kv-indexer-token"] = TOKEN
  local body, length = txn.sf:req_body(), tonumber(txn.sf:req_body_size())
  if body and length and #body < length then
    headers["x-envoy-auth-partial-body"] = { "true" }  -- cut: it is picked by load
  end
  local answer = core.httpclient():post { url = SERVICE .. txn.sf:path(), body = body or "", headers = headers, timeout = 3000 }
  if not answer or answer.status >= 500 or answer.status == 0 then return end
  if answer.status ~= 200 then
    local reply = txn:reply { status = answer.status }
    reply:add_header("content-type", "application/json")
    reply:set_body(answer.body)
    txn:done(reply)
  end
  txn:set_var("txn.kv_id", answer.headers["x-kv-request-id"][0])
  local ip, port = answer.headers["x-gateway-destination-endpoint"][0]:match("^%[?([^%]]-)%]?:(%d+)$")
  txn:set_var("txn.pod_ip", ip)
  txn:set_var("txn.pod_port", tonumber(port))
end)

-- The prompt is computed: it does not wait at the pod any more.
core.register_action("kv_done", { "http-res" }, function(txn)
  local id = txn:get_var("txn.kv_id")
  if id then core.httpclient():delete { url = SERVICE .. "/" .. id, headers = { ["x-kv-indexer-token"] = TOKEN }, timeout = 1000 } end
end)
