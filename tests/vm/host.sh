#!/usr/bin/env bash
# What tests/vm.sh runs in its virtual machine, as root, in a directory with the program (debug/shoal), tests
# (debug/deps) and deploy/. It reboots once in the middle, and is run again.
set -u
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
cd "$(dirname "$0")"

DATA=/var/lib/shoal
URL=http://127.0.0.1:8080/
failed=0
began=$(cut -d. -f1 /proc/uptime)

say() { printf '%4d  %s\n' "$(($(cut -d. -f1 /proc/uptime) - began))" "$*"; }
pass() { say "ok    $*"; }
fail() { say "FAIL  $*"; failed=$((failed + 1)); }
# is WHAT GOT WANTED
is() { if [ "$2" = "$3" ]; then pass "$1"; else fail "$1: $2, not $3"; fi; }
# has WHAT TEXT PART
has() { case $2 in *"$3"*) pass "$1" ;; *) fail "$1: no \"$3\" in: $2" ;; esac; }
# ok WHAT COMMAND...: it succeeds
ok() { local what=$1 said; shift; if said=$("$@" 2>&1); then pass "$what"; else fail "$what: $* said: $said"; fi; }
# refused WHAT WORDS COMMAND...: it fails, and says so
refused() {
    local what=$1 words=$2 said
    shift 2
    if said=$("$@" 2>&1 </dev/null); then fail "$what: $* succeeded: $said"; else has "$what" "$said" "$words"; fi
}
# until_ok WHAT COMMAND...: it succeeds within two minutes
until_ok() {
    local what=$1 said end=$((SECONDS + 120))
    shift
    while ! said=$("$@" 2>&1); do
        if [ $SECONDS -ge $end ]; then fail "$what: $* says: $said"; return; fi
        sleep 0.2
    done
    pass "$what"
}

daemon() { systemctl show --property MainPID --value shoal.service; }
supervisor() { pgrep -o -f -- ' supervisor .*--exec-root /run/shoal( |$)'; }
group() { echo "/sys/fs/cgroup/shoal-$(cat $DATA/instance)"; }
# Groups of containers, without those that wait for one.
containers() { find "$(group)" -mindepth 1 -maxdepth 1 -type d -printf '%f\n' | grep -vxF "$(ls /run/shoal/warm 2>/dev/null)"; }
# Pids of the running tasks of a service.
pids() {
    local id
    for id in $(shoal service ps -q --no-trunc --filter desired-state=running "$1"); do
        shoal inspect --type task "$id" --format '{{.Status.State}} {{.Status.ContainerStatus.PID}}'
    done | sed -n 's/^running //p' | sort
}
# run SERVICE COUNT
run() { [ "$(pids "$1" | wc -l)" = "$2" ]; }
# A file of the group that a process is in.
limit() { cat "/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$1/cgroup")/$2"; }
# told SERVICE WORDS: a task of it ended with these
told() { shoal service ps --no-trunc --format '{{.Error}}' "$1" | grep -q "$2"; }
create() { shoal service create --detach --quiet --no-resolve-image "$@" >/dev/null || fail "service create $*"; }
answers() { curl -fsS --max-time 5 -o /dev/null "$1"; }
healthy() { shoal doctor; }
instances() { ls -d /sys/fs/cgroup/shoal-* 2>/dev/null; }

bad_input() {
    refused "install: an unknown argument" "there are --binary" deploy/install.sh --no-such
    refused "install: no file named" "needs a file" deploy/install.sh --binary
    refused "install: a file that is not there" "is not a program" deploy/install.sh --binary /nowhere
    printf '#!/bin/false\n' >/tmp/broken
    chmod 755 /tmp/broken
    refused "install: a program that does not run" "does not run on this machine" deploy/install.sh --binary /tmp/broken
    refused "install: nothing to build with" "cargo is missing" deploy/install.sh
    refused "uninstall: nobody to answer" "--yes" deploy/uninstall.sh
    refused "uninstall: an unknown argument" "there are --yes" deploy/uninstall.sh --no-such
    is "bad input installs nothing" "$(ls -d /usr/local/bin/shoal /etc/systemd/system/shoal.service 2>/dev/null)" ""
}

