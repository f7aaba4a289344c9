//! The swarm into Docker's JSON.

use std::time::Duration;

use shoal_types::object::Cluster;

use super::{created, nanos, updated, version};
use crate::wire;

/// Docker's default: 90 days.
pub(crate) const CERTIFICATE_LIFE: Duration = Duration::from_hours(90 * 24);

/// Docker's default for what Shoal does not let a user change; clients print it.
const SNAPSHOT_INTERVAL: u64 = 10_000;

pub(crate) fn swarm_spec(cluster: &Cluster) -> wire::SwarmSpec {
    let mut spec = default_swarm_spec();
    spec.name.clone_from(&cluster.name);
    spec.labels.clone_from(&cluster.labels);
    spec.orchestration.task_history_retention_limit = Some(cluster.task_history_limit);
    spec.dispatcher.heartbeat_period = nanos(cluster.heartbeat_period);
    // A cluster in local mode has no certificates, and no life of theirs.
    if !cluster.trust.certificate_life.is_zero() {
        spec.ca_config.node_cert_expiry = nanos(cluster.trust.certificate_life);
    }
    spec
}

/// What a swarm that was made without any words has.
pub(crate) fn default_swarm_spec() -> wire::SwarmSpec {
    wire::SwarmSpec {
        name: "default".to_owned(),
        orchestration: wire::Orchestration {
            task_history_retention_limit: Some(5),
        },
        raft: wire::Raft {
            snapshot_interval: SNAPSHOT_INTERVAL,
            keep_old_snapshots: Some(0),
            log_entries_for_slow_followers: 500,
            election_tick: 10,
            heartbeat_tick: 1,
        },
        dispatcher: wire::Dispatcher {
            heartbeat_period: nanos(Cluster::HEARTBEAT_PERIOD),
        },
        ca_config: wire::CaConfig {
            node_cert_expiry: nanos(CERTIFICATE_LIFE),
            ..wire::CaConfig::default()
        },
        ..wire::SwarmSpec::default()
    }
}

pub(crate) fn cluster_info(cluster: &Cluster, trust_root: &str) -> wire::ClusterInfo {
    wire::ClusterInfo {
        id: cluster.id.to_string(),
        version: version(&cluster.meta),
        created_at: created(&cluster.meta),
        updated_at: updated(&cluster.meta),
        spec: swarm_spec(cluster),
        tls_info: wire::TlsInfo {
            trust_root: trust_root.to_owned(),
            ..wire::TlsInfo::default()
        },
        root_rotation_in_progress: false,
        default_addr_pool: cluster
            .address_pools
            .iter()
            .map(ToString::to_string)
            .collect(),
        subnet_size: cluster.subnet_prefix.into(),
        data_path_port: cluster.data_path_port.into(),
    }
}

pub(crate) fn swarm(cluster: &Cluster, trust_root: &str, tokens: wire::JoinTokens) -> wire::Swarm {
    let info = cluster_info(cluster, trust_root);
    wire::Swarm {
        id: info.id,
        version: info.version,
        created_at: info.created_at,
        updated_at: info.updated_at,
        spec: info.spec,
        tls_info: info.tls_info,
        root_rotation_in_progress: info.root_rotation_in_progress,
        default_addr_pool: info.default_addr_pool,
        subnet_size: info.subnet_size,
        data_path_port: info.data_path_port,
        join_tokens: tokens,
    }
}
