//! How nodes become part of a swarm, change their role and leave, and what is refused.

use cluster_tests::{Cluster, Role, is_alive, wait_for};

/// What Docker says to who asks a worker for what only managers know.
const NOT_A_MANAGER: &str = "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. \
     Please run this command on a manager node or promote the current node to a manager.";

/// `node update` and its like, without waiting.
fn demote(cluster: &Cluster, via: usize, i: usize) -> cluster_tests::Output {
    cluster
        .host(via)
        .try_shoal(&["node", "demote", &Cluster::hostname(i)])
}

fn wait_manager_status(cluster: &Cluster, via: usize, i: usize, statuses: &[&str]) {
    wait_for(
        &format!("node{} to be one of {statuses:?}", i + 1),
        || cluster.nodes(via),
        |nodes| {
            nodes.iter().any(|node| {
                node.hostname == Cluster::hostname(i) && statuses.contains(&node.manager.as_str())
            })
        },
    );
}

#[test]
fn nodes_join_by_token_change_their_role_and_leave_without_a_trace() {
    let cluster = Cluster::new(5);
    let printed = cluster.init(0, &[]);
    let id = cluster.node_id(0);
    let token = cluster.token(0, Role::Worker);
    for words in [
        format!("Swarm initialized: current node ({id}) is now a manager."),
        format!(
            "shoal swarm join --token {token} {}",
            cluster.cluster_addr(0)
        ),
        "run 'shoal swarm join-token manager'".to_owned(),
    ] {
        assert!(printed.contains(&words), "{words:?} is not in {printed}");
    }
    assert!(token.starts_with("SWMTKN-1-"), "{token}");
    for (i, role) in [
        (1, Role::Manager),
        (2, Role::Manager),
        (3, Role::Worker),
        (4, Role::Worker),
    ] {
        let printed = cluster.join(i, role, 0);
        let words = format!("This node joined a swarm as a {}.", role.word());
        assert_eq!(printed.trim(), words);
    }
    let nodes = cluster.wait_ready(0, 5);
    for (i, node) in (0..5).map(|i| (i, cluster.node(0, i))) {
        assert_eq!(node.id, cluster.node_id(i), "{nodes:#?}");
        assert_eq!(node.availability, "Active");
    }
    for i in [1, 2] {
        wait_manager_status(&cluster, 0, i, &["Reachable"]);
    }
    for i in [3, 4] {
        assert_eq!(cluster.node(0, i).manager, "");
    }

    // Every manager says the same, and takes changes.
    let listed = cluster.nodes(0);
    for via in [1, 2] {
        wait_for(
            "the same list",
            || cluster.nodes(via),
            |seen| *seen == listed,
        );
        let name = format!("from-{via}");
        let create = [
            "service",
            "create",
            "--detach",
            "--name",
            &name,
            "shoal/hello",
        ];
        cluster.host(via).shoal(&create);
    }
    cluster.wait_running(0, "from-1", 1);
    cluster.wait_running(1, "from-2", 1);
    let docker = cluster
        .host(2)
        .docker(&["service", "ls", "--format", "{{.Name}}"]);
    assert_eq!(docker.lines().collect::<Vec<_>>(), ["from-1", "from-2"]);

    // A worker has no say.
    for args in [
        &["node", "ls"][..],
        &["service", "ls"],
        &["swarm", "join-token", "worker"],
    ] {
        let said = cluster.host(3).try_shoal(args).refusal("a manager's call");
        assert!(said.contains(NOT_A_MANAGER), "{said}");
    }

    // Up and down again.
    cluster.host(0).shoal(&["node", "promote", "node4"]);
    wait_manager_status(&cluster, 0, 3, &["Reachable"]);
    wait_for(
        "node4 to answer as a manager",
        || cluster.nodes(3).len(),
        |count| *count == 5,
    );
    demote(&cluster, 1, 3).success("demoting node4");
    wait_manager_status(&cluster, 0, 3, &[""]);
    wait_for(
        "node4 to be a worker",
        || cluster.host(3).try_shoal(&["node", "ls"]).stderr,
        |said| said.contains(NOT_A_MANAGER),
    );

    // Out: a worker just leaves, a manager is demoted before.
    let refused = cluster.host(0).try_shoal(&["node", "rm", "node5"]);
    let said = refused.refusal("removing a node that is up");
    assert!(said.contains("is not down and can't be removed"), "{said}");
    cluster.host(4).shoal(&["swarm", "leave"]);
    cluster.wait_status(0, 4, "Down");
    cluster.host(0).shoal(&["node", "rm", "node5"]);
    let said = cluster
        .host(2)
        .try_shoal(&["swarm", "leave"])
        .refusal("leaving as a manager");
    assert!(said.contains("--force"), "{said}");
    demote(&cluster, 0, 2).success("demoting node3");
    wait_manager_status(&cluster, 0, 2, &[""]);
    wait_for(
        "node3 to leave",
        || {
            cluster
                .host(2)
                .try_shoal(&["swarm", "leave"])
                .status
                .success()
        },
        |left| *left,
    );
    cluster.wait_status(0, 2, "Down");
    cluster.host(0).shoal(&["node", "rm", "node3"]);
    assert_eq!(cluster.nodes(0).len(), 3);
    // Both may come back, as nodes that were never there.
    cluster.join(4, Role::Worker, 0);
    cluster.wait_ready(0, 4);
    // That nothing stays of any of them, the harness sees to.
    for i in [4, 3, 1, 0] {
        cluster.host(i).shoal(&["swarm", "leave", "--force"]);
    }
}

