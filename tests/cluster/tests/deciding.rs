//! What the managers decide, as it reaches real containers: where tasks may run and why they may not,
//! when they are restarted, and how an update replaces them.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;

use cluster_tests::{Host, busybox_tar, wait_for};
use serde_json::{Value, json};

fn host_with_busybox() -> Host {
    let host = Host::local();
    let tar = busybox_tar(host.dir()).unwrap();
    host.shoal(&["import", tar.to_str().unwrap(), "busybox"]);
    host
}

fn create(host: &Host, name: &str, flags: &[&str], what: &[&str]) {
    let head = ["service", "create", "--detach", "--name", name];
    let grace = ["--stop-grace-period", "1s"];
    host.shoal(&[&head[..], &grace, flags, what].concat());
}

fn update(host: &Host, name: &str, flags: &[&str]) {
    host.shoal(&[&["service", "update", "--detach"], flags, &[name]].concat());
}

fn state(task: &Value) -> &str {
    task["Status"]["State"].as_str().unwrap()
}

fn error(task: &Value) -> &str {
    task["Status"]["Err"].as_str().unwrap_or_default()
}

fn count(tasks: &[Value], wanted: &str) -> usize {
    tasks.iter().filter(|task| state(task) == wanted).count()
}

/// State and error of every task that is to run.
fn told(host: &Host, service: &str) -> Vec<(String, String)> {
    let tasks = host.tasks(service);
    let live = tasks
        .iter()
        .filter(|task| task["DesiredState"] == "running");
    let mut told: Vec<_> = live
        .map(|task| (state(task).to_owned(), error(task).to_owned()))
        .collect();
    told.sort();
    told
}

#[track_caller]
fn waits(host: &Host, service: &str, why: &str) {
    let why = format!("no suitable node ({why})");
    wait_for(
        &format!("the reason why {service} waits"),
        || told(host, service),
        |told| matches!(&told[..], [(state, error)] if state == "pending" && *error == why),
    );
}

#[test]
fn what_the_node_cannot_take_waits_with_the_reason_until_it_can() {
    let host = Host::local();
    let node = host.shoal(&["node", "ls", "--quiet"]);
    let node = node.trim();
    let cpus = host.json(&["node", "inspect", node])[0]["Description"]["Resources"]["NanoCPUs"]
        .as_u64()
        .unwrap();
    let most = format!("{}m", cpus * 3 / 4 / 1_000_000);
    let most = format!(
        "{:.3}",
        most.trim_end_matches('m').parse::<f64>().unwrap() / 1000.0
    );
    let hello = ["shoal/hello"];

    let port = "mode=host,published=9090,target=80";
    create(
        &host,
        "first",
        &["--reserve-cpu", &most, "--publish", port],
        &hello,
    );
    host.wait_running("first", 1);
    create(&host, "cpu", &["--reserve-cpu", &most], &hello);
    create(&host, "memory", &["--reserve-memory", "900g"], &hello);
    create(&host, "port", &["--publish", port], &hello);
    create(
        &host,
        "label",
        &["--constraint", "node.labels.zone==a"],
        &hello,
    );
    let spread = ["--placement-pref", "spread=node.labels.zone"];
    let most_one = [
        &["--replicas", "2", "--replicas-max-per-node", "1"][..],
        &spread,
    ]
    .concat();
    create(&host, "most", &most_one, &hello);
    let foreign = json!({
        "Name": "foreign",
        "TaskTemplate": {
            "ContainerSpec": { "Image": "shoal/hello" },
            "Placement": { "Platforms": [{ "Architecture": "s390x", "OS": "linux" }] },
        },
    });
    host.api("POST", "/services/create", Some(&foreign));

    waits(&host, "cpu", "insufficient resources on 1 node");
    waits(&host, "memory", "insufficient resources on 1 node");
    waits(&host, "port", "host-mode port already in use on 1 node");
    waits(
        &host,
        "label",
        "scheduling constraints not satisfied on 1 node",
    );
    waits(&host, "foreign", "unsupported platform on 1 node");
    let limit = "no suitable node (max replicas per node limit exceed)";
    wait_for(
        "one to run and one to wait",
        || told(&host, "most"),
        |told| {
            matches!(&told[..], [(pending, why), (running, none)]
                if pending == "pending" && why == limit && running == "running" && none.is_empty())
        },
    );
    let shown = [
        "service",
        "ps",
        "--no-trunc",
        "--format",
        "{{.CurrentState}}: {{.Error}}",
        "cpu",
    ];
    let shown = (host.shoal(&shown), host.docker(&shown));
    assert!(
        shown.0.contains("insufficient resources on 1 node"),
        "{shown:?}"
    );
    assert!(
        shown.1.contains("insufficient resources on 1 node"),
        "{shown:?}"
    );

    // Each reason goes, and with it the wait.
    host.shoal(&["service", "rm", "first"]);
    host.shoal(&["node", "update", "--label-add", "zone=a", node]);
    update(&host, "memory", &["--reserve-memory", "8m"]);
    update(&host, "most", &["--replicas-max-per-node", "2"]);
    for service in ["cpu", "memory", "port", "label"] {
        host.wait_running(service, 1);
    }
    host.wait_running("most", 2);
    assert!(host.get("http://127.0.0.1:9090/").is_ok());
    waits(&host, "foreign", "unsupported platform on 1 node");

    host.shoal(&["node", "update", "--availability", "pause", node]);
    create(&host, "late", &[], &hello);
    waits(&host, "late", "1 node not available for new tasks");
    host.shoal(&["node", "update", "--availability", "active", node]);
    host.wait_running("late", 1);
}

