//! The engine itself.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, header};

use super::{containers, images, volumes};
use crate::{
    convert,
    engine::{ActiveSwarm, ContainerState, ControlError, Diagnosis, NodeInfo, SwarmState},
    server::{
        Engine,
        body::Json,
        error::ApiResult,
        query::Query,
        version::{MAX, MIN},
    },
    wire,
};

pub(crate) async fn ping(State(engine): State<Engine>) -> Response {
    let swarm = match engine.local.swarm() {
        SwarmState::Inactive => "inactive",
        SwarmState::Pending => "pending",
        SwarmState::Error(_) => "error",
        SwarmState::Active(swarm) if swarm.control.is_some() => "active/manager",
        SwarmState::Active(_) => "active/worker",
    };
    let headers = [
        (
            header::CACHE_CONTROL,
            HeaderValue::from_static("no-cache, no-store, must-revalidate"),
        ),
        (header::PRAGMA, HeaderValue::from_static("no-cache")),
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        ),
        // 1: there is no BuildKit behind this engine.
        (
            HeaderName::from_static("builder-version"),
            HeaderValue::from_static("1"),
        ),
        (
            HeaderName::from_static("swarm"),
            HeaderValue::from_static(swarm),
        ),
    ];
    (headers, "OK").into_response()
}

/// Tries the credentials with their registry, as `docker login` does before it keeps them.
pub(crate) async fn login(
    State(engine): State<Engine>,
    Json(auth): Json<wire::RegistryAuth>,
) -> ApiResult<Json<wire::LoggedIn>> {
    engine.local.login(auth).await?;
    Ok(Json(wire::LoggedIn {
        status: "Login Succeeded".to_owned(),
        identity_token: String::new(),
    }))
}

/// Nothing is built here, and so nothing is kept of it.
pub(crate) async fn prune_builds() -> Json<wire::BuildsPruned> {
    Json(wire::BuildsPruned::default())
}

pub(crate) async fn version(State(engine): State<Engine>) -> ApiResult<Json<wire::VersionInfo>> {
    let info = engine.local.info().await?;
    let details = [
        ("ApiVersion", MAX.to_string()),
        ("MinAPIVersion", MIN.to_string()),
        ("Arch", architecture(&info.machine).to_owned()),
        ("BuildTime", info.build_time.clone()),
        ("Experimental", "false".to_owned()),
        ("GitCommit", info.commit.clone()),
        ("GoVersion", info.rustc_version.clone()),
        ("KernelVersion", info.kernel_version.clone()),
        ("Os", "linux".to_owned()),
    ];
    Ok(Json(wire::VersionInfo {
        platform: wire::PlatformName {
            name: "Shoal".to_owned(),
        },
        components: vec![wire::Component {
            // Clients take the details of the component of this name for the engine's.
            name: "Engine".to_owned(),
            version: info.version.clone(),
            details: details
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v))
                .collect(),
        }],
        version: info.version,
        api_version: MAX.to_string(),
        min_api_version: MIN.to_string(),
        git_commit: info.commit,
        go_version: info.rustc_version,
        os: "linux".to_owned(),
        arch: architecture(&info.machine).to_owned(),
        kernel_version: info.kernel_version,
        experimental: false,
        build_time: info.build_time,
    }))
}

/// Go's name for what `uname -m` says.
pub(crate) fn architecture(machine: &str) -> &str {
    match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "armv7l" => "arm",
        "i686" => "386",
        other => other,
    }
}

pub(crate) async fn info(State(engine): State<Engine>) -> ApiResult<Json<wire::Info>> {
    let node = engine.local.info().await?;
    let containers = engine.local.containers().await?;
    let images = engine.local.images().await?.len() as u64;
    let count = |state| containers.iter().filter(|c| c.state == state).count() as u64;
    let running = count(ContainerState::Running);
    let paused = count(ContainerState::Paused);
    let total = containers.len() as u64;
    let counts = Counts {
        total,
        running,
        paused,
        images,
    };
    let swarm = swarm_info(engine.local.swarm());
    Ok(Json(describe(node, counts, swarm)))
}

