#!/usr/bin/env bash
# The main job on this machine: gets what it needs, builds, and takes the tour (examples/tour).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/need.sh
need_go
need_postgres
echo 'building (the first time takes some minutes: Go fetches and compiles the libraries)'
scripts/build.sh
exec bin/tour
