#!/usr/bin/env bash
# A cluster of five nodes on this machine: three managers and two workers, each in a network namespace of
# its own, on a switch that is another one. Nothing of it reaches, or is reached from, outside.
#
#   deploy/cluster.sh           builds shoal, starts and joins the nodes, runs a service, kills the leader
#   deploy/cluster.sh --clean   takes everything away again
#
# Needs root and rustup on Debian or Ubuntu; installs a C compiler, curl and iproute2 when they are missing.
set -euo pipefail
cd "$(dirname "$0")/.."

NODES=5
MANAGERS=3
PORT=8080
DATA=/var/lib/shoal-cluster
RUN=/run/shoal-cluster
SHOAL=${CARGO_TARGET_DIR:-$PWD/target}/release/shoal
# Names of network namespaces, and addresses in them.
NETNS=shoal-cluster
SUBNET=10.200.7
CLIENT=192.0.2.10

bold() { printf '\n\033[1m%s\033[0m\n' "$*"; }
die() { echo "cluster: $*" >&2; exit 1; }
# Shows a command, then runs it.
show() { printf '\033[2m$ %s\033[0m\n' "$*"; "$@"; }

# node 3 service ls: what somebody on node3 would see
node() {
    local i=$1
    shift
    "$SHOAL" --host "unix://$RUN/node$i.sock" "$@"
}
node1() { node 1 "$@"; }
node2() { node 2 "$@"; }
node3() { node 3 "$@"; }
within() { nsenter --net="/run/netns/$NETNS-$1" -- "${@:2}"; }
client() { within client "$@"; }

[ "$(id -u)" = 0 ] || die "containers need root: sudo -E deploy/cluster.sh"

daemon_pid() {
    local pid
    pid=$(cat "$RUN/node$1.pid" 2>/dev/null) || return 1
    # A pid that was given to another program since is not the daemon's.
    tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -q -- "--data-root $DATA/node$1 " && echo "$pid"
}

# Waits up to 60 s until a command succeeds.
until_ok() {
    local what=$1
    shift
    for _ in $(seq 300); do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.2
    done
    die "gave up waiting for $what; the daemons' logs are $DATA/node*.log"
}

start_node() {
    local i=$1
    if daemon_pid "$i" >/dev/null; then return; fi
    mkdir -p "$DATA" "$RUN"
    # A name of its own, and nothing of this shell's.
    within "node$i" setsid unshare --uts -- sh -c 'hostname "$0" && exec "$@"' "node$i" \
        "$SHOAL" daemon --data-root "$DATA/node$i" --exec-root "$RUN/node$i" \
        --host "unix://$RUN/node$i.sock" --pidfile "$RUN/node$i.pid" >>"$DATA/node$i.log" 2>&1 </dev/null &
}

clean() {
    local i pid left=0
    for i in $(seq $NODES); do
        pid=$(daemon_pid "$i") || continue
        kill -9 "$pid"
        while [ -e "/proc/$pid" ]; do sleep 0.1; done
    done
    for i in $(seq $NODES); do
        [ -d "$DATA/node$i" ] || [ -d "$RUN/node$i" ] || continue
        [ -x "$SHOAL" ] || die "$SHOAL is gone, and only it knows what to take away: cargo build --release -p shoal"
        # What a machine lost with its network is gone; what is left is found all the same.
        [ -e "/run/netns/$NETNS-node$i" ] || ip netns add "$NETNS-node$i"
        within "node$i" "$SHOAL" purge --data-root "$DATA/node$i" --exec-root "$RUN/node$i" || left=1
    done
    [ "$left" = 0 ] || die "not everything could be taken away; the next --clean tries again"
    for i in client switch $(seq -f 'node%.0f' $NODES); do
        [ ! -e "/run/netns/$NETNS-$i" ] || ip netns del "$NETNS-$i"
    done
    rm -rf "$DATA" "$RUN"
}

# A link from the switch to another namespace: NAMESPACE INTERFACE ADDRESS ROUTER
cable() {
    ip -n "$NETNS-switch" link add "$2" type veth peer name eth0 netns "$NETNS-$1"
    ip -n "$NETNS-$1" address add "$3/24" dev eth0
    ip -n "$NETNS-$1" link set lo up
    ip -n "$NETNS-$1" link set eth0 up
    ip -n "$NETNS-switch" link set "$2" up
    ip -n "$NETNS-$1" route add default via "$4"
}

network() {
    local i
    for i in switch client $(seq -f 'node%.0f' $NODES); do ip netns add "$NETNS-$i"; done
    ip -n "$NETNS-switch" link add hosts type bridge stp_state 0 forward_delay 0
    ip -n "$NETNS-switch" address add "$SUBNET.254/24" dev hosts
    ip -n "$NETNS-switch" link set hosts up
    within switch sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
    for i in $(seq $NODES); do
        cable "node$i" "port$i" "$SUBNET.$i" "$SUBNET.254"
        ip -n "$NETNS-switch" link set "port$i" master hosts
    done
    # Outside of the cluster, behind a router, as a user's machine is.
    cable client clients "$CLIENT" "${CLIENT%.*}.1"
    ip -n "$NETNS-switch" address add "${CLIENT%.*}.1/24" dev clients
}

