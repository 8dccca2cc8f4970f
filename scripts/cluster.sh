# What deploying needs of this machine and of the cluster. Sourced by them: it only defines functions.
# shellcheck shell=bash

# knative_kinds are the kinds that the manifests have, and the versions of them.
knative_kinds() {
  cat <<'END'
services.serving.knative.dev v1 Knative Serving
domainmappings.serving.knative.dev v1beta1 Knative Serving
brokers.eventing.knative.dev v1 Knative Eventing
triggers.eventing.knative.dev v1 Knative Eventing
eventtypes.eventing.knative.dev v1beta3 Knative Eventing
pingsources.sources.knative.dev v1 Knative Eventing
END
}

# need_cluster looks at the cluster of the present kubeconfig before anything is applied to it.
need_cluster() {
  local kind version part served why missing=()
  command -v kubectl >/dev/null || { echo "kubectl is not on the path: install it, see https://kubernetes.io/docs/tasks/tools" >&2; exit 1; }
  command -v ko >/dev/null || { echo "ko is not on the path: install it, see https://ko.build" >&2; exit 1; }
  [ -n "${KO_DOCKER_REPO:-}" ] || { echo "KO_DOCKER_REPO is not set: it names the registry that ko pushes images to and the cluster pulls from" >&2; exit 1; }
  kubectl version --request-timeout=10s >/dev/null 2>&1 ||
    { echo "no cluster answers: kubectl's context is \"$(kubectl config current-context 2>/dev/null || true)\"; set KUBECONFIG, or choose another context" >&2; exit 1; }
  while read -r kind version part; do
    if ! served=$(kubectl get crd "$kind" -o jsonpath='{range .spec.versions[?(@.served==true)]}{.name} {end}' 2>/dev/null); then # what kubectl warns of beside is no version
      why=$(kubectl get crd "$kind" 2>&1 >/dev/null) || true
      case $why in
        *NotFound*) served= ;;
        # A developer may not look at definitions everywhere; the versions of the group everybody sees.
        *Forbidden*) served=$(kubectl api-versions | sed -n "s|^${kind#*.}/||p" | tr '\n' ' ') ;;
        *) echo "the cluster does not say whether it has $kind: $why" >&2; exit 1 ;;
      esac
    fi
    case " $served" in
      *" $version "*) ;;
      " ") missing+=("$kind is not there: install $part") ;;
      *) missing+=("$kind has $served but not $version: $part is too old") ;;
    esac
  done < <(knative_kinds)
  if [ ${#missing[@]} -gt 0 ]; then
    echo "This cluster ($(kubectl config current-context)) cannot run Onda; nothing was applied:" >&2
    printf '  %s\n' "${missing[@]}" >&2
    exit 1
  fi
}

# platform is what the cluster's nodes run: to build for others too would take twice as long.
platform() {
  kubectl get nodes -o jsonpath='{range .items[*]}{.status.nodeInfo.operatingSystem}/{.status.nodeInfo.architecture}{"\n"}{end}' 2>/dev/null | sort -u | paste -sd, -
}
