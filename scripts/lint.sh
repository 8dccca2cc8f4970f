#!/usr/bin/env bash
# Linters: shellcheck for the scripts, golangci-lint (built from tools/go.mod) for Go.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/need.sh
need_go
command -v shellcheck >/dev/null || need_packages shellcheck shellcheck
shellcheck -x scripts/*.sh .ci/run
go tool -modfile=tools/go.mod golangci-lint run "$@"