case "${1:-}" in
--clean)
    clean
    echo "Nothing of the cluster is left but the build in $(dirname "$SHOAL")."
    exit 0
    ;;
"") ;;
*) die "unknown argument $1; there is only --clean" ;;
esac

bold "1. Build"
command -v cargo >/dev/null || [ ! -f "$HOME/.cargo/env" ] || . "$HOME/.cargo/env"
command -v cargo >/dev/null || die "cargo is missing: install rustup first, from https://rustup.rs"
packages=()
command -v cc >/dev/null || packages+=(build-essential)
command -v curl >/dev/null || packages+=(curl)
command -v ip >/dev/null || packages+=(iproute2)
if [ "${#packages[@]}" -gt 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"
fi
show cargo build --release --locked --package shoal

bold "2. Five machines: namespaces node1 to node5 on one switch, and a client outside"
# An earlier run, however it ended, is no part of this one.
clean
network
for i in $(seq $NODES); do start_node "$i"; done
for i in $(seq $NODES); do until_ok "the daemon of node$i" node "$i" info; done
echo "Five daemons run; node1 is $SUBNET.1, and so on; the client is $CLIENT."

bold "3. One swarm: node1 makes it, the others join by token"
show node1 swarm init --advertise-addr "$SUBNET.1"
for i in $(seq 2 $NODES); do
    role=worker
    [ "$i" -gt "$MANAGERS" ] || role=manager
    token=$(node1 swarm join-token --quiet "$role")
    printf '\033[2m$ node%s swarm join --token %.20s… %s\033[0m\n' "$i" "$token" "$SUBNET.1:2377"
    node "$i" swarm join --token "$token" --advertise-addr "$SUBNET.$i" "$SUBNET.1:2377"
done
all_ready() { [ "$(node1 node ls --format '{{.Status}}' | grep -c '^Ready')" = "$NODES" ]; }
until_ok "five ready nodes" all_ready
show node1 node ls

bold "4. Six replicas over five nodes, one published port on all of them"
show node1 network create --driver overlay hello
show node1 service create --detach --name hello --replicas 6 --network hello --publish "$PORT:80" shoal/hello
# replicas NODE: six of six run
replicas() { [ "$(node "$1" service ls --filter name=hello --format '{{.Replicas}}')" = 6/6 ]; }
until_ok "six replicas" replicas 1
show node1 service ps hello

bold "5. Requests from outside, through every node: all replicas answer, and see who asks"
for i in $(seq $NODES); do
    echo "http://$SUBNET.$i:$PORT/"
    answers=
    # A task is chosen at random, so it takes some more to meet all six.
    for _ in $(seq 100); do
        answers+=$(client curl -fsS --max-time 5 "http://$SUBNET.$i:$PORT/")$'\n'
        [ "$(grep '^task:' <<<"$answers" | sort -u | wc -l)" -lt 6 ] || break
    done
    sed -n 's/^client: *\([0-9.]*\).*/    client \1/p; s/^task: */    task /p' <<<"$answers" | sort | uniq -c
done
echo "The client is $CLIENT: no node put its own address in between."

bold "6. Kill the leader, daemon and all that decides: the others go on"
leader=$(node1 node ls --format '{{.Hostname}} {{.ManagerStatus}}' | sed -n 's/^node\([0-9]*\) Leader$/\1/p')
other=$((leader % MANAGERS + 1))
show kill -9 "$(daemon_pid "$leader")"
answered=0
for _ in $(seq 100); do
    i=$((RANDOM % NODES + 1))
    client curl -fs --max-time 5 "http://$SUBNET.$i:$PORT/" >/dev/null && answered=$((answered + 1))
done
echo "$answered of 100 requests answered meanwhile, the dead leader's node among those asked."
new_leader() { node "$other" node ls --format '{{.Hostname}} {{.ManagerStatus}}' | grep Leader | grep -qv "^node$leader "; }
until_ok "another leader" new_leader
show "node$other" node ls
show "node$other" service scale --detach hello=8
eight() { [ "$(node "$other" service ls --filter name=hello --format '{{.Replicas}}')" = 8/8 ]; }
until_ok "eight replicas" eight
echo "Eight replicas run. Now the dead daemon is started again:"
start_node "$leader"
until_ok "five ready nodes" all_ready
show "node$other" node ls

bold "That was it. Try next:"
cat <<END
  node() { $SHOAL --host unix://$RUN/node\$1.sock "\${@:2}"; }
  node 2 service ps hello                           # the same from every manager
  nsenter --net=/run/netns/$NETNS-client curl $SUBNET.4:$PORT    # a request from outside
  node 1 node update --availability drain node5     # everything moves away from node5
  node 1 node promote node4                         # four managers
  kill -9 \$(cat $RUN/node5.pid)          # node5's daemon: its tasks go on
  ip -n $NETNS-switch link set port5 down          # node5's cable: its tasks are started elsewhere
  docker --host unix://$RUN/node1.sock service ls     # the docker CLI drives it, too
  deploy/cluster.sh --clean                         # takes everything away
END
