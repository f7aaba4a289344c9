//! What a container can see and do, from inside.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read, Write},
    path::Path,
    process::{Child, Command, Stdio},
};

use cluster_tests::{Host, busybox_tar, program_tar, wait_for};

/// Runs `script` in a container of its own and returns what it printed.
fn inside(host: &Host, name: &str, flags: &[&str], script: &str) -> String {
    let script = format!("{script}\necho END; exec sleep 1000");
    let mut args = vec!["service", "create", "--detach", "--name", name];
    args.extend(flags);
    args.extend(["busybox", "/bin/sh", "-c", &script]);
    host.shoal(&args);
    wait_for(
        "the script to finish",
        || host.shoal(&["service", "logs", "--raw", name]),
        |log| log.contains("END"),
    )
}

fn host_with_busybox() -> Host {
    let host = Host::local();
    let tar = busybox_tar(host.dir()).unwrap();
    host.shoal(&["import", tar.to_str().unwrap(), "busybox"]);
    host
}

#[test]
fn only_its_own_processes_files_mounts_and_devices_are_there() {
    let host = host_with_busybox();
    let log = inside(
        &host,
        "look",
        &[],
        "echo pids $(ls /proc | grep -E '^[0-9]+$' | wc -l); echo pid1 $(cat /proc/1/comm); \
         echo dev $(ls /dev | sort); echo mounts; cut -d' ' -f2 /proc/mounts; \
         echo root $(ls -A / | sort); cat /proc/self/cgroup; echo hostname $(hostname)",
    );
    let line = |key: &str| {
        log.lines()
            .find_map(|l| l.strip_prefix(key))
            .map(str::trim)
            .unwrap_or_default()
            .to_owned()
    };
    let pids: usize = line("pids ").parse().unwrap();
    assert!(pids <= 5, "only the shell and its pipeline: {log}");
    assert_eq!(line("pid1 "), "sh");
    assert_eq!(
        line("dev "),
        "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    );
    assert_eq!(
        line("root "),
        "bin dev etc proc root sys tmp",
        "the image's and no other"
    );
    for mount in log
        .lines()
        .skip_while(|l| *l != "mounts")
        .skip(1)
        .take_while(|l| l.starts_with('/'))
    {
        let known = [
            "/",
            "/proc",
            "/dev",
            "/sys",
            "/etc/hosts",
            "/etc/hostname",
            "/etc/resolv.conf",
        ];
        assert!(
            known.contains(&mount)
                || ["/proc/", "/dev/", "/sys/"]
                    .iter()
                    .any(|p| mount.starts_with(p)),
            "unexpected mount {mount}: {log}"
        );
    }
    assert!(
        !log.contains(&host.path("data")),
        "no path of the host shows: {log}"
    );
    assert!(
        log.lines()
            .filter(|l| l.contains(":/"))
            .all(|l| l.ends_with(":/")),
        "cgroup namespace: {log}"
    );
}

#[test]
fn privileges_are_dockers_defaults() {
    let host = host_with_busybox();
    let log = inside(
        &host,
        "caps",
        &[],
        "grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status",
    );
    assert!(log.contains("CapEff:\t00000000a80425fb"), "{log}");
    assert!(log.contains("CapBnd:\t00000000a80425fb"), "{log}");
    assert!(log.contains("Seccomp:\t2"), "{log}");
    // Docker's default is that programs may gain what their file gives them.
    assert!(log.contains("NoNewPrivs:\t0"), "{log}");
}

#[test]
fn mounting_module_loading_and_tracing_outwards_are_refused() {
    let host = host_with_busybox();
    let log = inside(
        &host,
        "refused",
        &[],
        "mkdir -p /tmp/m; mount -t tmpfs none /tmp/m 2>&1; echo mount $?; \
         insmod /bin/busybox 2>&1; echo insmod $?; \
         unshare -m true 2>&1; echo unshare $?; \
         echo 1 > /proc/sys/kernel/panic; echo sysctl $?; \
         echo b > /proc/sysrq-trigger; echo sysrq $?; \
         mknod /tmp/sda b 8 0 && cat /tmp/sda 2>&1 >/dev/null; echo disk $?; \
         echo kcore $(cat /proc/kcore 2>/dev/null | head -c 1 | wc -c); \
         echo firmware $(ls -A /sys/firmware | wc -l); \
         date -s 2000-01-01 2>&1; [ $(date +%Y) -gt 2000 ]; echo year $?",
    );
    // Masked: there, and empty. The clock is not asked by its exit code, which busybox does not set.
    let clock = "date: can't set date: Operation not permitted";
    for wanted in ["kcore 0", "firmware 0", clock, "year 0"] {
        assert!(log.lines().any(|l| l == wanted), "{wanted}: {log}");
    }
    for refused in ["mount", "insmod", "unshare", "sysctl", "sysrq", "disk"] {
        let line = log
            .lines()
            .find(|l| l.starts_with(&format!("{refused} ")))
            .unwrap_or_default();
        assert!(
            !line.is_empty() && !line.ends_with(" 0"),
            "{refused} must fail: {log}"
        );
    }
}

#[test]
fn limits_hold() {
    let host = host_with_busybox();
    let log = inside(
        &host,
        "pids",
        &[
            "--limit-pids",
            "20",
            "--limit-memory",
            "64m",
            "--limit-cpu",
            "0.5",
        ],
        // At the limit the shell can start nothing: only its own words work.
        "show() { while read line; do echo $line; done <$1; }; \
         (for i in $(seq 40); do sleep 100 & done) 2>/tmp/refused; show /tmp/refused; \
         for file in memory/memory.limit_in_bytes memory.max cpu/cpu.cfs_quota_us cpu.max; do \
         [ ! -e /sys/fs/cgroup/$file ] || show /sys/fs/cgroup/$file; done",
    );
    assert!(log.contains("67108864"), "{log}");
    assert!(
        log.lines().any(|l| l == "50000" || l == "50000 100000"),
        "{log}"
    );
    assert!(
        log.contains("can't fork") || log.contains("Resource temporarily unavailable"),
        "{log}"
    );

    host.shoal(&[
        "service",
        "create",
        "--detach",
        "--name",
        "oom",
        "--limit-memory",
        "16m",
        "--restart-condition",
        "none",
        "busybox",
        "/bin/sh",
        "-c",
        "tail /dev/zero",
    ]);
    wait_for(
        "the kernel to end it",
        || {
            host.shoal(&[
                "service",
                "ps",
                "--no-trunc",
                "--format",
                "{{.Error}}",
                "oom",
            ])
        },
        |text| text.contains("non-zero exit (137): out of memory"),
    );
}

#[test]
fn users_read_only_roots_and_hosts_are_as_asked_for() {
    let host = host_with_busybox();
    let log = inside(
        &host,
        "user",
        &[
            "--user",
            "www",
            "--read-only",
            "--hostname",
            "box-{{.Task.Slot}}",
            "--env",
            "A=b",
            "--workdir",
            "/tmp",
            "--host",
            "db:10.9.8.7",
        ],
        "id -u; id -g; pwd; hostname; echo $A; touch /x 2>&1; grep db /etc/hosts; cat /etc/resolv.conf",
    );
    for expected in [
        "33\n33\n/tmp\nbox-1\nb\n",
        "Read-only file system",
        "10.9.8.7\tdb",
        "nameserver 127.0.0.11",
    ] {
        assert!(log.contains(expected), "{expected:?} in {log}");
    }
}

/// A process outside of every container that answers as long as nobody harms it.
struct Victim(Child);

impl Victim {
    fn start() -> Self {
        let mut cat = Command::new("cat");
        let cat = cat.stdin(Stdio::piped()).stdout(Stdio::piped());
        Self(cat.spawn().unwrap())
    }

    /// Where its program lies in its memory.
    fn address(&self) -> String {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.0.id())).unwrap();
        format!("0x{}", maps.split('-').next().unwrap())
    }

    fn is_unharmed(&mut self) {
        self.0.stdin.as_mut().unwrap().write_all(b"hi\n").unwrap();
        let mut answer = [0; 3];
        let output = self.0.stdout.as_mut().unwrap();
        output.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"hi\n");
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        assert!(status.contains("TracerPid:\t0\n"), "{status}");
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What Docker gives for each attempt of `programs/reach.c`: the words before the colon are answered
/// with the error after it. Its default seccomp profile refuses with EPERM, but for clone3(2), which
/// programs must take as missing; a pid that names nobody is ESRCH; read-only mounts are EROFS.
const DOCKERS_ANSWERS: &str = "\
kill kill_group tgkill sigqueue pidfd_open ptrace_attach ptrace_seize process_vm_readv process_vm_writev \
setpriority prlimit sched_setaffinity: ESRCH
proc_mem proc_1_root: ENOENT
setns_user setns_mnt setns_net setns_pid setns_ipc setns_uts setns_cgroup setns_time: EPERM
unshare_user unshare_mnt unshare_net unshare_pid unshare_ipc unshare_uts unshare_cgroup unshare_time: EPERM
unshare_user_mnt clone_user: EPERM
clone3: ENOSYS
mount_tmpfs mount_proc mount_bind remount_sys umount2 fsopen open_tree move_mount mount_setattr pivot_root: EPERM
open_by_handle_at init_module finit_module delete_module bpf perf_event_open kexec_load kexec_file_load: EPERM
reboot swapon swapoff settimeofday clock_settime adjtimex sethostname acct quotactl syslog: EPERM
add_key request_key keyctl iopl ioperm userfaultfd io_uring_setup personality: EPERM
socket_vsock socket_alg: EPERM
/proc/irq/default_smp_affinity /proc/sys/kernel/core_pattern /proc/sys/kernel/hostname: EROFS
/proc/sys/kernel/modprobe /proc/sys/kernel/panic /proc/sys/net/ipv4/ip_forward: EROFS
/proc/sys/vm/overcommit_memory /proc/sysrq-trigger /sys/kernel/mm/transparent_hugepage/enabled: EROFS
/sys/kernel/profiling /sys/kernel/uevent_helper /sys/power/state cgroup_mkdir sys_mkdir: EROFS
dev_mem dev_port dev_kmsg dev_fuse dev_loop_control dev_kvm: EPERM";

