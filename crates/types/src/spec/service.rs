//! Services and nodes, as the user describes them. Defaults are Docker's (SwarmKit `api/defaults`).

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::{ContainerSpec, LogDriver};
use crate::{NetworkId, Shared, format};

/// What the user asked for under one name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// Unique in the cluster without regard to case; at most 63 characters, no dots.
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub task: Shared<TaskSpec>,
    pub mode: ServiceMode,
    pub update: UpdateConfig,
    pub rollback: UpdateConfig,
    pub endpoint: EndpointSpec,
}

/// How many tasks a service wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceMode {
    /// This many, in slots 1..=replicas.
    Replicated { replicas: u64 },
    /// One on every node that the constraints allow.
    Global,
    /// This many runs to the end, at most `max_concurrent` at once.
    ReplicatedJob {
        max_concurrent: u64,
        total_completions: u64,
    },
    /// One run to the end on every node that the constraints allow.
    GlobalJob,
}

/// The part of a service that a task is made from: changing it replaces tasks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    pub container: ContainerSpec,
    pub limits: Resources,
    /// Counted by the scheduler; the container may use more, up to its limits.
    pub reservations: Resources,
    pub restart: RestartPolicy,
    pub placement: Placement,
    pub networks: Vec<NetworkAttachmentSpec>,
    /// Bumped by `service update --force` to replace tasks whose spec did not change.
    pub force_update: u64,
    /// `None`: as the node keeps output.
    #[serde(with = "format::since_2")]
    pub log_driver: Option<LogDriver>,
}

/// Processor, memory and process counts; 0 means "not set".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Billionths of a processor; at least 1,000,000 when set.
    pub nano_cpus: u64,
    /// At least 4 MiB when set.
    pub memory_bytes: u64,
    /// Limits only.
    pub pids: u64,
    /// Reservations and node totals only.
    pub generic: Vec<GenericResource>,
}

/// A countable thing that a node has and a task takes, such as a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GenericResource {
    Named { kind: String, value: String },
    Discrete { kind: String, count: u64 },
}

/// When an ended task is replaced by a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    pub condition: RestartCondition,
    /// Between the end of one task and the start of the next.
    pub delay: Duration,
    /// 0: no limit.
    pub max_attempts: u64,
    /// Attempts are counted within this time; zero: for ever.
    pub window: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            condition: RestartCondition::Any,
            delay: Duration::from_secs(5),
            max_attempts: 0,
            window: Duration::ZERO,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartCondition {
    None,
    OnFailure,
    Any,
}

/// Where tasks may run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// `key == value` or `key != value`, all of which must hold. Parsed by the manager.
    pub constraints: Vec<String>,
    /// Labels over whose values tasks are spread evenly, the first one first.
    pub spread: Vec<String>,
    /// 0: no limit.
    pub max_replicas_per_node: u64,
    /// Empty: any.
    pub platforms: Vec<Platform>,
}

/// An operating system and processor; an empty field matches any.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
}

/// Membership of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAttachmentSpec {
    pub network: NetworkId,
    /// Further names that resolve to the service in this network.
    pub aliases: Vec<String>,
}

/// How tasks of an older spec are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct UpdateConfig {
    /// Slots replaced at the same time; 0: all.
    pub parallelism: u64,
    /// Between one batch and the next.
    pub delay: Duration,
    pub failure_action: FailureAction,
    /// A task that fails within this time of its start counts against the update.
    pub monitor: Duration,
    /// 0 to 1; the update has failed when more than this share of its tasks have.
    pub max_failure_ratio: f32,
    pub order: UpdateOrder,
}

impl Default for UpdateConfig {
    fn default() -> Self {
        Self {
            parallelism: 1,
            delay: Duration::ZERO,
            failure_action: FailureAction::Pause,
            monitor: Duration::from_secs(5),
            max_failure_ratio: 0.0,
            order: UpdateOrder::StopFirst,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureAction {
    Pause,
    Continue,
    Rollback,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateOrder {
    StopFirst,
    StartFirst,
}

/// How a service is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSpec {
    pub mode: EndpointMode,
    pub ports: Vec<PortConfig>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndpointMode {
    /// The name resolves to one address, balanced over the tasks.
    #[default]
    Vip,
    /// The name resolves to the tasks' addresses.
    DnsRoundRobin,
}

/// A port of the service that is reachable from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortConfig {
    pub name: String,
    pub protocol: Protocol,
    /// In the container, 1–65535.
    pub target: u16,
    /// On the node; 0: chosen from 30000–32767 (ingress) or by the node (host).
    pub published: u16,
    pub mode: PublishMode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PublishMode {
    /// On every node, to any task.
    Ingress,
    /// On the task's own node, to that task.
    Host,
}

/// What an operator sets on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub role: Role,
    pub availability: Availability,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    #[default]
    Worker,
    Manager,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Manager => "manager",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Availability {
    /// Takes tasks.
    Active,
    /// Keeps its tasks and takes no new ones.
    Pause,
    /// Its tasks move elsewhere.
    Drain,
}

impl Availability {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Pause => "pause",
            Self::Drain => "drain",
        }
    }
}
