#!/usr/bin/env bash
# A private Postgres under .onda/ of this checkout, reached over a socket only.
#   scripts/postgres.sh start   starts it if it does not run, and prints the URL of its superuser
#   scripts/postgres.sh stop    stops it
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/need.sh

home=${ONDA_HOME:-$PWD/.onda}
data=$home/postgres
# A socket's path may have 107 bytes at most.
socket=$home/socket
[ ${#socket} -lt 80 ] || socket=/tmp/onda-$(id -u)-$(cksum <<<"$home" | cut -d' ' -f1)

# Postgres refuses root: then it runs as the user postgres, with the one capability that lets it reach a checkout under /root.
as_server() {
  if [ "$(id -u)" -eq 0 ]; then
    setpriv --reuid=postgres --regid=postgres --init-groups --inh-caps=+dac_override --ambient-caps=+dac_override "$@"
  else
    "$@"
  fi
}

running() { as_server "$bin/pg_ctl" -D "$data" status >/dev/null 2>&1; }

case ${1:-} in
start)
  need_postgres >&2
  bin=$(postgres_bin)
  mkdir -p "$home" "$socket"
  if [ ! -e "$data/PG_VERSION" ]; then
    rm -rf "$data"
    mkdir -m 700 "$data"
    if [ "$(id -u)" -eq 0 ]; then chown postgres: "$data"; fi
    as_server "$bin/initdb" -D "$data" -U onda_admin -A trust -E UTF8 --locale=C.UTF-8 >"$home/initdb.log" ||
      { cat "$home/initdb.log" >&2; exit 1; }
  fi
  if [ "$(id -u)" -eq 0 ]; then chown postgres: "$socket"; fi
  chmod 700 "$socket"
  if ! running; then
    # Off the terminal's process group, so that an interrupt of what uses it does not end it first.
    as_server setsid "$bin/pg_ctl" -D "$data" -l "$data/server.log" -w -t 30 start -o \
      "-c listen_addresses='' -k $socket -c max_connections=200 -c shared_buffers=256MB -c max_wal_size=2GB" >&2 >/dev/null ||
      { tail -n 20 "$data/server.log" >&2; echo "Postgres did not start; its log is $data/server.log" >&2; exit 1; }
  fi
  echo "postgres://onda_admin@/postgres?host=$socket"
  ;;
stop)
  bin=$(postgres_bin)
  if [ -n "$bin" ] && running; then as_server "$bin/pg_ctl" -D "$data" -m fast -w stop >/dev/null; fi
  ;;
*)
  echo "usage: scripts/postgres.sh start|stop" >&2
  exit 2
  ;;
esac
