#!/usr/bin/env bash
# Runs Onda on the cluster of the present kubeconfig, with a Postgres and a mail server beside it, and puts it to the proof. ONLY=Campaign runs the tests
# whose names match. Namespaces of an Onda that it did not make are deleted only with ONDA_E2E_WIPE=1.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/need.sh
. scripts/cluster.sh
need_go
need_postgres
need_cluster
# Where pods find servers of this machine: the address that it reaches the cluster from, whose server may be a name.
host=${ONDA_E2E_HOST:-}
if [ -z "$host" ]; then
  server=$(kubectl config view --minify -o jsonpath='{.clusters[0].cluster.server}')
  server=${server#*://}
  server=$(getent ahostsv4 "${server%%[:/]*}" | awk 'NR == 1 { print $1 }') || server=
  host=$({ ip -o route get "$server" | sed -n 's/.* src \([0-9.]*\).*/\1/p'; } 2>/dev/null) || host=
fi
case $host in
"" | 127.*) echo "this machine's address as pods see it is not known${host:+ ($host is their own)}: set ONDA_E2E_HOST" >&2; exit 1 ;;
esac
scripts/build.sh
ONDA_E2E=1 ONDA_E2E_HOST=$host ONDA_E2E_PLATFORM=$(platform) exec go test ./test/e2e -count=1 -v -timeout=4h -run "${ONLY:-.}" "$@"
