//! Machines and networks that fail: what was acknowledged stays, what runs goes on, what is lost is
//! replaced, and what comes back is reconciled.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use cluster_tests::{Cluster, Role, TaskLine, is_alive, start_time, wait_for};

/// A hiccup that no service may notice.
const HICCUP: Duration = Duration::from_secs(5);

fn create(cluster: &Cluster, via: usize, name: &str, flags: &[&str]) {
    let head = [
        "service",
        "create",
        "--detach",
        "--name",
        name,
        "--restart-delay",
        "0s",
    ];
    cluster
        .host(via)
        .shoal(&[&head, flags, &["shoal/hello"]].concat());
}

/// Tasks by what makes them the same ones: id, pid, and when the process was started.
fn identities(tasks: &[TaskLine]) -> BTreeSet<(String, u32, Option<u64>)> {
    let identity = |task: &TaskLine| (task.id.clone(), task.pid, start_time(task.pid));
    tasks.iter().map(identity).collect()
}

/// Processes of `shoal/hello` that a host has.
fn containers(cluster: &Cluster, i: usize) -> usize {
    let processes = cluster.host(i).inventory().processes;
    processes
        .iter()
        .filter(|name| name.ends_with(" hello"))
        .count()
}

/// Writes through the hosts in turn until `count` writes were acknowledged; their names.
fn write(cluster: &Cluster, via: &[usize], prefix: &str, count: usize) -> BTreeSet<String> {
    let mut acknowledged = BTreeSet::new();
    let end = Instant::now() + cluster_tests::DEADLINE;
    for n in 0.. {
        if acknowledged.len() == count {
            break;
        }
        assert!(
            Instant::now() < end,
            "only {} of {count} writes",
            acknowledged.len()
        );
        let name = format!("{prefix}-{n}");
        let args = [
            "service",
            "create",
            "--detach",
            "--replicas",
            "0",
            "--name",
            &name,
        ];
        let output = cluster
            .host(via[n % via.len()])
            .try_shoal(&[&args[..], &["shoal/hello"]].concat());
        if output.status.success() {
            acknowledged.insert(name);
        }
    }
    acknowledged
}

fn services(cluster: &Cluster, via: usize) -> BTreeSet<String> {
    let output = cluster
        .host(via)
        .try_shoal(&["service", "ls", "--format", "{{.Name}}"]);
    output.stdout.lines().map(str::to_owned).collect()
}

#[test]
fn a_leader_that_is_killed_or_cut_off_costs_no_acknowledged_write() {
    let mut cluster = Cluster::formed(3, 0);
    let mut acknowledged = write(&cluster, &[0, 1, 2], "before", 30);

    // Killed, in the middle of writes through the others.
    let first = cluster.leader(0);
    let others: Vec<usize> = (0..3).filter(|i| *i != first).collect();
    thread::scope(|scope| {
        let writer = scope.spawn(|| write(&cluster, &others, "during", 60));
        let pid = cluster.host(first).daemon_pid();
        wait_for(
            "some writes",
            || services(&cluster, others[0]).len(),
            |count| *count > 35,
        );
        cluster_tests::send(pid, nix::sys::signal::Signal::SIGKILL);
        acknowledged.extend(writer.join().unwrap());
    });
    cluster.wait_new_leader(others[0], first);
    for via in &others {
        let seen = services(&cluster, *via);
        assert!(
            seen.is_superset(&acknowledged),
            "{:?}",
            acknowledged.difference(&seen)
        );
    }
    cluster.host_mut(first).kill_daemon();
    cluster.host_mut(first).start();
    wait_for(
        "the old leader to have caught up",
        || services(&cluster, first),
        |seen| seen.is_superset(&acknowledged),
    );

    // Cut off: it leads nobody, and acknowledges nothing.
    let second = cluster.leader(others[0]);
    let rest: Vec<usize> = (0..3).filter(|i| *i != second).collect();
    cluster.isolate(&[second]);
    let alone = [
        "service",
        "create",
        "--detach",
        "--name",
        "alone",
        "shoal/hello",
    ];
    let refused = cluster.host(second).try_shoal(&alone);
    cluster.wait_new_leader(rest[0], second);
    acknowledged.extend(write(&cluster, &rest, "apart", 10));
    cluster.heal();
    let seen = wait_for(
        "all three to agree",
        || [0, 1, 2].map(|via| services(&cluster, via)),
        |seen| seen[0] == seen[1] && seen[1] == seen[2] && seen[0].is_superset(&acknowledged),
    );
    assert!(
        !refused.status.success() || seen[0].contains("alone"),
        "a write was acknowledged and lost"
    );
    assert!(
        !refused.status.success(),
        "one of three acknowledged a write: {refused:?}"
    );
}

