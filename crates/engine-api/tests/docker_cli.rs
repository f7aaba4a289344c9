//! The real docker command line against the server, unmodified.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::{TestServer, docker, try_docker};

#[tokio::test(flavor = "multi_thread")]
async fn version_and_info_are_shown() {
    let server = TestServer::start();
    let version = docker(&server, &["version"]).await;
    assert!(version.contains("Server: Shoal"), "{version}");
    assert!(version.contains("1.51 (minimum version 1.24)"), "{version}");
    let info = docker(&server, &["info"]).await;
    for line in [
        "Swarm: inactive",
        "Cgroup Version: 2",
        "Name: reef",
        "CPUs: 2",
        "Images: 1",
    ] {
        assert!(info.contains(line), "{line} is not in\n{info}");
    }
    let out = docker(&server, &["info", "--format", "{{.Swarm.LocalNodeState}}"]).await;
    assert_eq!(out.trim(), "inactive");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swarm_is_made_shown_and_left() {
    let server = TestServer::start();
    let refused = try_docker(&server, &["service", "ls"]).await;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("This node is not a swarm manager"), "{text}");

    let out = docker(&server, &["swarm", "init"]).await;
    assert!(out.contains("Swarm initialized: current node"), "{out}");
    assert!(out.contains("SWMTKN-1-000"), "{out}");
    let info = docker(&server, &["info"]).await;
    assert!(
        info.contains("Is Manager: true") && info.contains("Nodes: 1"),
        "{info}"
    );
    let nodes = docker(&server, &["node", "ls"]).await;
    assert!(
        nodes.contains("reef") && nodes.contains("Leader") && nodes.contains("Ready"),
        "{nodes}"
    );
    docker(
        &server,
        &[
            "node",
            "update",
            "--label-add",
            "zone=a",
            "--availability",
            "pause",
            "reef",
        ],
    )
    .await;
    let node = docker(&server, &["node", "inspect", "self", "--pretty"]).await;
    assert!(node.contains("zone=a") && node.contains("Pause"), "{node}");
    docker(&server, &["swarm", "update", "--task-history-limit", "7"]).await;
    let history = server.client().swarm().await.unwrap().spec.orchestration;
    assert_eq!(history.task_history_retention_limit, Some(7));
    assert!(
        !try_docker(&server, &["swarm", "leave"])
            .await
            .status
            .success()
    );
    docker(&server, &["swarm", "leave", "--force"]).await;
    assert!(docker(&server, &["info"]).await.contains("Swarm: inactive"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_lives_its_whole_life() {
    let server = TestServer::swarm().await;
    docker(
        &server,
        &[
            "network",
            "create",
            "-d",
            "overlay",
            "--subnet",
            "10.5.0.0/24",
            "net",
        ],
    )
    .await;
    // Not detached: waits until the tasks run, and for the five seconds of the monitor.
    let out = docker(
        &server,
        &[
            "service",
            "create",
            "--name",
            "web",
            "--replicas",
            "2",
            "--network",
            "net",
            "--publish",
            "8080:80",
            "--env",
            "A=b",
            "--label",
            "l=1",
            "--limit-memory",
            "64M",
            "--mount",
            "type=volume,source=v,target=/d",
            "--constraint",
            "node.role==manager",
            "--update-parallelism",
            "2",
            "hello",
        ],
    )
    .await;
    assert!(
        out.contains("verify: Service") && out.contains("converged"),
        "{out}"
    );

    let list = docker(&server, &["service", "ls"]).await;
    assert!(
        list.contains("web") && list.contains("2/2") && list.contains("*:8080->80/tcp"),
        "{list}"
    );
    let tasks = docker(&server, &["service", "ps", "web"]).await;
    assert!(
        tasks.contains("web.1") && tasks.contains("Running") && tasks.contains("reef"),
        "{tasks}"
    );
    let pretty = docker(&server, &["service", "inspect", "--pretty", "web"]).await;
    for text in [
        "Parallelism:\t2",
        "Env:\t\tA=b",
        "Max failure ratio: 0",
        "PublishedPort = 8080",
        "Networks: net",
    ] {
        assert!(pretty.contains(text), "{text:?} is not in\n{pretty}");
    }

    let scaled = docker(&server, &["service", "scale", "--detach", "web=3"]).await;
    assert!(scaled.contains("web scaled to 3"), "{scaled}");
    docker(
        &server,
        &["service", "update", "--detach", "--env-add", "C=d", "web"],
    )
    .await;
    let env = [
        "service",
        "inspect",
        "web",
        "--format",
        "{{.Spec.TaskTemplate.ContainerSpec.Env}}",
    ];
    // The command line collects variables in a map, so their order is a matter of luck.
    let changed = docker(&server, &env).await;
    assert!(
        ["[A=b C=d]", "[C=d A=b]"].contains(&changed.trim()),
        "{changed}"
    );
    docker(&server, &["service", "rollback", "--detach", "web"]).await;
    assert_eq!(docker(&server, &env).await.trim(), "[A=b]");

    let logs = docker(
        &server,
        &["service", "logs", "--tail", "1", "--timestamps", "web"],
    )
    .await;
    assert!(logs.contains("@reef") && logs.contains("| three"), "{logs}");
    assert!(
        logs.lines()
            .all(|l| l.starts_with("2023-11-14T22:13:23.000000000Z web.")),
        "{logs}"
    );
    let network = docker(&server, &["network", "inspect", "--verbose", "net"]).await;
    assert!(
        network.contains("10.5.0.0/24") && network.contains("\"VIP\": \"10.5.0.200\""),
        "{network}"
    );

    let removed = docker(&server, &["service", "rm", "web"]).await;
    assert_eq!(removed.trim(), "web");
    docker(&server, &["network", "rm", "net"]).await;
    assert!(!docker(&server, &["network", "ls"]).await.contains("net "));
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_and_configs_are_kept() {
    let server = TestServer::swarm().await;
    let file = server.socket().with_file_name("data");
    std::fs::write(&file, "hidden").unwrap();
    let file = file.to_str().unwrap();
    docker(&server, &["secret", "create", "--label", "a=b", "s", file]).await;
    docker(&server, &["config", "create", "c", file]).await;
    assert!(docker(&server, &["secret", "ls"]).await.contains(" s "));
    let config = docker(&server, &["config", "inspect", "--pretty", "c"]).await;
    assert!(config.contains("hidden"), "{config}");
    let secret = docker(&server, &["secret", "inspect", "s"]).await;
    assert!(
        secret.contains("\"a\": \"b\"") && !secret.contains("Data"),
        "{secret}"
    );
    docker(
        &server,
        &[
            "service", "create", "-d", "--name", "x", "--secret", "s", "--config", "c", "hello",
        ],
    )
    .await;
    let refused = try_docker(&server, &["secret", "rm", "s"]).await;
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("in use"),
        "{refused:?}"
    );
    docker(&server, &["service", "rm", "x"]).await;
    docker(&server, &["secret", "rm", "s"]).await;
    docker(&server, &["config", "rm", "c"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_and_containers_are_handled() {
    let server = TestServer::swarm().await;
    let pulled = docker(&server, &["pull", "web/app:1"]).await;
    assert!(pulled.contains("docker.io/web/app:1"), "{pulled}");
    let missing = try_docker(&server, &["pull", "missing"]).await;
    assert!(
        String::from_utf8_lossy(&missing.stderr).contains("No such image"),
        "{missing:?}"
    );
    let broken = try_docker(&server, &["pull", "broken"]).await;
    assert!(
        String::from_utf8_lossy(&broken.stderr).contains("the registry hung up"),
        "{broken:?}"
    );
    let archive = server.socket().with_file_name("archive");
    std::fs::write(&archive, "loaded:2").unwrap();
    let archive = archive.to_str().unwrap();
    let loaded = docker(&server, &["load", "-i", archive]).await;
    assert!(loaded.contains("Loaded image: loaded:2"), "{loaded}");
    let imported = docker(
        &server,
        &["import", "--change", "CMD [\"x\"]", archive, "imported:3"],
    )
    .await;
    assert!(imported.contains("sha256:"), "{imported}");
    docker(&server, &["tag", "loaded:2", "h:5000/a/b:4"]).await;
    let images = docker(&server, &["images"]).await;
    for name in ["web/app", "loaded", "imported", "h:5000/a/b"] {
        assert!(images.contains(name), "{name} is not in\n{images}");
    }
    let image = docker(
        &server,
        &[
            "image",
            "inspect",
            "h:5000/a/b:4",
            "--format",
            "{{.Os}}/{{.Architecture}}",
        ],
    )
    .await;
    assert_eq!(image.trim(), "linux/amd64");
    assert!(
        docker(&server, &["rmi", "h:5000/a/b:4"])
            .await
            .contains("Untagged: h:5000/a/b:4")
    );

    docker(
        &server,
        &["service", "create", "-d", "--name", "web", "hello"],
    )
    .await;
    let containers = docker(&server, &["ps"]).await;
    assert!(
        containers.contains("web.1.") && containers.contains("Up "),
        "{containers}"
    );
    let id = docker(&server, &["ps", "-q"]).await;
    let logs = docker(&server, &["logs", id.trim()]).await;
    assert_eq!(logs, "one\nthree\n");
    let state = docker(
        &server,
        &[
            "inspect",
            id.trim(),
            "--format",
            "{{.State.Status}} {{.State.Pid}}",
        ],
    )
    .await;
    assert_eq!(state.trim(), "running 4242");
    assert!(docker(&server, &["system", "df"]).await.contains("Images"));
    let refused = try_docker(&server, &["run", "-d", "hello"]).await;
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("not supported by shoal yet"),
        "{refused:?}"
    );
}