#[test]
fn restarts_are_as_many_as_the_policy_allows_and_as_late() {
    let host = host_with_busybox();
    let start = |name: &str, policy: &[&str], script: &str| {
        create(&host, name, policy, &["busybox", "sh", "-c", script]);
    };
    start("never", &["--restart-condition", "none"], "exit 3");
    start(
        "done",
        &["--restart-condition", "on-failure", "--restart-delay", "0s"],
        "exit 0",
    );
    let twice = [
        "--restart-condition",
        "on-failure",
        "--restart-max-attempts",
        "2",
    ];
    start(
        "twice",
        &[&twice[..], &["--restart-delay", "0s"]].concat(),
        "exit 4",
    );
    start("later", &["--restart-delay", "1h"], "exit 5");
    let window = ["--restart-max-attempts", "1", "--restart-window", "100ms"];
    start(
        "window",
        &[&window[..], &["--restart-delay", "0s"]].concat(),
        "sleep 0.3; exit 6",
    );
    start("always", &["--restart-delay", "0s"], "exit 0");

    let ended = |service: &str, state: &str, number: usize| {
        let tasks = wait_for(
            &format!("{number} tasks of {service} to be {state}"),
            || host.tasks(service),
            |tasks| count(tasks, state) >= number,
        );
        assert!(number > 3 || tasks.len() == number, "{service}: {tasks:#?}");
        tasks
    };
    ended("twice", "failed", 3);
    ended("never", "failed", 1);
    ended("done", "complete", 1);
    let waiting = wait_for(
        "a successor that waits",
        || host.tasks("later"),
        |tasks| count(tasks, "failed") == 1 && count(tasks, "ready") == 1,
    );
    assert!(
        waiting
            .iter()
            .any(|task| error(task) == "task: non-zero exit (5)"),
        "{waiting:#?}"
    );
    // Attempts that are older than the window do not count; two would be the end otherwise.
    ended("window", "failed", 4);
    ended("always", "complete", 4);
    // All that while, nothing more came of the others.
    ended("twice", "failed", 3);
    ended("never", "failed", 1);
    ended("done", "complete", 1);
    let error = host.tasks("never")[0]["Status"]["Err"].clone();
    assert_eq!(error, "task: non-zero exit (3)");
}

