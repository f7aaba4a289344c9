//! Parts that die and services that change while clients ask all the time, through a published port and
//! through the VIP from another container, on new and on kept connections: no request is lost.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::net::SocketAddr;

use cluster_tests::{Connections, Host, Load, another_build, busybox_tar, send, wait_for};
use nix::sys::signal::Signal;

const PUBLISHED: &str = "127.0.0.1:8080";

/// `web`, published and with a VIP in the network `net`, and `client` in the same network.
fn host_with_services() -> Host {
    let host = Host::local();
    let tar = busybox_tar(host.dir()).unwrap();
    host.shoal(&["import", tar.to_str().unwrap(), "busybox"]);
    host.shoal(&["network", "create", "--driver", "overlay", "net"]);
    let web = ["--name", "web", "--replicas", "4", "--publish", "8080:80"];
    let update = ["--update-monitor", "200ms", "--restart-delay", "0s"];
    let head = ["service", "create", "--detach", "--network", "net"];
    host.shoal(&[&head[..], &web, &update, &["shoal/hello"]].concat());
    host.shoal(
        &[
            &head[..],
            &["--name", "client", "busybox", "sleep", "10000"],
        ]
        .concat(),
    );
    host.wait_running("web", 4);
    host.wait_running("client", 1);
    host
}

/// Requests of every kind: to the port and to the VIP, on new and on kept connections.
fn loads(host: &Host) -> Vec<Load> {
    let address = host.shoal(&[
        "service",
        "inspect",
        "web",
        "--format",
        "{{range .Endpoint.VirtualIPs}}{{println .Addr}}{{end}}",
    ]);
    let address = address.lines().find(|line| line.starts_with("10.0.1."));
    let vip = format!("{}:80", address.unwrap().split('/').next().unwrap());
    let (vip, port): (SocketAddr, SocketAddr) = (vip.parse().unwrap(), PUBLISHED.parse().unwrap());
    let client = host.wait_running("client", 1)[0];
    // What a daemon says runs is reachable a moment later.
    let _ = wait_for(
        "an answer",
        || host.get(&format!("http://{PUBLISHED}/")),
        Result::is_ok,
    );
    let loads: Vec<Load> = [Connections::New, Connections::Kept]
        .into_iter()
        .flat_map(|connections| {
            [
                Load::from_network(host.network(), port, connections),
                Load::from_container(client, vip, connections),
            ]
        })
        .collect();
    answer_more(&loads, 20);
    loads
}

/// Waits until each of the loads has got this many more answers.
#[track_caller]
fn answer_more(loads: &[Load], more: u64) {
    let before: Vec<u64> = loads.iter().map(Load::answered).collect();
    wait_for(
        "answers to every client",
        || loads.iter().map(Load::answered).collect::<Vec<_>>(),
        |now| {
            now.iter()
                .zip(&before)
                .all(|(now, before)| *now >= before + more)
        },
    );
}

/// All answers; fails the test when a request was lost.
#[track_caller]
fn finish(loads: Vec<Load>) -> u64 {
    let all: Vec<_> = loads.into_iter().map(Load::finish).collect();
    let failures: Vec<&String> = all.iter().flat_map(|answers| &answers.failures).collect();
    assert!(failures.is_empty(), "{failures:#?} of {all:?}");
    all.iter().map(|answers| answers.answered).sum()
}

#[test]
fn killed_daemons_another_build_and_a_killed_supervisor_cost_no_request_and_no_log_line() {
    let mut host = host_with_services();
    let pids = host.wait_running("web", 4);
    let loads = loads(&host);

    host.kill_daemon();
    answer_more(&loads, 50);
    host.start();
    answer_more(&loads, 50);

    let desk = host.dir().join("other");
    std::fs::create_dir(&desk).unwrap();
    host.set_binary(&another_build(&desk).unwrap());
    host.kill_daemon();
    answer_more(&loads, 50);
    host.start();
    answer_more(&loads, 50);

    let supervisor = host.supervisor_pid();
    send(supervisor, Signal::SIGKILL);
    answer_more(&loads, 50);
    wait_for(
        "another supervisor",
        || host.try_shoal(&["ps"]).status.success(),
        |ok| *ok,
    );
    let answered = finish(loads);
    assert_eq!(
        host.wait_running("web", 4),
        pids,
        "no container was restarted"
    );
    assert_ne!(host.supervisor_pid(), supervisor);
    // Every request has its line, whoever was dead when it was written; one more asked whether all is up.
    let log = || {
        let log = host.shoal(&["service", "logs", "--raw", "web"]);
        log.lines()
            .filter(|line| line.starts_with("GET / 200"))
            .count() as u64
    };
    let lines = wait_for("all log lines", log, |lines| *lines > answered);
    assert!(
        lines - answered < 10,
        "{lines} lines of {answered} answers: some twice"
    );
}

#[test]
fn updates_and_scaling_lose_no_request() {
    let host = host_with_services();
    let loads = loads(&host);
    let update = |flags: &[&str]| {
        let before = host.wait_running("web", 4);
        host.shoal(&[&["service", "update", "--quiet"], flags, &["web"]].concat());
        let after = host.wait_running("web", 4);
        assert!(
            after.iter().all(|pid| !before.contains(pid)),
            "every task was replaced"
        );
    };
    update(&["--update-order", "stop-first", "--env-add", "VERSION=2"]);
    update(&["--update-order", "start-first", "--env-add", "VERSION=3"]);
    update(&[
        "--update-order",
        "start-first",
        "--update-parallelism",
        "0",
        "--force",
    ]);
    host.shoal(&["service", "scale", "--detach", "web=1"]);
    host.wait_running("web", 1);
    answer_more(&loads, 20);
    host.shoal(&["service", "scale", "--detach", "web=6"]);
    host.wait_running("web", 6);
    answer_more(&loads, 20);
    finish(loads);
}
