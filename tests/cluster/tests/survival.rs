//! Parts that die at any moment: what runs goes on, and everything ends as desired.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{net::SocketAddr, thread, time::Duration};

use cluster_tests::{Host, Load, wait_for};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

fn sigkill(pid: u32) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
}

fn published() -> SocketAddr {
    "127.0.0.1:8080".parse().unwrap()
}

fn create_hello(host: &Host, replicas: &str) {
    host.shoal(&[
        "service",
        "create",
        "--quiet",
        "--name",
        "hello",
        "--replicas",
        replicas,
        "--publish",
        "8080:80",
        "--restart-delay",
        "0s",
        "shoal/hello",
    ]);
}

#[test]
fn a_killed_daemon_costs_no_request_no_task_and_no_log_line() {
    let mut host = Host::local();
    create_hello(&host, "3");
    let pids = host.wait_running("hello", 3);
    let load = Load::start(&host, published());
    wait_for("some answers", || load.answered(), |n| *n > 50);

    host.kill_daemon();
    let without = load.answered();
    wait_for(
        "answers without a daemon",
        || load.answered(),
        |n| *n > without + 100,
    );
    host.start();
    let with = load.answered();
    wait_for(
        "answers with the new daemon",
        || load.answered(),
        |n| *n > with + 50,
    );
    let answers = load.finish();
    assert!(answers.failures.is_empty(), "{answers:?}");
    assert_eq!(
        host.wait_running("hello", 3),
        pids,
        "no container was restarted"
    );

    // Every request that was answered has its line, those without a daemon too.
    let logged = wait_for(
        "all log lines",
        || {
            let log = host.shoal(&["service", "logs", "--raw", "hello"]);
            log.lines()
                .filter(|line| line.starts_with("GET / 200"))
                .count() as u64
        },
        |lines| *lines >= answers.answered,
    );
    assert_eq!(logged, answers.answered);

    host.shoal(&["service", "scale", "hello=4"]);
    host.wait_running("hello", 4);
}

#[test]
fn a_daemon_that_is_stopped_and_started_goes_on_with_the_same_tasks() {
    let mut host = Host::local();
    create_hello(&host, "2");
    let pids = host.wait_running("hello", 2);
    host.stop_daemon();
    for pid in &pids {
        assert!(
            std::path::Path::new(&format!("/proc/{pid}")).exists(),
            "tasks outlive the daemon"
        );
    }
    // One of them ends while nobody watches.
    sigkill(pids[0]);
    host.start();
    let after = wait_for(
        "the dead one to be replaced",
        || host.task_pids("hello"),
        |now| now.len() == 2 && !now.contains(&pids[0]),
    );
    assert!(after.contains(&pids[1]));
}

#[test]
fn a_killed_supervisor_takes_no_container_with_it() {
    let host = Host::local();
    create_hello(&host, "3");
    let pids = host.wait_running("hello", 3);
    let load = Load::start(&host, published());
    let old = host.supervisor_pid();
    sigkill(old);
    wait_for("answers", || load.answered(), |n| *n > 100);
    let answers = load.finish();
    assert!(answers.failures.is_empty(), "{answers:?}");
    assert_eq!(host.wait_running("hello", 3), pids);
    let lines = || {
        host.shoal(&["service", "logs", "--raw", "hello"])
            .lines()
            .filter(|l| l.starts_with("GET / 200"))
            .count() as u64
    };
    wait_for("all log lines", lines, |lines| *lines >= answers.answered);

    // The new one is a full parent: it sees exits, and makes new containers.
    sigkill(pids[0]);
    let after = wait_for(
        "a replacement",
        || host.task_pids("hello"),
        |now| now.len() == 3 && !now.contains(&pids[0]),
    );
    assert!(after.contains(&pids[1]) && after.contains(&pids[2]));
    assert_ne!(host.supervisor_pid(), old);
}

#[test]
fn a_daemon_killed_while_it_creates_fifty_replicas_ends_with_fifty_and_then_none() {
    let mut host = Host::local();
    let before = host.inventory();
    host.shoal(&[
        "service",
        "create",
        "--detach",
        "--name",
        "many",
        "--replicas",
        "50",
        "--restart-delay",
        "0s",
        "shoal/hello",
    ]);
    for pause in [150, 300, 450] {
        thread::sleep(Duration::from_millis(pause));
        host.kill_daemon();
        host.start();
    }
    let pids = host.wait_running("many", 50);
    assert_eq!(
        host.inventory()
            .processes
            .iter()
            .filter(|p| p.ends_with("hello"))
            .count(),
        50,
        "{pids:?}"
    );
    host.shoal(&["service", "rm", "many"]);
    host.wait_clean(&before);
}

#[test]
fn a_supervisor_killed_while_fifty_replicas_are_made_ends_with_fifty() {
    let host = Host::local();
    let before = host.inventory();
    host.shoal(&[
        "service",
        "create",
        "--detach",
        "--name",
        "many",
        "--replicas",
        "50",
        "--restart-delay",
        "0s",
        "shoal/hello",
    ]);
    thread::sleep(Duration::from_millis(200));
    sigkill(host.supervisor_pid());
    host.wait_running("many", 50);
    host.shoal(&["service", "rm", "many"]);
    host.wait_clean(&before);
}

#[test]
fn leaving_the_swarm_and_purging_leave_no_trace() {
    let mut host = Host::new().unwrap();
    let before = host.inventory();
    host.start();
    host.shoal(&["swarm", "init", "--advertise-addr", "127.0.0.1"]);
    create_hello(&host, "2");
    host.wait_running("hello", 2);
    let refused = host.try_shoal(&["swarm", "leave"]);
    assert!(
        !refused.status.success() && refused.stderr.contains("--force"),
        "{refused:?}"
    );
    host.shoal(&["swarm", "leave", "--force"]);
    assert!(!host.try_shoal(&["service", "ls"]).status.success());
    host.shoal(&["swarm", "init", "--advertise-addr", "127.0.0.1"]);
    assert_eq!(host.shoal(&["service", "ls", "-q"]), "");
    create_hello(&host, "1");
    host.wait_running("hello", 1);
    let cgroups = host.parent_cgroups();
    assert!(!cgroups.is_empty());
    host.purge().unwrap();
    assert!(cgroups.iter().all(|path| !path.exists()), "{cgroups:?}");
    let changes = host.inventory().changes_since(&before);
    assert!(changes.is_empty(), "{changes:#?}");
    assert!(!host.dir().join("data").exists() && !host.dir().join("run").exists());
}
