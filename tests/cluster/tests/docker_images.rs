//! The docker CLI and images: they come, are listed, are kept while they are used, and go.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use cluster_tests::{
    Host, busybox_tar,
    line::{contains_all, create, docker, docker_json, load_busybox, refused, same, try_docker},
    wait_for,
};

#[test]
fn images_come_and_go() {
    let host = Host::local();
    load_busybox(&host);
    let tar = busybox_tar(host.dir()).unwrap();
    let imported = host.docker(&[
        "import",
        "--change",
        "CMD [\"/bin/sh\"]",
        "--message",
        "by hand",
        tar.to_str().unwrap(),
        "imported:2",
    ]);
    docker(&host, "tag imported:2 team/other:3");
    let image = &docker_json(&host, "image inspect team/other:3")[0];
    assert_eq!(image["Id"], imported.trim());
    assert_eq!(
        image["RepoTags"],
        serde_json::json!(["imported:2", "team/other:3"])
    );
    assert_eq!(image["Config"]["Cmd"], serde_json::json!(["/bin/sh"]));
    contains_all(&docker(&host, "history imported:2"), &["by hand"]);
    same(&host, "images");
    same(&host, "images --digests --no-trunc");
    same(&host, "image ls team/other");

    let saved = host.path("saved.tar");
    docker(&host, &format!("save --output {saved} team/other:3"));
    assert_eq!(
        docker(&host, "rmi team/other:3"),
        "Untagged: team/other:3\n"
    );
    let removed = docker(&host, "rmi imported:2");
    assert!(
        removed.starts_with("Untagged: imported:2\nDeleted: sha256:"),
        "{removed}"
    );
    refused(
        &try_docker(&host, "image inspect imported:2"),
        "No such image: imported:2",
    );
    assert_eq!(
        docker(&host, &format!("load --quiet --input {saved}")),
        "Loaded image: team/other:3\n"
    );
    assert_eq!(
        docker(&host, "images --quiet --no-trunc team/other"),
        imported,
        "the same image comes back"
    );
    refused(
        &try_docker(&host, "rmi nothing"),
        "No such image: nothing:latest",
    );

    docker(
        &host,
        "service create --quiet -d --name web --replicas 2 shoal/hello",
    );
    host.wait_running("web", 2);
    refused(
        &try_docker(&host, "rmi shoal/hello"),
        "is using its referenced image",
    );
    let usage = docker(&host, "system df");
    let row = |kind: &str| {
        let line = usage.lines().find(|line| line.starts_with(kind)).unwrap();
        line[kind.len()..]
            .split_whitespace()
            .take(2)
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(row("Images"), "3 1", "{usage}");
    assert_eq!(row("Containers"), "2 2", "{usage}");
}

#[test]
fn what_nobody_uses_is_pruned() {
    let host = Host::local();
    load_busybox(&host);
    docker(&host, "network create -d overlay unused");
    docker(&host, "network create -d overlay used");
    create(
        &host,
        "--name web --network used",
        "while :; do sleep 0.1; done",
    );
    assert_eq!(
        docker(&host, "image prune --force"),
        "Total reclaimed space: 0B\n",
        "no image is without a name"
    );
    assert_eq!(
        docker(&host, "network prune --force"),
        "Deleted Networks:\nunused\n\n"
    );
    let pruned = docker(&host, "image prune --all --force");
    assert!(!pruned.contains("busybox:1\n"), "it is used: {pruned}");
    docker(&host, "service rm web");
    docker(&host, "network rm used");
    wait_for(
        "the image to go",
        || host.shoal(&["image", "prune", "--all", "--force"]),
        |pruned| pruned.contains("untagged: busybox:1\ndeleted: sha256:"),
    );
}
