#!/usr/bin/env bash
# Installs what the tests need and runs them all. Needs root, a Debian or Ubuntu machine and rustup.
#   tests/run.sh             every test
#   tests/run.sh --prepare   only install what is missing
#   tests/run.sh ARGS        pass ARGS on to the test runner, for example a name to filter by
set -euo pipefail
cd "$(dirname "$0")/.."

die() { echo "tests/run.sh: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || die "the tests make containers, so they need root: sudo -E tests/run.sh"
command -v cargo >/dev/null || die "cargo is missing: install rustup first, from https://rustup.rs"

# Programs, and the packages that bring them.
packages=()
need() { command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || packages+=("$2"); }
need cc build-essential
need busybox busybox-static
need nft nftables
need ip iproute2
need nsenter util-linux
need curl curl
need zstd zstd
need openssl openssl
if [ "${#packages[@]}" -gt 0 ]; then
    echo "installing ${packages[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

# One program out of a package that would start a service if it were installed.
#   extract PROGRAM PACKAGE...   takes the first package that exists
extract() {
    local program=$1 directory
    shift
    command -v "$program" >/dev/null && return
    echo "unpacking $program"
    directory=$(mktemp -d)
    (
        cd "$directory"
        apt-get update -qq
        for package in "$@"; do
            apt-get download -qq "$package" 2>/dev/null && break
        done
        dpkg -x ./*.deb unpacked
        install -m 755 "unpacked/usr/bin/$program" "/usr/local/bin/$program"
    )
    rm -rf "$directory"
}
extract docker docker-cli docker.io
extract docker-registry docker-registry

# Docker's Python SDK in an environment of its own. Without a way to PyPI its test fails.
python=${XDG_CACHE_HOME:-$HOME/.cache}/shoal-tests/python
if ! "$python/bin/python" -c 'import docker' 2>/dev/null; then
    rm -rf "$python"
    /usr/bin/python3 -m venv "$python" 2>/dev/null &&
        "$python/bin/pip" install --quiet --disable-pip-version-check --retries 1 --timeout 10 docker==7.2.0 || {
        echo "tests/run.sh: no Docker SDK for Python: its test will fail" >&2
        rm -rf "$python"
    }
fi

[ "${1:-}" != --prepare ] || exit 0
exec cargo xtask test "$@"
