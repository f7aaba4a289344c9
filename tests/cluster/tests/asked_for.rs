//! What a service, a network or a node is asked for by flags, read back from inside a container.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{fs, path::Path};

use cluster_tests::{Host, busybox_tar, wait_for};

const MTU: &str = "com.docker.network.driver.mtu";

const SCRIPT: &str = "\
trap 'echo stopped by USR1; exit 0' USR1; \
grep -E 'CapEff|NoNewPrivs|Groups' /proc/self/status; ulimit -Sn; ulimit -Hn; \
cat /proc/sys/net/ipv4/ip_unprivileged_port_start /etc/resolv.conf; hostname; cat /proc/self/oom_score_adj; \
echo pid $$; touch /file 2>&1; grep ' /scratch ' /proc/mounts; touch /scratch/file && echo written; \
env | grep DOCKER_RESOURCE; echo mtu $(cat /sys/class/net/eth0/mtu); echo END; \
while :; do sleep 1 & wait; done";

fn host() -> Host {
    let mut host = Host::new().unwrap().with_args(&[
        "--node-generic-resource=GPU=a",
        "--node-generic-resource=GPU=b",
        "--node-generic-resource=SSD=3",
    ]);
    host = host.into_local();
    let tar = busybox_tar(host.dir()).unwrap();
    host.shoal(&["import", tar.to_str().unwrap(), "busybox"]);
    host
}

fn log_of(host: &Host, service: &str, end: &str) -> String {
    wait_for(
        "the container to write",
        || host.docker(&["service", "logs", "--raw", service]),
        |log| log.contains(end),
    )
}

#[test]
fn containers_are_as_flags_say() {
    let host = host();
    let option = format!("{MTU}=1400");
    let made = host.try_shoal(&[
        "network",
        "create",
        "--attachable",
        "-o",
        &option,
        "-o",
        "color=blue",
        "narrow",
    ]);
    assert!(made.status.success(), "{made:?}");
    assert_eq!(
        made.stderr.trim(),
        "WARNING: the network is of the driver overlay and spans the swarm; the driver overlay has no \
         option color; attachable has no effect: all containers are of services"
    );
    assert_eq!(
        host.docker(&[
            "network",
            "ls",
            "--filter",
            "name=narrow",
            "--format",
            "{{.Driver}} {{.Scope}}"
        ]),
        "overlay swarm\n"
    );
    let format = format!("{{{{index .Options \"{MTU}\"}}}}");
    assert_eq!(
        host.docker(&["network", "inspect", "--format", &format, "narrow"]),
        "1400\n"
    );
    let option = format!("{MTU}=tiny");
    let refused = host.try_docker(&["network", "create", "-d", "overlay", "-o", &option, "bad"]);
    assert!(
        refused.stderr.contains("invalid MTU value: tiny"),
        "{refused:?}"
    );

    let words = "service create --detach --name all --network narrow --cap-drop CHOWN --cap-add NET_ADMIN \
                 --ulimit nofile=123:456 --sysctl net.ipv4.ip_unprivileged_port_start=81 --dns 192.0.2.9 \
                 --dns-search reef.test --dns-option ndots:3 --stop-signal USR1 --group www --oom-score-adj 77 --init \
                 --read-only --mount type=tmpfs,dst=/scratch,tmpfs-size=1048576,tmpfs-mode=0700 \
                 --hostname {{.Service.Name}}-{{.Task.Slot}} --generic-resource GPU=2 --generic-resource SSD=1 \
                 busybox sh -c";
    let words: Vec<&str> = words.split_whitespace().chain([SCRIPT]).collect();
    host.docker(&words);
    let log = log_of(&host, "all", "END\n");
    for expected in [
        // Docker's fourteen, without CHOWN (bit 0), with NET_ADMIN (bit 12).
        "CapEff:\t00000000a80435fa\n",
        "NoNewPrivs:\t0\n",
        "123\n456\n81\n",
        "nameserver 127.0.0.11\n",
        "search reef.test\n",
        "ndots:3",
        "all-1\n77\n",
        "Read-only file system",
        "size=1024k,mode=700",
        "written\n",
        "DOCKER_RESOURCE_GPU=a,b\n",
        "DOCKER_RESOURCE_SSD=1\n",
        // What VXLAN leaves.
        "mtu 1350\n",
    ] {
        assert!(log.contains(expected), "{expected:?} in {log}");
    }
    let line = |key: &str| log.lines().find_map(|l| l.strip_prefix(key)).unwrap_or("");
    assert!(
        line("Groups:").split_whitespace().any(|id| id == "33"),
        "{log}"
    );
    assert_ne!(line("pid "), "1", "an init has the first pid: {log}");

    let node = host.docker(&[
        "node",
        "inspect",
        "self",
        "--format",
        "{{json .Description.Resources}}",
    ]);
    for have in [
        r#"{"NamedResourceSpec":{"Kind":"GPU","Value":"a"}}"#,
        r#"{"DiscreteResourceSpec":{"Kind":"SSD","Value":3}}"#,
    ] {
        assert!(node.contains(have), "{have} in {node}");
    }
    // Nobody else gets what the task has, until it has ended.
    host.shoal(&[
        "service",
        "create",
        "--detach",
        "--name",
        "more",
        "--generic-resource",
        "GPU=1",
        "busybox",
        "sleep",
        "1000",
    ]);
    wait_for(
        "the reason why it waits",
        || {
            host.docker(&[
                "service",
                "ps",
                "--no-trunc",
                "--format",
                "{{.Error}}",
                "more",
            ])
        },
        |text| text.contains("insufficient resources"),
    );
    host.shoal(&["service", "rm", "more"]);
    host.docker(&["service", "update", "--detach", "--force", "all"]);
    log_of(&host, "all", "stopped by USR1\n");

    let refused = host.try_docker(&["service", "create", "--isolation", "hyperv", "busybox"]);
    assert!(
        !refused.status.success() && refused.stderr.contains("solation"),
        "{refused:?}"
    );
}

