-- The health of a Knative resource is its condition Ready, once its controller has seen the newest spec.
local health = {status = "Progressing", message = "not seen by its controller yet"}
local status = obj.status
if status == nil or status.conditions == nil then
  return health
end
if status.observedGeneration ~= obj.metadata.generation then
  health.message = "its controller has not seen the newest spec yet"
  return health
end
for _, condition in ipairs(status.conditions) do
  if condition.type == "Ready" then
    if condition.status == "True" then
      return {status = "Healthy", message = "Ready"}
    end
    if condition.status == "False" then
      health.status = "Degraded"
    end
    health.message = condition.reason or "Ready is " .. condition.status
    if condition.message ~= nil and condition.message ~= "" then
      health.message = health.message .. ": " .. condition.message
    end
    if condition.reason == "DomainAlreadyClaimed" then -- what Knative says too where nobody has claimed it
      health.message = health.message .. ", or autocreate-cluster-domain-claims is not true in config-network"
    end
  end
end
return health
