//! Nodes whose address changes while their containers run.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{collections::BTreeSet, net::Ipv4Addr};

use cluster_tests::{Cluster, Role, TaskLine, addresses, busybox_tar, fetch, start_time, wait_for};

const PORT: u16 = 8080;
const NODES: usize = 4;

fn identities(tasks: &[TaskLine]) -> BTreeSet<(String, u32, Option<u64>)> {
    let identity = |task: &TaskLine| (task.id.clone(), task.pid, start_time(task.pid));
    tasks.iter().map(identity).collect()
}

/// From each node to each, by addresses of tasks, by the name, and by the ports at the nodes' addresses.
fn everything_is_reached(cluster: &Cluster, probes: &[TaskLine], nodes: &[Ipv4Addr]) {
    for probe in probes {
        let each = addresses(probe, "tasks.web");
        assert_eq!(each.len(), NODES, "on {}", probe.node);
        for to in each.iter().map(String::as_str).chain(["web"; NODES]) {
            wait_for(
                &format!("{to} from {}", probe.node),
                || fetch(probe, &format!("http://{to}/"), ""),
                |answer| answer.contains("task: web."),
            );
        }
    }
    for addr in nodes {
        for _ in 0..2 * NODES {
            let url = format!("http://{addr}:{PORT}/");
            wait_for(&url, || cluster.client().get(&url), Result::is_ok).unwrap();
        }
    }
    for host in cluster.hosts() {
        let healthy = |output: &cluster_tests::Output| output.status.success();
        wait_for("a healthy node", || host.try_shoal(&["doctor"]), healthy);
    }
}

#[test]
fn nodes_whose_address_changes_are_followed_and_their_tasks_go_on() {
    let cluster = Cluster::new(NODES);
    let by_interface = ["--advertise-addr", "eth0"];
    let init = [&["swarm", "init"], &by_interface[..]].concat();
    cluster.host(0).shoal(&init);
    for (i, role) in [(1, Role::Manager), (2, Role::Manager), (3, Role::Worker)] {
        let (token, remote) = (cluster.token(0, role), cluster.cluster_addr(0));
        let join = [&["swarm", "join", "--token", &token], &by_interface[..]].concat();
        cluster
            .host(i)
            .shoal(&[&join, &[remote.as_str()][..]].concat());
    }
    cluster.wait_ready(0, NODES);
    cluster.import("busybox", busybox_tar);
    let overlay = ["network", "create", "--driver", "overlay", "back"];
    cluster.host(0).shoal(&overlay);
    let create = [
        "service",
        "create",
        "--detach",
        "--network",
        "back",
        "--name",
    ];
    let web = [
        "web",
        "--replicas",
        "4",
        "--publish",
        "8080:80",
        "shoal/hello",
    ];
    let probe = [
        "probe",
        "--mode",
        "global",
        "busybox",
        "/bin/sleep",
        "100000",
    ];
    for what in [web, probe] {
        cluster.host(0).shoal(&[&create[..], &what].concat());
    }
    let before = identities(&cluster.wait_running(0, "web", NODES));
    let probes = cluster.wait_running(0, "probe", NODES);
    let mut nodes: Vec<Ipv4Addr> = (0..NODES).map(|i| cluster.addr(i)).collect();
    everything_is_reached(&cluster, &probes, &nodes);

    // A manager that follows, and a worker.
    let these = [1, 3];
    for i in &these {
        nodes[*i] = cluster.renumber(*i, 100 + i);
    }
    for i in &these {
        let addr = nodes[*i].to_string();
        wait_for(
            &format!("node{} at {addr}", i + 1),
            || {
                cluster
                    .host(2)
                    .try_shoal(&["node", "inspect", &Cluster::hostname(*i)])
            },
            |node| node.stdout.contains(&format!("\"Addr\": \"{addr}\"")),
        );
    }
    cluster.wait_ready(2, NODES);
    everything_is_reached(&cluster, &probes, &nodes);
    wait_for(
        "every manager to be reachable",
        || cluster.nodes(2),
        |all| {
            let votes = all.iter().filter(|node| !node.manager.is_empty());
            votes.clone().count() == 3 && votes.clone().all(|node| node.manager != "Unreachable")
        },
    );
    let after = identities(&cluster.wait_running(2, "web", NODES));
    assert_eq!(after, before, "nothing was restarted");
}