#[test]
fn an_update_replaces_so_many_at_a_time_in_the_order_asked_for() {
    let host = host_with_busybox();
    create(
        &host,
        "web",
        &[
            "--replicas",
            "4",
            "--restart-delay",
            "0s",
            "--update-monitor",
            "300ms",
            "--init",
        ],
        &["busybox", "sleep", "1000"],
    );
    let first = host.wait_running("web", 4);
    let status = || host.json(&["service", "inspect", "web"])[0]["UpdateStatus"].clone();
    let of_version = |version: &str| {
        let tasks = host.tasks("web");
        let wanted = json!([format!("VERSION={version}")]);
        let running = tasks.iter().filter(|task| state(task) == "running");
        running
            .filter(|task| task["Spec"]["ContainerSpec"]["Env"] == wanted)
            .count()
    };

    update(
        &host,
        "web",
        &[
            "--update-parallelism",
            "2",
            "--update-delay",
            "1h",
            "--env-add",
            "VERSION=2",
        ],
    );
    wait_for(
        "two to be replaced",
        || of_version("2"),
        |replaced| *replaced == 2,
    );
    let half = host.wait_running("web", 4);
    assert_eq!(
        half.iter().filter(|pid| first.contains(pid)).count(),
        2,
        "the others wait for the delay"
    );
    assert_eq!(status()["State"], "updating");
    // One without the delay overtakes it.
    update(&host, "web", &["--update-delay", "0s"]);
    wait_for(
        "all four to be replaced",
        || of_version("2"),
        |replaced| *replaced == 4,
    );
    let second = wait_for("the end of the update", status, |status| {
        status["State"] == "completed"
    });
    assert_eq!(second["Message"], "update completed");
    let second = host.wait_running("web", 4);

    // New tasks do not run before they are healthy, which is when the file is there.
    let gate = [
        "--health-cmd",
        "test -e /tmp/ok",
        "--health-interval",
        "100ms",
    ];
    let gate = [
        &gate[..],
        &[
            "--health-start-period",
            "1h",
            "--health-start-interval",
            "100ms",
        ],
    ]
    .concat();
    let starting = |number: usize| {
        let tasks = wait_for(
            &format!("{number} new tasks to start"),
            || host.tasks("web"),
            |tasks| {
                count(tasks, "starting") == number
                    && tasks.iter().all(|task| {
                        state(task) != "starting"
                            || task["Status"]["ContainerStatus"]["PID"].as_u64() > Some(0)
                    })
            },
        );
        let starting = tasks.iter().filter(|task| state(task) == "starting");
        let pids = starting.map(|task| task["Status"]["ContainerStatus"]["PID"].as_u64().unwrap());
        pids.collect::<Vec<u64>>()
    };
    let open = |pids: Vec<u64>| {
        for pid in pids {
            fs::write(format!("/proc/{pid}/root/tmp/ok"), "").unwrap();
        }
    };
    let start_first = ["--update-parallelism", "1", "--update-order", "start-first"];
    update(&host, "web", &[&gate[..], &start_first].concat());
    let new = starting(1);
    assert_eq!(
        host.wait_running("web", 4),
        second,
        "nobody stops before the new one runs"
    );
    open(new);
    let new = starting(1);
    // And the next waits for its turn.
    host.wait_running("web", 4);
    open(new);
    update(
        &host,
        "web",
        &[
            "--update-parallelism",
            "0",
            "--update-order",
            "stop-first",
            "--env-add",
            "VERSION=3",
        ],
    );
    let new = starting(4);
    assert!(
        host.task_pids("web").is_empty(),
        "all at once, and each only when the old one is gone"
    );
    open(new);
    wait_for(
        "all four to be replaced",
        || of_version("3"),
        |replaced| *replaced == 4,
    );
    wait_for("the end of the update", status, |status| {
        status["State"] == "completed"
    });
}