#[test]
fn a_demotion_that_would_lose_the_quorum_is_refused_with_the_numbers() {
    let mut cluster = Cluster::formed(3, 0);
    cluster.host_mut(2).kill_daemon();
    wait_manager_status(&cluster, 0, 2, &["Unreachable"]);
    let said = demote(&cluster, 0, 1).refusal("demoting one of two living managers");
    let numbers = "would leave 2 managers of which 1 is reachable; 2 are needed for a quorum";
    assert!(said.contains(numbers), "{said}");
    assert_eq!(
        cluster.host(0).json(&["node", "inspect", "node2"])[0]["Spec"]["Role"],
        "manager"
    );

    // The dead one may go, and then the other, too; the last may not.
    demote(&cluster, 0, 2).success("demoting the dead manager");
    wait_manager_status(&cluster, 0, 2, &[""]);
    demote(&cluster, 0, 1).success("demoting one of two managers");
    wait_manager_status(&cluster, 0, 1, &[""]);
    let said = demote(&cluster, 0, 0).refusal("demoting the last manager");
    assert!(said.contains("last manager of the swarm"), "{said}");
    cluster.host_mut(2).start();
    cluster.wait_ready(0, 3);
}

#[test]
fn what_may_not_join_is_told_why_and_changes_nothing() {
    let cluster = Cluster::new(3);
    cluster.init(0, &[]);
    // Another swarm.
    cluster.init(2, &[]);
    let addr = cluster.cluster_addr(0);
    let token = cluster.token(0, Role::Worker);
    let (head, secret) = token.rsplit_once('-').unwrap();
    // Another secret of the same form.
    let flipped: String = secret
        .chars()
        .map(|c| if c == '1' { '2' } else { '1' })
        .collect();
    let refusals = [
        (
            format!("{head}-{flipped}"),
            addr.as_str(),
            "A valid join token is necessary to join this cluster",
        ),
        (
            cluster.token(2, Role::Worker),
            &addr,
            "remote CA does not match fingerprint",
        ),
        ("SWMTKN-1-abc".to_owned(), &addr, "invalid join token"),
        // Nobody listens, and nobody is there.
        (token.clone(), "10.200.7.2:2377", "10.200.7.2:2377"),
        (token.clone(), "10.200.7.99:2377", "10.200.7.99:2377"),
    ];
    for (token, remote, words) in &refusals {
        let said = cluster.try_join(1, token, remote).refusal(words);
        assert!(said.contains(words), "{words:?} is not in {said}");
        let state = cluster
            .host(1)
            .shoal(&["info", "--format", "{{.Swarm.LocalNodeState}}"]);
        assert_eq!(state.trim(), "inactive", "after {words:?}");
    }
    assert_eq!(cluster.nodes(0).len(), 1, "no node was recorded");

    // Of the two tokens only the one that was rotated changes.
    let manager = cluster.token(0, Role::Manager);
    let rotated = cluster
        .host(0)
        .shoal(&["swarm", "join-token", "--quiet", "--rotate", "worker"]);
    assert_ne!(rotated.trim(), token);
    assert_eq!(cluster.token(0, Role::Manager), manager);
    let said = cluster
        .try_join(1, &token, &addr)
        .refusal("a rotated token");
    assert!(said.contains("A valid join token is necessary"), "{said}");
    cluster
        .try_join(1, rotated.trim(), &addr)
        .success("the new token");
    cluster.wait_ready(0, 2);

    let again = cluster
        .try_join(1, rotated.trim(), &addr)
        .refusal("joining twice");
    assert!(
        again.contains("This node is already part of a swarm."),
        "{again}"
    );
    let init = cluster
        .host(1)
        .try_shoal(&["swarm", "init"])
        .refusal("a swarm within a swarm");
    assert!(
        init.contains("This node is already part of a swarm."),
        "{init}"
    );
}

