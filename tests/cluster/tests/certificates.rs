//! Certificates of nodes, whose time passes while the nodes take part.

use std::collections::BTreeSet;

use cluster_tests::{Cluster, Role, TaskLine, start_time, wait_for};

fn create_on_all(cluster: &Cluster, name: &str) -> Vec<TaskLine> {
    let args = ["service", "create", "--detach", "--name", name];
    let mode = ["--mode", "global", "shoal/hello"];
    cluster.host(0).shoal(&[&args[..], &mode].concat());
    cluster.wait_running(0, name, cluster.len())
}

fn identities(tasks: &[TaskLine]) -> BTreeSet<(String, Option<u64>)> {
    let identity = |task: &TaskLine| (task.id.clone(), start_time(task.pid));
    tasks.iter().map(identity).collect()
}

#[test]
fn they_are_renewed_before_they_end_and_nothing_restarts() {
    let mut cluster = Cluster::with_hosts(3, |_, host| host.with_clock());
    cluster.init(0, &["--cert-expiry", "1h"]);
    cluster.join(1, Role::Manager, 0);
    cluster.join(2, Role::Worker, 0);
    cluster.wait_ready(0, 3);
    let tasks = identities(&create_on_all(&cluster, "hello"));
    let leader = cluster.leader(0);
    let count = |i: usize, words: &str| cluster.host(i).log().matches(words).count();
    // Those of the first manager are from before it was said how long they are to last.
    let renewals = || [1, 2].map(|i| count(i, "the node has a new certificate"));
    let links = || count(2, "session with the manager opened");
    let (renewed, linked) = (renewals(), links());

    // Nearer to their end than any node waits.
    (0..3).for_each(|i| cluster.host(i).set_clock(50 * 60));
    wait_for("two renewals", renewals, |now| {
        now.iter().zip(renewed).all(|(now, before)| *now > before)
    });
    create_on_all(&cluster, "renewed");
    assert!(
        links() == linked || cluster.leader(0) != leader,
        "the worker's link was cut"
    );

    // The certificate that the worker had joined with has ended.
    (0..3).for_each(|i| cluster.host(i).set_clock(100 * 60));
    cluster.host_mut(2).kill_daemon();
    cluster.host_mut(2).start();
    create_on_all(&cluster, "later");
    cluster.wait_ready(0, 3);
    let after = identities(&cluster.wait_running(0, "hello", 3));
    assert_eq!(after, tasks, "nothing was restarted");
}
