//! What a worker gets to know: what its own tasks need, and no more.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use cluster_tests::{Cluster, TaskLine, is_alive, wait_for};
use serde_json::Value;

/// What Docker says to who asks a worker for what only managers know.
const NOT_A_MANAGER: &str =
    "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state.";

const NAMES: [&str; 3] = ["one", "two", "three"];

/// Which of these texts, all of which begin with [`mark`], a process has in memory that it writes to.
fn remembered(pid: u32, texts: &[String]) -> BTreeSet<String> {
    let mark = mark().into_bytes();
    let longest = texts.iter().map(String::len).max().unwrap_or_default();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let ranges = maps.lines().filter_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let address = |text| u64::from_str_radix(text, 16).ok();
        rest.starts_with("rw")
            .then_some((address(start)?, address(end)?))
    });
    let step = 1 << 20;
    let mut buffer = vec![0; step + longest];
    let mut found = BTreeSet::new();
    for (start, end) in ranges {
        for at in (start..end).step_by(step) {
            let length = usize::try_from(end - at).unwrap().min(buffer.len());
            // What was given back meanwhile holds nothing.
            let read = memory.read_at(&mut buffer[..length], at).unwrap_or(0);
            let bytes = &buffer[..read];
            let marked = (0..read).filter(|i| bytes[*i..].starts_with(&mark));
            for i in marked {
                let here = texts
                    .iter()
                    .filter(|text| bytes[i..].starts_with(text.as_bytes()));
                found.extend(here.cloned());
            }
        }
    }
    found
}

/// Files below a directory that hold these bytes.
fn files_with(directory: &Path, bytes: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files_with(&path, bytes)),
            Ok(kind) if kind.is_file() => {
                let content = fs::read(&path).unwrap_or_default();
                if content.windows(bytes.len()).any(|window| window == bytes) {
                    found.push(path);
                }
            }
            _ => {}
        }
    }
    found
}

/// Nobody's but this test's.
fn mark() -> String {
    format!("~{:08x}~", std::process::id())
}

fn content(kind: &str, name: &str) -> String {
    format!("{}{kind} {name}", mark())
}

/// Secret and config `one`, `two` and `three`.
fn make_files(cluster: &Cluster) {
    for kind in ["secret", "config"] {
        for name in NAMES {
            let path = cluster.host(0).path("content");
            fs::write(&path, content(kind, name)).unwrap();
            cluster.host(0).shoal(&[kind, "create", name, &path]);
            fs::remove_file(path).unwrap();
        }
    }
}

/// A service on one node that uses the secret and the config of its name.
fn run(cluster: &Cluster, name: &str, i: usize) -> TaskLine {
    let place = format!("node.hostname=={}", Cluster::hostname(i));
    let flags = ["--constraint", &place, "--secret", name, "--config", name];
    let head = ["service", "create", "--detach", "--name", name];
    cluster
        .host(0)
        .shoal(&[&head[..], &flags, &["shoal/hello"]].concat());
    cluster.wait_running(0, name, 1).remove(0)
}

/// That this host holds the content of exactly these secrets and configs.
#[track_caller]
fn holds_only(cluster: &Cluster, i: usize, names: &[&str]) {
    let host = cluster.host(i);
    let saved = PathBuf::from(host.data_root()).join("agent/assignments");
    let saved = fs::read(saved).unwrap();
    let all = ["secret", "config"].map(|kind| NAMES.map(|name| content(kind, name)));
    let known = remembered(host.daemon_pid(), all.as_flattened());
    for name in NAMES {
        let (secret, config) = (content("secret", name), content("config", name));
        let wanted = names.contains(&name);
        for text in [&secret, &config] {
            assert_eq!(known.contains(text), wanted, "{text} on {i}");
        }
        let config = config.as_bytes();
        let is_saved = saved.windows(config.len()).any(|window| window == config);
        assert_eq!(is_saved, wanted, "{name} on {i}");
        let on_disk = files_with(Path::new(&host.data_root()), secret.as_bytes());
        assert!(on_disk.is_empty(), "{on_disk:?}");
    }
}

