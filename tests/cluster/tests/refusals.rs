//! What a swarm refuses is refused with the reason and a way out, and does no harm. What is refused at
//! the command line of a manager, and wrong tokens, are in `joining.rs`.

use std::{collections::BTreeSet, process::Command};

use cluster_tests::{Cluster, Host, Role, TaskLine, start_time, wait_for};

/// A service on one host only.
fn create_on(cluster: &Cluster, i: usize, name: &str, replicas: &str) {
    let place = format!("node.hostname=={}", Cluster::hostname(i));
    let args = ["--name", name, "--replicas", replicas];
    let image = ["--constraint", &place, "shoal/hello"];
    let create = [&["service", "create", "--detach"], &args[..], &image].concat();
    cluster.host(0).shoal(&create);
}

fn identities(tasks: &[TaskLine]) -> BTreeSet<(String, Option<u64>)> {
    let identity = |task: &TaskLine| (task.id.clone(), start_time(task.pid));
    tasks.iter().map(identity).collect()
}

/// Waits until `shoal doctor` on a host says why it takes no part.
#[track_caller]
fn wait_doctor(host: &Host, words: &str) {
    wait_for(
        words,
        || {
            let output = host.try_shoal(&["doctor"]);
            output.stdout + &output.stderr
        },
        |said| said.contains(words),
    );
}

fn swarm_state(host: &Host) -> String {
    let state = host.shoal(&["info", "--format", "{{.Swarm.LocalNodeState}}"]);
    state.trim().to_owned()
}

/// Leaves the swarm that does not want the node, and joins it as a new one.
#[track_caller]
fn join_anew(cluster: &Cluster, i: usize) {
    cluster.host(i).shoal(&["swarm", "leave", "--force"]);
    cluster.join(i, Role::Worker, 0);
}

/// Starts host `to` with what host `from` knows of the swarm and of its tasks.
#[track_caller]
fn start_as_copy(cluster: &mut Cluster, to: usize, from: usize) {
    cluster.host_mut(to).stop_daemon();
    for name in ["swarm", "agent"] {
        let from = format!("{}/{name}", cluster.host(from).data_root());
        let to = cluster.host(to).data_root();
        let mut copy = Command::new("cp");
        let status = copy.args(["-a", &from, &to]).status().expect("start cp");
        assert!(status.success(), "{copy:?}: {status}");
    }
    cluster.host_mut(to).start();
}

#[test]
fn a_copied_data_root_is_refused_while_the_node_it_is_of_lives() {
    let mut cluster = Cluster::new(3);
    cluster.init(0, &[]);
    cluster.join(1, Role::Worker, 0);
    create_on(&cluster, 1, "hello", "2");
    let before = identities(&cluster.wait_running(0, "hello", 2));

    start_as_copy(&mut cluster, 2, 1);
    wait_doctor(cluster.host(2), "is another machine, at 10.200.7.2");
    wait_doctor(cluster.host(2), "leave the swarm here with --force");
    cluster.wait_status(0, 1, "Ready");
    let during = identities(&cluster.wait_running(0, "hello", 2));
    assert_eq!(during, before, "nothing was restarted");

    join_anew(&cluster, 2);
    cluster.wait_ready(0, 3);
    assert_ne!(cluster.node_id(2), cluster.node_id(1));
    // What the copy had begun with, as a node does that no manager answers, went when it left.
    assert_eq!(cluster.host(2).shoal(&["ps", "--quiet"]), "");
    let after = identities(&cluster.wait_running(0, "hello", 2));
    assert_eq!(after, before, "nothing was restarted");
}

