#!/usr/bin/env bash
# Sends mails of ten kinds through Debian's Postfix, signed by Onda and by OpenDKIM, and has OpenDKIM and SpamAssassin judge what arrives (test/mails).
# Nothing is installed, and nothing but loopback is used.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/need.sh
need_go
need_postgres
[ "$(id -u)" -eq 0 ] || { echo "Postfix starts as root alone: run sudo make mails" >&2; exit 1; }
need_mail_tools
exec go test ./test/mails -count=1 -v "$@"
