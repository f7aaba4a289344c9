//! Which nodes may run a task, and Swarm's sentences for why none may.

use shoal_types::{
    ServiceId, Version,
    object::Task,
    spec::{Platform, Protocol, Resources},
};

use super::{
    Constraint,
    index::{NodeIndex, NodeInfo, host_ports, takes_new_tasks},
};

/// What a task asks of its node. Tasks of one service and spec ask the same.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) service: ServiceId,
    pub(crate) spec_version: Version,
    reservations: Resources,
    /// `None` when they cannot be parsed: then no node matches.
    constraints: Option<Vec<Constraint>>,
    platforms: Vec<Platform>,
    ports: Vec<(Protocol, u16)>,
    /// 0: no limit.
    max_replicas: u64,
    pub(crate) spread: Vec<String>,
}

/// The filters, in the order in which they are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filter {
    Ready,
    Resources,
    Constraints,
    Platform,
    HostPorts,
    MaxReplicas,
}

const FILTERS: [Filter; 6] = [
    Filter::Ready,
    Filter::Resources,
    Filter::Constraints,
    Filter::Platform,
    Filter::HostPorts,
    Filter::MaxReplicas,
];

impl Request {
    pub(crate) fn of(task: &Task) -> Self {
        let placement = &task.spec.placement;
        Self {
            service: task.service,
            spec_version: task.spec_version,
            reservations: task.spec.reservations.clone(),
            constraints: Constraint::parse_all(&placement.constraints).ok(),
            platforms: placement.platforms.clone(),
            ports: host_ports(&task.endpoint.ports),
            max_replicas: placement.max_replicas_per_node,
            spread: placement.spread.clone(),
        }
    }

    /// The first filter that keeps the task off the node.
    pub(crate) fn rejected_by(&self, index: &NodeIndex, info: &NodeInfo) -> Option<Filter> {
        FILTERS
            .into_iter()
            .find(|filter| !self.passes(*filter, index, info))
    }

    fn passes(&self, filter: Filter, index: &NodeIndex, info: &NodeInfo) -> bool {
        let node = &info.node;
        match filter {
            Filter::Ready => takes_new_tasks(node),
            Filter::Resources => {
                let has = &node.description.resources;
                let fits = |want: u64, total: u64, used: u64| {
                    want == 0 || want <= total.saturating_sub(used)
                };
                fits(
                    self.reservations.nano_cpus,
                    has.nano_cpus,
                    info.nano_cpus_used,
                ) && fits(
                    self.reservations.memory_bytes,
                    has.memory_bytes,
                    info.memory_used,
                ) && info.claim_generic(&self.reservations.generic).is_some()
            }
            Filter::Constraints => self
                .constraints
                .as_ref()
                .is_some_and(|all| all.iter().all(|c| c.matches(node))),
            Filter::Platform => {
                let has = &node.description.platform;
                self.platforms.is_empty() || self.platforms.iter().any(|p| platform_matches(p, has))
            }
            Filter::HostPorts => !self.ports.iter().any(|port| info.uses_port(*port)),
            Filter::MaxReplicas => {
                self.max_replicas == 0 || index.count_of(self.service, node.id) < self.max_replicas
            }
        }
    }

    pub(crate) fn generic(&self) -> &[shoal_types::spec::GenericResource] {
        &self.reservations.generic
    }
}

fn platform_matches(wanted: &Platform, has: &Platform) -> bool {
    let normal = |architecture: &str| match architecture.to_lowercase().as_str() {
        "x86_64" => "amd64".to_owned(),
        "aarch64" => "arm64".to_owned(),
        other => other.to_owned(),
    };
    let architecture =
        wanted.architecture.is_empty() || normal(&wanted.architecture) == normal(&has.architecture);
    let os = wanted.os.is_empty() || wanted.os.eq_ignore_ascii_case(&has.os);
    architecture && os
}

/// Why none of the nodes may run the task: `insufficient resources on 1 node; …`, the filter that
/// keeps it off most nodes first. Empty when there are no nodes.
pub(crate) fn explain<'a>(
    request: &Request,
    index: &NodeIndex,
    nodes: impl Iterator<Item = &'a NodeInfo>,
) -> String {
    let mut counts = [0usize; FILTERS.len()];
    for info in nodes {
        if let Some(filter) = request.rejected_by(index, info) {
            counts[filter as usize] += 1;
        }
    }
    let mut reasons: Vec<(Filter, usize)> = FILTERS.into_iter().zip(counts).collect();
    reasons.retain(|(_, count)| *count > 0);
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let sentences: Vec<String> = reasons
        .into_iter()
        .map(|(filter, n)| filter.explain(n))
        .collect();
    sentences.join("; ")
}

impl Filter {
    fn explain(self, count: usize) -> String {
        let nodes = match count {
            1 => "1 node".to_owned(),
            n => format!("{n} nodes"),
        };
        match self {
            Self::Ready => format!("{nodes} not available for new tasks"),
            Self::Resources => format!("insufficient resources on {nodes}"),
            Self::Constraints => format!("scheduling constraints not satisfied on {nodes}"),
            Self::Platform => format!("unsupported platform on {nodes}"),
            Self::HostPorts => format!("host-mode port already in use on {nodes}"),
            Self::MaxReplicas => "max replicas per node limit exceed".to_owned(),
        }
    }
}