/// A change that goes all the way to every node and back.
fn reach_all(cluster: &Cluster, via: usize, name: &str) {
    create(cluster, via, name, &["--mode", "global"]);
    cluster.wait_running(via, name, cluster.len());
    cluster.host(via).shoal(&["service", "rm", name]);
}

/// Waits until these managers have the same services, and all of the `acknowledged` ones.
fn wait_agreed(cluster: &Cluster, managers: &[usize], acknowledged: &BTreeSet<String>) {
    wait_for(
        "all managers to agree",
        || managers.iter().map(|via| services(cluster, *via)).collect(),
        |seen: &Vec<BTreeSet<String>>| {
            seen.iter()
                .all(|services| *services == seen[0] && services.is_superset(acknowledged))
        },
    );
}

#[test]
fn a_leader_that_is_not_heard_or_does_not_hear_and_a_lossy_network_restart_nothing() {
    let cluster = Cluster::formed(3, 1);
    create(&cluster, 0, "hello", &["--replicas", "8"]);
    let tasks = identities(&cluster.wait_running(0, "hello", 8));
    let mut acknowledged = BTreeSet::new();
    for is_heard in [false, true] {
        let leader = cluster.leader(0);
        let managers: Vec<usize> = (0..3).filter(|i| *i != leader).collect();
        let others: Vec<usize> = (0..4).filter(|i| *i != leader).collect();
        let leader = [leader];
        let (from, to) = if is_heard {
            (&others[..], &leader[..])
        } else {
            (&leader[..], &others[..])
        };
        cluster.cut_one_way(from, to);
        let name = format!("heard-{is_heard}");
        acknowledged.extend(write(&cluster, &managers, &name, 5));
        cluster.heal();
        wait_agreed(&cluster, &[0, 1, 2], &acknowledged);
        reach_all(&cluster, managers[0], &format!("{name}-after"));
        let after = identities(&cluster.wait_running(managers[0], "hello", 8));
        assert_eq!(after, tasks, "the leader was heard: {is_heard}");
    }

    cluster.lose(20, &[0, 1, 2, 3]);
    acknowledged.extend(write(&cluster, &[0, 1, 2], "lossy", 10));
    reach_all(&cluster, 0, "lossy-everywhere");
    cluster.heal();
    wait_agreed(&cluster, &[0, 1, 2], &acknowledged);
    let after = identities(&cluster.wait_running(0, "hello", 8));
    assert_eq!(after, tasks, "one frame of five was lost");
}

#[test]
fn five_managers_do_without_the_leader_they_demote_and_without_two_that_die() {
    let mut cluster = Cluster::formed(5, 0);
    let mut acknowledged = write(&cluster, &[0, 1, 2, 3, 4], "before", 5);

    // By itself.
    let first = cluster.leader(0);
    let name = Cluster::hostname(first);
    cluster.host(first).shoal(&["node", "demote", &name]);
    let other = (first + 1) % 5;
    cluster.wait_new_leader(other, first);
    wait_for(
        "the old leader to be a worker",
        || cluster.node(other, first).manager,
        String::is_empty,
    );
    wait_for(
        "the old leader to know it",
        || cluster.host(first).try_shoal(&["node", "ls"]).stderr,
        |said| said.contains("This node is not a swarm manager."),
    );
    let four: Vec<usize> = (0..5).filter(|i| *i != first).collect();
    acknowledged.extend(write(&cluster, &four, "demoted", 5));
    cluster.host(other).shoal(&["node", "promote", &name]);
    wait_for(
        "the old leader to be a manager again",
        || cluster.node(other, first).manager,
        |manager| manager == "Reachable",
    );

    let second = cluster.leader(other);
    let third = (0..5).find(|i| ![first, second].contains(i)).unwrap();
    for dead in [second, third] {
        cluster.host_mut(dead).kill_daemon();
    }
    let living: Vec<usize> = (0..5).filter(|i| ![second, third].contains(i)).collect();
    acknowledged.extend(write(&cluster, &living, "three", 5));
    assert!(living.contains(&cluster.wait_new_leader(living[0], second)));
    for dead in [second, third] {
        cluster.host_mut(dead).start();
    }
    wait_agreed(&cluster, &[0, 1, 2, 3, 4], &acknowledged);
    cluster.wait_ready(0, 5);
}