/// What the CLI has no flags for.
#[test]
fn new_privileges_are_refused_to_who_asks_for_that_and_sizes_are_counted() {
    let host = host();
    let body = r#"{"Name":"bare","TaskTemplate":{"ContainerSpec":{"Image":"busybox",
        "Command":["sh","-c","head -c 100000 /dev/zero >/file; grep NoNewPrivs /proc/self/status; echo END; sleep 1000"],
        "Privileges":{"NoNewPrivileges":true}}}}"#;
    let post = |body: &str| {
        let mut curl = host.in_network("curl");
        curl.args([
            "-sS",
            "--unix-socket",
            &host.path("shoal.sock"),
            "-H",
            "Content-Type: application/json",
        ]);
        let answer = curl
            .args(["-d", body, "http://api/services/create"])
            .output()
            .unwrap();
        String::from_utf8(answer.stdout).unwrap()
    };
    let refused = post(&body.replace(
        r#""NoNewPrivileges":true"#,
        r#""AppArmor":{"Mode":"default"}"#,
    ));
    assert!(refused.contains("AppArmor"), "{refused}");
    post(body);
    let log = log_of(&host, "bare", "END\n");
    assert!(log.contains("NoNewPrivs:\t1\n"), "{log}");

    let shown = host.docker(&["ps", "--size", "--format", "{{.Size}}"]);
    assert!(shown.starts_with("100kB (virtual "), "{shown}");
    assert_eq!(
        shown,
        host.shoal(&["ps", "--size", "--format", "{{.Size}}"])
    );
    let id = host.docker(&["ps", "-q"]);
    let sizes = host.docker(&[
        "inspect",
        "--size",
        "--format",
        "{{.SizeRw}} {{.SizeRootFs}}",
        id.trim(),
    ]);
    let sizes: Vec<u64> = sizes
        .split_whitespace()
        .map(|n| n.parse().unwrap())
        .collect();
    assert!(sizes[0] == 100_000 && sizes[1] > sizes[0], "{sizes:?}");
    let plain = host.docker(&["inspect", id.trim()]);
    assert!(!plain.contains("SizeRw"), "nobody asked: {plain}");

    // What the kernel can, whatever it is.
    let groups = fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
    let counts_swap = Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists()
        || groups
            .into_iter()
            .any(|group| group.path().join("memory.swap.max").exists());
    let format = "{{.SwapLimit}} {{.MemoryLimit}} {{.PidsLimit}}";
    assert_eq!(
        host.docker(&["info", "--format", format]),
        format!("{counts_swap} true true\n")
    );
}

#[test]
fn jobs_run_to_their_end_and_are_counted() {
    let host = host();
    host.docker(&[
        "service",
        "create",
        "--detach",
        "--name",
        "three",
        "--mode",
        "replicated-job",
        "--replicas",
        "3",
        "--max-concurrent",
        "2",
        "busybox",
        "true",
    ]);
    host.shoal(&[
        "service",
        "create",
        "--detach",
        "--name",
        "each",
        "--mode",
        "global-job",
        "busybox",
        "true",
    ]);
    for (name, whole) in [("three", "(3/3 completed)"), ("each", "(1/1 completed)")] {
        let filter = format!("name={name}");
        let list = [
            "service",
            "ls",
            "--filter",
            &filter,
            "--format",
            "{{.Replicas}}",
        ];
        let line = wait_for(
            "the job to be done",
            || host.docker(&list),
            |line| line.contains(whole),
        );
        assert_eq!(line, host.shoal(&list));
        let format = "{{.DesiredState}} {{.CurrentState}}";
        let tasks = host.docker(&["service", "ps", "--format", format, name]);
        assert!(
            tasks
                .lines()
                .all(|task| task.starts_with("Complete Complete")),
            "{tasks}"
        );
        assert_eq!(tasks.lines().count(), if name == "three" { 3 } else { 1 });
    }
}