#[test]
fn a_worker_holds_the_files_of_its_own_tasks_and_answers_for_nothing_else() {
    let cluster = Cluster::formed(1, 2);
    make_files(&cluster);
    // Something of its own on each, so that sets of assignments come.
    let create = ["service", "create", "--detach", "--name", "all", "--mode"];
    cluster
        .host(0)
        .shoal(&[&create[..], &["global", "shoal/hello"]].concat());
    cluster.wait_running(0, "all", 3);
    for i in [1, 2] {
        holds_only(&cluster, i, &[]);
    }
    let before = cluster.host(1).inventory();

    let one = run(&cluster, "one", 1);
    run(&cluster, "two", 2);
    holds_only(&cluster, 1, &["one"]);
    holds_only(&cluster, 2, &["two"]);
    // The way it was looked for finds what is there.
    let secrets = NAMES.map(|name| content("secret", name));
    let manager = remembered(cluster.host(0).daemon_pid(), &secrets);
    assert_eq!(manager, BTreeSet::from(secrets));
    let file = format!("/proc/{}/root/run/secrets/one", one.pid);
    assert_eq!(fs::read_to_string(file).unwrap(), content("secret", "one"));
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", one.pid)).unwrap();
    let on_tmpfs = |line: &str| line.contains(" /run/secrets") && line.contains(" - tmpfs ");
    assert!(mounts.lines().any(on_tmpfs), "{mounts}");

    calls_for_managers_are_refused_at_a_worker(&cluster);
    managers_show_no_secrets(&cluster);

    cluster.host(0).shoal(&["service", "rm", "one"]);
    wait_for("its task to end", || is_alive(one.pid), |alive| !alive);
    cluster.host(1).wait_clean(&before);
    let config = content("config", "one");
    wait_for(
        "the worker to forget the config",
        || files_with(cluster.host(1).dir(), config.as_bytes()),
        Vec::is_empty,
    );
    let secret = content("secret", "one");
    let left = files_with(cluster.host(1).dir(), secret.as_bytes());
    assert!(left.is_empty(), "{left:?}");
}

fn calls_for_managers_are_refused_at_a_worker(cluster: &Cluster) {
    let worker = cluster.host(1);
    let path = worker.path("four");
    fs::write(&path, "four").unwrap();
    for kind in ["secret", "config"] {
        for args in [
            &[kind, "ls"][..],
            &[kind, "inspect", "one"],
            &[kind, "create", "four", &path],
            &[kind, "rm", "one"],
        ] {
            refused(cluster, args);
        }
    }
    for args in [
        &["service", "ls"][..],
        &["service", "inspect", "one"],
        &["service", "create", "shoal/hello"],
        &["service", "rm", "one"],
        &["node", "ls"],
        &["node", "inspect", "node1"],
        &["node", "update", "--availability", "drain", "node1"],
    ] {
        refused(cluster, args);
    }
    assert_eq!(cluster.running(0, "all").len(), 3);
}

#[track_caller]
fn refused(cluster: &Cluster, args: &[&str]) {
    let worker = cluster.host(1);
    for output in [worker.try_shoal(args), worker.try_docker(args)] {
        let what = format!("{args:?} at a worker");
        let said = output.stdout.clone() + &output.refusal(&what);
        assert!(said.contains(NOT_A_MANAGER), "{what}: {said}");
        assert!(!said.contains(&mark()), "{said}");
    }
}

fn managers_show_no_secrets(cluster: &Cluster) {
    let manager = cluster.host(0);
    let inspect = ["secret", "inspect", "one"];
    for shown in [manager.shoal(&inspect), manager.docker(&inspect)] {
        let secrets: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(secrets[0]["Spec"]["Name"], "one");
        assert_eq!(secrets[0]["Spec"].get("Data"), None, "{shown}");
    }
    let listed = manager.api("GET", "/secrets", None).to_string();
    assert!(
        listed.contains("three") && !listed.contains("Data"),
        "{listed}"
    );
    // A config is no secret to them.
    let config = manager.json(&["config", "inspect", "one"]);
    assert!(config[0]["Spec"]["Data"].is_string(), "{config}");
}
