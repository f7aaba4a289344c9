//! Many agents on few managers. The agents are real daemons whose tasks run in memory only.

use std::collections::BTreeSet;

use cluster_tests::{Cluster, Role, TaskLine, wait_for};

const MANAGERS: usize = 3;
const AGENTS: usize = 20;
const TASKS: usize = 200;
const KILLED: usize = 4;

/// The tasks that run and are meant to. They have no process.
fn running(cluster: &Cluster, via: usize) -> Vec<TaskLine> {
    let mut tasks = cluster.tasks(via, "load");
    tasks.retain(|task| task.state == "running" && task.desired == "running");
    tasks
}

#[track_caller]
fn wait_running(cluster: &Cluster, via: usize, on: &BTreeSet<String>) -> BTreeSet<String> {
    let tasks = wait_for(
        &format!("{TASKS} tasks on {} nodes", on.len()),
        || running(cluster, via),
        |tasks| tasks.len() == TASKS && tasks.iter().all(|task| on.contains(&task.node)),
    );
    tasks.into_iter().map(|task| task.id).collect()
}

fn hostnames(of: std::ops::Range<usize>) -> BTreeSet<String> {
    of.map(Cluster::hostname).collect()
}

#[test]
fn twenty_agents_follow_their_managers_through_losses_of_both() {
    let all = MANAGERS + AGENTS;
    let mut cluster = Cluster::with_hosts(all, |i, host| {
        let host = host.with_short_log();
        Ok(if i >= MANAGERS {
            host.with_args(&["--null-runtime"])
        } else {
            host
        })
    });
    cluster.init(0, &[]);

    // A load generator is no manager, and has no part of the swarm after it was told so.
    let words = "--null-runtime";
    let last = all - 1;
    let addr = cluster.cluster_addr(0);
    let said = cluster
        .host(last)
        .try_shoal(&["swarm", "init"])
        .refusal(words);
    assert!(said.contains(words), "{said}");
    let token = cluster.token(0, Role::Manager);
    let said = cluster.try_join(last, &token, &addr).refusal(words);
    assert!(said.contains(words), "{said}");
    let count = || cluster.nodes(0).len();
    wait_for("no trace of the node", count, |count| *count == 1);

    for i in 1..all {
        let role = if i < MANAGERS {
            Role::Manager
        } else {
            Role::Worker
        };
        cluster.join(i, role, 0);
    }
    cluster.wait_ready(0, all);

    let replicas = TASKS.to_string();
    let create = ["service", "create", "--detach", "--name", "load"];
    let flags = ["--replicas", &replicas, "--restart-delay", "0s"];
    let place = ["--constraint", "node.role==worker", "shoal/hello"];
    cluster
        .host(0)
        .shoal(&[&create[..], &flags, &place].concat());
    let before = wait_running(&cluster, 0, &hostnames(MANAGERS..all));

    // Only what was on the killed ones is replaced.
    let on_killed = |task: &TaskLine| hostnames(MANAGERS..MANAGERS + KILLED).contains(&task.node);
    let (lost, kept): (Vec<TaskLine>, Vec<TaskLine>) =
        running(&cluster, 0).into_iter().partition(on_killed);
    assert!(lost.len() >= KILLED, "every agent has tasks: {lost:?}");
    for i in MANAGERS..MANAGERS + KILLED {
        cluster.host_mut(i).kill_daemon();
    }
    let left = hostnames(MANAGERS + KILLED..all);
    let after = wait_running(&cluster, 0, &left);
    assert!(kept.iter().all(|task| after.contains(&task.id)));
    assert!(before.intersection(&after).count() == kept.len());

    // The next leader finds everybody as they were.
    let leader = cluster.leader(0);
    cluster.host_mut(leader).kill_daemon();
    let via = (leader + 1) % MANAGERS;
    cluster.wait_new_leader(via, leader);
    wait_for(
        "a write to be accepted",
        || {
            let update = [
                "service",
                "update",
                "--detach",
                "--label-add",
                "a=b",
                "load",
            ];
            cluster.host(via).try_shoal(&update).status.success()
        },
        |accepted| *accepted,
    );
    cluster.wait_ready(via, all - KILLED - 1);
    assert_eq!(wait_running(&cluster, via, &left), after);
}
