#!/usr/bin/env bash
# Every test that needs no cluster, with the race detector, in random order. Arguments go to go test.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/need.sh
need_go
need_postgres
need_chromium
need_mjml
need_axe
need_segment
exec go test -race -shuffle=on -count=1 -timeout 30m "${@:-./...}"
