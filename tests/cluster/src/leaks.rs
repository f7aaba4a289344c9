//! What a daemon has made in the kernel and on disk, to be compared before and after.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use crate::{Host, process::processes};

/// Everything of one host that must not be left over, each thing as a line of text. Sandboxes that wait for a container are
/// no more left over than the supervisor is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    pub processes: BTreeSet<String>,
    pub mounts: BTreeSet<String>,
    pub cgroups: BTreeSet<String>,
    pub links: BTreeSet<String>,
    pub rules: BTreeSet<String>,
    pub files: BTreeSet<String>,
}

impl Inventory {
    /// What is here and was not there `before`, and what has gone since; empty when nothing leaked.
    /// Processes count by name: a daemon and its supervisor may have been replaced.
    pub fn changes_since(&self, before: &Self) -> Vec<String> {
        let kinds = [
            ("mount", &before.mounts, &self.mounts),
            ("cgroup", &before.cgroups, &self.cgroups),
            ("link", &before.links, &self.links),
            ("rule", &before.rules, &self.rules),
            ("file", &before.files, &self.files),
        ];
        let mut changes = Vec::new();
        for (kind, before, now) in kinds {
            changes.extend(
                now.difference(before)
                    .map(|thing| format!("new {kind}: {thing}")),
            );
            changes.extend(
                before
                    .difference(now)
                    .map(|thing| format!("lost {kind}: {thing}")),
            );
        }
        let (was, is) = (names(&before.processes), names(&self.processes));
        if was != is {
            changes.push(format!("processes were {was:?} and are {is:?}"));
        }
        changes
    }

    pub(crate) fn take(host: &Host) -> Self {
        let dir = host.dir().to_string_lossy().into_owned();
        let mut waiting = sandboxes(host);
        let mut cgroups = cgroups(host);
        let mut processes = own_processes(&dir, &cgroups);
        let mut files = files(&host.dir().join("run"));
        // Those made meanwhile, too.
        waiting.extend(sandboxes(host));
        let waits = |path: &String| waiting.iter().any(|name| path.contains(name.as_str()));
        let inside: BTreeSet<String> = cgroups
            .iter()
            .filter(|path| waits(path))
            .flat_map(|path| members(path))
            .map(|pid| format!("{pid} {}", name_of(pid)))
            .collect();
        processes.retain(|process| !inside.contains(process));
        cgroups.retain(|path| !waits(path));
        files.retain(|path| !waits(path));
        Self {
            processes,
            mounts: lines("/proc/self/mountinfo", |line| line.contains(&dir))
                .into_iter()
                .filter_map(|line| line.split_whitespace().nth(4).map(str::to_owned))
                .collect(),
            links: command(host, "ip", &["-o", "link"])
                .lines()
                .filter_map(|line| line.split(": ").nth(1))
                // After it comes the number of its other end, which is another one after a boot.
                .filter_map(|name| name.split('@').next().map(str::to_owned))
                .collect(),
            rules: command(host, "nft", &["list", "ruleset"])
                .lines()
                .map(str::to_owned)
                .collect(),
            files,
            cgroups,
        }
    }
}

fn names(processes: &BTreeSet<String>) -> Vec<&str> {
    let mut names: Vec<&str> = processes
        .iter()
        .map(|process| process.split_once(' ').map_or("", |(_, name)| name))
        .collect();
    names.sort_unstable();
    names
}

/// Processes that name the host's directory, or live in its cgroups.
fn own_processes(dir: &str, cgroups: &BTreeSet<String>) -> BTreeSet<String> {
    let named = processes(|cmdline| {
        cmdline.iter().any(|arg| arg.contains(dir))
            && cmdline.first().is_some_and(|p| p.ends_with("shoal"))
    });
    let inside = cgroups.iter().flat_map(|cgroup| members(cgroup));
    named
        .into_iter()
        .chain(inside)
        .map(|pid| format!("{pid} {}", name_of(pid)))
        .collect()
}

fn members(cgroup: &str) -> Vec<u32> {
    let pids = fs::read_to_string(Path::new(cgroup).join("cgroup.procs")).unwrap_or_default();
    pids.lines().filter_map(|pid| pid.parse().ok()).collect()
}

/// The names of sandboxes that wait for a container: of their bundles and cgroups.
fn sandboxes(host: &Host) -> BTreeSet<String> {
    let entries = fs::read_dir(host.dir().join("run").join("warm"));
    let entries = entries.into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

fn name_of(pid: u32) -> String {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    comm.trim().to_owned()
}

/// Cgroups of the host's containers in every hierarchy.
fn cgroups(host: &Host) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for parent in host.parent_cgroups() {
        collect_directories(&parent, &mut found);
        // The daemon's own, which it keeps.
        found.remove(parent.to_string_lossy().as_ref());
    }
    found
}

fn collect_directories(path: &Path, found: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(path) else {
        return;
    };
    found.insert(path.to_string_lossy().into_owned());
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_directories(&entry.path(), found);
        }
    }
}

fn files(path: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![path.to_path_buf()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            found.insert(entry.path().to_string_lossy().into_owned());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(entry.path());
            }
        }
    }
    found
}

fn lines(path: &str, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter(|line| wanted(line))
        .map(str::to_owned)
        .collect()
}

fn command(host: &Host, program: &str, args: &[&str]) -> String {
    let mut command: Command = host.in_network(program);
    let output = command.args(args).output().expect("start a program");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
