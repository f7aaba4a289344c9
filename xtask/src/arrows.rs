//! The arrows of ARCHITECTURE.md, held by what each manifest depends on.

use std::{collections::BTreeMap, process::Command};

use anyhow::{Context, bail};
use serde_json::Value;

/// Each crate, and the crates of the workspace that it may know.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("shoal-types", &[]),
    ("shoal-transport", &["shoal-types"]),
    ("shoal-raft-store", &["shoal-transport", "shoal-types"]),
    (
        "shoal-manager",
        &["shoal-raft-store", "shoal-transport", "shoal-types"],
    ),
    ("shoal-runtime", &[]),
    ("shoal-image", &[]),
    ("shoal-network", &["shoal-types"]),
    (
        "shoal-node-agent",
        &[
            "shoal-image",
            "shoal-network",
            "shoal-runtime",
            "shoal-transport",
            "shoal-types",
        ],
    ),
    (
        "shoal-engine-api",
        &["shoal-manager", "shoal-node-agent", "shoal-types"],
    ),
    (
        "shoal",
        &[
            "shoal-engine-api",
            "shoal-manager",
            "shoal-node-agent",
            "shoal-runtime",
            "shoal-transport",
            "shoal-types",
        ],
    ),
    (
        "shoal-bench",
        &[
            "shoal-engine-api",
            "shoal-network",
            "shoal-runtime",
            "shoal-types",
        ],
    ),
    ("cluster-tests", &[]),
    (
        "simulation",
        &[
            "shoal-manager",
            "shoal-node-agent",
            "shoal-raft-store",
            "shoal-transport",
            "shoal-types",
        ],
    ),
    ("xtask", &[]),
    ("base2histogram", &[]),
];

/// Crates from outside that one crate alone may depend on.
const KNOWN_TO_ONE: &[(&str, &str)] = &[
    ("openraft", "shoal-raft-store"),
    ("bincode", "shoal-transport"),
    ("netlink-sys", "shoal-network"),
    ("netlink-packet-core", "shoal-network"),
    ("netlink-packet-route", "shoal-network"),
    ("caps", "shoal-runtime"),
];

/// Fails with every arrow that points where it may not.
pub(crate) fn check() -> anyhow::Result<()> {
    let may_know: BTreeMap<&str, &[&str]> = MAY_KNOW.iter().copied().collect();
    let known_to_one: BTreeMap<&str, &str> = KNOWN_TO_ONE.iter().copied().collect();
    let mut wrong = Vec::new();
    for package in packages()? {
        let name = package["name"].as_str().context("a package has a name")?;
        let Some(allowed) = may_know.get(name) else {
            wrong.push(format!(
                "{name} is not in the crate map; say what it may know"
            ));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let other = dependency["name"].as_str().unwrap_or_default();
            let for_tests = dependency["kind"].as_str() == Some("dev");
            if may_know.contains_key(other) && !allowed.contains(&other) && !for_tests {
                wrong.push(format!("{name} may not know {other}"));
            }
            if known_to_one.get(other).is_some_and(|only| *only != name) {
                wrong.push(format!(
                    "{other} is known to {} alone, not to {name}",
                    known_to_one[other]
                ));
            }
        }
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        bail!("arrows:\n  {}", wrong.join("\n  "))
    }
}

fn packages() -> anyhow::Result<Vec<Value>> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(program)
        .args(["metadata", "--no-deps", "--format-version", "1", "--locked"])
        .output()
        .context("start cargo metadata")?;
    if !output.status.success() {
        bail!(
            "cargo metadata: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let mut metadata: Value =
        serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
    match metadata["packages"].take() {
        Value::Array(packages) => Ok(packages),
        _ => bail!("cargo metadata lists no packages"),
    }
}