struct Counts {
    total: u64,
    running: u64,
    paused: u64,
    images: u64,
}

fn describe(node: NodeInfo, counts: Counts, swarm: wire::SwarmInfo) -> wire::Info {
    let own = "shoal".to_owned();
    let list = |items: &[&str]| items.iter().map(|i| (*i).to_owned()).collect::<Vec<_>>();
    let system_time = jiff::Timestamp::now().to_string();
    let labels = node
        .labels
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    let commit = |id: &str| wire::Commit {
        id: id.to_owned(),
        expected: String::new(),
    };
    wire::Info {
        id: node.id,
        containers: counts.total,
        containers_running: counts.running,
        containers_paused: counts.paused,
        containers_stopped: counts.total - counts.running - counts.paused,
        images: counts.images,
        driver: "overlay2".to_owned(),
        plugins: wire::Plugins {
            volume: list(&["local"]),
            network: list(&["bridge", "overlay"]),
            authorization: None,
            log: list(&["json-file", "local"]),
        },
        memory_limit: true,
        swap_limit: true,
        cpu_cfs_period: true,
        cpu_cfs_quota: true,
        cpu_shares: true,
        cpu_set: true,
        pids_limit: true,
        ipv4_forwarding: node.ipv4_forwarding,
        debug: node.debug,
        system_time,
        logging_driver: "json-file".to_owned(),
        cgroup_driver: node.cgroup_driver,
        cgroup_version: node.cgroup_version.to_string(),
        kernel_version: node.kernel_version,
        operating_system: node.operating_system,
        os_version: node.os_version,
        os_type: "linux".to_owned(),
        architecture: node.machine,
        index_server_address: "https://index.docker.io/v1/".to_owned(),
        registry_config: registries(&node.insecure_registries, &node.registry_mirrors),
        n_cpu: node.cpus,
        mem_total: node.memory_bytes,
        docker_root_dir: node.data_root,
        name: node.hostname,
        labels,
        server_version: node.version,
        runtimes: std::collections::BTreeMap::from([(own.clone(), wire::Runtime::default())]),
        default_runtime: if node.default_runtime.is_empty() {
            own
        } else {
            node.default_runtime
        },
        swarm,
        // Containers outlive the daemon.
        live_restore_enabled: true,
        init_binary: "shoal".to_owned(),
        containerd_commit: commit(""),
        runc_commit: commit(""),
        init_commit: commit(""),
        security_options: list(&["name=seccomp,profile=builtin", "name=cgroupns"]),
        warnings: Some(node.warnings).filter(|w| !w.is_empty()),
        ..wire::Info::default()
    }
}

/// Of `insecure` the networks stand in one list and the hosts in another.
fn registries(insecure: &[String], mirrors: &[String]) -> wire::Registries {
    let (ranges, hosts): (Vec<&String>, Vec<&String>) =
        insecure.iter().partition(|registry| registry.contains('/'));
    let mirrors: Vec<String> = mirrors
        .iter()
        .map(|mirror| format!("{}/", mirror.trim_end_matches('/')))
        .collect();
    let index = |name: &str, mirrors: &[String], official: bool| {
        let info = wire::IndexInfo {
            name: name.to_owned(),
            mirrors: mirrors.to_vec(),
            secure: official,
            official,
        };
        (name.to_owned(), info)
    };
    let loopback = ["::1/128", "127.0.0.0/8"].map(str::to_owned);
    wire::Registries {
        insecure_registry_cidrs: ranges.into_iter().cloned().chain(loopback).collect(),
        index_configs: hosts
            .into_iter()
            .map(|host| index(host, &[], false))
            .chain([index("docker.io", &mirrors, true)])
            .collect(),
        mirrors: Some(mirrors).filter(|mirrors| !mirrors.is_empty()),
    }
}

