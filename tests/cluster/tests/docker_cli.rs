//! The docker CLI against a real daemon: what it asks for happens, and what it prints is what `shoal`
//! prints.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{process::Stdio, thread, time::Duration};

use cluster_tests::{
    Host,
    line::{contains_all, create, docker, docker_json, load_busybox, refused, same, try_docker},
    wait_for,
};
use serde_json::Value;

#[test]
fn a_swarm_begins_and_ends() {
    let mut host = Host::new().unwrap();
    host.start();
    contains_all(
        &docker(&host, "version"),
        &[
            "Server: Shoal",
            "Version:          0.",
            "1.51 (minimum version 1.24)",
        ],
    );
    contains_all(
        &docker(&host, "info"),
        &[
            " Swarm: inactive\n",
            " Images: 1\n",
            " Storage Driver: overlay2\n",
            " Runtimes: shoal\n",
            " Live Restore Enabled: true\n",
        ],
    );
    refused(
        &try_docker(&host, "service ls"),
        "This node is not a swarm manager.",
    );

    // This machine has no address to be chosen. Docker's client says what to do about it, once.
    let alone = try_docker(&host, "swarm init");
    refused(&alone, "could not find the system's IP address");
    assert_eq!(
        alone.stderr.matches("specify one with").count(),
        1,
        "{alone:?}"
    );
    let started = docker(&host, "swarm init --advertise-addr 127.0.0.1");
    let node = docker(&host, "info --format {{.Swarm.NodeID}}");
    assert!(started.contains(&format!(
        "Swarm initialized: current node ({}) is now a manager.",
        node.trim()
    )));
    refused(
        &try_docker(&host, "swarm init"),
        "This node is already part of a swarm.",
    );
    contains_all(
        &docker(&host, "info"),
        &[
            " Swarm: active\n",
            "  Is Manager: true\n",
            "  Managers: 1\n  Nodes: 1\n",
        ],
    );
    refused(&try_docker(&host, "swarm leave"), "--force");
    assert_eq!(
        docker(&host, "swarm leave --force"),
        "Node left the swarm.\n"
    );
    assert_eq!(
        docker(&host, "info --format {{.Swarm.LocalNodeState}}"),
        "inactive\n"
    );
}

#[test]
fn nodes_and_networks() {
    let host = Host::local();
    same(&host, "node ls");
    let node = docker(&host, "node ls --quiet").trim().to_owned();
    contains_all(
        &docker(&host, "node inspect --pretty self"),
        &[
            &node,
            " State:\t\t\tReady\n",
            " Raft Status:\t\tReachable\n",
            " Leader:\t\tYes\n",
        ],
    );
    docker(
        &host,
        &format!("node update --label-add zone=a --availability pause {node}"),
    );
    let spec = docker_json(&host, "node inspect self --format {{json .Spec}}");
    assert_eq!(spec["Labels"]["zone"], "a");
    assert_eq!(spec["Availability"], "pause");
    docker(
        &host,
        &format!("node update --label-rm zone --availability active {node}"),
    );
    let spec = docker_json(&host, "node inspect self --format {{json .Spec}}");
    assert_eq!(spec["Labels"], serde_json::json!({}));
    refused(
        &try_docker(&host, "node inspect nobody"),
        "node nobody not found",
    );

    let id = docker(
        &host,
        "network create -d overlay --attachable --subnet 10.77.0.0/24 --label k=v back",
    );
    let network = &docker_json(&host, "network inspect back")[0];
    assert_eq!(network["Id"], id.trim());
    assert_eq!(network["IPAM"]["Config"][0]["Subnet"], "10.77.0.0/24");
    assert_eq!(network["Attachable"], true);
    assert_eq!(network["Labels"]["k"], "v");
    same(&host, "network ls");
    same(&host, "network ls --filter name=back --no-trunc");
    refused(
        &try_docker(&host, "network create -d overlay back"),
        "network with name back already exists",
    );
    refused(
        &try_docker(
            &host,
            "network create -d overlay --subnet 10.77.0.0/25 other",
        ),
        "overlaps",
    );
    docker(
        &host,
        "service create --quiet -d --name web --network back shoal/hello",
    );
    host.wait_running("web", 1);
    same(&host, "node ps");
    let inside = docker_json(&host, "network inspect back --format {{json .Containers}}");
    let inside: Vec<&Value> = inside.as_object().unwrap().values().collect();
    assert!(inside.iter().any(|c| {
        c["Name"].as_str().unwrap().starts_with("web.1.")
            && c["IPv4Address"].as_str().unwrap().starts_with("10.77.0.")
    }));
    refused(
        &try_docker(&host, "network rm back"),
        "is in use by service web",
    );
    docker(&host, "service rm web");
    // Not before its task is gone.
    wait_for(
        "the network to go",
        || try_docker(&host, "network rm back").stdout,
        |removed| removed == "back\n",
    );
    refused(
        &try_docker(&host, "network inspect back"),
        "network back not found",
    );
}

