//! What services are given as files: secrets, configs and volumes.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{fs, path::Path};

use cluster_tests::{Host, docker_archive, wait_for};

/// A host with busybox, whose image has `/bin` and `/etc/passwd`.
fn host() -> Host {
    let host = Host::local();
    let archive = docker_archive(host.dir(), "busybox:test").unwrap();
    host.shoal(&["load", "--quiet", "--input", archive.to_str().unwrap()]);
    host.warm_up();
    host
}

/// Makes a secret or config of `data`.
fn make(host: &Host, kind: &str, name: &str, data: &str) {
    let path = host.path(&format!("{name}.data"));
    fs::write(&path, data).unwrap();
    host.shoal(&[kind, "create", name, &path]);
}

/// A service of one task that runs until it is stopped.
fn create(host: &Host, name: &str, extra: &[&str]) {
    let script = "trap exit TERM; while :; do sleep 1 & wait $!; done";
    let mut args = vec!["service", "create", "--quiet", "--detach", "--name", name];
    args.extend(["--restart-delay", "0s", "--stop-grace-period", "2s"]);
    args.extend(extra);
    args.extend(["busybox:test", "/bin/sh", "-c", script]);
    host.shoal(&args);
}

/// Runs a script among the files and processes of a container.
fn inside(host: &Host, pid: u32, script: &str) -> cluster_tests::Output {
    let pid = pid.to_string();
    let output = host
        .in_network("nsenter")
        .args(["--target", &pid, "--mount", "--", "/bin/sh", "-c", script])
        .output()
        .unwrap();
    cluster_tests::Output {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn replaced(host: &Host, service: &str, old: u32) -> u32 {
    wait_for(
        "the task to be replaced",
        || host.task_pids(service),
        |pids| pids.len() == 1 && pids[0] != old,
    )[0]
}

fn remove(host: &Host, service: &str) {
    host.shoal(&["service", "rm", service]);
    wait_for(
        "the containers to be gone",
        || host.shoal(&["ps", "--all", "--quiet"]),
        String::is_empty,
    );
}

/// Whether any file below `directory` contains `needle`.
fn contains(directory: &Path, needle: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_path_buf()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_file() {
                let bytes = fs::read(entry.path()).unwrap_or_default();
                if bytes.windows(needle.len()).any(|window| window == needle) {
                    found.push(entry.path().display().to_string());
                }
            }
        }
    }
    found
}