#[test]
fn tasks_stay_through_hiccups_move_from_dead_and_drained_nodes_and_are_never_twice() {
    let mut cluster = Cluster::new(5);
    cluster.form(3);
    create(&cluster, 0, "hello", &["--replicas", "10"]);
    let tasks = cluster.wait_running(0, "hello", 10);
    for i in 0..5 {
        assert_eq!(containers(&cluster, i), 2, "spread: {tasks:#?}");
    }

    // A worker without time, and one without a network, for a moment.
    cluster.host(4).freeze();
    cluster.isolate(&[3]);
    thread::sleep(HICCUP);
    cluster.host(4).resume();
    cluster.heal();
    // What goes all the way to every node and back shows that all of them are heard again.
    create(&cluster, 0, "everywhere", &["--mode", "global"]);
    cluster.wait_running(0, "everywhere", 5);
    cluster.host(0).shoal(&["service", "rm", "everywhere"]);
    let all = |count: &usize| *count == 10;
    wait_for(
        "the others to end",
        || (0..5).map(|i| containers(&cluster, i)).sum(),
        all,
    );
    let after = identities(&cluster.wait_running(0, "hello", 10));
    let lost: Vec<&TaskLine> = tasks
        .iter()
        .filter(|task| !after.contains(&(task.id.clone(), task.pid, start_time(task.pid))))
        .collect();
    assert!(
        lost.is_empty(),
        "node4 lost its network, node5 stood still; lost: {lost:#?}"
    );

    // A worker loses power: its tasks run elsewhere, the others stay the same.
    cluster.host_mut(4).cut_power();
    cluster.wait_status(0, 4, "Down");
    let moved = wait_for(
        "ten tasks on four nodes",
        || cluster.running(0, "hello"),
        |tasks| tasks.len() == 10 && tasks.iter().all(|task| task.node != "node5"),
    );
    let stayed: Vec<TaskLine> = tasks
        .into_iter()
        .filter(|task| task.node != "node5")
        .collect();
    assert!(identities(&moved).is_superset(&identities(&stayed)));

    // It comes back, and does not go on with what others do now.
    cluster.host_mut(4).boot();
    cluster.wait_ready(0, 5);
    let after = cluster.wait_running(0, "hello", 10);
    assert_eq!(identities(&after), identities(&moved));
    wait_for(
        "no duplicates",
        || (0..5).map(|i| containers(&cluster, i)).sum::<usize>(),
        |count| *count == 10,
    );

    // A node that was away with its tasks running ends them when it is back.
    cluster.isolate(&[3]);
    cluster.wait_status(0, 3, "Down");
    wait_for(
        "ten tasks on the others",
        || cluster.running(0, "hello"),
        |tasks| tasks.len() == 10 && tasks.iter().all(|task| task.node != "node4"),
    );
    assert!(containers(&cluster, 3) > 0, "without a manager it goes on");
    cluster.heal();
    cluster.wait_ready(0, 5);
    wait_for(
        "its tasks to end",
        || containers(&cluster, 3),
        |count| *count == 0,
    );

    // Drained: everything moves away, and nothing comes back by itself.
    cluster
        .host(1)
        .shoal(&["node", "update", "--availability", "drain", "node2"]);
    wait_for(
        "node2 to be empty",
        || containers(&cluster, 1),
        |count| *count == 0,
    );
    let drained = cluster.wait_running(0, "hello", 10);
    assert!(
        drained.iter().all(|task| task.node != "node2"),
        "{drained:#?}"
    );
    cluster
        .host(0)
        .shoal(&["node", "update", "--availability", "active", "node2"]);
    cluster
        .host(0)
        .shoal(&["service", "scale", "--detach", "hello=12"]);
    let scaled = cluster.wait_running(0, "hello", 12);
    assert!(
        scaled.iter().any(|task| task.node == "node2"),
        "{scaled:#?}"
    );
    assert!(identities(&scaled).is_superset(&identities(&drained)));
}

#[test]
fn a_manager_that_is_lost_for_good_is_replaced() {
    let mut cluster = Cluster::new(4);
    cluster.init(0, &[]);
    cluster.join(1, Role::Manager, 0);
    cluster.join(2, Role::Manager, 0);
    cluster.wait_ready(0, 3);
    let before = write(&cluster, &[0, 1, 2], "before", 5);
    cluster.host_mut(2).cut_power();
    cluster.wait_status(0, 2, "Down");
    cluster.host(0).shoal(&["node", "demote", "node3"]);
    wait_for(
        "the dead manager to be removed",
        || cluster.host(0).try_shoal(&["node", "rm", "node3"]),
        |output| output.status.success(),
    );
    cluster.join(3, Role::Manager, 1);
    wait_for(
        "the new manager",
        || cluster.nodes(3),
        |nodes| nodes.len() == 3 && nodes.iter().all(|node| !node.manager.is_empty()),
    );
    // It counts: without one of the old ones, the two left are enough.
    let leader = cluster.leader(3);
    let gone = usize::from(leader != 0);
    cluster.host_mut(gone).kill_daemon();
    let after = write(&cluster, &[3, 1 - gone], "after", 5);
    let seen = services(&cluster, 3);
    assert!(
        seen.is_superset(&before) && seen.is_superset(&after),
        "{seen:?}"
    );
    cluster.host_mut(gone).start();
}

