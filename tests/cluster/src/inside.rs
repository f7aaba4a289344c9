//! What a task's container sees.

use std::{
    collections::BTreeSet,
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
