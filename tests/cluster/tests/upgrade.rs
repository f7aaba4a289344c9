//! docs/operations.md does what it says: every command of it is run here, as it stands there.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{collections::BTreeSet, fs, net::SocketAddr, path::PathBuf};

use cluster_tests::{Cluster, Load, Role, Runbook, TaskLine, another_build, start_time, wait_for};

fn page() -> Runbook {
    Runbook::read("docs/operations.md").unwrap()
}

/// Runs the block for `place` below `heading` on host `i`.
#[track_caller]
fn run(
    cluster: &mut Cluster,
    i: usize,
    heading: &str,
    place: &str,
    variables: &[(&str, &str)],
) -> String {
    let page = page();
    let address = cluster.addr(i).to_string();
    let variables = [&[("ADDRESS", address.as_str())], variables].concat();
    cluster
        .host_mut(i)
        .operate(page.block(heading, place), &variables)
}

/// The token out of what `join-token` prints.
fn token(printed: &str, role: Role) -> String {
    let words = printed.split_whitespace();
    let tokens: Vec<&str> = words.filter(|word| word.starts_with("SWMTKN-")).collect();
    tokens[usize::from(role == Role::Worker && tokens.len() > 1)].to_owned()
}

/// A swarm of these managers and workers, brought up as the page says.
fn bring_up(hosts: usize, managers: usize, workers: usize) -> Cluster {
    let mut cluster = Cluster::new(hosts);
    let heading = "Bring up";
    run(&mut cluster, 0, heading, "on the first manager", &[]);
    let tokens = run(&mut cluster, 0, heading, "on a manager", &[]);
    let manager = cluster.addr(0).to_string();
    for i in 1..managers + workers {
        let role = if i < managers {
            Role::Manager
        } else {
            Role::Worker
        };
        let token = token(&tokens, role);
        let variables = [("TOKEN", token.as_str()), ("MANAGER", manager.as_str())];
        let place = "on each other node, with the token for its role";
        run(&mut cluster, i, heading, place, &variables);
    }
    let nodes = cluster.wait_ready(0, managers + workers);
    let listed = run(
        &mut cluster,
        0,
        heading,
        "on a manager, when all have joined",
        &[],
    );
    assert_eq!(
        listed.matches("Ready").count(),
        managers + workers,
        "{listed}"
    );
    let voting = nodes.iter().filter(|node| !node.manager.is_empty());
    assert_eq!(voting.count(), managers, "{nodes:#?}");
    cluster
}

fn create(cluster: &Cluster, name: &str, flags: &[&str]) {
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
        .host(0)
        .shoal(&[&head, flags, &["shoal/hello"]].concat());
}

fn identities(tasks: &[TaskLine]) -> BTreeSet<(String, u32, Option<u64>)> {
    let identity = |task: &TaskLine| (task.id.clone(), task.pid, start_time(task.pid));
    tasks.iter().map(identity).collect()
}

/// The program that a process was executed as: the supervisor hides the file itself.
fn executed_as(pid: u32) -> PathBuf {
    let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    words.split('\0').next().unwrap().into()
}

#[test]
fn an_upgrade_node_by_node_restarts_no_task_and_loses_no_request() {
    let heading = "Upgrade, node by node";
    let mut cluster = bring_up(5, 3, 2);
    create(
        &cluster,
        "hello",
        &["--replicas", "6", "--publish", "8080:80"],
    );
    let tasks = cluster.wait_running(0, "hello", 6);
    // Through a manager and through a worker, and so to every task.
    let loads: Vec<Load> = [1, 4]
        .map(|i| Load::start(cluster.client(), SocketAddr::from((cluster.addr(i), 8080))))
        .into();
    wait_for(
        "some answers",
        || loads.iter().map(Load::answered).min(),
        |n| *n > Some(50),
    );

    let leader = cluster.leader(0);
    let mut order = vec![3, 4];
    order.extend((0..3).filter(|i| *i != leader));
    order.push(leader);
    for i in order {
        another_build(&cluster.host(i).desk()).unwrap();
        let (daemon, old) = (
            cluster.host(i).daemon_pid(),
            cluster.host(i).supervisor_pid(),
        );
        let via = usize::from(i == 0);
        run(&mut cluster, i, heading, "on each node in turn", &[]);
        assert_ne!(cluster.host(i).daemon_pid(), daemon);
        // Both are the program that was put there. Before, they were the one beside the tests.
        let installed = cluster.host(i).dir().join("bin-of-shoal/shoal");
        for pid in [
            cluster.host(i).daemon_pid(),
            cluster.host(i).supervisor_pid(),
        ] {
            assert_eq!(executed_as(pid), installed);
        }
        assert_eq!(cluster.host(i).supervisor_pid(), old, "it stays the parent");
        cluster.wait_ready(via, 5);
        run(
            &mut cluster,
            via,
            heading,
            "on a manager, before the next node",
            &[],
        );
        wait_for(
            "a leader and two others",
            || cluster.nodes(via),
            |nodes| {
                let count = |status| nodes.iter().filter(|node| node.manager == status).count();
                (count("Leader"), count("Reachable")) == (1, 2)
            },
        );
    }
    let before: u64 = loads.iter().map(Load::answered).sum();
    wait_for(
        "answers after it",
        || loads.iter().map(Load::answered).sum::<u64>(),
        |sum| *sum > before + 100,
    );
    // A daemon that begins without knowing something takes it away for a moment.
    for host in cluster.hosts() {
        let log = host.log();
        let wrong = log
            .lines()
            .find(|line| line.contains("a network is not as it should be"));
        assert!(wrong.is_none(), "{wrong:?}");
    }
    for load in loads {
        let answers = load.finish();
        assert!(answers.failures.is_empty(), "{answers:?}");
    }
    assert_eq!(
        identities(&cluster.wait_running(0, "hello", 6)),
        identities(&tasks)
    );
    cluster
        .host(2)
        .shoal(&["service", "scale", "--detach", "hello=8"]);
    cluster.wait_running(1, "hello", 8);
}

