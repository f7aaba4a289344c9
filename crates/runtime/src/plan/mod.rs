//! What the supervisor is told to make: an OCI spec, checked and resolved into the few values that the system calls take.
//!
//! [`Plan::new`] is the only way from a spec to a plan; it refuses, by name, every field this runtime does not do, so that
//! nothing asked for is silently left out. A plan is plain data and crosses the supervisor's socket as JSON.

mod default;
mod file;
mod limits;
mod mounts;
mod prepare;
mod shape;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::seccomp::SeccompFilter;
use crate::sys::mount::MountAttributes;
use crate::sys::process::CapabilitySets;

pub use default::default_spec;
pub use file::ContainerFile;
pub use prepare::InvalidSpec;
pub(crate) use prepare::{capability_number, check_id};
pub(crate) use shape::{STAGED, Shape};

/// A container, ready to be made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) id: String,
    pub(crate) rootfs: Rootfs,
    pub(crate) readonly_root: bool,
    pub(crate) namespaces: Namespaces,
    pub(crate) hostname: Option<String>,
    pub(crate) domainname: Option<String>,
    pub(crate) mounts: Vec<MountPlan>,
    pub(crate) devices: Vec<DeviceNode>,
    pub(crate) masked_paths: Vec<String>,
    pub(crate) readonly_paths: Vec<String>,
    /// Files below `/proc/sys` and what to write into them.
    pub(crate) sysctls: Vec<(String, String)>,
    pub(crate) limits: Limits,
    pub(crate) device_rules: Vec<DeviceRule>,
    pub(crate) seccomp: Option<SeccompFilter>,
    pub(crate) process: ProcessPlan,
    pub(crate) etc: EtcFiles,
    pub(crate) files: Vec<ContainerFile>,
    pub(crate) log: LogConfig,
}

/// The image's layers, under the container's writable layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rootfs {
    /// The directory that the names in `lower` are relative to.
    pub layers_dir: PathBuf,
    /// Layer directories, the top one first. Short relative names keep many layers within one mount(2) option page.
    pub lower: Vec<String>,
}

/// Files that belong to this container rather than to its image; bind mounted over those of the same name in `/etc`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcFiles {
    /// `/etc/hostname`.
    pub hostname: Vec<u8>,
    /// `/etc/hosts`.
    pub hosts: Vec<u8>,
    /// `/etc/resolv.conf`.
    pub resolv_conf: Vec<u8>,
}

/// How much of the container's output is kept, as Docker's `json-file` options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogConfig {
    /// Bytes after which a new file is begun; `None`: never (Docker's default).
    pub max_size: Option<u64>,
    /// How many files are kept, the current one included; at least 1.
    pub max_files: u32,
    /// Nothing is kept: what the container writes is read and thrown away, as with Docker's driver `none`.
    pub discard: bool,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            max_size: None,
            max_files: 1,
            discard: false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Namespaces {
    /// `CLONE_NEW*` flags for the clone; the cgroup namespace is made later, inside the cgroup.
    pub(crate) clone_flags: u64,
    pub(crate) cgroup: bool,
    /// A network namespace to join instead of having an own one.
    pub(crate) join_network: Option<PathBuf>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ProcessPlan {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: String,
    /// Docker's `user` words; empty: the numbers below.
    pub(crate) user: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Group names or numbers added to those of the user.
    pub(crate) groups: Vec<String>,
    pub(crate) umask: u32,
    pub(crate) capabilities: CapabilitySets,
    pub(crate) rlimits: Vec<Rlimit>,
    pub(crate) no_new_privileges: bool,
    pub(crate) oom_score_adj: Option<i32>,
    /// Run as the child of a small init that reaps orphans and forwards signals.
    pub(crate) init: bool,
}

/// What every later process of a container has of its first one. It is kept on disk beside the container's record, so that
/// whichever supervisor is there can start one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Confinement {
    pub(crate) process: ProcessPlan,
    pub(crate) seccomp: Option<SeccompFilter>,
    /// The limit of open files unless the process has one.
    pub(crate) descriptors: Rlimit,
}

