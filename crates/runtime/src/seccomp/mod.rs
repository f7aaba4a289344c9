//! Seccomp filters: Docker's default profile, profiles in Docker's and in OCI's JSON, and the compiler for all of them.
//!
//! A profile becomes a list of [`Rule`]s for this architecture, the rules become intervals of system call numbers, and
//! those a binary search in classic BPF: about 170 instructions for the default profile, where one comparison per call
//! takes about a thousand. A filter is built once and is a plain vector afterwards.
//!
//! Calls of a foreign architecture (i386, x32) and calls newer than the profile are answered with `ENOSYS`, so that
//! programs fall back to what they used before the call existed.

mod compile;
mod default;
mod docker;
mod table;

use std::sync::{Arc, Mutex, PoisonError};

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag, LinuxSeccompOperator,
};

pub use docker::ProfileError;

/// A loadable filter: classic BPF instructions and the flags of seccomp(2).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SeccompFilter {
    /// Each is a `struct sock_filter` as the kernel lays it out in memory.
    pub(crate) program: Vec<u64>,
    pub(crate) flags: u32,
}

impl SeccompFilter {
    /// How many BPF instructions the filter has.
    pub fn instructions(&self) -> usize {
        self.program.len()
    }
}

/// What a filter answers: a `SECCOMP_RET_*` value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Action(u32);

impl Action {
    const ALLOW: Self = Self(0x7fff_0000);
    const fn errno(errno: u32) -> Self {
        Self(0x0005_0000 | errno)
    }
}

/// One comparison of a system call's argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Condition {
    argument: u32,
    operator: LinuxSeccompOperator,
    /// The value, and for `MaskedEq` the mask.
    value: u64,
    /// The value compared with under the mask; only for `MaskedEq`.
    masked: u64,
}

/// `action` for the call `number` when all `conditions` hold.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    number: u32,
    action: Action,
    conditions: Vec<Condition>,
}

/// What is wrong with a seccomp section of an OCI spec.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// A part of the section that this runtime does not do.
    #[error("linux.seccomp.{0} is not supported")]
    Unsupported(&'static str),
    /// An argument index beyond a call's sixth argument.
    #[error("linux.seccomp.syscalls: argument index {0} is not in 0..=5")]
    Argument(usize),
    /// The profile needs more instructions than the kernel takes (`BPF_MAXINSNS`, 4096).
    #[error("linux.seccomp: the profile needs {0} filter instructions, the kernel takes 4096")]
    TooLong(usize),
}

/// Docker's default filter for a container with these capabilities (bit masks by capability number).
///
/// Built once per capability set and shared afterwards.
pub fn default_seccomp(capabilities: u64) -> Arc<SeccompFilter> {
    static BUILT: Mutex<Vec<(u64, Arc<SeccompFilter>)>> = Mutex::new(Vec::new());
    let relevant = capabilities & default::conditional_capabilities();
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, filter)) = built.iter().find(|(key, _)| *key == relevant) {
        return Arc::clone(filter);
    }
    let program = compile::compile(&default::rules(relevant), Action::errno(libc::EPERM as u32));
    let filter = Arc::new(SeccompFilter { program, flags: 0 });
    built.push((relevant, Arc::clone(&filter)));
    filter
}

/// Compiles a custom profile in Docker's JSON format for a container with these capabilities.
pub fn docker_profile(json: &str, capabilities: u64) -> Result<SeccompFilter, ProfileError> {
    let (rules, default) = docker::rules(json, capabilities)?;
    finish(&rules, default, 0).map_err(ProfileError::Seccomp)
}

/// Compiles the seccomp section of an OCI spec.
pub(crate) fn from_oci(section: &LinuxSeccomp) -> Result<SeccompFilter, SeccompError> {
    if section.listener_path().is_some() {
        return Err(SeccompError::Unsupported("listenerPath"));
    }
    let mut flags = 0;
    for flag in section.flags().iter().flatten() {
        flags |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => 1 << 1,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => 1 << 2,
            // One thread only: nothing to synchronise.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                return Err(SeccompError::Unsupported(
                    "flags: SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
                ));
            }
        };
    }
    let mut rules = Vec::new();
    for syscall in section.syscalls().iter().flatten() {
        let action = action(syscall.action(), syscall.errno_ret())?;
        let mut conditions = Vec::new();
        for argument in syscall.args().iter().flatten() {
            conditions.push(Condition {
                argument: argument_index(argument.index())?,
                operator: argument.op(),
                value: argument.value(),
                masked: argument.value_two().unwrap_or(0),
            });
        }
        push_rules(&mut rules, syscall.names(), action, &conditions);
    }
    finish(
        &rules,
        action(section.default_action(), section.default_errno_ret())?,
        flags,
    )
}

fn finish(rules: &[Rule], default: Action, flags: u32) -> Result<SeccompFilter, SeccompError> {
    const BPF_MAXINSNS: usize = 4096;
    let program = compile::compile(rules, default);
    if program.len() > BPF_MAXINSNS {
        return Err(SeccompError::TooLong(program.len()));
    }
    Ok(SeccompFilter { program, flags })
}

fn argument_index(index: usize) -> Result<u32, SeccompError> {
    match u32::try_from(index) {
        Ok(index @ 0..=5) => Ok(index),
        _ => Err(SeccompError::Argument(index)),
    }
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<Action, SeccompError> {
    if action == LinuxSeccompAction::ScmpActNotify {
        return Err(SeccompError::Unsupported("syscalls.action SCMP_ACT_NOTIFY"));
    }
    Ok(Action(action.as_u32(errno)))
}

/// Adds a rule for each name; names this architecture does not have are skipped, as libseccomp's users do.
fn push_rules<S: AsRef<str>>(
    rules: &mut Vec<Rule>,
    names: &[S],
    action: Action,
    conditions: &[Condition],
) {
    rules.extend(names.iter().filter_map(|name| {
        let number = table::number(name.as_ref())?;
        Some(Rule {
            number,
            action,
            conditions: conditions.to_vec(),
        })
    }));
}
