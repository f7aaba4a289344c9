//! A node that dies while clients ask all the time through the others: what is lost is what was in flight
//! on it.

use std::net::SocketAddr;

use cluster_tests::{Answers, Cluster, Connections, Load, wait_for};

const REPLICAS: usize = 6;
const NODES: usize = 5;
const PORT: u16 = 8080;

/// Clients that each have one connection at a time, new for each request or kept, by these nodes' ports.
fn clients(cluster: &Cluster, via: [usize; 2]) -> Vec<Load> {
    let clients: Vec<Load> = via
        .into_iter()
        .flat_map(|i| [Connections::New, Connections::New, Connections::Kept].map(|how| (i, how)))
        .map(|(i, how)| {
            let to = SocketAddr::from((cluster.addr(i), PORT));
            Load::patient(cluster.client(), to, how)
        })
        .collect();
    answer_more(&clients);
    clients
}

/// Waits until every client has got a number of answers more: enough that all replicas were asked.
#[track_caller]
fn answer_more(clients: &[Load]) {
    let before: Vec<u64> = clients.iter().map(Load::answered).collect();
    wait_for(
        "answers to every client",
        || clients.iter().map(Load::answered).collect::<Vec<_>>(),
        |now| {
            now.iter()
                .zip(&before)
                .all(|(now, before)| *now >= before + 60)
        },
    );
}

/// Kills everything on a node, and waits until its tasks run on others and every client goes on.
fn kill(cluster: &mut Cluster, via: usize, i: usize, clients: &[Load]) {
    let name = Cluster::hostname(i);
    let tasks = cluster.running(via, "web");
    assert!(tasks.iter().any(|task| task.node == name), "{tasks:#?}");
    cluster.host_mut(i).cut_power();
    wait_for(
        "six on the other nodes",
        || cluster.running(via, "web"),
        |tasks| tasks.len() == REPLICAS && tasks.iter().all(|task| task.node != name),
    );
    answer_more(clients);
}

/// A client has one connection at a time, so one request of it at most was on its way to the node that died
/// or is sent over what had led there. Every other one is sent over a connection made since, and is answered
/// by somebody: none of these fails, however long it takes until the dead are known to be dead.
#[track_caller]
fn at_most_one_lost_by_each(clients: Vec<Load>) {
    let all: Vec<Answers> = clients.into_iter().map(Load::finish).collect();
    for answers in &all {
        assert!(answers.failures.len() <= 1, "{all:#?}");
        assert_eq!(answers.cut_off(), answers.failures.len(), "{all:#?}");
    }
}

#[track_caller]
fn none_lost(clients: Vec<Load>) {
    let all: Vec<Answers> = clients.into_iter().map(Load::finish).collect();
    assert!(
        all.iter().all(|answers| answers.failures.is_empty()),
        "{all:#?}"
    );
}

#[test]
fn a_worker_and_then_the_leader_die_and_only_what_was_in_flight_on_them_is_lost() {
    let mut cluster = Cluster::formed(3, 2);
    let web = ["--name", "web", "--replicas", "6", "--publish", "8080:80"];
    let image = ["--restart-delay", "0s", "shoal/hello"];
    let create = ["service", "create", "--detach"];
    cluster.host(0).shoal(&[&create[..], &web, &image].concat());
    let tasks = cluster.wait_running(0, "web", REPLICAS);
    for i in 0..NODES {
        let name = Cluster::hostname(i);
        assert!(tasks.iter().any(|task| task.node == name), "{tasks:#?}");
        let answers = || cluster.client().get(&cluster.url(i, PORT));
        let _ = wait_for("an answer", answers, Result::is_ok);
    }

    let via = [0, 3];
    let asking = clients(&cluster, via);
    kill(&mut cluster, 0, 4, &asking);
    at_most_one_lost_by_each(asking);

    let leader = cluster.leader(0);
    let manager = (leader + 1) % 3;
    let asking = clients(&cluster, [manager, 3]);
    kill(&mut cluster, manager, leader, &asking);
    at_most_one_lost_by_each(asking);

    let asking = clients(&cluster, [manager, 3]);
    answer_more(&asking);
    none_lost(asking);
}