/// The block devices of this machine, as `MAJOR:MINOR`.
fn disks() -> Vec<String> {
    let table = fs::read_to_string("/proc/partitions").unwrap();
    let numbers = table.lines().skip(2).map(|line| {
        let mut words = line.split_whitespace();
        format!("{}:{}", words.next().unwrap(), words.next().unwrap())
    });
    // One that is nowhere, too: the cgroup refuses before anybody looks for a driver.
    numbers.chain(["8:0".to_owned()]).collect()
}

#[test]
fn what_reaches_out_of_a_container_is_refused_as_docker_refuses_it() {
    let host = Host::local();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/reach.c");
    let tar = program_tar(host.dir(), &source).unwrap();
    host.shoal(&["import", tar.to_str().unwrap(), "reach"]);
    let mut victim = Victim::start();
    let (pid, address, disks) = (victim.0.id().to_string(), victim.address(), disks());

    let mut expected: BTreeMap<String, &str> = BTreeMap::new();
    for line in DOCKERS_ANSWERS.lines() {
        let (names, answer) = line.split_once(": ").unwrap();
        expected.extend(names.split(' ').map(|name| {
            // What this kernel does not have is not there inside either.
            let missing = name.starts_with('/') && !Path::new(name).exists();
            (name.to_owned(), if missing { "ENOENT" } else { answer })
        }));
    }
    expected.extend(disks.iter().map(|disk| (format!("disk_{disk}"), "EPERM")));
    expected.extend([("others".to_owned(), "0"), ("END".to_owned(), "")]);

    // With the right to trace, there is still nobody to be traced.
    for (name, flags) in [
        ("plain", &[][..]),
        ("tracing", &["--cap-add", "SYS_PTRACE"]),
    ] {
        let once = ["service", "create", "--detach", "--restart-condition=none"];
        let program = ["reach", "/program", &pid, &address, &disks.join(",")];
        host.shoal(&[&once[..], &["--name", name], flags, &program].concat());
        let log = wait_for(
            "the program to finish",
            || host.shoal(&["service", "logs", "--raw", name]),
            |log| log.lines().any(|line| line == "END"),
        );
        let seen: BTreeMap<String, &str> = log
            .lines()
            .map(|line| line.split_once(' ').unwrap_or((line, "")))
            .map(|(name, answer)| (name.to_owned(), answer))
            .collect();
        let differing: Vec<_> = expected
            .keys()
            .chain(seen.keys())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .filter(|name| expected.get(*name) != seen.get(*name))
            .map(|name| (name, expected.get(name), seen.get(name)))
            .collect();
        assert!(
            differing.is_empty(),
            "(attempt, Docker's answer, ours) of {name}: {differing:#?}"
        );
        victim.is_unharmed();
    }
}

#[test]
fn the_daemon_and_the_supervisor_have_no_pid_inside() {
    let host = host_with_busybox();
    let (daemon, supervisor) = (host.daemon_pid(), host.supervisor_pid());
    let log = inside(
        &host,
        "outward",
        &["--cap-add", "SYS_PTRACE"],
        &format!(
            "for pid in {daemon} {supervisor}; do \
             kill -0 $pid 2>&1; echo signal $?; [ -e /proc/$pid ]; echo seen $?; \
             cat /proc/$pid/mem 2>&1; echo memory $?; done"
        ),
    );
    for refused in ["signal 1", "seen 1", "memory 1"] {
        assert_eq!(
            log.lines().filter(|line| *line == refused).count(),
            2,
            "{refused}: {log}"
        );
    }
    assert!(log.contains("No such process"), "{log}");
}
