#!/usr/bin/env bash
# Measures Shoal beside crun, runc, dockerd and etcd, and prints a table. Needs root, Debian or Ubuntu, and rustup.
#   bench/run.sh [--quick] [--only start|swarm|network] [--json FILE] [--shoal PATH]
#   bench/run.sh --cluster [--quick] [--case CASE,…] [--json FILE] [--shoal PATH]
# --cluster     several nodes instead of one: what fails over and how fast, writes, services, traffic; about 35 minutes.
# --shoal PATH  measures that binary instead of the one built here; whatever is left is passed on to shoal-bench.
# At most ten minutes, two with --quick, besides the build. Installs nothing: the peers are unpacked into a temporary
# directory, and everything made is taken away again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

die() { echo "bench/run.sh: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || die "the bench makes containers, so it needs root: sudo -E bench/run.sh"
for program in cargo cc apt-get dpkg unshare nsenter setpriv ip; do
    command -v "$program" >/dev/null || die "$program is missing: apt-get install build-essential util-linux iproute2, and https://rustup.rs"
done

shoal=
cluster=
case=
quick=
arguments=()
while [ $# -gt 0 ]; do
    case $1 in
    --shoal) shoal=$(realpath "${2:?--shoal takes a path}"); shift 2 ;;
    --shoal=*) shoal=$(realpath "${1#*=}"); shift ;;
    --cluster) cluster=1; arguments+=("$1"); shift ;;
    --case) case=${2:?--case takes names}; arguments+=("$1" "$2"); shift 2 ;;
    --case=*) case=${1#*=}; arguments+=("$1"); shift ;;
    --quick) quick=1; arguments+=("$1"); shift ;;
    *) arguments+=("$1"); shift ;;
    esac
done

# Short: the path of a unix socket has 107 bytes.
work=$(mktemp -d /tmp/shoal-bench-XXXXXX)
bench=
clean() {
    trap - EXIT INT TERM
    if [ -n "$bench" ]; then
        # All it started ends with it.
        kill "$bench" 2>/dev/null || true
        wait "$bench" 2>/dev/null || true
    fi
    for try in 1 2 3 4 5 6 7 8 9 10; do
        find /sys/fs/cgroup -depth -type d -path "*/${work##*/}*" -exec rmdir {} + 2>/dev/null || true
        rm -rf --one-file-system "$work" 2>/dev/null && return
        sleep 0.2
    done
    echo "bench/run.sh: $work could not be removed" >&2
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# What of these and their dependencies is not installed is unpacked, so that no service is set up or started.
echo "bench/run.sh: getting the peers" >&2
peers=(docker.io crun runc iptables busybox-static)
[ -z "$cluster" ] || peers+=(etcd-server)
missing() {
    apt-get --simulate --yes --no-install-recommends install "${peers[@]}" | awk '$1 == "Inst" { print $2 }'
}
mkdir "$work/tools" "$work/debs"
packages=$(missing) || { apt-get update -qq && packages=$(missing); } || die "apt-get knows no ${peers[*]}"
if [ -n "$packages" ]; then
    (
        cd "$work/debs"
        # shellcheck disable=SC2086 # a word each
        { apt-get download -qq $packages || { apt-get update -qq && apt-get download -qq $packages; }; } 2>&1 \
            | grep -v 'Download is performed unsandboxed' >&2 || true
        for package in ./*.deb; do dpkg -x "$package" "$work/tools"; done
    )
fi
rm -r "$work/debs"
# What the package's installation would have linked.
if [ -x "$work/tools/usr/sbin/xtables-nft-multi" ]; then
    mkdir -p "$work/tools/bin"
    for name in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
        ln -sf ../usr/sbin/xtables-nft-multi "$work/tools/bin/$name"
    done
fi

echo "bench/run.sh: building" >&2
cd "$here/.."
build=(--package shoal-bench)
[ -n "$shoal" ] || build+=(--package shoal)
cargo build --quiet --locked --release "${build[@]}"
target=$(cargo metadata --no-deps --format-version 1 --locked | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
[ -n "$shoal" ] || shoal=$target/release/shoal
cc -O2 -static -o "$work/stamp" "$here/stamp.c"

# Two measurements are their crates' own; built with the same packages as above, so that what they share is built once.
wants() { [ -n "$cluster" ] && case ",${case:-$1}," in *",$1,"*) true ;; *) false ;; esac; }
# The lines of a program as a block of the report.
append() {
    local title=$1 file=$work/appendix-$2
    shift 2
    echo "bench/run.sh: $title" >&2
    {
        printf '%s\n\n```\n' "$title"
        "$@" 2>"$file.log" | grep -v -e '^$' -e '^running ' -e '^test ' || { cat "$file.log" >&2; die "$title: failed"; }
        printf '```\n'
    } >"$file"
    arguments+=(--append "$file")
}
seconds=3
[ -z "$quick" ] || seconds=1
if wants writes; then
    cargo build --quiet --locked --release "${build[@]}" --package shoal-raft-store --example proposals
    append 'The replicated log alone, members in one process on one disk, 256 bytes a proposal' proposals \
        "$target/release/examples/proposals" "$work" "$seconds"
fi
if wants traffic; then
    overlay=(cargo test --quiet --locked --release "${build[@]}" --package shoal-network --test overlay)
    "${overlay[@]}" --no-run
    append "The overlay beside the kernel's own VXLAN between two namespaces, one stream" overlay \
        "${overlay[@]}" -- --ignored --nocapture --test-threads 1
fi

"$target/release/shoal-bench" --tools "$work/tools" --work "$work" --stamp "$work/stamp" --shoal "$shoal" \
    "${arguments[@]}" &
bench=$!
wait "$bench"
