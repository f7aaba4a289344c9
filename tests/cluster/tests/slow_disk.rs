//! A manager whose disk is slow: writes go on, whoever leads, and nothing is lost.

use std::{collections::BTreeSet, thread, time::Duration};

use cluster_tests::{Cluster, TaskLine, start_time, wait_for};

/// A disk that others write to as well.
const SLOW: Duration = Duration::from_millis(200);
/// One about to fail, which tries each block again and again.
const STUCK: Duration = Duration::from_secs(3);
/// At once, so that what is not slow shows how fast it is.
const CLIENTS: usize = 4;

/// Creates `count` services through each of the hosts `via`, several at once; their names.
fn write(cluster: &Cluster, via: &[usize], prefix: &str, count: usize) -> BTreeSet<String> {
    let names: Vec<String> = (0..count).map(|n| format!("{prefix}-{n}")).collect();
    let client = |number: usize| {
        let own = names.iter().enumerate().skip(number).step_by(CLIENTS);
        for (n, name) in own {
            let args = ["--detach", "--replicas", "0", "--name", name, "shoal/hello"];
            let create = [&["service", "create"], &args[..]].concat();
            let host = cluster.host(via[n % via.len()]);
            // While a leader is elected a write is refused, or may have been accepted unheard.
            let done = |output: &cluster_tests::Output| {
                output.status.success() || output.stderr.contains("already exists")
            };
            wait_for("a write", || host.try_shoal(&create), done);
        }
    };
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            scope.spawn(move || client(number));
        }
    });
    names.into_iter().collect()
}

fn services(cluster: &Cluster, via: usize) -> BTreeSet<String> {
    let list = ["service", "ls", "--format", "{{.Name}}"];
    let output = cluster.host(via).try_shoal(&list);
    output.stdout.lines().map(str::to_owned).collect()
}

fn identities(tasks: &[TaskLine]) -> BTreeSet<(String, Option<u64>)> {
    let identity = |task: &TaskLine| (task.id.clone(), start_time(task.pid));
    tasks.iter().map(identity).collect()
}

#[test]
fn a_manager_with_a_slow_disk_holds_up_nobody_and_loses_nothing() {
    let cluster = Cluster::with_hosts(3, |_, host| host.with_slow_disk());
    cluster.form(3);
    let hello = ["service", "create", "--detach", "--name", "hello"];
    let three = ["--replicas", "3", "shoal/hello"];
    cluster.host(0).shoal(&[&hello[..], &three].concat());
    let before = identities(&cluster.wait_running(0, "hello", 3));
    let mut written = BTreeSet::new();

    let leader = cluster.leader(0);
    let follower = (leader + 1) % 3;
    let rest: Vec<usize> = (0..3).filter(|i| *i != follower).collect();
    cluster.host(follower).set_flush_time(SLOW);
    written.extend(write(&cluster, &[0, 1, 2], "slow-follower", 12));
    // With a disk that all but stands still, more is written than it flushes: nobody waits for it.
    cluster.host(follower).set_flush_time(STUCK);
    let flushed = cluster.host(follower).flushes();
    let more = write(&cluster, &rest, "stuck-follower", 24);
    let flushed = cluster.host(follower).flushes() - flushed;
    assert!(flushed < 24, "24 writes and {flushed} flushes");
    written.extend(more);
    cluster.host(follower).set_flush_time(Duration::ZERO);

    let leader = cluster.leader(rest[0]);
    cluster.host(leader).set_flush_time(SLOW);
    written.extend(write(&cluster, &[0, 1, 2], "slow-leader", 12));
    cluster.host(leader).set_flush_time(STUCK);
    written.extend(write(&cluster, &[0, 1, 2], "stuck-leader", 4));
    cluster.host(leader).set_flush_time(Duration::ZERO);

    for via in 0..3 {
        wait_for(
            "all that was written",
            || &written - &services(&cluster, via),
            BTreeSet::is_empty,
        );
        cluster.wait_ready(via, 3);
    }
    let after = identities(&cluster.wait_running(0, "hello", 3));
    assert_eq!(after, before, "nothing was restarted");
}