#[test]
fn an_update_that_fails_does_what_was_asked_for() {
    let host = host_with_busybox();
    // From the second version on, the task in slot 1 fails.
    let script =
        "[ $VERSION$SLOT != 21 ] || exit 7; trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let template = "SLOT={{.Task.Slot}}";
    let make = |name: &str, flags: &[&str]| {
        let common = [
            "--replicas",
            "4",
            "--restart-condition",
            "none",
            "--update-monitor",
            "1s",
        ];
        let env = [
            "--env",
            "VERSION=1",
            "--env",
            template,
            "--update-parallelism",
            "0",
        ];
        create(
            &host,
            name,
            &[&common[..], &env, flags].concat(),
            &["busybox", "sh", "-c", script],
        );
    };
    make("pauses", &["--update-max-failure-ratio", "0.2"]);
    make("bears", &["--update-max-failure-ratio", "0.3"]);
    make("goes-on", &["--update-failure-action", "continue"]);
    make(
        "goes-back",
        &[
            "--update-failure-action",
            "rollback",
            "--rollback-monitor",
            "100ms",
        ],
    );
    let all = ["pauses", "bears", "goes-on", "goes-back"];
    let first = all.map(|service| host.wait_running(service, 4));
    for service in all {
        update(&host, service, &["--env-add", "VERSION=2"]);
    }
    let status =
        |service: &str| host.json(&["service", "inspect", service])[0]["UpdateStatus"].clone();
    let ends = |service: &str, state: &str| {
        wait_for(
            &format!("the update of {service} to be {state}"),
            || status(service),
            |status| status["State"] == state,
        )["Message"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let message = ends("pauses", "paused");
    let tasks = host.tasks("pauses");
    let failed: Vec<&Value> = tasks
        .iter()
        .filter(|task| state(task) == "failed")
        .collect();
    assert_eq!(failed.len(), 1, "{tasks:#?}");
    assert_eq!(
        (failed[0]["Slot"].as_u64(), error(failed[0])),
        (Some(1), "task: non-zero exit (7)")
    );
    let id = failed[0]["ID"].as_str().unwrap();
    assert_eq!(
        message,
        format!("update paused due to failure or early termination of task {id}")
    );
    for service in ["bears", "goes-on"] {
        assert_eq!(ends(service, "completed"), "update completed");
        host.wait_running(service, 3);
    }
    assert_eq!(
        ends("goes-back", "rollback_completed"),
        "rollback completed"
    );
    host.wait_running("goes-back", 4);
    let env = [
        "service",
        "inspect",
        "goes-back",
        "--format",
        "{{.Spec.TaskTemplate.ContainerSpec.Env}}",
    ];
    assert!(host.docker(&env).contains("VERSION=1"));

    // By hand, back to where it was.
    host.shoal(&["service", "rollback", "--detach", "pauses"]);
    let back = ends("pauses", "rollback_completed");
    assert_eq!(back, "rollback completed");
    let after = host.wait_running("pauses", 4);
    assert!(after.iter().all(|pid| !first[0].contains(pid)));
}

#[test]
fn ports_without_a_number_stay_and_ended_tasks_are_kept_to_the_limit() {
    let host = Host::local();
    host.shoal(&["swarm", "update", "--task-history-limit", "2"]);
    let flags = [
        "--publish",
        "80",
        "--restart-delay",
        "0s",
        "--update-monitor",
        "100ms",
    ];
    for name in ["one", "two"] {
        create(&host, name, &flags, &["shoal/hello"]);
    }
    let port = |service: &str| {
        let ports = wait_for(
            "a port",
            || host.json(&["service", "inspect", service])[0]["Endpoint"]["Ports"].clone(),
            |ports| ports[0]["PublishedPort"].is_u64(),
        );
        ports[0]["PublishedPort"].as_u64().unwrap()
    };
    let ports = ["one", "two"].map(port);
    assert!(
        ports.iter().all(|port| (30_000..=32_767).contains(port)) && ports[0] != ports[1],
        "{ports:?}"
    );
    for (service, port) in ["one", "two"].into_iter().zip(ports) {
        let answer = wait_for(
            "an answer",
            || host.get(&format!("http://127.0.0.1:{port}/")),
            Result::is_ok,
        );
        assert!(answer.unwrap().contains(&format!("task: {service}.1.")));
    }
    for _ in 0..3 {
        host.shoal(&["service", "update", "--quiet", "--force", "one"]);
    }
    assert_eq!(port("one"), ports[0]);
    let tasks = wait_for(
        "the history to be cut",
        || host.tasks("one"),
        |tasks| tasks.len() == 2,
    );
    assert_eq!(
        (count(&tasks, "running"), count(&tasks, "shutdown")),
        (1, 1),
        "{tasks:#?}"
    );
}
