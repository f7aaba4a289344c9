//! `cargo xtask check` is every check that needs no privileges; `cargo xtask test` runs the tests;
//! `cargo xtask fix` rewrites what can be rewritten.
#![expect(clippy::print_stdout, reason = "a tool talks to its user")]

mod arrows;

use std::process::{Command, ExitCode};

use anyhow::{Context, bail};

/// The package with whole clusters.
const CLUSTER_TESTS: &str = "cluster-tests";

const USAGE: &str = "\
cargo xtask check          formatting, lints, crate arrows, licences and sources; writes nothing
cargo xtask test [ARGS]    builds the binary and runs every test (needs root); ARGS go to the runner
cargo xtask fix            formats, and applies the lints' own suggestions";

fn main() -> anyhow::Result<ExitCode> {
    let mut args = std::env::args().skip(1);
    let task = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    match task.as_str() {
        "check" => check()?,
        "test" => test(&rest)?,
        "fix" => {
            cargo(&[
                "clippy",
                "--workspace",
                "--all-targets",
                "--fix",
                "--allow-dirty",
            ])?;
            cargo(&["fmt", "--all"])?;
        }
        _ => {
            println!("{USAGE}");
            return Ok(ExitCode::from(2));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn check() -> anyhow::Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    arrows::check()?;
    cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ])?;
    if has("cargo-deny") {
        cargo(&["deny", "--offline", "check", "bans", "licenses", "sources"])?;
    } else {
        println!("cargo-deny is not installed; licences and sources were not checked");
    }
    Ok(())
}

/// The end-to-end tests drive the real binary, so it is built first; it lands beside the tests.
fn test(args: &[String]) -> anyhow::Result<()> {
    cargo(&["build", "--locked", "--package", "shoal"])?;
    let extra: Vec<&str> = args.iter().map(String::as_str).collect();
    if has("cargo-nextest") {
        return cargo(
            &[
                &["nextest", "run", "--workspace", "--locked"][..],
                &extra[..],
            ]
            .concat(),
        );
    }
    println!(
        "cargo-nextest is not installed, with which this is faster: cargo install --locked cargo-nextest"
    );
    let all = ["test", "--workspace", "--locked", "--no-fail-fast"];
    let others = cargo(&[&all[..], &["--exclude", CLUSTER_TESTS], &extra[..]].concat());
    // Whole clusters, of which the machine bears one at a time.
    let mine = [
        "test",
        "--package",
        CLUSTER_TESTS,
        "--locked",
        "--no-fail-fast",
    ];
    let serially = ["--", "--test-threads", "1"];
    let clusters = cargo(&[&mine[..], &extra[..], &serially].concat());
    others.and(clusters)
}

fn has(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(tool).is_file())
}

fn cargo(args: &[&str]) -> anyhow::Result<()> {
    println!("$ cargo {}", args.join(" "));
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(program)
        .args(args)
        .status()
        .context("start cargo")?;
    if !status.success() {
        bail!("cargo {} failed: {status}", args.join(" "));
    }
    Ok(())
}
