#!/usr/bin/env bash
# Takes Shoal away from this machine: the service, all containers and networks, the state, and the program.
#
#   deploy/uninstall.sh               asks first
#   deploy/uninstall.sh --yes         does not ask
#   deploy/uninstall.sh --keep-data   leaves /var/lib/shoal: what the cluster knows, images, logs
#
# A node that is part of a swarm leaves it first: shoal swarm leave. Run again after an error, it goes on.
set -euo pipefail

DATA=/var/lib/shoal
RUN=/run/shoal

die() { echo "uninstall: $*" >&2; exit 1; }
say() { echo "uninstall: $*"; }

yes=no keep=no
for word in "$@"; do
    case $word in
    --yes) yes=yes ;;
    --keep-data) keep=yes ;;
    *) die "unknown argument $word; there are --yes and --keep-data" ;;
    esac
done
[ "$(id -u)" = 0 ] || die "it needs root: sudo deploy/uninstall.sh"

if [ "$yes" = no ]; then
    [ -t 0 ] || die "nobody is here to answer; --yes goes on without asking"
    printf 'Every container of Shoal on this machine ends%s. Go on? [y/N] ' \
        "$([ $keep = yes ] || echo ', and its state is erased')"
    read -r answer
    case $answer in y | Y | yes) ;; *) die "nothing was changed" ;; esac
fi

if [ -d /run/systemd/system ] && [ -e /etc/systemd/system/shoal.service ]; then
    state=$(shoal info --format '{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}}' 2>/dev/null || true)
    if [ "$state" = "active true" ] && [ "$keep" = no ]; then
        say "this node is a manager; the others may lose their quorum with it. Run shoal node demote elsewhere first,"
        say "or shoal swarm leave --force here, when it is the last"
        die "nothing was changed"
    fi
    [ "${state%% *}" != active ] || [ "$keep" = yes ] || shoal swarm leave
    systemctl disable --quiet --now shoal.service || true
fi
if [ "$keep" = no ] && { [ -e "$DATA" ] || [ -e "$RUN" ]; }; then
    [ -x /usr/local/bin/shoal ] || die "/usr/local/bin/shoal is gone, and only it knows what to take away: install it again"
    /usr/local/bin/shoal purge --data-root "$DATA" --exec-root "$RUN"
    say "took away containers, networks and state"
fi
rm -f /etc/systemd/system/shoal.service /usr/local/bin/shoal
rm -rf /usr/local/share/doc/shoal
[ ! -d /run/systemd/system ] || systemctl daemon-reload
if getent group shoal >/dev/null; then groupdel shoal; fi
say "done$([ $keep = no ] || echo "; $DATA is left, and containers that run go on until the next start")"
