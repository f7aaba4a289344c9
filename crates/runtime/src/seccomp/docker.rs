//! Custom profiles in Docker's JSON format: an OCI section whose rules may depend on capabilities, architecture and kernel.

use serde::Deserialize;

use oci_spec::runtime::{LinuxSeccompAction, LinuxSeccompArg};

use super::{Action, Condition, Rule, SeccompError, action, argument_index, push_rules};
use crate::plan::capability_number;

/// Why a custom seccomp profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// It is not JSON of Docker's shape.
    #[error("decoding seccomp profile failed")]
    Decode(#[source] serde_json::Error),
    /// A rule names what does not exist.
    #[error("seccomp profile: {0}")]
    Invalid(String),
    /// A rule cannot be compiled.
    #[error(transparent)]
    Seccomp(SeccompError),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<Syscall>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Syscall {
    name: Option<String>,
    #[serde(default)]
    names: Vec<String>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    args: Option<Vec<LinuxSeccompArg>>,
    #[serde(default)]
    includes: Filter,
    #[serde(default)]
    excludes: Filter,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Filter {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
    min_kernel: Option<String>,
}

/// The rules of a profile for a container with these capabilities on this machine, and its default action.
pub(super) fn rules(json: &str, capabilities: u64) -> Result<(Vec<Rule>, Action), ProfileError> {
    let profile: Profile = serde_json::from_str(json).map_err(ProfileError::Decode)?;
    let default =
        action(profile.default_action, profile.default_errno_ret).map_err(ProfileError::Seccomp)?;
    let kernel = running_kernel();
    let mut rules = Vec::new();
    for syscall in profile.syscalls {
        if syscall.name.is_some() && !syscall.names.is_empty() {
            return Err(ProfileError::Invalid(
                "use either 'name' or 'names' in a rule".to_owned(),
            ));
        }
        if !applies(&syscall, capabilities, kernel)? {
            continue;
        }
        let mut conditions = Vec::new();
        for argument in syscall.args.iter().flatten() {
            conditions.push(Condition {
                argument: argument_index(argument.index()).map_err(ProfileError::Seccomp)?,
                operator: argument.op(),
                value: argument.value(),
                masked: argument.value_two().unwrap_or(0),
            });
        }
        let names: Vec<String> = syscall.name.into_iter().chain(syscall.names).collect();
        let action = action(syscall.action, syscall.errno_ret).map_err(ProfileError::Seccomp)?;
        push_rules(&mut rules, &names, action, &conditions);
    }
    Ok((rules, default))
}

fn applies(rule: &Syscall, capabilities: u64, kernel: (u32, u32)) -> Result<bool, ProfileError> {
    let arch = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let has = |name: &String| {
        capability_number(name)
            .map(|number| capabilities & (1 << number) != 0)
            .ok_or_else(|| ProfileError::Invalid(format!("unknown capability {name}")))
    };
    let newer = |filter: &Filter| match &filter.min_kernel {
        None => Ok(None),
        Some(text) => parse_version(text)
            .map(|wanted| Some(kernel >= wanted))
            .ok_or_else(|| {
                ProfileError::Invalid(format!("minKernel {text} is not <major>.<minor>"))
            }),
    };
    for name in &rule.excludes.caps {
        if has(name)? {
            return Ok(false);
        }
    }
    for name in &rule.includes.caps {
        if !has(name)? {
            return Ok(false);
        }
    }
    let listed = |filter: &Filter| filter.arches.iter().any(|name| name == arch);
    Ok(!listed(&rule.excludes)
        && newer(&rule.excludes)? != Some(true)
        && (rule.includes.arches.is_empty() || listed(&rule.includes))
        && newer(&rule.includes)? != Some(false))
}

fn running_kernel() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    parse_version(&release).unwrap_or((0, 0))
}

/// The first two numbers of a kernel version.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(|character: char| !character.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROFILE: &str = r#"{
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["mkdir", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5},
            {"name": "chmod", "action": "SCMP_ACT_ERRNO", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"name": "chown", "action": "SCMP_ACT_ERRNO", "includes": {"minKernel": "999.0"}},
            {"name": "rmdir", "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_CHOWN"]}}
        ]}"#;

    #[test]
    fn rules_depend_on_capabilities_and_kernel() {
        let count = |capabilities| {
            rules(PROFILE, capabilities)
                .expect("a valid profile")
                .0
                .len()
        };
        assert_eq!(count(1), 1);
        assert_eq!(count(1 | 1 << 21), 2);
        assert_eq!(count(0), 2);
    }

    #[test]
    fn broken_profiles_say_what_is_broken() {
        let error = rules("{", 0).expect_err("not JSON");
        assert_eq!(error.to_string(), "decoding seccomp profile failed");
        let both = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","names":["b"],"action":"SCMP_ACT_ALLOW"}]}"#;
        assert!(
            rules(both, 0)
                .expect_err("both")
                .to_string()
                .contains("either 'name' or 'names'")
        );
    }
}
