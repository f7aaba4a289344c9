//! `shoal doctor`: what somebody changed behind the daemon's back is named, and set right.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::process::Command;

use cluster_tests::{Host, Output, wait_for};

const HELLO: &str = "http://127.0.0.1:8080/";

fn host_with_services() -> Host {
    let host = Host::local();
    host.shoal(&["network", "create", "--driver", "overlay", "back"]);
    for name in ["one", "two"] {
        host.shoal(&[
            "service",
            "create",
            "--detach",
            "--name",
            name,
            "--network",
            "back",
            "shoal/hello",
        ]);
    }
    host.shoal(&[
        "service",
        "update",
        "--detach",
        "--publish-add",
        "8080:80",
        "one",
    ]);
    host.wait_running("two", 1);
    wait_for("an answer", || host.get(HELLO).is_ok(), |ok| *ok);
    wait_for("a healthy node", || doctor(&host), is_healthy);
    host
}

fn doctor(host: &Host) -> Output {
    host.try_shoal(&["doctor"])
}

fn is_healthy(output: &Output) -> bool {
    output.status.success() && output.stdout == "The kernel is as the cluster wants it.\n"
}

#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// `program` in the namespace of the network `name`.
fn in_overlay(host: &Host, name: &str, program: &str) -> Command {
    let id = host.shoal(&[
        "network",
        "ls",
        "--quiet",
        "--no-trunc",
        "--filter",
        &format!("name={name}"),
    ]);
    let found = run(Command::new("find").args([&host.path("run"), "-name", id.trim()]));
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", found.trim()))
        .args(["--", program]);
    command
}

/// The host's table of this daemon.
fn table(host: &Host) -> String {
    let tables = run(host.in_network("nft").args(["list", "tables"]));
    let table = tables.lines().find(|line| line.contains("shoal")).unwrap();
    table.strip_prefix("table ").unwrap().to_owned()
}

#[test]
fn what_differs_is_named_and_repaired_by_the_next_change() {
    let host = host_with_services();
    let table = table(&host);
    let delete: Vec<&str> = ["delete", "table"]
        .into_iter()
        .chain(table.split(' '))
        .collect();
    run(host.in_network("nft").args(&delete));
    run(in_overlay(&host, "back", "ip").args(["route", "del", "default"]));
    assert!(host.get(HELLO).is_err());

    let seen = doctor(&host);
    assert_eq!(seen.status.code(), Some(1), "{seen:?}");
    let name = table.split(' ').next_back().unwrap();
    for finding in [
        format!("host: table {name} is missing\n"),
        ": route to 0.0.0.0/0 is missing\n".into(),
    ] {
        assert!(
            seen.stdout.contains(&finding),
            "{finding:?} is not in {}",
            seen.stdout
        );
    }
    assert!(
        seen.stderr.contains("2 differences found"),
        "{}",
        seen.stderr
    );
    let report = host.json(&["doctor", "--format", "json"]);
    assert_eq!(report["Findings"].as_array().unwrap().len(), 2, "{report}");

    host.shoal(&["service", "scale", "--detach", "one=2"]);
    host.wait_running("one", 2);
    wait_for("an answer", || host.get(HELLO).is_ok(), |ok| *ok);
    wait_for("a healthy node", || doctor(&host), is_healthy);
}

#[test]
fn what_nobody_reports_is_repaired_all_the_same() {
    let host = host_with_services();
    run(in_overlay(&host, "ingress", "ip").args(["link", "set", "uplink", "down"]));
    assert!(host.get(HELLO).is_err());
    wait_for("an answer", || host.get(HELLO).is_ok(), |ok| *ok);
    assert!(is_healthy(&doctor(&host)));
    assert!(
        host.log()
            .contains("the kernel was changed by somebody else"),
        "and it is said"
    );
}

#[test]
fn what_in_the_host_stands_in_the_way_is_a_warning() {
    let host = host_with_services();
    let rule = "add table ip mine; add chain ip mine closed { type filter hook forward priority 0; policy drop; }";
    run(host.in_network("nft").arg(rule));
    let seen = doctor(&host);
    assert!(is_healthy(&seen), "a warning is no failure: {seen:?}");
    assert!(
        seen.stderr.contains("drops forwarded packets by default"),
        "{}",
        seen.stderr
    );
}