/// One more process in a running container; what is `None` is as the container's first process has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ExecPlan {
    pub(crate) args: Vec<String>,
    /// Over the container's environment.
    pub(crate) env: Vec<String>,
    pub(crate) user: Option<String>,
    pub(crate) cwd: Option<String>,
    /// Milliseconds after which everything of it is killed.
    pub(crate) timeout_ms: Option<u64>,
    /// How many bytes of output are kept: the first ones.
    pub(crate) output_limit: usize,
}

impl Confinement {
    /// The process that `plan` asks for.
    pub(crate) fn process_of(&self, plan: &ExecPlan) -> ProcessPlan {
        let mut process = self.process.clone();
        process.args.clone_from(&plan.args);
        process.init = false;
        for entry in &plan.env {
            let key = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
            let own = key(entry);
            process.env.retain(|known| key(known) != own);
            process.env.push(entry.clone());
        }
        if let Some(user) = &plan.user {
            process.user.clone_from(user);
            (process.uid, process.gid) = (0, 0);
        }
        if let Some(cwd) = &plan.cwd {
            process.cwd.clone_from(cwd);
        }
        process
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Rlimit {
    pub(crate) resource: u32,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MountPlan {
    pub(crate) target: String,
    pub(crate) kind: MountKind,
    pub(crate) attributes: MountAttributes,
    /// Attributes apply to everything below too (`rro` and its like).
    pub(crate) recursive_attributes: bool,
    /// Copy what the image has at the target into a fresh tmpfs, or into the empty directory that is mounted.
    pub(crate) copy_up: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum MountKind {
    Bind {
        source: PathBuf,
        recursive: bool,
    },
    Filesystem {
        kind: String,
        source: String,
        data: String,
    },
    /// The container's own view of its cgroups, made from what the host has mounted.
    Cgroup,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeviceNode {
    pub(crate) path: String,
    /// `S_IFCHR`, `S_IFBLK` or `S_IFIFO`, with the permission bits.
    pub(crate) mode: u32,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// One rule of the device cgroup; `None` is "any". Later rules win.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct DeviceRule {
    pub(crate) allow: bool,
    pub(crate) kind: Option<DeviceKind>,
    pub(crate) major: Option<u32>,
    pub(crate) minor: Option<u32>,
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) mknod: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum DeviceKind {
    Block,
    Character,
}

/// Resource limits in the units of the OCI spec; what is `None` stays the kernel's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// Bytes; -1 is unlimited. `swap` is memory and swap together.
    pub(crate) memory: Option<i64>,
    pub(crate) memory_reservation: Option<i64>,
    pub(crate) swap: Option<i64>,
    pub(crate) swappiness: Option<u64>,
    pub(crate) disable_oom_killer: bool,
    /// v1 shares, 2 to 262144.
    pub(crate) cpu_shares: Option<u64>,
    /// Microseconds of processor time in each period; -1 is unlimited.
    pub(crate) cpu_quota: Option<i64>,
    pub(crate) cpu_period: Option<u64>,
    pub(crate) cpuset_cpus: Option<String>,
    pub(crate) cpuset_mems: Option<String>,
    /// Processes; -1 is unlimited.
    pub(crate) pids: Option<i64>,
    /// 10 to 1000.
    pub(crate) blkio_weight: Option<u16>,
    pub(crate) throttles: Vec<Throttle>,
    /// Files of the v2 cgroup and what to write into them.
    pub(crate) unified: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Throttle {
    pub(crate) major: i64,
    pub(crate) minor: i64,
    pub(crate) rate: u64,
    pub(crate) kind: ThrottleKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ThrottleKind {
    ReadBytes,
    WriteBytes,
    ReadOperations,
    WriteOperations,
}