#[test]
fn a_service_is_all_that_was_asked_for() {
    let host = Host::local();
    load_busybox(&host);
    docker(&host, "network create -d overlay back");
    let node = docker(&host, "node ls --quiet");
    docker(&host, &format!("node update --label-add zone=a {node}"));
    let bound = host.path("bound");
    std::fs::create_dir(&bound).unwrap();
    std::fs::write(format!("{bound}/here"), "from the host\n").unwrap();
    let created = create(
        &host,
        &format!(
            "--name full --replicas 2 --network back --publish 8080:80 --env A=1 --env B=two \
             --label tier=front --container-label c=d --hostname box-{{{{.Task.Slot}}}} \
             --env SLOT={{{{.Task.Slot}}}} --limit-memory 64m --limit-cpu 0.5 --limit-pids 50 \
             --reserve-memory 16m --constraint node.role==manager \
             --constraint node.labels.zone==a --mount type=tmpfs,dst=/scratch,tmpfs-size=1m \
             --mount type=bind,src={bound},dst=/bound,readonly --update-parallelism 2 \
             --update-order start-first --update-failure-action rollback"
        ),
        "echo $A $B $SLOT $(hostname) $(cat /bound/here); df -k /scratch; \
         touch /bound/x || echo refused; mkdir /tmp/www; hostname >/tmp/www/index.html; \
         httpd -p 80 -h /tmp/www; while :; do sleep 0.1; done",
    );
    let id = created.stdout.lines().next().unwrap().to_owned();
    assert!(
        created
            .stdout
            .ends_with(&format!("verify: Service {id} converged\n")),
        "{created:?}"
    );

    let spec = docker_json(&host, "service inspect full --format {{json .Spec}}");
    let task = &spec["TaskTemplate"];
    assert_eq!(spec["Labels"]["tier"], "front");
    assert_eq!(task["ContainerSpec"]["Labels"]["c"], "d");
    assert_eq!(task["Resources"]["Limits"]["MemoryBytes"], 64 << 20);
    assert_eq!(task["Resources"]["Limits"]["NanoCPUs"], 500_000_000);
    assert_eq!(task["Resources"]["Limits"]["Pids"], 50);
    assert_eq!(spec["UpdateConfig"]["Order"], "start-first");
    same(&host, "service inspect --pretty full");
    contains_all(
        &docker(&host, "service inspect --pretty full"),
        &[
            &id,
            " Constraints:\t[node.role==manager node.labels.zone==a]\n",
            " Env:\t\tA=1 B=two SLOT={{.Task.Slot}} \n",
            "  Memory:\t64MiB\n",
            " PublishedPort = 8080\n",
        ],
    );
    for list in [
        "service ls",
        "service ps full",
        "service ps --no-trunc full",
        "ps",
        "ps -a",
    ] {
        same(&host, list);
    }
    contains_all(
        &docker(&host, "service ls"),
        &["2/2", "busybox:1", "*:8080->80/tcp"],
    );

    let logs = docker(&host, "service logs --raw full");
    contains_all(
        &logs,
        &[
            "1 two 1 box-1 from the host\n",
            "1 two 2 box-2 from the host\n",
            "refused\n",
            " 1024 ",
        ],
    );
    let names = (0..20).filter_map(|_| host.get("http://127.0.0.1:8080/").ok());
    let names: std::collections::BTreeSet<String> = names.collect();
    assert_eq!(names.len(), 2, "both answer: {names:?}");

    let container = docker(&host, "ps --quiet --no-trunc --filter name=full.1");
    let container = container.trim();
    let inspected = &docker_json(&host, &format!("container inspect {container}"))[0];
    assert_eq!(inspected["Id"], container);
    assert_eq!(inspected["State"]["Status"], "running");
    assert!(inspected["State"]["Pid"].as_u64().unwrap() > 0);
    assert_eq!(inspected["Config"]["Hostname"], "box-1");
    let env: Vec<&str> = inspected["Config"]["Env"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert!(
        env.contains(&"SLOT=1") && env.contains(&"PATH=/bin"),
        "{env:?}"
    );
    assert_eq!(inspected["HostConfig"]["Memory"], 64 << 20);
    assert_eq!(
        inspected["Config"]["Labels"]["com.docker.swarm.service.name"],
        "full"
    );
    assert!(inspected["NetworkSettings"]["Networks"]["back"]["IPAddress"].is_string());
    contains_all(
        &docker(&host, &format!("logs {container}")),
        &["1 two 1 box-1"],
    );
    assert_eq!(
        docker_json(&host, "inspect full")[0]["ID"],
        *id,
        "inspect finds a service by its name"
    );
}

#[test]
fn a_service_is_scaled_updated_rolled_back_and_removed() {
    let host = Host::local();
    load_busybox(&host);
    docker(&host, "tag busybox:1 busybox:2");
    let created = create(
        &host,
        "--name web --replicas 2 --rollback-monitor 600ms --update-parallelism 0 \
         --rollback-parallelism 0",
        "echo version $VERSION; while :; do sleep 0.1; done",
    );
    contains_all(
        &created.stderr,
        &["image busybox:1 could not be accessed on a registry to record\nits digest."],
    );
    let env = |host: &Host| {
        docker(
            host,
            "service inspect web --format {{.Spec.TaskTemplate.ContainerSpec.Env}}",
        )
    };
    let state = |host: &Host| docker(host, "service inspect web --format {{.UpdateStatus.State}}");

    let updated = docker(&host, "service update --env-add VERSION=2 web");
    contains_all(
        &updated,
        &[
            "overall progress: 2 out of 2 tasks",
            "verify: Service web converged",
        ],
    );
    assert_eq!(env(&host), "[VERSION=2]\n");
    assert_eq!(state(&host), "completed\n");
    let logs = docker(&host, "service logs --raw web");
    assert_eq!(logs.matches("version 2\n").count(), 2, "{logs}");

    contains_all(
        &docker(&host, "service rollback web"),
        &[
            "rollback: manually requested rollback",
            "verify: Service web converged",
        ],
    );
    assert_eq!(env(&host), "[]\n");
    assert_eq!(state(&host), "rollback_completed\n");

    docker(&host, "service update --quiet --image busybox:2 web");
    let images = docker(&host, "ps --format {{.Image}}");
    assert_eq!(images, "busybox:2\nbusybox:2\n");
    let before = host.wait_running("web", 2);
    docker(&host, "service update --quiet --force web");
    let after = host.wait_running("web", 2);
    assert!(
        before.iter().all(|pid| !after.contains(pid)),
        "--force replaces every task"
    );

    contains_all(
        &docker(&host, "service scale web=3"),
        &["web scaled to 3\n"],
    );
    assert_eq!(host.wait_running("web", 3).len(), 3);
    same(&host, "service ls");
    same(&host, "service ps web");
    same(
        &host,
        "service ps --filter desired-state=shutdown --format {{.ID}} web",
    );

    // A version that cannot start: the update stops and says why.
    let failed = try_docker(&host, "service update --entrypoint /no/such/program web");
    refused(
        &failed,
        "service update paused: update paused due to failure",
    );
    assert_eq!(state(&host), "paused\n");
    contains_all(
        &docker(&host, "service ps --no-trunc web"),
        &["/no/such/program"],
    );
    contains_all(
        &docker(&host, "service update --rollback web"),
        &["verify: Service web converged"],
    );
    // And one that rolls itself back.
    let failed = try_docker(
        &host,
        "service update --update-failure-action rollback --entrypoint /no/such/program web",
    );
    // The client looks five times a second: it may see no more than the end.
    contains_all(
        &failed.stdout,
        &["rollback: ", "verify: Service web converged"],
    );
    assert_eq!(state(&host), "rollback_completed\n");
    host.wait_running("web", 3);

    assert_eq!(docker(&host, "service rm web"), "web\n");
    refused(
        &try_docker(&host, "service inspect web"),
        "no such service: web",
    );
    wait_for(
        "its containers to go",
        || docker(&host, "ps --all --quiet"),
        String::is_empty,
    );
}

#[test]
fn logs_are_followed_cut_and_dated() {
    let host = Host::local();
    load_busybox(&host);
    create(
        &host,
        "--name talk --detach",
        "i=0; while :; do i=$((i+1)); echo line $i; echo odd $i >&2; sleep 0.1; done",
    );
    wait_for(
        "some lines",
        || docker(&host, "service logs --raw talk"),
        |log| log.contains("line 5\n"),
    );
    let tail = docker(&host, "service logs --tail 2 --timestamps talk");
    for line in tail.lines() {
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(
            time.starts_with("20") && time.ends_with('Z') && time.len() == 30,
            "{line}"
        );
        let (name, text) = rest.split_once("    | ").unwrap();
        assert!(name.starts_with("talk.1.") && name.contains('@'), "{line}");
        assert!(text.starts_with("line "), "standard output alone: {line}");
    }
    let both = host.try_docker(&["service", "logs", "--tail", "4", "--raw", "talk"]);
    assert_eq!(
        both.stdout.lines().count() + both.stderr.lines().count(),
        4,
        "{both:?}"
    );
    assert!(
        both.stderr.lines().all(|line| line.starts_with("odd ")),
        "{both:?}"
    );

    let date = host
        .in_network("date")
        .args(["-u", "+%Y-%m-%dT%H:%M:%S.%NZ"])
        .output()
        .unwrap();
    let now = String::from_utf8(date.stdout).unwrap();
    let late = wait_for(
        "lines since now",
        || docker(&host, &format!("service logs --raw --since {now} talk")),
        |log| !log.is_empty(),
    );
    assert!(!late.contains("line 1\n"), "{late}");

    let container = docker(&host, "ps --quiet").trim().to_owned();
    for what in [vec!["service", "logs", "--raw"], vec!["logs"]] {
        let name = if what[0] == "logs" {
            container.as_str()
        } else {
            "talk"
        };
        let followed = host
            .in_network("timeout")
            .args(["1.5", "docker", "--host", &host.socket()])
            .args(&what)
            .args(["--follow", "--tail", "1", name])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&followed.stdout);
        assert_eq!(
            followed.status.code(),
            Some(124),
            "it goes on until it is ended"
        );
        let numbers: Vec<u32> = text
            .lines()
            .map(|line| line.strip_prefix("line ").unwrap().parse().unwrap())
            .collect();
        assert!(numbers.len() >= 3, "{text}");
        assert!(
            numbers.windows(2).all(|pair| pair[1] == pair[0] + 1),
            "{text}"
        );
    }
}

