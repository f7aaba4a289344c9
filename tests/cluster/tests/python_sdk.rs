//! Docker's Python SDK against a real daemon.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::PathBuf;

use cluster_tests::{Host, docker_archive};

/// The interpreter of the environment that `tests/run.sh --prepare` makes.
fn python() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    cache
        .unwrap_or_else(|| home().join(".cache"))
        .join("shoal-tests/python/bin/python")
}

#[test]
fn the_python_sdk_runs_a_service() {
    let python = python();
    assert!(
        python.exists(),
        "{} is missing: tests/run.sh --prepare installs it",
        python.display()
    );
    let host = Host::local();
    let archive = docker_archive(host.dir(), "busybox:sdk").unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python_sdk.py");
    let output = host
        .in_network("timeout")
        .arg("60")
        .arg(&python)
        .arg(script)
        .arg(&archive)
        .env("DOCKER_HOST", host.socket())
        .output()
        .unwrap();
    assert!(
        output.status.success() && output.stdout == b"done\n",
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