#[test]
fn two_of_three_managers_lost_end_in_a_new_cluster_with_the_same_containers() {
    let mut cluster = Cluster::new(4);
    cluster.form(3);
    create(&cluster, 0, "hello", &["--replicas", "8"]);
    let tasks = cluster.wait_running(0, "hello", 8);
    let kept: Vec<TaskLine> = tasks
        .into_iter()
        .filter(|task| ["node1", "node4"].contains(&task.node.as_str()))
        .collect();
    assert_eq!(kept.len(), 4);
    for i in [1, 2] {
        cluster.host_mut(i).cut_power();
    }
    // Nothing is decided any more, and whoever asks is told why; nothing ends either.
    wait_for(
        "the loss to be noticed",
        || {
            let scale = ["service", "scale", "--detach", "hello=9"];
            cluster
                .host(0)
                .try_shoal(&scale)
                .refusal("a change without a quorum")
        },
        |said| said.contains("The swarm does not have a leader"),
    );
    assert!(kept.iter().all(|task| is_alive(task.pid)));

    cluster.init(0, &["--force-new-cluster"]);
    wait_for(
        "the new cluster to be led",
        || cluster.host(0).try_shoal(&["node", "ls"]).status.success(),
        |answered| *answered,
    );
    assert_eq!(cluster.leader(0), 0);
    cluster.wait_ready(0, 2);
    let all = wait_for(
        "eight tasks on two nodes",
        || cluster.running(0, "hello"),
        |tasks| tasks.len() == 8,
    );
    assert!(identities(&all).is_superset(&identities(&kept)), "{all:#?}");

    // And it grows again.
    for i in ["node2", "node3"] {
        cluster.host(0).shoal(&["node", "rm", "--force", i]);
    }
    cluster.host_mut(1).boot();
    cluster.host(1).shoal(&["swarm", "leave", "--force"]);
    cluster.join(1, Role::Manager, 0);
    cluster.wait_ready(0, 3);
}

#[test]
fn clocks_that_jump_and_disks_that_are_full_restart_nothing() {
    let cluster = Cluster::with_hosts(3, |_, host| host.with_disk(256)?.with_clock());
    cluster.form(3);
    create(&cluster, 0, "hello", &["--replicas", "3"]);
    let tasks = cluster.wait_running(0, "hello", 3);
    let leader = cluster.leader(0);
    let other = (leader + 1) % 3;
    for (host, minutes) in [
        (leader, 24 * 60),
        (leader, 0),
        (leader, -30),
        (other, 24 * 60),
        (other, -30),
        (other, 0),
        (leader, 0),
    ] {
        cluster.host(host).set_clock(minutes * 60);
        // A change that goes all the way shows that everybody took part since.
        let name = format!("clock-{host}-{minutes}");
        create(&cluster, other, &name, &["--mode", "global"]);
        cluster.wait_running(leader, &name, 3);
        cluster.host(other).shoal(&["service", "rm", &name]);
    }
    // So far back that no certificate is valid yet: whoever cannot work with that says so.
    cluster.host(leader).set_clock(-24 * 3600);
    let early = [
        "service",
        "create",
        "--detach",
        "--name",
        "early",
        "--replicas",
        "0",
    ];
    let early = cluster
        .host(other)
        .try_shoal(&[&early[..], &["shoal/hello"]].concat());
    assert!(
        early.status.success() || early.stderr.contains("Set the clocks right"),
        "{early:?}"
    );
    cluster.host(leader).set_clock(0);
    cluster.wait_ready(leader, 3);
    assert_eq!(
        identities(&cluster.wait_running(0, "hello", 3)),
        identities(&tasks)
    );

    let acknowledged = write(&cluster, &[0, 1, 2], "before", 10);
    cluster.host(leader).fill_disk();
    let rest: Vec<usize> = (0..3).filter(|i| *i != leader).collect();
    let more = write(&cluster, &rest, "full", 20);
    cluster.host(leader).free_disk();
    wait_for(
        "all three to have everything",
        || [0, 1, 2].map(|via| services(&cluster, via)),
        |seen| {
            seen.iter()
                .all(|seen| seen.is_superset(&acknowledged) && seen.is_superset(&more))
        },
    );
    assert_eq!(
        identities(&cluster.wait_running(0, "hello", 3)),
        identities(&tasks)
    );
}