installation() {
    local said before
    is "cgroups are unified" "$(stat -f -c %T /sys/fs/cgroup)" cgroup2fs
    said=$(deploy/install.sh --binary debug/shoal 2>&1) || fail "install: $said"
    has "install says what comes next" "$said" "shoal swarm init"
    is "the unit is as systemd likes it" "$(systemd-analyze verify shoal.service 2>&1)" ""
    is "it starts at boot" "$(systemctl is-enabled shoal)" enabled
    before=$(daemon)
    said=$(deploy/install.sh --binary debug/shoal 2>&1) || fail "install again: $said"
    is "a second installation changes nothing" "$(grep -c installed <<<"$said") $(daemon)" "0 $before"
    is "the socket is the group's" "$(stat -c '%U %G %a' /run/shoal/shoal.sock)" "root shoal 660"
    refused "no swarm yet" "swarm init" shoal service ls
    ok "a swarm" shoal swarm init --advertise-addr 127.0.0.1
    mkdir -p /tmp/image/bin /tmp/image/tmp
    cp /bin/busybox /tmp/image/bin/
    for word in sh sleep cat tail mknod ls test echo wget nslookup dd; do ln -sf busybox "/tmp/image/bin/$word"; done
    tar -C /tmp/image -cf /tmp/busybox.tar .
    ok "an image" shoal import /tmp/busybox.tar busybox
}

limits() {
    local pid
    create --name limited --replicas 3 --limit-memory 64M --reserve-memory 32M --limit-cpu 0.5 --limit-pids 20 shoal/hello
    until_ok "three tasks with limits" run limited 3
    for pid in $(pids limited); do
        is "memory of $pid" "$(limit "$pid" memory.max)" 67108864
        is "reservation of $pid" "$(limit "$pid" memory.low)" 33554432
        is "cpu of $pid" "$(limit "$pid" cpu.max)" "50000 100000"
        is "pids of $pid" "$(limit "$pid" pids.max)" 20
    done
    create --name hog --restart-condition none --limit-memory 16M busybox /bin/tail /dev/zero
    until_ok "a memory hog is ended, and the task says why" told hog 'non-zero exit (137): out of memory'
    create --name forks --limit-pids 10 busybox /bin/sh -c \
        '(i=0; while [ $i -lt 40 ]; do sleep 1000 & i=$((i+1)); done) 2>/tmp/refused; while read l; do echo $l; done </tmp/refused; while :; do read x </dev/zero; done'
    until_ok "forks beyond the limit are refused" eval 'shoal service logs forks 2>&1 | grep -q "an.t fork\|temporarily unavailable"'
    create --name spin --limit-cpu 0.2 busybox /bin/sh -c 'while :; do :; done'
    until_ok "a task that spins" run spin 1
    pid=$(pids spin)
    until_ok "it is throttled" eval "limit $pid cpu.stat | grep -q 'nr_throttled [1-9]'"
    create --name devices --cap-add MKNOD busybox /bin/sh -c \
        'mknod /tmp/disk b 254 0; cat /tmp/disk >/dev/null && echo read; echo x >/dev/null && head -c 1 /dev/zero >/dev/null; echo done; sleep 1000'
    until_ok "a task with a disk's number" eval 'shoal service logs devices 2>&1 | grep -q done'
    has "the disk is refused" "$(shoal service logs devices 2>&1)" "not permitted"
    is "the disk is not read" "$(shoal service logs --raw devices 2>&1 | grep -c '^read')" 0
    shoal service rm hog forks spin devices >/dev/null
}

services() {
    local inside vip before answered=0 i
    shoal network create --driver overlay back >/dev/null || fail "network create"
    create --name web --replicas 3 --network back --publish 8080:80 shoal/hello
    create --name probe --network back busybox /bin/sleep 100000
    until_ok "three replicas" run web 3
    until_ok "a probe" run probe 1
    until_ok "the published port answers" answers "$URL"
    has "all three answer" "$(for i in $(seq 30); do curl -s $URL; done | grep '^task:' | sort -u | wc -l)" 3
    inside="nsenter --target $(pids probe) --mount --net --root --wd=/ --"
    until_ok "the name is known" eval "$inside /bin/nslookup -type=a web | grep -q ^Name:"
    vip=$($inside /bin/nslookup -type=a web | sed -n '/^Name:/,$s/^Address: *//p')
    has "it is a virtual address" "$(shoal service inspect web --format '{{range .Endpoint.VirtualIPs}}{{println .Addr}}{{end}}')" "$vip/"
    until_ok "which answers" eval "$inside /bin/wget -q -O - http://$vip/ | grep -q 'task: web'"
    create --name checked --health-cmd 'test -e /tmp/ok' --health-interval 1s --health-start-period 600s \
        --health-start-interval 1s busybox /bin/sh -c 'sleep 3; echo > /tmp/ok; sleep 100000'
    until_ok "a task becomes healthy by a check inside" run checked 1
    has "and is shown so" "$(shoal ps --filter name=checked)" "(healthy)"
    create --name talks busybox /bin/sh -c 'echo hello from inside; sleep 100000'
    until_ok "logs" eval 'shoal service logs talks | grep -q "hello from inside"'
    shoal service rm checked talks >/dev/null
    ok "doctor has nothing to say" healthy

    before=$(pids web; pids limited)
    kill -9 "$(daemon)"
    for i in $(seq 50); do answers "$URL" && answered=$((answered + 1)); done
    is "requests while the daemon is dead" "$answered" 50
    until_ok "systemd starts it again" eval 'shoal info >/dev/null'
    until_ok "with the same tasks" eval "[ \"\$(pids web; pids limited)\" = '$before' ]"
    kill -9 "$(supervisor)"
    until_ok "another supervisor" supervisor
    ok "tasks outlive their supervisor" eval "kill -0 $(echo $before)"
    until_ok "and are known to the next" eval "[ \"\$(pids web; pids limited)\" = '$before' ]"
    shoal service scale --detach web=4 >/dev/null
    until_ok "which starts further ones" run web 4
    until_ok "doctor has nothing to say" healthy
}

