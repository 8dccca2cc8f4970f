#!/usr/bin/env bash
# Builds one function and deploys it where a tenant has it, or to a ring of the pool; waits until it serves, and says how to go back.
#   make deploy FN=send TENANT=dev-ana
#   make deploy FN=send [REGION=local] [RING=stable]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/cluster.sh

fn=${FN:-}
functions=$(cd functions && printf '%s ' */)
functions=${functions//\//}
[[ $fn =~ ^[a-z-]+$ && -e functions/$fn/service.yaml ]] || { echo "FN is \"$fn\": name one of $functions" >&2; exit 2; }
if [ -n "${TENANT:-}" ]; then
  [ -z "${RING:-}" ] || { echo "TENANT and RING are two places: name one of them" >&2; exit 2; }
  entry=config/tenants/$TENANT
  create="onda tenant create NAME --files config/tenants --functions $fn"
  [ -e "$entry/tenant.yaml" ] || { echo "TENANT is \"$TENANT\": there is no $entry/tenant.yaml; ${create/NAME/$TENANT} makes it" >&2; exit 2; }
  [ -e "$entry/kustomization.yaml" ] || { echo "$TENANT is pooled, so it has no functions of its own: deploy to a ring (RING=next), or make another tenant: $create" >&2; exit 2; }
elif [ "$fn" = schedule ]; then
  entry=config/regions/${REGION:-local}/system
else
  entry=config/regions/${REGION:-local}/${RING:-stable}
fi
[ -e "$entry/kustomization.yaml" ] || { echo "there is no $entry/kustomization.yaml: see config/regions for the regions and rings" >&2; exit 2; }
need_cluster

began=$(date +%s%N)
selected=$(mktemp)
trap 'rm -f "$selected"' EXIT
# The function's services by their names, whether the entry has their image built here or at a version, and the settings they take. A first pod has to be ready before
# requests go to the new revision, and before this ends: where revisions begin at zero, being Ready would prove nothing.
names=$(sed -n 's/^  name: //p' "functions/$fn/service.yaml" | tr '\n' ' ')
kubectl kustomize "$entry" | awk -v names=" $names" 'BEGIN { RS = "---\n"; ORS = "---\n" }
  function name() { return match($0, /\n  name: [a-z0-9-]+\n/) ? substr($0, RSTART + 9, RLENGTH - 10) : "" }
  (/(^|\n)kind: Service\n/ && index(names, " " name() " ")) || (/\nkind: ConfigMap\n/ && /\n  name: onda-/)' |
  sed 's|^\( *\)autoscaling.knative.dev/max-scale:.*|\1autoscaling.knative.dev/initial-scale: "1"\n&|' >"$selected"
grep -q '^kind: Service$' "$selected" || { echo "$entry has no function $fn of its own" >&2; exit 2; }
pinned=$(sed -n 's|^ *- image: ||p; s|^ *image: ||p' "$selected" | grep -v '^ko://' | head -n 1) || true
[ -z "$pinned" ] || echo "$entry has its images at a version, so nothing is built: $pinned"
namespace=$(sed -n 's/^  namespace: //p' "$selected" | head -n 1)
kubectl get namespace "$namespace" >/dev/null 2>&1 || { echo "there is no namespace $namespace: apply $entry as a whole first (kubectl kustomize $entry | ko apply -f -)" >&2; exit 1; }
mapfile -t services < <(awk 'BEGIN { RS = "---\n" } /kind: Service\n/ { if (match($0, /\n  name: [a-z-]+\n/)) { s = substr($0, RSTART + 9, RLENGTH - 10); print s } }' "$selected")
# serving is the revision that all requests go to: not always the latest that was ever ready, after a way back was taken.
serving() { kubectl -n "$namespace" get ksvc "$1" -o jsonpath='{.status.traffic[?(@.percent==100)].revisionName}' 2>/dev/null || true; }
# seen waits until the controller has seen a generation, or one that came after it: somebody else may deploy too.
seen() {
  local until=$((SECONDS + 60))
  until [ "$(kubectl -n "$namespace" get ksvc "$1" -o jsonpath='{.status.observedGeneration}')" -ge "$2" ] 2>/dev/null; do
    [ $SECONDS -lt $until ] || return 1
    sleep 0.2
  done
}
declare -A before
for s in "${services[@]}"; do before[$s]=$(serving "$s"); done

ko apply --platform "$(platform)" -f "$selected"

failed=0 until=$((SECONDS + 180)) # for all of them together
for s in "${services[@]}"; do
  generation=$(kubectl -n "$namespace" get ksvc "$s" -o jsonpath='{.metadata.generation}')
  left=$((until - SECONDS))
  if { seen "$s" "$generation" && kubectl -n "$namespace" wait --for=condition=Ready "ksvc/$s" --timeout="$((left > 1 ? left : 1))s"; } >/dev/null; then
    now=$(serving "$s")
    echo "$namespace/$s serves $now"
  else
    failed=1 now=$(serving "$s")
    echo "$namespace/$s is not ready, and ${now:-no revision} serves:" >&2
    kubectl -n "$namespace" get ksvc "$s" -o jsonpath='{range .status.conditions[?(@.status!="True")]}  {.type}: {.message}{"\n"}{end}' >&2
  fi
  # Also where the one before still serves: the new one takes over as soon as it is ready.
  if [ -n "${before[$s]}" ] && { [ "${before[$s]}" != "$now" ] || [ $failed = 1 ]; }; then
    echo "  to go back: kubectl -n $namespace patch ksvc $s --type=merge -p '{\"spec\":{\"traffic\":[{\"revisionName\":\"${before[$s]}\",\"percent\":100}]}}'" >&$((1 + failed))
  fi
done
took=$((($(date +%s%N) - began) / 1000000))
[ $failed = 0 ] || { echo "not deployed, after $((took / 1000)) s: see above" >&2; exit 1; }
echo "deployed in $((took / 1000)).$(printf %03d $((took % 1000))) s"
