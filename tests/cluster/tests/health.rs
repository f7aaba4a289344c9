//! Health checks: what comes to run, what gets traffic, and what is replaced.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::PathBuf;

use cluster_tests::{Host, Load, busybox_tar, wait_for};
use serde_json::Value;

const URL: &str = "http://127.0.0.1:8080/";
const SERVE: &str =
    "mkdir -p /www && echo task: here > /www/index.html && exec httpd -f -p 80 -h /www";

fn host() -> Host {
    let host = Host::local();
    let tar = busybox_tar(host.dir()).unwrap();
    host.shoal(&["import", tar.to_str().unwrap(), "busybox"]);
    host
}

/// A web server whose health check is `check`, asked every 200 ms.
fn create(host: &Host, replicas: &str, check: &str, extra: &[&str]) {
    let mut args = vec!["service", "create", "--detach", "--quiet", "--name", "web"];
    args.extend(["--replicas", replicas, "--publish", "8080:80", "--init"]);
    args.extend(["--restart-delay", "0s", "--stop-grace-period", "2s"]);
    args.extend(["--health-cmd", check, "--health-interval", "200ms"]);
    args.extend(["--health-retries", "2"]);
    args.extend(extra);
    args.extend(["busybox", "sh", "-c", SERVE]);
    host.shoal(&args);
}

/// State, error and first pid of every task, the newest first.
fn tasks(host: &Host) -> Vec<(String, String, u64)> {
    let ids = host.shoal(&["service", "ps", "-q", "--no-trunc", "web"]);
    let of = |id: &str| {
        let task = host.try_shoal(&["inspect", "--type", "task", id]);
        let task: Value = serde_json::from_str(&task.stdout).ok()?;
        let status = &task[0]["Status"];
        let text = |name: &str| status[name].as_str().unwrap_or_default().to_owned();
        let pid = status["ContainerStatus"]["PID"].as_u64().unwrap_or(0);
        Some((text("State"), text("Err"), pid))
    };
    ids.lines().filter_map(of).collect()
}

fn in_container(pid: u64, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/root{path}"))
}

fn health(host: &Host) -> Value {
    let id = host.docker(&["ps", "-aq", "--no-trunc"]);
    let id = id.lines().next().unwrap_or_default().to_owned();
    let inspected = host.docker(&["inspect", &id]);
    serde_json::from_str::<Value>(&inspected).unwrap()[0]["State"]["Health"].clone()
}

#[test]
fn a_task_runs_and_gets_traffic_when_it_is_healthy_and_is_replaced_when_it_is_not() {
    let mut host = host();
    create(
        &host,
        "1",
        "test -e /tmp/ok || { echo not yet; exit 4; }",
        &[
            "--health-start-period",
            "60s",
            "--health-start-interval",
            "200ms",
        ],
    );
    let starting = wait_for(
        "the container",
        || tasks(&host),
        |tasks| {
            tasks
                .first()
                .is_some_and(|task| task.0 == "starting" && task.2 > 0)
        },
    );
    let pid = starting[0].2;
    let known = wait_for(
        "failed checks",
        || health(&host),
        |health| health["Log"].as_array().is_some_and(|log| log.len() == 5),
    );
    assert_eq!(known["Status"], "starting");
    assert_eq!(
        known["FailingStreak"], 0,
        "in the start period nothing counts"
    );
    assert_eq!(known["Log"][0]["ExitCode"], 4);
    assert_eq!(known["Log"][0]["Output"], "not yet\n");
    assert_eq!(tasks(&host)[0].0, "starting");
    assert!(host.get(URL).is_err(), "it gets no traffic");
    let status = host.docker(&["ps", "--format", "{{.Status}}"]);
    assert!(status.contains("(health: starting)"), "{status}");

    std::fs::write(in_container(pid, "/tmp/ok"), "").unwrap();
    host.wait_running("web", 1);
    let _ = wait_for("an answer", || host.get(URL), Result::is_ok);
    let status = host.docker(&["ps", "--format", "{{.Status}}"]);
    assert!(status.contains("(healthy)"), "{status}");

    // The daemon's death changes nothing, and health goes on being asked for.
    let load = Load::start(host.network(), "127.0.0.1:8080".parse().unwrap());
    host.kill_daemon();
    host.start();
    wait_for(
        "a check by the new daemon",
        || health(&host),
        |health| health["Log"].as_array().is_some_and(|log| !log.is_empty()),
    );
    assert_eq!(health(&host)["Status"], "healthy");
    let answers = load.finish();
    assert!(
        answers.failures.is_empty() && answers.answered > 0,
        "{answers:?}"
    );
    assert_eq!(tasks(&host)[0].2, pid, "the same container");

    std::fs::remove_file(in_container(pid, "/tmp/ok")).unwrap();
    let replaced = wait_for(
        "a failure and a replacement",
        || tasks(&host),
        |tasks| {
            tasks.iter().any(|task| task.0 == "failed")
                && tasks
                    .iter()
                    .any(|task| task.0 == "starting" && task.2 > 0 && task.2 != pid)
        },
    );
    let failed = replaced.iter().find(|task| task.0 == "failed").unwrap();
    assert!(
        failed.1.starts_with("task: non-zero exit (")
            && failed.1.ends_with("): dockerexec: unhealthy container"),
        "{failed:?}"
    );
}

