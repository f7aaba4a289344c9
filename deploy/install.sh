#!/usr/bin/env bash
# Installs Shoal on this machine as a systemd service; run again, it upgrades.
#
#   deploy/install.sh                  builds the release binary, if there is none, and installs it
#   deploy/install.sh --binary FILE    installs that one
#   deploy/install.sh --no-start       installs, enables, and leaves starting to you
#
# Needs root and Linux with systemd; to build, also rustup and a C compiler. With DESTDIR=/some/where it only puts
# the files below that directory, as a packager wants it. uninstall.sh takes everything away.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

die() { echo "install: $*" >&2; exit 1; }
say() { echo "install: $*"; }

binary= start=yes
while [ $# -gt 0 ]; do
    case $1 in
    --binary)
        [ $# -ge 2 ] || die "--binary needs a file"
        binary=$2
        shift
        ;;
    --no-start) start=no ;;
    *) die "unknown argument $1; there are --binary FILE and --no-start" ;;
    esac
    shift
done
DESTDIR=${DESTDIR:-}

# What it runs on.
[ "$(uname -s)" = Linux ] || die "only Linux has what containers are made of; this is $(uname -s)"
case $(uname -m) in
x86_64 | aarch64) ;;
*) die "there is no build for $(uname -m); x86_64 and aarch64 are supported" ;;
esac
if [ -z "$DESTDIR" ]; then
    [ "$(id -u)" = 0 ] || die "installing needs root: sudo deploy/install.sh"
    [ -d /run/systemd/system ] || die "systemd does not run here: start \"shoal daemon\" by whatever does instead"
    release=$(uname -r)
    major=${release%%.*} minor=${release#*.}
    minor=${minor%%[!0-9]*}
    [ $((major * 1000 + minor)) -ge 5010 ] || die "kernel $release is too old: 5.10 is the oldest that has all it needs"
    # Many kernels have them built in, and then there is nothing to load.
    for module in overlay veth vxlan nf_tables; do modprobe -q "$module" 2>/dev/null || true; done
    grep -qw overlay /proc/filesystems || die "this kernel has no overlayfs, which image layers need"
    [ -e /sys/fs/cgroup ] || die "no cgroups are mounted at /sys/fs/cgroup"
fi

# The program.
if [ -z "$binary" ]; then
    binary=${CARGO_TARGET_DIR:-$here/../target}/release/shoal
    if [ ! -x "$binary" ]; then
        command -v cargo >/dev/null || die "no --binary was given, and cargo is missing to build one: https://rustup.rs"
        command -v cc >/dev/null || die "a C compiler is missing to build one: apt-get install build-essential"
        say "building the release binary"
        (cd "$here/.." && cargo build --release --locked --package shoal)
    fi
fi
[ -f "$binary" ] && [ -x "$binary" ] || die "$binary is not a program"
"$binary" --version >/dev/null || die "$binary does not run on this machine"

changed=no
# place MODE FILE TARGET: copies what differs; a program that runs is replaced, not written into
place() {
    cmp -s "$2" "$DESTDIR$3" && return
    install -D -m "$1" "$2" "$DESTDIR$3"
    say "installed $DESTDIR$3"
    changed=yes
}
place 755 "$binary" /usr/local/bin/shoal
place 644 "$here/shoal.service" /etc/systemd/system/shoal.service
place 644 "$here/firewall.md" /usr/local/share/doc/shoal/firewall.md
place 644 "$here/../docs/operations.md" /usr/local/share/doc/shoal/operations.md
[ -z "$DESTDIR" ] || exit 0

# Who may command containers is root on this machine; the group is for those who may.
getent group shoal >/dev/null || { groupadd --system shoal && say "made the group shoal"; }

systemctl daemon-reload
systemctl enable --quiet shoal.service
if [ "$start" = no ]; then
    say "installed; systemctl start shoal starts it"
    exit 0
fi
if [ "$changed" = yes ] && systemctl is-active --quiet shoal.service; then
    say "restarting the daemon; containers go on"
    systemctl restart shoal.service
else
    systemctl start shoal.service
fi
for _ in $(seq 150); do
    ! shoal info >/dev/null 2>&1 || break
    sleep 0.2
done
shoal info >/dev/null || die "the daemon does not answer: journalctl -u shoal says why"
say "$(shoal --version) runs. Next: shoal swarm init, or shoal swarm join; usermod -aG shoal NAME lets somebody use it"