fn swarm_info(state: SwarmState) -> wire::SwarmInfo {
    let named = |state: &str| wire::SwarmInfo {
        local_node_state: state.to_owned(),
        ..wire::SwarmInfo::default()
    };
    match state {
        SwarmState::Inactive => named("inactive"),
        SwarmState::Pending => named("pending"),
        SwarmState::Error(error) => wire::SwarmInfo {
            error,
            ..named("error")
        },
        SwarmState::Active(swarm) => active(*swarm, named("active")),
    }
}

/// moby's, `daemon/cluster/swarm.go`.
const TWO_MANAGERS: &str = "\
WARNING: Running Swarm in a two-manager configuration. This configuration provides
         no fault tolerance, and poses a high risk to lose control over the cluster.
         Refer to https://docs.docker.com/engine/swarm/admin_guide/ to configure the
         Swarm for fault-tolerance.";

fn active(swarm: ActiveSwarm, base: wire::SwarmInfo) -> wire::SwarmInfo {
    let managers = swarm.managers.iter();
    let managers = managers.map(|(id, addr)| wire::Peer {
        node_id: id.to_string(),
        addr: addr.clone(),
    });
    let mut info = wire::SwarmInfo {
        node_id: swarm.node.to_string(),
        node_addr: swarm.node_addr.clone(),
        control_available: swarm.control.is_some(),
        remote_managers: Some(managers.collect()),
        ..base
    };
    let Some(control) = &swarm.control else {
        return info;
    };
    // This node's own view, so that it is told even when no leader is there.
    let state = control.local_state();
    info.nodes = state.nodes().count() as u64;
    info.managers = state.nodes().filter(|n| n.manager.is_some()).count() as u64;
    info.cluster = state
        .cluster()
        .map(|c| convert::cluster_info(c, &swarm.trust_root));
    if swarm.leader.is_none() {
        info.error = ControlError::NoLeader.to_string();
    }
    if info.managers == 2 {
        info.warnings.push(TWO_MANAGERS.to_owned());
    }
    info
}

/// Not Docker's: `shoal doctor` asks it.
pub(crate) async fn doctor(State(engine): State<Engine>) -> ApiResult<Json<wire::Diagnosis>> {
    let Diagnosis { findings, warnings } = engine.local.doctor().await?;
    Ok(Json(wire::Diagnosis { findings, warnings }))
}

pub(crate) async fn disk_usage(
    State(engine): State<Engine>,
    query: Query,
) -> ApiResult<Json<wire::DiskUsage>> {
    let kinds: Vec<&str> = query.all("type").collect();
    let wanted = |kind: &str| kinds.is_empty() || kinds.contains(&kind);
    let mut usage = wire::DiskUsage::default();
    if wanted("image") {
        let images = engine.local.images().await?;
        usage.layers_size = images
            .iter()
            .map(|i| i64::try_from(i.size).unwrap_or(0))
            .sum();
        usage.images = Some(images.into_iter().map(images::summary).collect());
    }
    if wanted("container") {
        let containers = engine.local.containers().await?;
        usage.containers = Some(containers.iter().map(containers::summary).collect());
    }
    if wanted("volume") {
        usage.volumes = Some(volumes::usage(&engine).await?);
    }
    if wanted("build-cache") {
        usage.build_cache = Some(Vec::new());
    }
    Ok(Json(usage))
}

pub(crate) async fn plugins() -> Json<[(); 0]> {
    Json([])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_those_the_daemon_was_started_with() {
        let insecure = ["reg.lan:5000".to_owned(), "10.0.0.0/8".to_owned()];
        let shown = registries(&insecure, &["https://mirror.lan".to_owned()]);
        let ranges = ["10.0.0.0/8", "::1/128", "127.0.0.0/8"];
        assert_eq!(shown.insecure_registry_cidrs, ranges);
        assert!(!shown.index_configs["reg.lan:5000"].secure);
        let hub = &shown.index_configs["docker.io"];
        assert!(hub.secure && hub.official);
        assert_eq!(hub.mirrors, ["https://mirror.lan/"]);
        assert_eq!(shown.mirrors, Some(hub.mirrors.clone()));
        assert_eq!(registries(&[], &[]).mirrors, None);
    }
}
