#!/usr/bin/env bash
# Gets what the end-to-end test of config/argocd runs, into .onda/argocd: Argo CD and kustomize at the versions of tools/argocd/go.mod, built from their sources, which takes
# a quarter of an hour the first time; and Redis from Debian. Prints the directory of Argo CD's sources, which have its manifests.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/need.sh
need_go
dir=$PWD/.onda/argocd
mkdir -p "$dir/bin"
packages=(redis-server redis-tools) missing=()
mapfile -t missing < <(apt-get -s install --no-install-recommends "${packages[@]}" 2>/dev/null | awk '$1 == "Inst" && $3 !~ /^\[/ { print $2 }')
unpack Redis "$dir/redis" "${packages[@]}" "${missing[@]}" >&2
printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$(find "$dir/redis" -name '*.so.*' -printf '%h\n' | sort -u | paste -sd :)" "$dir/redis/usr/bin/redis-server" >"$dir/bin/redis-server"
chmod +x "$dir/bin/redis-server"
cd tools/argocd
build() { CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o "$dir/bin/$1" "$2"; }
build argocd github.com/argoproj/argo-cd/v3/cmd
build kustomize sigs.k8s.io/kustomize/kustomize/v5
go list -m -f '{{.Dir}}' github.com/argoproj/argo-cd/v3
