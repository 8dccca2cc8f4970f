#!/usr/bin/env bash
# A private Postgres under .onda/ (or ONDA_HOME) of this checkout, reached over a socket only.
#   scripts/postgres.sh start   starts it if it does not run, and prints the URL of its superuser
#   scripts/postgres.sh stop    stops it
# With ONDA_POSTGRES_LISTEN=ADDRESS:PORT it is also reached there, with passwords: what a cluster's functions need.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/need.sh

home=${ONDA_HOME:-$PWD/.onda}
data=$home/postgres
# A socket's path may have 107 bytes at most, and stands in a URL and in options: where the checkout's does not do, it is one below /tmp.
socket=$home/socket
if ! LC_ALL=C grep -qxE '[A-Za-z0-9/._-]{1,80}' <<<"$socket"; then socket=/tmp/onda-$(id -u)-$(cksum <<<"$home" | cut -d' ' -f1); fi

# Postgres refuses root: then it runs as the user postgres, with the one capability that lets it reach a checkout under /root.
as_server() {
  if [ "$(id -u)" -eq 0 ]; then
    setpriv --reuid=postgres --regid=postgres --init-groups --inh-caps=+dac_override --ambient-caps=+dac_override "$@"
  else
    "$@"
  fi
}

# make_socket makes the socket's directory. Everybody may write to /tmp: one that is somebody else's, or a link to elsewhere, is not taken.
make_socket() {
  mkdir -m 700 "$socket" 2>/dev/null || true
  if [ -L "$socket" ] || [ ! -d "$socket" ] || { [ ! -O "$socket" ] && [ "$(stat -c %U "$socket")" != "$owner" ]; }; then
    echo "$socket is in the way of Postgres's socket, and not a directory of $owner's: remove it" >&2
    exit 1
  fi
  if [ "$(id -u)" -eq 0 ]; then chown --no-dereference postgres: "$socket"; fi
  chmod 700 "$socket"
}

running() { as_server "$bin/pg_ctl" -D "$data" status >/dev/null 2>&1; }

case ${1:-} in
start)
  need_postgres >&2
  bin=$(postgres_bin)
  owner=$(id -un)
  if [ "$(id -u)" -eq 0 ]; then owner=postgres; fi
  mkdir -p "$home"
  # One at a time: two of them would make the same cluster. Postgres itself must not inherit the lock.
  exec 9>"$home/postgres.lock"
  flock 9
  if [ ! -e "$data/PG_VERSION" ]; then
    # Made beside and renamed, so that one which was interrupted is made anew.
    rm -rf "$data" "$data.new"
    mkdir -m 700 "$data.new"
    if [ "$(id -u)" -eq 0 ]; then chown postgres: "$data.new"; fi
    as_server "$bin/initdb" -D "$data.new" -U onda_admin -A trust -E UTF8 --locale=C.UTF-8 >"$home/initdb.log" 9>&- ||
      { cat "$home/initdb.log" >&2; exit 1; }
    echo 'host all all 0.0.0.0/0 scram-sha-256' | as_server tee -a "$data.new/pg_hba.conf" >/dev/null # counts where it listens on more than its socket
    mv "$data.new" "$data"
  fi
  make_socket
  if running && [ -n "${ONDA_POSTGRES_LISTEN:-}" ] && [ "$(sed -n 6p "$data/postmaster.pid"):$(sed -n 4p "$data/postmaster.pid")" != "$ONDA_POSTGRES_LISTEN" ]; then
    as_server "$bin/pg_ctl" -D "$data" -m fast -w stop >/dev/null # it runs, and listens elsewhere: where is only read at the start
  fi
  if ! running; then
    listen=${ONDA_POSTGRES_LISTEN:-}
    port=${listen##*:}
    # Off the terminal's process group, so that an interrupt of what uses it does not end it first.
    as_server setsid "$bin/pg_ctl" -D "$data" -l "$data/server.log" -w -t 30 start -o \
      "-c listen_addresses='${listen%:*}' -c port=${port:-5432} -k $socket -c max_connections=${ONDA_POSTGRES_CONNECTIONS:-200} \
       -c shared_buffers=256MB -c max_wal_size=2GB" >/dev/null 9>&- ||
      { tail -n 20 "$data/server.log" >&2; echo "Postgres did not start; its log is $data/server.log" >&2; exit 1; }
  fi
  port=$(sed -n 4p "$data/postmaster.pid")
  echo "postgres://onda_admin@/postgres?host=$socket$([ "$port" = 5432 ] || echo "&port=$port")"
  ;;
stop)
  bin=$(postgres_bin) || bin=
  if [ -n "$bin" ] && running; then as_server "$bin/pg_ctl" -D "$data" -m fast -w stop >/dev/null; fi
  ;;
*)
  echo "usage: scripts/postgres.sh start|stop" >&2
  exit 2
  ;;
esac