#[test]
fn a_node_that_was_removed_is_let_in_only_by_joining_again() {
    let mut cluster = Cluster::formed(1, 1);
    let create = [
        "service",
        "create",
        "--detach",
        "--name",
        "hello",
        "--constraint",
    ];
    let workers = ["node.role==worker", "shoal/hello"];
    cluster.host(0).shoal(&[&create[..], &workers].concat());
    let running = cluster.wait_running(0, "hello", 1);
    let old = cluster.node_id(1);
    // Once while it is connected, and once while it is not: its certificate is as good as ever, and yet it is
    // told that it is no member any more, and what it runs ends.
    cluster.host_mut(1).kill_daemon();
    cluster.host(0).shoal(&["node", "rm", "--force", "node2"]);
    assert!(is_alive(running[0].pid));
    cluster.host_mut(1).start();
    wait_refused(&cluster, &old);
    wait_for(
        "its container to end",
        || is_alive(running[0].pid),
        |alive| !alive,
    );
    assert_eq!(cluster.nodes(0).len(), 1);
    cluster.host(1).shoal(&["swarm", "leave", "--force"]);
    cluster.join(1, Role::Worker, 0);
    cluster.wait_ready(0, 2);
    let new = cluster.node_id(1);
    assert_ne!(new, old);
    // What could run nowhere runs again.
    let tasks = cluster.wait_running(0, "hello", 1);
    assert_eq!(tasks[0].node, "node2");

    cluster.host(0).shoal(&["node", "rm", "--force", "node2"]);
    wait_refused(&cluster, &new);
    wait_for(
        "its container to end",
        || is_alive(tasks[0].pid),
        |alive| !alive,
    );
    assert_eq!(cluster.host(1).shoal(&["ps", "--quiet"]), "");
    cluster.host_mut(1).stop_daemon();
    cluster.host_mut(1).start();
    wait_refused(&cluster, &new);
    assert_eq!(cluster.nodes(0).len(), 1);
}

/// Waits until node2 has asked for a session since its daemon's last start, and says that it was refused.
#[track_caller]
fn wait_refused(cluster: &Cluster, id: &str) {
    let why = format!(
        "the manager refused this node: node {id} is not a member of this swarm (any more); leave the \
         swarm and join it again"
    );
    wait_for(
        "node2 to be refused",
        || cluster.host(1).try_shoal(&["doctor"]).stdout,
        |said| said.contains(&why),
    );
}
