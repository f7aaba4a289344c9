//! What a task's container sees.

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, Stdio},
};

use crate::TaskLine;

/// A command in the container of a task, with its network, its files and its resolver; what it prints.
pub fn inside(task: &TaskLine, words: &[&str]) -> String {
    let output = Command::new("nsenter")
        .args([
            "--target",
            &task.pid.to_string(),
            "--mount",
            "--net",
            "--root",
            "--wd=/",
            "--",
        ])
        .args(words)
        .stdin(Stdio::null())
        .output()
        .expect("run nsenter");
    // What went wrong is part of what was seen.
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    stdout + &stderr
}

/// GETs a URL with the network and the resolver of a task's container; `arguments` go to curl.
pub fn fetch(task: &TaskLine, url: &str, arguments: &str) -> String {
    let resolver = tempfile::NamedTempFile::new().expect("a file");
    let theirs = format!("/proc/{}/root/etc/resolv.conf", task.pid);
    fs::copy(theirs, resolver.path()).expect("the container's resolver");
    let script = format!(
        "mount --bind {} /etc/resolv.conf && exec curl -sS --max-time 5 {arguments} '{url}' 2>&1",
        resolver.path().display()
    );
    let output = Command::new("nsenter")
        .args(["--target", &task.pid.to_string(), "--net", "--"])
        .args(["unshare", "--mount", "--", "sh", "-c", &script])
        .stdin(Stdio::null())
        .output()
        .expect("run nsenter");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a name resolves to in a task's container of busybox.
pub fn addresses(task: &TaskLine, name: &str) -> BTreeSet<String> {
    let text = inside(task, &["/bin/nslookup", "-type=a", name]);
    // After the line of the name come its addresses; before it, the server's.
    text.lines()
        .skip_while(|line| !line.starts_with("Name:"))
        .filter_map(|line| line.strip_prefix("Address"))
        .filter_map(|line| line.split_whitespace().last())
        .map(str::to_owned)
        .collect()
}

/// The value of `key: ` in what shoal/hello answers.
pub fn field<'a>(answer: &'a str, key: &str) -> Option<&'a str> {
    let lines = answer.lines();
    lines
        .filter_map(|line| line.split_once(": "))
        .find_map(|(k, v)| (k == key).then_some(v.trim()))
}
