#!/usr/bin/env bash
# Runs Onda on the cluster of the present kubeconfig, with a Postgres and a mail server beside it, and puts it to the proof. ONLY=Campaign runs the tests
# whose names match.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/need.sh
. scripts/cluster.sh
need_go
need_postgres
need_cluster
scripts/build.sh
# Where pods find servers of this machine: the address that it reaches the cluster from.
server=$(kubectl config view --minify -o jsonpath='{.clusters[0].cluster.server}')
server=${server#*://}
host=${ONDA_E2E_HOST:-$(ip -o route get "${server%%:*}" | sed -n 's/.* src \([0-9.]*\).*/\1/p')}
[ -n "$host" ] || { echo "this machine's address as the cluster sees it is not known: set ONDA_E2E_HOST" >&2; exit 1; }
ONDA_E2E=1 ONDA_E2E_HOST=$host ONDA_E2E_PLATFORM=$(platform) exec go test ./test/e2e -count=1 -v -timeout=4h -run "${ONLY:-.}" "$@"
