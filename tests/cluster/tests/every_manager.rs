//! The docker CLI does the same whichever manager it is pointed at, and what one has written, all show.

use std::collections::BTreeSet;

use cluster_tests::{Cluster, Host, wait_for};

const MANAGERS: usize = 3;
const NODES: usize = 4;

/// Words are parted by spaces; `_` is a space in one.
fn docker(host: &Host, line: &str) -> String {
    let words: Vec<String> = line.split(' ').map(|word| word.replace('_', " ")).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    host.docker(&words).trim().to_owned()
}

/// Waits until every manager answers a question with `wanted`.
#[track_caller]
fn all_say(cluster: &Cluster, line: &str, wanted: &str) {
    for i in 0..MANAGERS {
        wait_for(
            &format!("{wanted:?} from {line:?} on node{}", i + 1),
            || docker(cluster.host(i), line),
            |said| said == wanted,
        );
    }
}

#[test]
fn the_docker_cli_drives_the_swarm_through_every_manager() {
    let cluster = Cluster::formed(MANAGERS, NODES - MANAGERS);
    let nodes: BTreeSet<String> = (0..NODES).map(Cluster::hostname).collect();
    for i in 0..MANAGERS {
        let host = cluster.host(i);
        let listed = docker(host, "node ls --format {{.Hostname}}");
        let listed: BTreeSet<String> = listed.lines().map(str::to_owned).collect();
        assert_eq!(listed, nodes, "through node{}", i + 1);

        docker(
            host,
            &format!("swarm update --task-history-limit {}", i + 2),
        );
        let limit = "info --format {{.Swarm.Cluster.Spec.Orchestration.TaskHistoryRetentionLimit}}";
        all_say(&cluster, limit, &(i + 2).to_string());
        let token = docker(host, "swarm join-token --rotate --quiet worker");
        all_say(&cluster, "swarm join-token --quiet worker", &token);
        let root = docker(host, "swarm ca");
        all_say(&cluster, "swarm ca", &root);

        docker(
            host,
            &format!("node update --label-add via=node{} node4", i + 1),
        );
        let label = "node inspect --format {{.Spec.Labels.via}} node4";
        all_say(&cluster, label, &format!("node{}", i + 1));
        let role = "node inspect --format {{.Spec.Role}} node4";
        docker(host, "node promote node4");
        all_say(&cluster, role, "manager");
        wait_for(
            "node4 to be a manager",
            || cluster.node(i, NODES - 1).manager,
            |status| status == "Reachable",
        );
        docker(host, "node demote node4");
        all_say(&cluster, role, "worker");
        wait_for(
            "node4 to be none",
            || cluster.node(i, NODES - 1).manager,
            String::is_empty,
        );

        let network = format!("back{i}");
        docker(
            host,
            &format!("network create --driver overlay --attachable {network}"),
        );
        all_say(
            &cluster,
            &format!("network inspect --format {{{{.Attachable}}}} {network}"),
            "true",
        );
        let create = "service create --detach --quiet --replicas 4 --env A=1";
        docker(
            host,
            &format!("{create} --network {network} --name web shoal/hello"),
        );
        all_say(
            &cluster,
            "service ls --format {{.Name}}_{{.Replicas}}",
            "web 4/4",
        );
        // A line of every task, whatever node it runs on.
        for via in 0..MANAGERS {
            wait_for(
                &format!("the output of four tasks through node{}", via + 1),
                || docker(cluster.host(via), "service logs web"),
                |said| nodes.iter().all(|node| said.contains(&format!("@{node} "))),
            );
        }
        docker(host, "service update --detach --quiet --env-add B=2 web");
        let env = "service inspect --format {{len_.Spec.TaskTemplate.ContainerSpec.Env}} web";
        all_say(&cluster, env, "2");
        let update = "service inspect --format {{.UpdateStatus.State}} web";
        all_say(&cluster, update, "completed");
        docker(host, "service rollback --detach --quiet web");
        all_say(&cluster, env, "1");
        all_say(&cluster, update, "rollback_completed");
        docker(host, "service scale --detach web=2");
        let running = "service ps --filter desired-state=running --format {{.Name}} web";
        let two = |said: &String| said.lines().collect::<BTreeSet<_>>().len() == 2;
        wait_for("two tasks", || docker(host, running), two);
        assert_eq!(docker(host, "service rm web"), "web");
        all_say(&cluster, "service ls --quiet", "");
        let remove = format!("network rm {network}");
        let words: Vec<&str> = remove.split(' ').collect();
        wait_for(
            "the network to be free",
            || host.try_docker(&words),
            |output| output.status.success(),
        );
        let named = format!("network ls --quiet --filter name={network}");
        all_say(&cluster, &named, "");
    }
}