#[test]
fn secrets_and_configs_are_files_of_their_container_alone() {
    let mut host = host();
    let before = host.inventory();
    make(&host, "secret", "key", "marked-one-secret");
    fs::remove_file(host.path("key.data")).unwrap();
    make(&host, "config", "app", "colour=blue\n");
    create(
        &host,
        "files",
        &[
            "--secret",
            "key",
            "--secret",
            "source=key,target=/etc/deep/key,uid=33,gid=34,mode=0440",
            "--config",
            "source=app,target=/etc/app.conf,mode=0555",
            "--config",
            "app",
        ],
    );
    let pid = host.wait_running("files", 1)[0];
    let seen = inside(
        &host,
        pid,
        "cat /run/secrets/key; echo; stat -c '%u:%g %a' /run/secrets/key /etc/deep/key /etc/app.conf /app; \
         cat /etc/app.conf; grep -c ' /run/secrets/key tmpfs ro' /proc/1/mounts",
    )
    .success("look at the files");
    assert_eq!(
        seen,
        "marked-one-secret\n0:0 444\n33:34 440\n0:0 555\n0:0 444\ncolour=blue\n1\n"
    );
    inside(&host, pid, "echo x > /run/secrets/key").refusal("write to a secret");

    // It is in no file of the host's, nor in what anybody says of the task.
    assert_eq!(contains(host.dir(), b"marked-one"), [""; 0]);
    let container = host.shoal(&["ps", "--quiet"]);
    let told = [
        host.docker(&["inspect", container.trim()]),
        host.docker(&["service", "inspect", "files"]),
        host.docker(&["secret", "inspect", "key"]),
        host.log(),
    ];
    assert!(!told.iter().any(|text| text.contains("marked-one")));

    // It stays what it is while the daemon dies and comes back, as does its task.
    host.kill_daemon();
    assert_eq!(
        inside(&host, pid, "cat /run/secrets/key").stdout,
        "marked-one-secret"
    );
    host.start();
    assert_eq!(host.wait_running("files", 1), [pid]);

    // Rotation.
    make(&host, "secret", "key2", "marked-two");
    host.docker(&[
        "service",
        "update",
        "--quiet",
        "--detach",
        "--secret-rm",
        "key",
        "--secret-add",
        "source=key2,target=key",
        "files",
    ]);
    let pid = replaced(&host, "files", pid);
    assert_eq!(
        inside(&host, pid, "cat /run/secrets/key; ls /etc/deep/key").stdout,
        "marked-two"
    );
    make(&host, "config", "app2", "colour=red\n");
    let rotated = [
        "--config-rm",
        "app",
        "--config-add",
        "source=app2,target=/etc/app.conf",
    ];
    host.docker(
        &[
            &["service", "update", "--quiet", "--detach"],
            &rotated[..],
            &["files"],
        ]
        .concat(),
    );
    let pid = replaced(&host, "files", pid);
    assert_eq!(
        inside(
            &host,
            pid,
            "cat /etc/app.conf; cat /run/secrets/key; ls /app"
        )
        .stdout,
        "colour=red\nmarked-two"
    );
    host.shoal(&["secret", "rm", "key"]);
    let used = host
        .try_docker(&["secret", "rm", "key2"])
        .refusal("remove a secret in use");
    assert!(used.contains("in use"), "{used}");

    remove(&host, "files");
    host.shoal(&["secret", "rm", "key2"]);
    host.shoal(&["config", "rm", "app", "app2"]);
    host.wait_clean(&before);
}

#[test]
fn volumes_outlive_tasks_and_daemons_and_begin_as_the_image_has_it() {
    let mut host = host();
    let before = host.inventory();
    create(
        &host,
        "db",
        &[
            "--mount",
            "type=volume,source=data-{{.Task.Slot}},target=/etc/app,volume-label=tier=db",
            "--mount",
            "type=volume,source=tools,target=/bin,readonly",
            "--mount",
            "type=volume,source=bare,target=/root/sub,volume-nocopy",
            "--mount",
            "type=volume,target=/anonymous",
            "--mount",
            "type=tmpfs,target=/scratch,tmpfs-size=64k",
        ],
    );
    let pid = host.wait_running("db", 1)[0];
    // `/bin` was filled with the image's own, before it was mounted read-only.
    let refused = inside(&host, pid, "touch /bin/x").refusal("write to a read-only volume");
    assert!(refused.contains("Read-only file system"), "{refused}");
    inside(
        &host,
        pid,
        "echo kept > /etc/app/file && echo gone > /anonymous/file && touch /scratch/file",
    )
    .success("write to volumes");

    let names = host.docker(&["volume", "ls", "--quiet"]);
    let anonymous: Vec<&str> = names.lines().filter(|name| name.len() == 64).collect();
    assert_eq!(anonymous.len(), 1, "{names}");
    for name in ["data-1", "tools", "bare"] {
        assert!(names.lines().any(|line| line == name), "{names}");
    }
    let inspected = host.docker(&[
        "volume",
        "inspect",
        "--format",
        "{{.Driver}} {{.Labels}}",
        "data-1",
    ]);
    assert_eq!(inspected, "local map[tier:db]\n");
    let container = host.shoal(&["ps", "--quiet"]);
    let mounts = host.docker(&[
        "inspect",
        "--format",
        "{{range .Mounts}}{{.Type}} {{.Name}} {{.Destination}} {{.RW}};{{end}}",
        container.trim(),
    ]);
    assert!(mounts.contains("volume data-1 /etc/app true;"), "{mounts}");
    assert!(mounts.contains("volume tools /bin false;"), "{mounts}");
    let used = host
        .try_docker(&["volume", "rm", "data-1"])
        .refusal("remove a volume in use");
    assert!(
        used.contains("remove data-1: volume is in use - ["),
        "{used}"
    );

    host.kill_daemon();
    host.start();
    assert_eq!(host.wait_running("db", 1), [pid]);
    host.docker(&["service", "update", "--quiet", "--detach", "--force", "db"]);
    let pid = replaced(&host, "db", pid);
    let seen = inside(&host, pid, "cat /etc/app/file; ls /anonymous /scratch").stdout;
    assert_eq!(seen, "kept\n/anonymous:\n\n/scratch:\n");

    remove(&host, "db");
    let left = wait_for(
        "anonymous volumes to go with their tasks",
        || host.docker(&["volume", "ls", "--quiet"]),
        |names| names.lines().all(|name| name.len() != 64),
    );
    assert_eq!(left, "bare\ndata-1\ntools\n");
    host.docker(&["volume", "rm", "data-1", "tools", "bare"]);
    let gone = host
        .try_docker(&["volume", "inspect", "data-1"])
        .refusal("look for a volume");
    assert!(gone.contains("get data-1: no such volume"), "{gone}");
    let volumes = Path::new(&host.data_root()).join("volumes");
    let files: Vec<_> = fs::read_dir(volumes)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.'))
        .collect();
    assert!(files.is_empty(), "{files:?}");
    host.wait_clean(&before);
}

