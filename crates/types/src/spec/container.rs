//! One container of a task, as the user describes it.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{ConfigId, SecretId};

/// What to run and in which surroundings. Empty means "as the image says" or Docker's default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Reference as the user (or the client, with a digest) wrote it.
    pub image: String,
    /// Labels of the container, beside the service's own.
    pub labels: BTreeMap<String, String>,
    /// Replaces the image's entrypoint; its cmd is then dropped too.
    pub command: Vec<String>,
    /// Replaces the image's cmd.
    pub args: Vec<String>,
    pub hostname: String,
    /// `KEY=value`, or `KEY` alone to remove a variable of the image.
    pub env: Vec<String>,
    pub dir: String,
    /// `user`, `uid`, `user:group` or `uid:gid`; names are those of the image's `/etc/passwd`.
    pub user: String,
    /// Supplementary groups, by name or number.
    pub groups: Vec<String>,
    pub privileges: Privileges,
    /// Runs a small init as process 1, which forwards signals and reaps.
    pub init: Option<bool>,
    /// Name or number; empty: the image's, else SIGTERM.
    pub stop_signal: String,
    /// Between the stop signal and SIGKILL.
    pub stop_grace: Duration,
    pub tty: bool,
    pub open_stdin: bool,
    pub read_only: bool,
    pub mounts: Vec<Mount>,
    pub health: Option<HealthCheck>,
    /// Lines of `/etc/hosts`, `IP name…`.
    pub hosts: Vec<String>,
    pub dns: DnsConfig,
    pub secrets: Vec<FileReference<SecretId>>,
    pub configs: Vec<FileReference<ConfigId>>,
    pub isolation: Isolation,
    pub sysctls: BTreeMap<String, String>,
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    pub ulimits: Vec<Ulimit>,
    pub oom_score_adj: i32,
    /// The client's registry credentials (`X-Registry-Auth`), passed to the node that pulls.
    pub registry_auth: Option<String>,
}

impl ContainerSpec {
    /// A container of `image` with Docker's defaults for everything else.
    pub fn new(image: impl Into<String>) -> Self {
        Self {
            image: image.into(),
            labels: BTreeMap::new(),
            command: Vec::new(),
            args: Vec::new(),
            hostname: String::new(),
            env: Vec::new(),
            dir: String::new(),
            user: String::new(),
            groups: Vec::new(),
            privileges: Privileges::default(),
            init: None,
            stop_signal: String::new(),
            stop_grace: Duration::from_secs(10),
            tty: false,
            open_stdin: false,
            read_only: false,
            mounts: Vec::new(),
            health: None,
            hosts: Vec::new(),
            dns: DnsConfig::default(),
            secrets: Vec::new(),
            configs: Vec::new(),
            isolation: Isolation::Default,
            sysctls: BTreeMap::new(),
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            ulimits: Vec::new(),
            oom_score_adj: 0,
            registry_auth: None,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Privileges {
    pub no_new_privileges: bool,
    pub seccomp: SeccompMode,
    pub apparmor_disabled: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeccompMode {
    #[default]
    Default,
    Unconfined,
    /// A profile in Docker's JSON form.
    Custom(Vec<u8>),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Isolation {
    #[default]
    Default,
}

/// A file system that appears inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub kind: MountKind,
    /// Absolute path inside the container.
    pub target: PathBuf,
    pub read_only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    Bind(Bind),
    /// A named volume of the node; an empty name makes an anonymous one.
    Volume {
        name: String,
        no_copy: bool,
        /// Of the volume, if it is made for the task.
        labels: BTreeMap<String, String>,
        driver_options: BTreeMap<String, String>,
    },
    Tmpfs(Tmpfs),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Absolute path on the node.
    pub source: PathBuf,
    /// `private`, `rprivate`, `shared`, `rshared`, `slave` or `rslave`; empty: `rprivate`.
    pub propagation: String,
    pub non_recursive: bool,
    pub create_mountpoint: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// 0: half of the machine's memory, as the kernel does it.
    pub size_bytes: u64,
    /// Permission bits; 0: 01777.
    pub mode: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// Docker's form: `["NONE"]`, `["CMD", …]`, `["CMD-SHELL", line]`; empty: the image's.
    pub test: Vec<String>,
    /// Zero durations and retries: the image's, else 30 s, 30 s, 0 s, 5 s and 3.
    pub interval: Duration,
    pub timeout: Duration,
    pub start_period: Duration,
    pub start_interval: Duration,
    pub retries: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsConfig {
    pub nameservers: Vec<String>,
    pub search: Vec<String>,
    pub options: Vec<String>,
}

/// A secret or config that appears as a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileReference<Id> {
    pub id: Id,
    pub name: String,
    /// Absolute, or relative to `/run/secrets` (secrets) or `/` (configs).
    pub target: String,
    pub uid: String,
    pub gid: String,
    pub mode: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// Without `RLIMIT_`, in lower case: `nofile`, `nproc`…
    pub name: String,
    /// -1: no limit.
    pub soft: i64,
    pub hard: i64,
}
