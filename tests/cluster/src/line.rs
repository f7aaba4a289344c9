//! Command lines of docker and of shoal, as they are typed.

use serde_json::Value;

use crate::{Host, Output, docker_archive, wait_for};

/// The words of `line`; a `{{template}}` is one.
fn words(line: &str) -> Vec<&str> {
    let mut depth = 0_i32;
    let split = line.split(|c: char| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c.is_ascii_whitespace() && depth == 0
    });
    split.filter(|word| !word.is_empty()).collect()
}

/// Runs docker with the words of `line`; fails the test when it fails.
#[track_caller]
pub fn docker(host: &Host, line: &str) -> String {
    host.docker(&words(line))
}

/// The same for a line that may fail.
pub fn try_docker(host: &Host, line: &str) -> Output {
    host.try_docker(&words(line))
}

/// What docker prints, as JSON.
#[track_caller]
pub fn docker_json(host: &Host, line: &str) -> Value {
    serde_json::from_str(&docker(host, line)).expect("JSON")
}

/// Docker and shoal print the same for `line`. Times are relative to now: the second may turn in between.
#[track_caller]
pub fn same(host: &Host, line: &str) {
    let words = words(line);
    wait_for(
        &format!("docker and shoal to agree on {line:?}"),
        // Both say how long ago things were, and a busy machine takes its time between them.
        || (host.shoal(&words), host.docker(&words), host.shoal(&words)),
        |(before, docker, after)| !docker.is_empty() && (docker == before || docker == after),
    );
}

/// Each of `wanted` is in `text`.
#[track_caller]
pub fn contains_all(text: &str, wanted: &[&str]) {
    for part in wanted {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

/// The command failed and said `message`.
#[track_caller]
pub fn refused(output: &Output, message: &str) {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stderr.contains(message), "{}", output.stderr);
}

/// Gives the host the image `busybox:1`.
#[track_caller]
pub fn load_busybox(host: &Host) {
    let tar = docker_archive(host.dir(), "busybox:1").expect("an archive");
    let loaded = docker(host, &format!("load --input {}", tar.display()));
    assert_eq!(loaded, "Loaded image: busybox:1\n");
}

/// Creates a service of busybox that runs `script`. It waits until the service has converged.
#[track_caller]
pub fn create(host: &Host, options: &str, script: &str) -> Output {
    let mut words = vec!["service", "create", "--update-monitor", "600ms"];
    words.extend(["--restart-delay", "0s", "--stop-grace-period", "1s"]);
    words.extend(self::words(options));
    let script = format!("trap 'exit 0' TERM; {script}");
    words.extend(["busybox:1", "sh", "-c", &script]);
    let output = host.try_docker(&words);
    assert!(output.status.success(), "{output:?}");
    output
}

/// `shoal` with the words of `line`, which may fail.
pub fn try_shoal(host: &Host, line: &str) -> Output {
    host.try_shoal(&words(line))
}