#[test]
fn an_update_that_turns_out_unhealthy_rolls_back_by_itself_and_loses_no_request() {
    let host = host();
    create(&host, "2", "true", &[]);
    let before = host.wait_running("web", 2);
    let _ = wait_for("an answer", || host.get(URL), Result::is_ok);
    let load = Load::start(host.network(), "127.0.0.1:8080".parse().unwrap());
    host.try_shoal(&[
        "service",
        "update",
        "--detach",
        "--update-failure-action",
        "rollback",
        "--update-order",
        "start-first",
        "--health-cmd",
        "false",
        "web",
    ]);
    let update = wait_for(
        "the end of the rollback",
        || host.json(&["service", "inspect", "web"])[0]["UpdateStatus"].clone(),
        |update| update["State"] == "rollback_completed",
    );
    assert_eq!(update["State"], "rollback_completed");
    let answers = load.finish();
    assert!(
        answers.failures.is_empty() && answers.answered > 0,
        "{answers:?}"
    );
    let after = host.wait_running("web", 2);
    assert!(
        before.iter().any(|pid| after.contains(pid)),
        "what was not touched goes on: {before:?} {after:?}"
    );
    let failed = tasks(&host);
    assert!(
        failed
            .iter()
            .any(|task| task.1.contains("dockerexec: unhealthy container")),
        "{failed:?}"
    );
}

#[test]
fn an_images_check_counts_unless_it_is_switched_off() {
    let host = Host::local();
    let tar = busybox_tar(host.dir()).unwrap();
    let tar = tar.to_str().unwrap();
    let change = "HEALTHCHECK --interval=200ms --start-period=60s --start-interval=200ms CMD false";
    host.shoal(&["import", "--change", change, tar, "sick"]);
    let create = |name: &str, extra: &[&str]| {
        let mut args = vec!["service", "create", "--detach", "--quiet", "--name", name];
        args.extend(extra);
        args.extend(["sick", "sleep", "1000"]);
        host.shoal(&args);
    };
    create("checked", &[]);
    create("unchecked", &["--no-healthcheck"]);
    host.wait_running("unchecked", 1);
    let listed = || host.docker(&["ps", "--format", "{{.Names}} {{.Status}}"]);
    let listed = wait_for("both", listed, |text| text.lines().count() == 2);
    for line in listed.lines() {
        let checked = line.starts_with("checked.");
        assert_eq!(line.contains("(health: starting)"), checked, "{listed}");
    }
    assert!(host.task_pids("checked").is_empty());
}
