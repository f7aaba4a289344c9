//! Services whose tasks are on many nodes: published ports, virtual addresses and names.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeSet;

use cluster_tests::{Cluster, TaskLine, addresses, busybox_tar, fetch, field, inside, wait_for};

const REPLICAS: usize = 6;
const NODES: usize = 5;
const PORT: u16 = 8080;

fn ps(cluster: &Cluster, service: &str) -> Vec<TaskLine> {
    cluster.running(0, service)
}

/// The names of the tasks that answer this many requests to a URL of a host's, asked by the client.
fn answering(cluster: &Cluster, i: usize, requests: usize) -> BTreeSet<String> {
    let answers = (0..requests).filter_map(|_| cluster.client().get(&cluster.url(i, PORT)).ok());
    answers
        .filter_map(|answer| field(&answer, "task").map(str::to_owned))
        .collect()
}

#[test]
fn every_node_reaches_every_replica_and_only_those_that_are_there() {
    let mut cluster = Cluster::formed(3, 2);
    cluster.import("busybox", busybox_tar);
    cluster
        .host(0)
        .shoal(&["network", "create", "--driver", "overlay", "back"]);
    let hello = [
        "--replicas",
        "6",
        "--publish",
        "8080:80",
        "--restart-delay",
        "0s",
        "shoal/hello",
    ];
    let create = [
        "service",
        "create",
        "--detach",
        "--network",
        "back",
        "--name",
    ];
    cluster
        .host(0)
        .shoal(&[&create[..], &["web"], &hello].concat());
    let probe = ["--mode", "global", "--stop-grace-period", "0s"];
    let sleep = ["busybox", "/bin/sleep", "100000"];
    cluster
        .host(0)
        .shoal(&[&create[..], &["probe"], &probe].concat());
    let web = cluster.wait_running(0, "web", REPLICAS);
    let probes = cluster.wait_running(0, "probe", NODES);
    let nodes: BTreeSet<&str> = web.iter().map(|task| task.node.as_str()).collect();
    assert_eq!(nodes.len(), NODES, "six over five nodes: {web:#?}");

    published_ports_answer_on_every_node_and_show_the_client(&cluster);
    names_and_virtual_addresses_reach_all_replicas_from_every_node(&cluster, &probes);
    large_answers_cross_between_nodes_whole(&cluster, &probes);
    tasks_of_a_node_that_is_gone_are_neither_tried_nor_named(&mut cluster);
}

fn published_ports_answer_on_every_node_and_show_the_client(cluster: &Cluster) {
    let client = cluster.client_addr().to_string();
    for i in 0..NODES {
        let seen = wait_for(
            &format!("all six through node{}", i + 1),
            || answering(cluster, i, 24),
            |seen| seen.len() == REPLICAS,
        );
        assert!(seen.iter().all(|name| name.starts_with("web.")), "{seen:?}");
        for _ in 0..12 {
            let answer = cluster.client().get(&cluster.url(i, PORT)).unwrap();
            let from = field(&answer, "client").unwrap();
            let address = from.rsplit_once(':').map_or(from, |(address, _)| address);
            assert_eq!(address, client, "through node{}: {answer}", i + 1);
        }
        // A node reaches the port on itself and on another one as well.
        let local = cluster.host(i).get(&format!("http://127.0.0.1:{PORT}/"));
        assert!(local.is_ok(), "node{} to itself: {local:?}", i + 1);
        let next = cluster.host(i).get(&cluster.url((i + 1) % NODES, PORT));
        assert!(next.is_ok(), "node{} to the next: {next:?}", i + 1);
    }
}

fn names_and_virtual_addresses_reach_all_replicas_from_every_node(
    cluster: &Cluster,
    probes: &[TaskLine],
) {
    let service = cluster.host(0).json(&["service", "inspect", "web"]);
    let network = cluster.host(0).json(&["network", "inspect", "back"]);
    let vip = service[0]["Endpoint"]["VirtualIPs"]
        .as_array()
        .unwrap()
        .iter()
        .find(|vip| vip["NetworkID"] == network[0]["Id"])
        .and_then(|vip| vip["Addr"].as_str())
        .and_then(|addr| addr.split('/').next())
        .unwrap()
        .to_owned();
    for probe in probes {
        let on = &probe.node;
        let named = inside(probe, &["/bin/nslookup", "web"]);
        assert!(named.contains(&vip), "web on {on}: {named}");
        let each = wait_for(
            &format!("tasks.web on {on}"),
            || addresses(probe, "tasks.web"),
            |addresses| addresses.len() == REPLICAS,
        );
        assert!(!each.contains(&vip));
        for address in &each {
            let answer = fetch(probe, &format!("http://{address}/"), "");
            assert!(
                answer.contains("task: web."),
                "{address} from {on}: {answer:?}"
            );
        }
        wait_for(
            &format!("all six by the name from {on}"),
            || {
                let answers = (0..18).map(|_| fetch(probe, "http://web/", ""));
                let names = answers.filter_map(|answer| field(&answer, "task").map(str::to_owned));
                names.collect::<BTreeSet<String>>()
            },
            |seen| seen.len() == REPLICAS,
        );
    }
}

/// Larger than any packet, so that what is too long for the tunnel would be lost.
fn large_answers_cross_between_nodes_whole(cluster: &Cluster, probes: &[TaskLine]) {
    let url = "http://web/bytes?n=300000";
    for probe in probes {
        for _ in 0..REPLICAS {
            let count = fetch(
                probe,
                url,
                "--output /dev/null --write-out '%{size_download}'",
            );
            assert_eq!(count.trim(), "300000", "from {}", probe.node);
        }
    }
    for i in 0..NODES {
        let body = cluster
            .client()
            .get(&format!("{}bytes?n=300000", cluster.url(i, PORT)));
        assert_eq!(body.unwrap().len(), 300_000, "through node{}", i + 1);
    }
}

fn tasks_of_a_node_that_is_gone_are_neither_tried_nor_named(cluster: &mut Cluster) {
    cluster.host_mut(4).cut_power();
    cluster.wait_status(0, 4, "Down");
    let web = wait_for(
        "six on the other nodes",
        || ps(cluster, "web"),
        |tasks| tasks.len() == REPLICAS && tasks.iter().all(|task| task.node != "node5"),
    );
    let probes: Vec<TaskLine> = ps(cluster, "probe")
        .into_iter()
        .filter(|task| task.node != "node5")
        .collect();
    assert_eq!(probes.len(), NODES - 1);
    for probe in &probes {
        wait_for(
            &format!("six addresses on {}", probe.node),
            || addresses(probe, "tasks.web"),
            |addresses| addresses.len() == web.len(),
        );
        for _ in 0..18 {
            let answer = fetch(probe, "http://web/", "");
            assert!(
                answer.contains("task: web."),
                "from {}: {answer:?}",
                probe.node
            );
        }
    }
    for i in 0..NODES - 1 {
        for _ in 0..18 {
            let answer = cluster.client().get(&cluster.url(i, PORT));
            assert!(answer.is_ok(), "through node{}: {answer:?}", i + 1);
        }
    }
    cluster.host_mut(4).boot();
    cluster.wait_ready(0, NODES);
    // The port of a node that runs none of them answers, too.
    wait_for(
        "an answer through node5",
        || answering(cluster, 4, 6).len(),
        |count| *count > 0,
    );
}
