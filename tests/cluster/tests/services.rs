//! Services on one node, driven by `shoal`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeSet;

use cluster_tests::{Host, busybox_tar, wait_for};

const HELLO: &str = "http://127.0.0.1:8080/";

fn tasks_that_answer(host: &Host, requests: usize) -> BTreeSet<String> {
    (0..requests)
        .filter_map(|_| host.get(HELLO).ok())
        .filter_map(|body| {
            body.lines()
                .find_map(|l| l.strip_prefix("task: ").map(str::to_owned))
        })
        .collect()
}

fn create_hello(host: &Host, extra: &[&str]) {
    let mut args = vec![
        "service",
        "create",
        "--quiet",
        "--name",
        "hello",
        "--replicas",
        "3",
    ];
    args.extend(["--publish", "8080:80", "--restart-delay", "0s"]);
    args.extend(extra);
    args.push("shoal/hello");
    host.shoal(&args);
}

#[test]
fn three_replicas_share_a_port_and_a_killed_one_is_replaced_in_its_slot() {
    let host = Host::local();
    create_hello(&host, &[]);
    let before = host.wait_running("hello", 3);
    let seen = wait_for(
        "all three to answer",
        || tasks_that_answer(&host, 12),
        |s| s.len() == 3,
    );
    let slots: BTreeSet<&str> = seen.iter().map(|name| &name[..7]).collect();
    assert_eq!(slots, ["hello.1", "hello.2", "hello.3"].into());

    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(before[0]).unwrap()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    let after = wait_for(
        "a replacement",
        || host.task_pids("hello"),
        |pids| pids.len() == 3 && !pids.contains(&before[0]),
    );
    assert_eq!(
        before.iter().filter(|pid| after.contains(pid)).count(),
        2,
        "the others stay"
    );
    let history = host.shoal(&["service", "ps", "hello", "--format", "{{.Name}} {{.Error}}"]);
    assert!(history.contains("task: non-zero exit (137)"), "{history}");
    let again = wait_for(
        "three to answer",
        || tasks_that_answer(&host, 12),
        |s| s.len() == 3,
    );
    let slots: BTreeSet<&str> = again.iter().map(|name| &name[..7]).collect();
    assert_eq!(
        slots,
        ["hello.1", "hello.2", "hello.3"].into(),
        "the slot is filled again"
    );
}

#[test]
fn scaling_updating_and_removing_leave_what_was_asked_for_and_then_nothing() {
    let host = Host::local();
    host.warm_up();
    let before = host.inventory();
    create_hello(&host, &[]);
    let first = host.wait_running("hello", 3);

    host.shoal(&["service", "scale", "hello=5"]);
    let five = host.wait_running("hello", 5);
    assert!(
        first.iter().all(|pid| five.contains(pid)),
        "scaling up touches no running task"
    );

    host.shoal(&[
        "service",
        "update",
        "--quiet",
        "--env-add",
        "COLOUR=blue",
        "hello",
    ]);
    let updated = host.wait_running("hello", 5);
    assert!(
        updated.iter().all(|pid| !five.contains(pid)),
        "an update replaces every task"
    );

    host.shoal(&[
        "service",
        "update",
        "--quiet",
        "--label-add",
        "a=b",
        "hello",
    ]);
    assert_eq!(
        host.wait_running("hello", 5),
        updated,
        "a label replaces none"
    );

    host.shoal(&["service", "scale", "hello=1"]);
    let last = host.wait_running("hello", 1);
    assert!(updated.contains(&last[0]));

    host.shoal(&["service", "rm", "hello"]);
    host.wait_clean(&before);
}

#[test]
fn what_cannot_run_says_why() {
    let host = Host::local();
    let reason = |service: &str| {
        host.shoal(&[
            "service",
            "ps",
            "--no-trunc",
            "--format",
            "{{.CurrentState}} {{.Error}}",
            service,
        ])
    };
    host.shoal(&[
        "service",
        "create",
        "-d",
        "--name",
        "elsewhere",
        "--constraint",
        "node.role==worker",
        "shoal/hello",
    ]);
    wait_for(
        "the reason",
        || reason("elsewhere"),
        |text| text.contains("no suitable node (scheduling constraints not satisfied on 1 node)"),
    );
    host.shoal(&[
        "service",
        "create",
        "-d",
        "--name",
        "greedy",
        "--reserve-memory",
        "900g",
        "shoal/hello",
    ]);
    wait_for(
        "the reason",
        || reason("greedy"),
        |text| text.contains("no suitable node (insufficient resources on 1 node)"),
    );
    host.shoal(&[
        "service",
        "create",
        "-d",
        "--name",
        "missing",
        "--restart-condition",
        "none",
        "--entrypoint",
        "/no/such/program",
        "shoal/hello",
    ]);
    wait_for(
        "the reason",
        || reason("missing"),
        |text| text.contains("/no/such/program"),
    );
}