#[test]
fn a_bind_mount_of_nothing_is_refused_by_its_node() {
    let host = host();
    create(
        &host,
        "bound",
        &["--mount", "type=bind,source=/nowhere/at/all,target=/data"],
    );
    let error = wait_for(
        "the reason",
        || {
            host.shoal(&[
                "service",
                "ps",
                "--no-trunc",
                "--format",
                "{{.CurrentState}} {{.Error}}",
                "bound",
            ])
        },
        |text| text.contains("Rejected"),
    );
    assert!(
        error.contains("bind source path does not exist: /nowhere/at/all"),
        "{error}"
    );
}

#[test]
fn volumes_are_made_listed_and_pruned_by_hand() {
    let host = Host::local();
    assert_eq!(
        host.shoal(&["volume", "create", "--label", "a=b", "data"]),
        "data\n"
    );
    assert_eq!(host.docker(&["volume", "create", "data"]), "data\n");
    let unnamed = host.docker(&["volume", "create"]);
    assert_eq!(unnamed.trim().len(), 64);
    assert_eq!(
        host.shoal(&["volume", "ls", "--filter", "label=a=b"]),
        "DRIVER    VOLUME NAME\nlocal     data\n"
    );
    let bad = host
        .try_docker(&["volume", "create", "a/b"])
        .refusal("a path as a name");
    assert!(
        bad.contains("includes invalid characters for a local volume name"),
        "{bad}"
    );
    let pruned = host.shoal(&["volume", "prune", "--force"]);
    assert!(
        pruned.contains(unnamed.trim()) && !pruned.contains("data"),
        "{pruned}"
    );
    let pruned = host.docker(&["volume", "prune", "--force", "--all"]);
    assert!(
        pruned.contains("data") && pruned.contains("Total reclaimed space: 0B"),
        "{pruned}"
    );
    let gone = host
        .try_shoal(&["volume", "rm", "data"])
        .refusal("remove what is gone");
    assert!(gone.contains("get data: no such volume"), "{gone}");
    assert_eq!(
        host.try_shoal(&["volume", "rm", "--force", "data"])
            .success("force"),
        "data\n"
    );
}