# What systemd does with the tree must not touch what is ours.
systemds_view() {
    local pid before
    pid=$(pids limited | head -n 1)
    before=$(pids web; pids limited)
    systemctl daemon-reload
    systemctl daemon-reexec
    systemctl set-property --runtime -- system.slice CPUWeight=90 || fail "set-property"
    is "limits after a reload: memory" "$(limit "$pid" memory.max)" 67108864
    is "limits after a reload: cpu" "$(limit "$pid" cpu.max)" "50000 100000"
    systemctl stop shoal
    systemctl daemon-reload
    is "limits while the daemon is stopped" "$(limit "$pid" memory.max) $(limit "$pid" pids.max)" "67108864 20"
    ok "tasks while the daemon is stopped" eval "kill -0 $(echo $before)"
    systemctl start shoal
    until_ok "the same tasks after a stop" eval "[ \"\$(pids web; pids limited)\" = '$before' ]"
    # From the warm ones, and made anew after all this.
    shoal service scale --detach limited=5 >/dev/null
    until_ok "five tasks with limits" run limited 5
    for pid in $(pids limited); do is "memory of $pid" "$(limit "$pid" memory.max)" 67108864; done
    is "no unit failed" "$(systemctl list-units --failed --no-legend --plain | grep -v 'job\|firewalld')" ""
    say "systemd: $(systemctl is-system-running), $(systemctl show -p ControlGroup --value shoal): $(cat "/sys/fs/cgroup$(systemctl show -p ControlGroup --value shoal)/cgroup.procs" | wc -l) processes"
    say "journal: $(journalctl -u shoal -p warning --no-pager -o cat | sort | uniq -c | sort -rn | head -n 12)"
}

upgrade() {
    local before daemon
    before=$(pids web; pids limited) daemon=$(daemon)
    { cat debug/shoal; echo another build; } >/tmp/newer
    chmod 755 /tmp/newer
    has "an upgrade says what it does" "$(deploy/install.sh --binary /tmp/newer 2>&1)" "containers go on"
    ok "the daemon is another one" [ "$(daemon)" != "$daemon" ]
    is "and runs the new program" "$(readlink "/proc/$(daemon)/exe")" /usr/local/bin/shoal
    until_ok "no task was restarted" eval "[ \"\$(pids web; pids limited)\" = '$before' ]"
    until_ok "the supervisor runs the new program" eval 'journalctl -u shoal | grep -q "supervisor upgraded exe=/usr/local/bin/shoal"'
    ok "the port answers" answers "$URL"
}

# A daemon that sees no more of the tree than a group that was delegated to it, as in a container.
delegated() {
    local at="--data-root /tmp/nested/data --exec-root /tmp/nested/run" host="--host unix:///tmp/nested/sock"
    mkdir -p /tmp/nested
    systemd-run --quiet --unit nested -p Delegate=yes -p KillMode=process -- unshare --cgroup --mount -- sh -c \
        "umount -l /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec $PWD/debug/shoal daemon --local $at $host --pidfile /tmp/nested/pid"
    nested() { debug/shoal $host "$@"; }
    until_ok "a daemon in a delegated group" nested info
    nested service create --detach --quiet --name small --limit-memory 64M shoal/hello >/dev/null
    until_ok "runs tasks" eval '[ "$(debug/shoal '"$host"' service ls --format "{{.Replicas}}")" = 1/1 ]'
    local pid
    pid=$(nested inspect --type task "$(nested service ps -q --no-trunc small)" --format '{{.Status.ContainerStatus.PID}}')
    has "in its own subtree" "$(cat "/proc/$pid/cgroup")" "/system.slice/nested.service/shoal-"
    is "with their limits" "$(limit "$pid" memory.max)" 67108864
    systemctl stop nested
    ok "purge" unshare --cgroup --mount -- sh -c "debug/shoal purge $at"
    pid=$(pgrep -f /tmp/nested/run)
    is "purge ends all of it" "$pid" ""
    rm -rf /tmp/nested
}

