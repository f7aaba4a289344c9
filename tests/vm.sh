#!/usr/bin/env bash
# What only a host of its own shows: boots Debian 12 with its kernel, systemd and nothing but unified cgroups in a
# virtual machine, installs Shoal there as a user does, and goes through tests/vm/host.sh.
#
#   tests/vm.sh                    builds shoal and its tests, and runs everything
#   tests/vm.sh --shoal FILE       takes that program
#   tests/vm.sh --tests A,B        also runs these end-to-end tests in there: isolation,health,…
#   tests/vm.sh --prepare          only installs what is missing and makes the image
#
# Needs root, a Debian or Ubuntu machine, 3 GB of disk and, without hardware virtualisation, some ten minutes; with
# it: ACCEL=kvm tests/vm.sh. The machine has no network but its own. Its image stays in VM_DIR
# (target/vm); every run starts from the same one.
set -euo pipefail
cd "$(dirname "$0")/.."

TARGET=${CARGO_TARGET_DIR:-$PWD/target}
VM_DIR=${VM_DIR:-$TARGET/vm}
ACCEL=${ACCEL:-tcg,thread=multi}
# What a user's host may have; those that would start something are disabled.
PACKAGES=systemd-sysv,libpam-systemd,dbus,kmod,procps,iproute2,nftables,curl,ca-certificates,busybox-static,python3-minimal,ufw,firewalld
KERNEL=linux-image-cloud-amd64

die() { echo "tests/vm.sh: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || die "making the image needs root: sudo -E tests/vm.sh"

prepare() {
    local packages=()
    command -v qemu-system-x86_64 >/dev/null || packages+=(qemu-system-x86 seabios)
    command -v debootstrap >/dev/null || packages+=(debootstrap)
    command -v mke2fs >/dev/null || packages+=(e2fsprogs)
    if [ "${#packages[@]}" -gt 0 ]; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
    fi
    [ ! -e "$VM_DIR/disk.img" ] || return 0
    mkdir -p "$VM_DIR"
    local root=$VM_DIR/rootfs
    if [ ! -e "$VM_DIR/rootfs.ready" ]; then
        rm -rf "$root"
        debootstrap --variant=minbase --include="$PACKAGES,$KERNEL,zstd" bookworm "$root" >"$VM_DIR/debootstrap.log" 2>&1 ||
            die "debootstrap failed: $VM_DIR/debootstrap.log"
        touch "$VM_DIR/rootfs.ready"
    fi
    cp "$root"/boot/vmlinuz-* "$VM_DIR/vmlinuz"
    cp "$root"/boot/initrd.img-* "$VM_DIR/initrd"
    echo host >"$root/etc/hostname"
    for service in firewalld ufw nftables apt-daily.timer apt-daily-upgrade.timer; do
        chroot "$root" systemctl disable --quiet "$service" 2>/dev/null || true
    done
    # It unpacks what the machine is given, runs it, and says on the console how it ended.
    cat >"$root/usr/local/sbin/job" <<'JOB'
#!/bin/bash
exec >/dev/ttyS0 2>&1 </dev/null
mkdir -p /job
[ -e /job/run.sh ] || tar -xf /dev/vdb -C /job
cd /job
bash ./run.sh
status=$?
[ ! -e /job/reboot ] || { rm /job/reboot; exec systemctl reboot; }
echo "VM-STATUS $status"
sync
systemctl poweroff --force
JOB
    chmod 755 "$root/usr/local/sbin/job"
    cat >"$root/etc/systemd/system/job.service" <<'UNIT'
[Unit]
After=basic.target network.target
[Service]
Type=exec
ExecStart=/usr/local/sbin/job
# What it starts by hand is not to end with it.
KillMode=process
[Install]
WantedBy=multi-user.target
UNIT
    chroot "$root" systemctl enable --quiet job.service
    truncate -s 3G "$VM_DIR/disk.new"
    mke2fs -q -t ext4 -E lazy_itable_init=1 -d "$root" "$VM_DIR/disk.new"
    mv "$VM_DIR/disk.new" "$VM_DIR/disk.img"
    rm -rf "$root" "$VM_DIR/rootfs.ready"
}

# Boots, runs /job/run.sh of the directory $1 in there, and returns what that returns.
boot() {
    local run status
    run=$(mktemp -d "$VM_DIR/run.XXXX")
    tar -cf "$run/job.tar" -C "$1" .
    truncate -s %1M "$run/job.tar"
    # What is written goes to a copy that is thrown away.
    TMPDIR=$run timeout "${VM_TIMEOUT:-1800}" qemu-system-x86_64 -M q35 -accel "$ACCEL" -cpu max -smp "${CPUS:-2}" \
        -m "${MEM:-3072}" -nodefaults -display none -serial stdio -device virtio-rng-pci \
        -kernel "$VM_DIR/vmlinuz" -initrd "$VM_DIR/initrd" \
        -drive "file=$VM_DIR/disk.img,format=raw,if=virtio,snapshot=on" \
        -drive "file=$run/job.tar,format=raw,if=virtio,readonly=on" \
        -append "root=/dev/vda rw console=ttyS0 quiet loglevel=3 panic=10 mitigations=off systemd.show_status=0 systemd.mask=serial-getty@ttyS0.service" \
        </dev/null | tee "$run/console" || true
    status=$(tr -d '\r' <"$run/console" | sed -n 's/^VM-STATUS //p' | tail -n 1)
    rm -rf "$run"
    return "${status:-255}"
}

shoal='' tests=''
while [ $# -gt 0 ]; do
    case $1 in
    --prepare) prepare; exit 0 ;;
    --shoal) shoal=${2:?--shoal needs a file}; shift ;;
    --tests) tests=${2:?--tests needs names}; shift ;;
    *) die "unknown argument $1; there are --shoal FILE, --tests NAMES and --prepare" ;;
    esac
    shift
done
prepare
job=$(mktemp -d)
trap 'rm -rf "$job"' EXIT
mkdir -p "$job/debug/deps"
if [ -z "$shoal" ]; then
    cargo build --locked --package shoal
    shoal=$TARGET/debug/shoal
fi
install -m 755 "$shoal" "$job/debug/shoal"
strip "$job/debug/shoal"
for name in ${tests//,/ }; do
    built=$(cargo test --locked --package cluster-tests --no-run --message-format json --test "$name" |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
    install -m 755 "$built" "$job/debug/deps/$name"
    strip "$job/debug/deps/$name"
done
cp -a deploy "$job/deploy"
mkdir "$job/docs"
cp docs/operations.md "$job/docs/"
cp tests/vm/host.sh "$job/run.sh"
boot "$job"
