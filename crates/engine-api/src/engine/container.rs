//! Containers of a node, and their output.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use bytes::Bytes;
use shoal_types::{
    ContainerId, NodeId, ServiceId, TaskId, Timestamp,
    spec::{LogDriver, Protocol},
};

/// A container as the node knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerInfo {
    pub id: ContainerId,
    /// Without Docker's leading slash.
    pub name: String,
    /// Reference it was made from.
    pub image: String,
    /// `sha256:…`.
    pub image_id: String,
    /// Program and arguments, the image's defaults filled in.
    pub command: Vec<String>,
    pub created: Timestamp,
    pub labels: BTreeMap<String, String>,
    pub state: ContainerState,
    /// In the node's own pid namespace; 0 when it does not run.
    pub pid: u32,
    /// The epoch when it never was.
    pub started_at: Timestamp,
    pub finished_at: Timestamp,
    pub exit_code: i32,
    pub oom_killed: bool,
    /// Why it could not be started; empty when it could.
    pub error: String,
    /// Present on containers of tasks.
    pub task: Option<TaskId>,
    pub service: Option<ServiceId>,
    pub node: Option<NodeId>,
    pub hostname: String,
    pub env: Vec<String>,
    pub working_dir: String,
    pub user: String,
    pub tty: bool,
    pub networks: Vec<ContainerNetwork>,
    pub ports: Vec<ContainerPort>,
    pub mounts: Vec<ContainerMount>,
    /// 0: no limit.
    pub memory_bytes: u64,
    pub nano_cpus: u64,
    pub pids: u64,
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    pub read_only: bool,
    /// Where its output goes.
    pub log: LogDriver,
    /// `None` when nobody asks for it.
    pub health: Option<ContainerHealth>,
}

/// Bytes of a container's files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ContainerSize {
    /// Of those that it wrote.
    pub own: u64,
    /// With those of its image.
    pub whole: u64,
}

/// What is known of a container's health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerHealth {
    /// `starting`, `healthy` or `unhealthy`.
    pub status: &'static str,
    pub failing_streak: u32,
    /// The last results, oldest first.
    pub log: Vec<HealthResult>,
}

/// The result of one health check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthResult {
    pub start: Timestamp,
    pub end: Timestamp,
    /// -1: it could not be run, or took too long.
    pub exit_code: i32,
    pub output: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerState {
    Created,
    Running,
    Paused,
    Exited,
    /// Could not be taken apart; the daemon keeps trying.
    Dead,
}

impl ContainerState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Exited => "exited",
            Self::Dead => "dead",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerNetwork {
    pub name: String,
    /// Id of the network, as text since a node's own networks are not the cluster's.
    pub id: String,
    pub addr: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Option<Ipv4Addr>,
    /// `02:42:…`; empty when the network has none.
    pub mac: String,
    pub aliases: Vec<String>,
}

/// A port of the container that is reachable on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerPort {
    pub protocol: Protocol,
    pub container: u16,
    pub host: Option<(Ipv4Addr, u16)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerMount {
    /// `bind`, `volume` or `tmpfs`.
    pub kind: &'static str,
    /// Name of a volume; empty for others.
    pub name: String,
    pub source: String,
    pub target: String,
    pub read_only: bool,
    pub propagation: String,
}

/// Which records are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogRequest {
    pub stdout: bool,
    pub stderr: bool,
    /// Go on with what is written from now on; the stream ends with the container.
    pub follow: bool,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    /// This many of the newest lines; `None`: all.
    pub tail: Option<u64>,
}

/// A line of output, or a piece of one that was too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    pub at: Timestamp,
    pub stream: OutputStream,
    /// With its line feed, when it had one.
    pub bytes: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputStream {
    Stdout,
    Stderr,
}
