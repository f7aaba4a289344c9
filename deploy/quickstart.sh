#!/usr/bin/env bash
# Three replicas behind one address, on this machine, in directories of their own.
#
#   deploy/quickstart.sh           builds shoal, starts a one-node cluster and a service, shows it at work
#   deploy/quickstart.sh --clean   takes everything away again
#
# Needs root and rustup on Debian or Ubuntu; installs a C compiler and curl when they are missing.
# PORT=8080 chooses the published port.
set -euo pipefail
cd "$(dirname "$0")/.."

DATA=/var/lib/shoal-quickstart
RUN=/run/shoal-quickstart
SOCKET=unix://$RUN/shoal.sock
SHOAL=${CARGO_TARGET_DIR:-$PWD/target}/release/shoal
# The port of an earlier run is used again.
PORT=${PORT:-$(cat "$DATA/port" 2>/dev/null || echo 8080)}

bold() { printf '\n\033[1m%s\033[0m\n' "$*"; }
die() { echo "quickstart: $*" >&2; exit 1; }
# Shows a command, then runs it.
show() { printf '\033[2m$ %s\033[0m\n' "$*"; "$@"; }
shoal() { "$SHOAL" --host "$SOCKET" "$@"; }

[ "$(id -u)" = 0 ] || die "containers need root: sudo -E deploy/quickstart.sh"

daemon_pid() {
    local pid
    pid=$(cat "$RUN/shoal.pid" 2>/dev/null) || return 1
    # A pid that was given to another program since is not the daemon's.
    tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -q -- "--data-root $DATA" && echo "$pid"
}

stop_daemon() {
    local pid
    pid=$(daemon_pid) || return 0
    kill "$pid"
    for _ in $(seq 100); do
        [ -e "/proc/$pid" ] || return 0
        sleep 0.1
    done
    kill -9 "$pid" || true
}

clean() {
    stop_daemon
    if [ -d "$DATA" ] || [ -d "$RUN" ]; then
        [ -x "$SHOAL" ] || die "$SHOAL is gone, and only it knows what to take away: cargo build --release -p shoal"
        "$SHOAL" purge --data-root "$DATA" --exec-root "$RUN"
    fi
    rm -rf "$DATA" "$RUN"
}

if [ "${1:-}" = --clean ]; then
    clean
    echo "Nothing of the quickstart is left but the build in $(dirname "$SHOAL")."
    exit 0
fi
[ $# = 0 ] || die "unknown argument $1; there is only --clean"

bold "1. Build"
command -v cargo >/dev/null || [ ! -f "$HOME/.cargo/env" ] || . "$HOME/.cargo/env"
command -v cargo >/dev/null || die "cargo is missing: install rustup first, from https://rustup.rs"
packages=()
command -v cc >/dev/null || packages+=(build-essential)
command -v curl >/dev/null || packages+=(curl)
if [ "${#packages[@]}" -gt 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"
fi
show cargo build --release --locked --package shoal

bold "2. Start a cluster of one, which listens on nothing but $SOCKET"
if daemon_pid >/dev/null; then
    echo "It runs already (pid $(daemon_pid))."
else
    mkdir -p "$DATA" "$RUN"
    setsid "$SHOAL" daemon --local --data-root "$DATA" --exec-root "$RUN" --host "$SOCKET" \
        --pidfile "$RUN/shoal.pid" >>"$DATA/daemon.log" 2>&1 </dev/null &
fi
for _ in $(seq 150); do
    [ "$(shoal node ls --format '{{.Status}}' 2>/dev/null || true)" != Ready ] || break
    sleep 0.1
done
show shoal node ls

bold "3. Three replicas of shoal/hello behind one published port"
shoal service rm hello >/dev/null 2>&1 || true
for _ in $(seq 100); do
    # A port that still answers belongs to somebody else.
    (exec 3<>"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null || break
    sleep 0.1
    [ "$_" != 30 ] || { PORT=$((PORT + 1)); echo "The port is taken; trying $PORT."; }
done
echo "$PORT" >"$DATA/port"
shoal network inspect hello >/dev/null 2>&1 || show shoal network create --driver overlay hello
show shoal service create --name hello --replicas 3 --network hello --publish "$PORT:80" shoal/hello
show shoal service ls

bold "4. Thirty requests to one address, answered by all three"
echo "The service's own address in its networks, which containers reach by the name hello:"
show shoal service inspect hello --format '{{range .Endpoint.VirtualIPs}}{{println .Addr}}{{end}}'
for _ in $(seq 30); do
    curl -fsS --max-time 5 "http://127.0.0.1:$PORT/" | grep '^task:'
done | sort | uniq -c
show curl -fsS --max-time 5 "http://127.0.0.1:$PORT/some/path"

bold "5. Kill one with SIGKILL: the others take its requests, and it is replaced"
victim=$(shoal service ps hello -q --no-trunc --filter desired-state=running | head -n 1)
pid=$(shoal inspect --type task "$victim" --format '{{.Status.ContainerStatus.PID}}')
show kill -9 "$pid"
answered=0
for _ in $(seq 50); do
    curl -fs --max-time 5 "http://127.0.0.1:$PORT/" >/dev/null && answered=$((answered + 1))
done
echo "$answered of 50 requests answered meanwhile; lost are those that reach the killed task before it has left the address."
for _ in $(seq 150); do
    [ "$(shoal service ls --filter name=hello --format '{{.Replicas}}')" != 3/3 ] || break
    sleep 0.1
done
show shoal service ps hello

bold "That was it. Try next:"
cat <<EOF
  alias shoal='$SHOAL --host $SOCKET'
  shoal service scale hello=5                # more of it
  shoal service logs --follow hello          # what it says
  shoal service update --env-add A=b hello   # replaces the tasks one after another
  kill -9 $(daemon_pid || echo PID)                          # the daemon; the service goes on
  docker --host $SOCKET service ls           # the docker CLI drives it, too
  deploy/quickstart.sh --clean               # takes everything away
EOF