#[test]
fn the_rest_of_the_page_does_what_it_says() {
    let mut cluster = bring_up(4, 2, 1);
    create(&cluster, "hello", &["--replicas", "6"]);
    cluster.wait_running(0, "hello", 6);
    let manager = cluster.addr(0).to_string();

    // Tokens. The old one is of no more use, which the joins below would show as well.
    let old = cluster.token(0, Role::Manager);
    let tokens = run(
        &mut cluster,
        0,
        "Rotate the join tokens",
        "on a manager",
        &[],
    );
    let (for_worker, for_manager) = (
        cluster.token(0, Role::Worker),
        cluster.token(0, Role::Manager),
    );
    assert!(tokens.contains(&for_worker) && tokens.contains(&for_manager) && old != for_manager);

    // A third manager: node4.
    let place = "on each other node, with the token for its role";
    let variables = [
        ("TOKEN", for_manager.as_str()),
        ("MANAGER", manager.as_str()),
    ];
    run(&mut cluster, 3, "Bring up", place, &variables);
    cluster.wait_ready(0, 4);
    let hello = [("SERVICE", "hello")];
    run(&mut cluster, 0, "Add a node", "on a manager", &hello);
    wait_for(
        "tasks on every node",
        || cluster.running(0, "hello"),
        |tasks| {
            let nodes: BTreeSet<&str> = tasks.iter().map(|task| task.node.as_str()).collect();
            tasks.len() == 6 && nodes.len() == 4
        },
    );

    // Out with node2, a manager, and in again as one.
    let node = [("NODE", "node2")];
    let heading = "Remove a node";
    run(
        &mut cluster,
        0,
        heading,
        "on another node that is a manager",
        &node,
    );
    run(&mut cluster, 0, heading, "on another manager", &node);
    run(&mut cluster, 1, heading, "on the node itself", &node);
    run(
        &mut cluster,
        0,
        heading,
        "on a manager, when it has left",
        &node,
    );
    assert_eq!(cluster.nodes(0).len(), 3);
    cluster.wait_running(0, "hello", 6);
    run(&mut cluster, 1, "Bring up", place, &variables);
    cluster.wait_ready(0, 4);

    // A copy, while the others decide.
    let heading = "Back up and restore";
    run(&mut cluster, 3, heading, "on one manager", &[]);
    cluster.wait_ready(0, 4);

    // node2 dies, and comes back as its own replacement.
    let heading = "Replace a dead manager";
    cluster.host_mut(1).cut_power();
    cluster.wait_status(0, 1, "Down");
    let printed = run(&mut cluster, 0, heading, "on a living manager", &node);
    let for_manager = token(&printed, Role::Manager);
    cluster.host_mut(1).boot();
    cluster.host(1).shoal(&["swarm", "leave", "--force"]);
    let variables = [
        ("TOKEN", for_manager.as_str()),
        ("MANAGER", manager.as_str()),
    ];
    run(&mut cluster, 1, heading, "on the new machine", &variables);
    cluster.wait_ready(0, 4);

    // Two of three managers are lost. What runs on the third and on the worker goes on.
    let heading = "Come back from the loss of the quorum";
    let kept: Vec<TaskLine> = cluster
        .wait_running(0, "hello", 6)
        .into_iter()
        .filter(|task| ["node1", "node3"].contains(&task.node.as_str()))
        .collect();
    for i in [1, 3] {
        cluster.host_mut(i).cut_power();
    }
    run(&mut cluster, 0, heading, "on one manager that is left", &[]);
    for lost in ["node2", "node4"] {
        run(
            &mut cluster,
            0,
            heading,
            "on that manager, for each lost one",
            &[("NODE", lost)],
        );
    }
    let after = cluster.wait_running(0, "hello", 6);
    assert!(
        identities(&after).is_superset(&identities(&kept)),
        "{after:#?}"
    );
    let for_manager = cluster.token(0, Role::Manager);
    let variables = [
        ("TOKEN", for_manager.as_str()),
        ("MANAGER", manager.as_str()),
    ];
    cluster.host_mut(1).boot();
    run(
        &mut cluster,
        1,
        heading,
        "on each new manager, and on each old one that is back",
        &variables,
    );
    cluster.wait_ready(0, 3);

    // Everything is lost but the copy, which knows the swarm as it was.
    for i in 0..3 {
        cluster.host_mut(i).cut_power();
    }
    cluster.host_mut(3).boot();
    cluster.host(3).shoal(&["swarm", "leave", "--force"]);
    run(
        &mut cluster,
        3,
        "Back up and restore",
        "on a new machine",
        &[],
    );
    assert_eq!(cluster.leader(3), 3);
    for lost in ["node1", "node2", "node3"] {
        let heading = "Come back from the loss of the quorum";
        run(
            &mut cluster,
            3,
            heading,
            "on that manager, for each lost one",
            &[("NODE", lost)],
        );
    }
    let restored = cluster.wait_running(3, "hello", 6);
    assert!(
        restored.iter().all(|task| task.node == "node4"),
        "{restored:#?}"
    );

    // Every block of the page was run, here or by the upgrade.
    assert_eq!(page().len(), 19, "a block that no test runs");
}