#[test]
fn bad_requests_are_refused_by_name_and_change_nothing() {
    let host = Host::local();
    host.warm_up();
    let before = host.inventory();
    for (args, message) in [
        (
            &["--name", "a.b", "shoal/hello"][..],
            "name must be valid as a DNS name component",
        ),
        (
            &["--network", "nowhere", "shoal/hello"][..],
            "network nowhere not found",
        ),
        (
            &["--limit-memory", "1m", "shoal/hello"][..],
            "Must be at least 4MiB",
        ),
        (
            &["--constraint", "node.role=worker", "shoal/hello"][..],
            "constraint",
        ),
        (&["UPPER/case"][..], "is not a valid repository/tag"),
    ] {
        let mut all = vec!["service", "create", "-d"];
        all.extend(args);
        let output = host.try_shoal(&all);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
        assert!(
            output.stderr.contains(message),
            "{args:?}: {}",
            output.stderr
        );
    }
    create_hello(&host, &[]);
    let output = host.try_shoal(&["service", "create", "-d", "--name", "Hello", "shoal/hello"]);
    assert!(
        output
            .stderr
            .contains("name conflicts with an existing object"),
        "{}",
        output.stderr
    );
    let output = host.try_shoal(&[
        "service",
        "create",
        "-d",
        "--name",
        "b",
        "-p",
        "8080:80",
        "shoal/hello",
    ]);
    assert!(
        output
            .stderr
            .contains("port '8080' is already in use by service 'hello'"),
        "{}",
        output.stderr
    );
    assert_eq!(
        host.shoal(&["service", "ls", "--format", "{{.Name}}"]),
        "hello\n"
    );
    host.shoal(&["service", "rm", "hello"]);
    host.wait_clean(&before);
}

#[test]
fn names_and_addresses_work_from_inside_a_container() {
    let host = Host::local();
    let tar = busybox_tar(host.dir()).unwrap();
    host.shoal(&["import", tar.to_str().unwrap(), "busybox"]);
    host.shoal(&["network", "create", "--driver", "overlay", "net"]);
    host.shoal(&[
        "service",
        "create",
        "--quiet",
        "--name",
        "web",
        "--network",
        "net",
        "--replicas",
        "3",
        "shoal/hello",
    ]);
    let script = "nslookup web; nslookup tasks.web; \
                  for i in 1 2 3 4 5 6 7 8 9; do wget -qO- http://web/ | grep task; done; \
                  nslookup no-such-name; echo END; sleep 1000";
    host.shoal(&[
        "service",
        "create",
        "--quiet",
        "--name",
        "client",
        "--network",
        "net",
        "busybox",
        "/bin/sh",
        "-c",
        script,
    ]);
    let log = wait_for(
        "the client to finish",
        || host.shoal(&["service", "logs", "--raw", "client"]),
        |log| log.contains("END"),
    );
    let vip = host.shoal(&[
        "service",
        "inspect",
        "web",
        "--format",
        "{{range .Endpoint.VirtualIPs}}{{.Addr}}{{end}}",
    ]);
    let vip = vip.trim().split('/').next().unwrap().to_owned();
    assert!(log.contains(&vip), "the name leads to {vip}: {log}");
    let addresses = log
        .lines()
        .filter(|l| l.contains("10.0.1."))
        .collect::<BTreeSet<_>>();
    assert!(addresses.len() >= 4, "the VIP and three tasks: {log}");
    let answered: BTreeSet<&str> = log
        .lines()
        .filter_map(|l| l.strip_prefix("task: "))
        .collect();
    assert_eq!(answered.len(), 3, "the VIP spreads over all: {log}");
}

#[test]
fn global_services_run_once_on_the_node() {
    let host = Host::local();
    host.shoal(&[
        "service",
        "create",
        "--quiet",
        "--name",
        "everywhere",
        "--mode",
        "global",
        "shoal/hello",
    ]);
    host.wait_running("everywhere", 1);
    assert!(host.shoal(&["service", "ls"]).contains("global"));
    let node = host.shoal(&["node", "ls", "-q"]);
    host.shoal(&["node", "update", "--availability", "drain", node.trim()]);
    host.wait_running("everywhere", 0);
    host.shoal(&["node", "update", "--availability", "active", node.trim()]);
    host.wait_running("everywhere", 1);
}