after_reboot() {
    until_ok "the daemon is back" eval 'shoal info >/dev/null'
    until_ok "four replicas are back" run web 4
    until_ok "the published port answers" answers "$URL"
    until_ok "doctor has nothing to say" healthy
    is "limits are back" "$(limit "$(pids limited | head -n 1)" memory.max)" 67108864
}

removal() {
    local said
    refused "uninstall: a manager" "swarm leave --force" deploy/uninstall.sh --yes
    ok "the service runs all the same" answers "$URL"
    ok "leave" shoal swarm leave --force
    until_ok "no container's group is left" eval '[ -z "$(containers)" ]'
    said=$(deploy/uninstall.sh --yes 2>&1) || fail "uninstall: $said"
    is "groups" "$(instances)" ""
    is "processes" "$(pgrep -a shoal)" ""
    is "files" "$(ls -d /var/lib/shoal /run/shoal /usr/local/bin/shoal /usr/local/share/doc/shoal /etc/systemd/system/shoal.service /etc/systemd/system/multi-user.target.wants/shoal.service 2>/dev/null)" ""
    is "mounts" "$(grep shoal /proc/self/mountinfo)" ""
    is "links" "$(ip -o link | cut -d: -f2 | tr -d ' ' | grep -v '^lo$\|^eth\|^dummy')" ""
    is "rules" "$(nft list ruleset | grep shoal; ip rule | grep -v 'lookup \(local\|main\|default\)')" ""
    is "the group" "$(getent group shoal)" ""
    is "no unit" "$(systemctl list-units --all --no-legend --plain 'shoal*')" ""
    ok "a second removal" deploy/uninstall.sh --yes
    # And once more from the beginning, keeping the data.
    ok "install again" deploy/install.sh --binary debug/shoal
    ok "a swarm" shoal swarm init --advertise-addr 127.0.0.1
    create --name web --replicas 1 --publish 8080:80 shoal/hello
    until_ok "a task" run web 1
    said=$(deploy/uninstall.sh --yes --keep-data 2>&1) || fail "uninstall --keep-data: $said"
    ok "its task goes on" answers "$URL"
    ok "install a third time" deploy/install.sh --binary debug/shoal
    until_ok "and is taken up" run web 1
    ok "leave" shoal swarm leave --force
    ok "uninstall" deploy/uninstall.sh --yes
    is "groups" "$(instances)" ""
    is "processes" "$(pgrep -a shoal)" ""
}

# What cloud-init would write: cloud PATH
cloud() {
    mkdir -p "$(dirname "$1")"
    awk -v path="$1" '/^  - path: / { here = $3 == path } /^runcmd:/ { here = 0 }
        here && (/^      / || /^$/) { print substr($0, 7) }' deploy/cloud-init/manager.yaml >"$1"
}

cloud_init() {
    local first=/usr/local/sbin/shoal-first-boot env=/etc/shoal/node.env
    cloud $first
    cloud $env
    cloud /etc/systemd/system/shoal.service
    chmod 755 $first
    sed -i "s|^SHOAL_URL=.*|SHOAL_URL=file://$PWD/debug/shoal|; s|^ADVERTISE=.*|ADVERTISE=127.0.0.1|
        s|^SHOAL_SHA256=.*|SHOAL_SHA256=$(echo | sha256sum | cut -d' ' -f1)|" $env
    refused "cloud-init: another program than meant" "FAILED" $first
    is "it is not installed" "$(ls /usr/local/bin)" "shoal.new"
    sed -i "s|^SHOAL_SHA256=.*|SHOAL_SHA256=$(sha256sum debug/shoal | cut -d' ' -f1)|" $env
    ok "cloud-init: the first boot" $first
    ok "a second one" $first
    is "a swarm of one" "$(shoal node ls --format '{{.ManagerStatus}}')" Leader
    ok "leave" shoal swarm leave --force
    ok "uninstall" deploy/uninstall.sh --yes
    rm -rf $first /etc/shoal
    is "groups" "$(instances)" ""
    is "processes" "$(pgrep -a shoal)" ""
}

say "$(uname -r), $(systemctl --version | head -n 1)"
if [ ! -e rebooted ]; then
    bad_input
    for test in debug/deps/*; do
        [ -x "$test" ] || continue
        say "$test"
        if "$test" --test-threads 1; then pass "$test"; else fail "$test"; fi
    done
    installation
    limits
    services
    systemds_view
    upgrade
    delegated
    if [ "$failed" = 0 ]; then
        touch reboot
        date +%s >rebooted
        exit 0
    fi
    journalctl -u shoal --no-pager -o cat | tail -n 60
else
    say "going down took $(($(date +%s) - $(cat rebooted) - began)) s, with the boot loader's"
    after_reboot
    removal
    cloud_init
fi
say "$failed failed"
exit $((failed > 0))