#[test]
fn events_tell_what_happened_and_what_happens() {
    let host = Host::local();
    load_busybox(&host);
    docker(&host, "tag busybox:1 busybox:2");
    docker(&host, "rmi busybox:2");
    docker(&host, "volume create kept");
    docker(&host, "volume rm kept");
    docker(&host, "network create -d overlay net");
    create(
        &host,
        "--name web --network net",
        "while :; do sleep 0.1; done",
    );
    docker(&host, "service scale -d web=2");
    host.wait_running("web", 2);
    docker(&host, "service rm web");
    let past = |host: &Host, filter: &str| {
        docker(host, &format!("events --since 10m --until 0s {filter}"))
    };
    wait_for(
        "the containers to go",
        || past(&host, "--filter event=destroy --filter type=container"),
        |destroyed| destroyed.lines().count() == 2,
    );
    docker(&host, "network rm net");
    // What is past is told to whoever asks since when. Docker's client asks in whole seconds.
    let all = wait_for(
        "the last event to be a second old",
        || past(&host, ""),
        |all| all.contains("network remove"),
    );
    for wanted in [
        "image load sha256:",
        "image tag sha256:",
        "(name=busybox:2)",
        "image untag sha256:",
        "volume create kept (driver=local)",
        "volume destroy kept (driver=local)",
        "network create",
        "service create",
        "replicas.new=2, replicas.old=1",
        "container create",
        "network connect",
        "container start",
        "container die",
        "network disconnect",
        "service remove",
        "network remove",
    ] {
        assert!(all.contains(wanted), "{wanted:?} is not in:\n{all}");
    }
    let actions = |filter: &str| {
        let format = "--format {{.Type}}:{{.Action}}";
        let shown = past(&host, &format!("{filter} {format}"));
        let lines: std::collections::BTreeSet<String> = shown.lines().map(str::to_owned).collect();
        lines.into_iter().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        actions("--filter type=volume"),
        "volume:create volume:destroy"
    );
    assert_eq!(
        actions("--filter label=com.docker.swarm.service.name=web"),
        "container:create container:destroy container:die container:start"
    );
    assert_eq!(
        actions("--filter service=web --filter event=create"),
        "service:create"
    );
    same(
        &host,
        "events --since 10m --until 0s --format {{.Type}}{{.Action}}{{.Actor.ID}}",
    );

    thread::scope(|scope| {
        let end = std::time::SystemTime::now() + Duration::from_secs(3);
        let end = end.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let host = &host;
        let events = scope.spawn(move || docker(host, &format!("events --until {end}")));
        // Nothing tells when the client is being served.
        thread::sleep(Duration::from_millis(700));
        docker(host, "network create -d overlay later");
        let events = events.join().unwrap();
        assert!(events.contains("network create"), "{events}");
        assert!(
            !events.contains("service"),
            "no past was asked for:\n{events}"
        );
    });
}