#[test]
fn a_copy_of_a_manager_takes_no_part_in_deciding_while_the_manager_lives() {
    let mut cluster = Cluster::with_hosts(4, |_, host| Ok(host.with_short_log()));
    cluster.init(0, &[]);
    cluster.join(1, Role::Manager, 0);
    cluster.join(2, Role::Manager, 0);
    create_on(&cluster, 1, "hello", "2");
    let before = identities(&cluster.wait_running(0, "hello", 2));
    let managers = |cluster: &Cluster| {
        let nodes = cluster.nodes(1).into_iter();
        let managers = nodes.filter(|node| !node.manager.is_empty());
        managers.map(|node| node.id).collect::<BTreeSet<_>>()
    };
    let group = managers(&cluster);

    // Of one that follows, and of the one that leads.
    for of in [1, 0] {
        start_as_copy(&mut cluster, 3, of);
        let addr = cluster.addr(of);
        let words = format!("is another machine, which answers at {addr}:2377");
        wait_doctor(cluster.host(3), &words);
        wait_doctor(cluster.host(3), "Leave the swarm here with --force");
        let listens = cluster
            .client()
            .get(&format!("https://{}/", cluster.cluster_addr(3)));
        let why = listens.unwrap_err();
        assert!(why.contains("Failed to connect"), "a closed port: {why}");
        cluster.host(3).shoal(&["swarm", "leave", "--force"]);
        assert_eq!(managers(&cluster), group, "the copy alone has left");
    }
    let after = identities(&cluster.wait_running(0, "hello", 2));
    assert_eq!(after, before, "nothing was restarted");
    cluster.join(3, Role::Manager, 0);
    cluster.wait_ready(0, 4);
}

#[test]
fn a_node_that_was_away_for_longer_than_its_certificate_is_told_to_join_again() {
    let mut cluster = Cluster::with_hosts(2, |_, host| host.with_clock());
    cluster.init(0, &["--cert-expiry", "1h"]);
    cluster.join(1, Role::Worker, 0);
    create_on(&cluster, 0, "hello", "1");
    let before = identities(&cluster.wait_running(0, "hello", 1));
    cluster.host_mut(1).stop_daemon();
    // The first manager's own is from before anybody could say how long they are to be good for.
    for i in 0..2 {
        cluster.host(i).set_clock(100 * 60);
    }
    cluster.host_mut(1).start();
    wait_doctor(cluster.host(1), "leave the swarm and join again");
    cluster.wait_status(0, 1, "Down");
    let during = identities(&cluster.wait_running(0, "hello", 1));
    assert_eq!(during, before, "nothing was restarted");

    join_anew(&cluster, 1);
    cluster.wait_ready(0, 2);
}

#[test]
fn clocks_hours_apart_and_addresses_that_nobody_reaches_keep_a_node_out_until_they_are_set_right() {
    let cluster = Cluster::with_hosts(2, |_, host| host.with_clock());
    cluster.init(0, &[]);
    let (addr, token) = (cluster.cluster_addr(0), cluster.token(0, Role::Manager));
    for hours in [-3, 3] {
        cluster.host(1).set_clock(hours * 3600);
        let said = cluster.try_join(1, &token, &addr).refusal("a wrong clock");
        assert!(said.contains("lock"), "{said}");
        // What each of the two says, as `2026-03-01T12:00:00Z`.
        let is_time = |word: &&str| word.len() > 19 && word.contains('T') && word.contains('Z');
        let times = said.split_whitespace().filter(is_time).count();
        assert!(times >= 2, "{said}");
        assert_eq!(swarm_state(cluster.host(1)), "inactive");
        assert_eq!(cluster.nodes(0).len(), 1, "no node was recorded");
    }
    cluster.host(1).set_clock(0);

    let advertise = ["--advertise-addr", "10.200.7.77", "--token", &token, &addr];
    let join = [&["swarm", "join"], &advertise[..]].concat();
    let said = cluster.host(1).try_shoal(&join).refusal("a wrong address");
    assert!(
        said.contains("cannot reach this manager at 10.200.7.77:2377"),
        "{said}"
    );
    assert!(said.contains("--advertise-addr"), "{said}");
    assert_eq!(swarm_state(cluster.host(1)), "inactive");
    wait_for(
        "no trace of the node",
        || cluster.nodes(0).len(),
        |count| *count == 1,
    );

    cluster.join(1, Role::Manager, 0);
    cluster.wait_ready(0, 2);
}
