# What the other scripts need from Debian. Sourced by them: it only defines functions.
# shellcheck shell=bash

# as_root runs a command as root, if that can be had without a question.
as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi
}

# need_packages WHY PACKAGE...: installs Debian packages, or says which ones to install and ends.
need_packages() {
  local why=$1
  shift
  if ! command -v apt-get >/dev/null || { [ "$(id -u)" -ne 0 ] && ! sudo -n true 2>/dev/null; }; then
    echo "$why is missing, and this user cannot install it. Please run: sudo apt-get install $*" >&2
    exit 1
  fi
  echo "installing $* from Debian ($why)"
  local log
  log=$(mktemp)
  if ! { as_root apt-get update -qq &&
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -o Dpkg::Options::=--force-confold "$@"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "$why could not be installed; see above, then try: sudo apt-get install $*" >&2
    exit 1
  fi
  rm -f "$log"
}

need_go() {
  command -v go >/dev/null || { echo "Go is missing: install Go 1.26 or later, see https://go.dev/doc/install" >&2; exit 1; }
}

# postgres_bin prints where Postgres's programs are: those on the path, else the newest that Debian has put aside.
postgres_bin() {
  local found
  if found=$(command -v initdb); then
    dirname "$(readlink -f "$found")"
    return
  fi
  found=$(find /usr/lib/postgresql -mindepth 3 -maxdepth 3 -path '*/bin/initdb' 2>/dev/null | sort -V | tail -n 1)
  [ -n "$found" ] && dirname "$found"
}

# need_postgres makes sure that the programs are there. Debian's package would start a server for the whole machine: it is told not to.
need_postgres() {
  [ -n "$(postgres_bin)" ] && return
  if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    as_root sh -c 'mkdir -p /etc/postgresql-common && echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf' 2>/dev/null || true
  fi
  need_packages 'Postgres' postgresql
}

need_chromium() {
  command -v chromium >/dev/null || command -v google-chrome >/dev/null || need_packages 'Chromium, for tests of pages' chromium
}

# unpack WHAT DIRECTORY PACKAGE...: unpacks Debian's packages and does not install them, since that would start servers for the whole machine.
unpack() {
  local what=$1 dir=$2
  shift 2
  [ ! -e "$dir/done" ] || return 0
  echo "unpacking $what from Debian"
  rm -rf "$dir" && mkdir -p "$dir/debs"
  if ! (cd "$dir/debs" && apt-get download -qq "$@" >/dev/null 2>&1 && for deb in *.deb; do dpkg-deb -x "$deb" ..; done); then
    echo "$what could not be had from Debian: run sudo apt-get update" >&2
    exit 1
  fi
  rm -r "$dir/debs" && touch "$dir/done"
}

# need_npm WHAT DIRECTORY WHY: installs what the lock file in tools/DIRECTORY says, where it is not, or other than the file says.
need_npm() {
  { command -v node && command -v npm; } >/dev/null || need_packages "Node.js, $3" nodejs npm
  local dir=$PWD/tools/$2
  if ! cmp -s "$dir/package-lock.json" "$dir/node_modules/.onda-lock"; then
    echo "installing $1 into tools/$2"
    if ! (cd "$dir" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error && cp package-lock.json node_modules/.onda-lock) >&2; then
      echo "$1 could not be installed; see above, then try: npm ci --prefix tools/$2" >&2
      exit 1
    fi
  fi
}

# need_mjml sets ONDA_MJML to the compiler of tools/mjml.
need_mjml() {
  need_npm "MJML's compiler" mjml 'for emails in MJML'
  export ONDA_MJML=$PWD/tools/mjml/node_modules/.bin/mjml
}

# need_axe installs what internal/browsertest judges pages with: axe-core and html-validate.
need_axe() {
  need_npm 'axe-core and html-validate' axe 'for tests of pages'
}

# need_segment installs Segment's SDKs for Node.js and the browser.
need_segment() {
  need_npm "Segment's SDKs" segment 'for tests of the tracking API'
}

# need_smtp_sink sets SMTP_SINK.
need_smtp_sink() {
  SMTP_SINK=$(command -v smtp-sink || true)
  if [ -z "$SMTP_SINK" ]; then
    local dir=$PWD/.onda/postfix
    unpack "Postfix's smtp-sink" "$dir" postfix
    SMTP_SINK=$dir/usr/sbin/smtp-sink
    export LD_LIBRARY_PATH=$dir/usr/lib/postfix${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  fi
  export SMTP_SINK
}

# need_mail_tools sets ONDA_MAIL_TOOLS: where Postfix, OpenDKIM and SpamAssassin are, with what they need and this machine has not.
need_mail_tools() {
  local packages=(postfix opendkim spamassassin) missing
  ONDA_MAIL_TOOLS=$PWD/.onda/mail-tools
  mapfile -t missing < <(apt-get -s install --no-install-recommends "${packages[@]}" 2>/dev/null | awk '$1 == "Inst" && $3 !~ /^\[/ { print $2 }')
  unpack 'Postfix, OpenDKIM and SpamAssassin' "$ONDA_MAIL_TOOLS" "${packages[@]}" "${missing[@]}"
  export ONDA_MAIL_TOOLS
}
