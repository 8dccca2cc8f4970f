#!/usr/bin/env bash
# Measures the main paths against bare references (test/bench): ONLY=send measures one of them. Arguments go to the program.
# ONLY=havoc sends campaigns while things go wrong instead, and counts what was lost, repeated and unknown; ONLY=havoc-kill does one of them.
# ONLY=indexes tells what the indexes of contacts and facts are in size, and what each costs who writes.
# ONLY=hits floods track while things go wrong, and counts what was answered and is missing; ONLY=hits-kill does one of them.
# It runs on a private Postgres that commits as in production, unless ONDA_BENCH_DATABASE_URL names another.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/need.sh
need_go
if [ -z "${ONDA_BENCH_DATABASE_URL:-}" ]; then
  need_postgres
  export ONDA_HOME=$PWD/.onda/bench
  if [[ ${ONLY:-} == *havoc* || ${ONLY:-} == *hits* ]]; then
    ONDA_HOME=$PWD/.onda/havoc # one that may crash
    export ONDA_BENCH_POSTGRES_SCRIPT=scripts/postgres.sh
  fi
  trap 'scripts/postgres.sh stop' EXIT
  ONDA_BENCH_DATABASE_URL=$(scripts/postgres.sh start)
  export ONDA_BENCH_DATABASE_URL
fi
if [[ -z ${ONLY:-} || $ONLY == *postfix* ]]; then need_smtp_sink; fi
go build -o bin/bench ./test/bench
bin/bench "$@"
