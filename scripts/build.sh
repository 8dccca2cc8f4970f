#!/usr/bin/env bash
# Builds the command line and each function's own binary into bin/.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/need.sh
need_go
CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o bin/ ./cmd/onda ./functions/... ./examples/tour
