//! Containers of this node, for reading.

use std::{collections::BTreeMap, ops::RangeInclusive};

use axum::extract::{Path, State};
use shoal_types::{Timestamp, spec::Protocol};

use crate::{
    engine::{
        ContainerHealth, ContainerInfo, ContainerMount, ContainerNetwork, ContainerState,
        HealthResult,
    },
    server::{
        Engine,
        body::Json,
        error::{ApiError, ApiResult},
        filters::Filters,
        query::Query,
        routes::now,
    },
    wire,
};

const FILTERS: &[&str] = &[
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "is-task",
    "isolation",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
];

pub(crate) async fn list(
    State(engine): State<Engine>,
    query: Query,
) -> ApiResult<Json<Vec<wire::ContainerSummary>>> {
    let filters = query.filters(FILTERS)?;
    filters.without(&["isolation"])?;
    let ports = |key| filters.get(key).iter().map(|text| ports(text)).collect();
    let (published, exposed): (Ports, Ports) = (ports("publish"), ports("expose"));
    let (published, exposed) = (published?, exposed?);
    for code in filters.get("exited") {
        code.parse::<i32>()
            .map_err(|_| ApiError::bad_request(format!("invalid filter 'exited={code}'")))?;
    }
    filters.one_of("health", &["starting", "healthy", "unhealthy", "none"])?;
    let states = [
        "created",
        "restarting",
        "running",
        "removing",
        "paused",
        "exited",
        "dead",
    ];
    filters.one_of("status", &states)?;
    let limit = match query.text("limit") {
        "" => None,
        text => {
            let invalid = |_| ApiError::bad_request(format!("invalid limit {text:?}"));
            let limit: i64 = text.parse().map_err(invalid)?;
            usize::try_from(limit).ok().filter(|limit| *limit > 0)
        }
    };
    let any_state = query.flag("all") || limit.is_some() || !filters.get("status").is_empty();
    let is_task = filters.flag("is-task")?;
    let mut containers = engine.local.containers().await?;
    let (before, since) = (
        made(&containers, &filters, "before")?,
        made(&containers, &filters, "since")?,
    );
    containers.retain(|container| {
        let has = |(range, protocol): &(RangeInclusive<u16>, Protocol), is_published: bool| {
            container.ports.iter().any(|port| {
                let number = port.host.map_or(0, |(_, number)| number);
                let shown = if is_published { number } else { port.container };
                port.protocol == *protocol && range.contains(&shown)
            })
        };
        let fits = before.is_none_or(|other| container.created < other)
            && since.is_none_or(|other| container.created > other)
            && (published.is_empty() || published.iter().any(|ports| has(ports, true)))
            && (exposed.is_empty() || exposed.iter().any(|ports| has(ports, false)));
        fits && (any_state
            || matches!(
                container.state,
                ContainerState::Running | ContainerState::Paused
            ))
            && is_task.is_none_or(|wanted| wanted == container.task.is_some())
            && wanted(&filters, container)
    });
    // Newest first.
    containers.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
    containers.truncate(limit.unwrap_or(usize::MAX));
    Ok(Json(containers.iter().map(summary).collect()))
}

/// A filter's ports, each `number[-number][/protocol]`.
type Ports = ApiResult<Vec<(RangeInclusive<u16>, Protocol)>>;

fn ports(text: &str) -> ApiResult<(RangeInclusive<u16>, Protocol)> {
    let invalid = || ApiError::bad_request(format!("invalid port in a filter: {text:?}"));
    let (numbers, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return Err(invalid()),
    };
    let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
    let number = |text: &str| text.parse::<u16>().map_err(|_| invalid());
    Ok((number(first)?..=number(last)?, protocol))
}

/// When the container was made that `key` names.
fn made(
    containers: &[ContainerInfo],
    filters: &Filters,
    key: &str,
) -> ApiResult<Option<Timestamp>> {
    match filters.get(key) {
        [] => Ok(None),
        [name] => Ok(Some(find(containers, name)?.created)),
        [..] => Err(ApiError::bad_request(format!("invalid filter '{key}'"))),
    }
}

fn wanted(filters: &Filters, container: &ContainerInfo) -> bool {
    filters.any("id", |id| container.id.as_str().starts_with(id))
        && filters.any("name", |name| {
            container.name.contains(name.trim_matches(['/', '^', '$']))
        })
        && filters.exact("status", container.state.as_str())
        && filters.exact(
            "health",
            container.health.as_ref().map_or("none", |h| h.status),
        )
        && filters.labels("label", &container.labels)
        && filters.any("exited", |code| {
            container.state == ContainerState::Exited && code.parse() == Ok(container.exit_code)
        })
        && filters.any("volume", |volume| {
            container
                .mounts
                .iter()
                .any(|mount| mount.name == volume || mount.target == volume)
        })
        && filters.any("network", |network| {
            container
                .networks
                .iter()
                .any(|n| n.name == network || n.id.starts_with(network))
        })
        && filters.any("ancestor", |image| {
            let familiar = container.image.split('@').next().unwrap_or_default();
            familiar == image
                || familiar.strip_suffix(":latest") == Some(image)
                || familiar
                    .rsplit_once(':')
                    .is_some_and(|(name, _)| name == image)
                || container
                    .image_id
                    .trim_start_matches("sha256:")
                    .starts_with(image)
        })
}

/// Docker's order: whole id, then name with or without a slash, then unique prefix of an id.
pub(crate) fn find<'a>(
    containers: &'a [ContainerInfo],
    reference: &str,
) -> ApiResult<&'a ContainerInfo> {
    let name = reference.strip_prefix('/').unwrap_or(reference);
    let exact = containers.iter().find(|c| c.id.as_str() == reference);
    if let Some(found) = exact.or_else(|| containers.iter().find(|c| c.name == name)) {
        return Ok(found);
    }
    let mut by_prefix = containers
        .iter()
        .filter(|c| c.id.as_str().starts_with(reference));
    match (by_prefix.next(), by_prefix.next()) {
        (Some(found), None) if !reference.is_empty() => Ok(found),
        (Some(_), Some(_)) if !reference.is_empty() => Err(ApiError::bad_request(format!(
            "multiple IDs found with provided prefix: {reference}"
        ))),
        _ => Err(ApiError::new(
            http::StatusCode::NOT_FOUND,
            format!("No such container: {reference}"),
        )),
    }
}

pub(crate) fn summary(container: &ContainerInfo) -> wire::ContainerSummary {
    let now = now();
    let ports = container.ports.iter().map(|port| wire::PortSummary {
        ip: port
            .host
            .map(|(addr, _)| addr.to_string())
            .unwrap_or_default(),
        private_port: port.container,
        public_port: port.host.map_or(0, |(_, port)| port),
        kind: port.protocol.as_str().to_owned(),
    });
    wire::ContainerSummary {
        id: container.id.to_string(),
        names: vec![format!("/{}", container.name)],
        image: container.image.clone(),
        image_id: container.image_id.clone(),
        command: container.command.join(" "),
        created: container.created.0.div_euclid(1_000_000_000),
        ports: ports.collect(),
        labels: container.labels.clone(),
        state: container.state.as_str().to_owned(),
        status: status(container, now),
        host_config: wire::SummaryHostConfig {
            network_mode: network_mode(container),
            annotations: wire::Map::new(),
        },
        network_settings: wire::SummaryNetworks {
            networks: networks(&container.networks),
        },
        mounts: container.mounts.iter().map(mount).collect(),
        ..wire::ContainerSummary::default()
    }
}

/// `Up 5 minutes`, `Exited (1) 2 hours ago` (moby `daemon/container/state.go`).
fn status(container: &ContainerInfo, now: Timestamp) -> String {
    let since = |at: Timestamp| human_duration(now.since(at).as_secs());
    match container.state {
        ContainerState::Created => "Created".to_owned(),
        ContainerState::Running => {
            let health = match container.health.as_ref().map(|health| health.status) {
                Some("starting") => " (health: starting)".to_owned(),
                Some(status) => format!(" ({status})"),
                None => String::new(),
            };
            format!("Up {}{health}", since(container.started_at))
        }
        ContainerState::Paused => format!("Up {} (Paused)", since(container.started_at)),
        ContainerState::Dead => "Dead".to_owned(),
        ContainerState::Exited => {
            format!(
                "Exited ({}) {} ago",
                container.exit_code,
                since(container.finished_at)
            )
        }
    }
}

/// Nothing: what is not running is a task's, and goes with it. `docker system prune` asks for this first.
pub(crate) async fn prune(query: Query) -> ApiResult<Json<wire::ContainersPruned>> {
    let filters = query.filters(&["label", "label!", "until"])?;
    filters.until(now())?;
    Ok(Json(wire::ContainersPruned::default()))
}

/// The largest unit that fits, in words (docker `go-units`).
fn human_duration(seconds: u64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match (seconds, minutes, hours) {
        (0, ..) => "Less than a second".to_owned(),
        (1, ..) => "1 second".to_owned(),
        (2..60, ..) => format!("{seconds} seconds"),
        (_, 1, _) => "About a minute".to_owned(),
        (_, 2..60, _) => format!("{minutes} minutes"),
        (_, _, 1) => "About an hour".to_owned(),
        (_, _, 2..48) => format!("{hours} hours"),
        (_, _, 48..336) => format!("{} days", hours / 24),
        (_, _, 336..1440) => format!("{} weeks", hours / 24 / 7),
        (_, _, 1440..17520) => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

fn network_mode(container: &ContainerInfo) -> String {
    container
        .networks
        .first()
        .map_or_else(|| "default".to_owned(), |n| n.name.clone())
}

fn networks(networks: &[ContainerNetwork]) -> BTreeMap<String, wire::EndpointSettings> {
    let endpoint = |network: &ContainerNetwork| wire::EndpointSettings {
        aliases: Some(network.aliases.clone()).filter(|a| !a.is_empty()),
        mac_address: network.mac.clone(),
        network_id: network.id.clone(),
        gateway: network.gateway.map(|g| g.to_string()).unwrap_or_default(),
        ip_address: network.addr.to_string(),
        ip_prefix_len: network.prefix,
        ..wire::EndpointSettings::default()
    };
    networks
        .iter()
        .map(|network| (network.name.clone(), endpoint(network)))
        .collect()
}

fn mount(mount: &ContainerMount) -> wire::MountPoint {
    wire::MountPoint {
        kind: mount.kind.to_owned(),
        name: mount.name.clone(),
        source: mount.source.clone(),
        destination: mount.target.clone(),
        driver: if mount.kind == "volume" {
            "local".to_owned()
        } else {
            String::new()
        },
        mode: String::new(),
        rw: !mount.read_only,
        propagation: mount.propagation.clone(),
    }
}

pub(crate) async fn inspect(
    State(engine): State<Engine>,
    Path(id): Path<String>,
) -> ApiResult<Json<wire::ContainerInspect>> {
    let containers = engine.local.containers().await?;
    Ok(Json(details(find(&containers, &id)?)))
}

fn details(container: &ContainerInfo) -> wire::ContainerInspect {
    let (path, args) = container.command.split_first().map_or_else(
        || (String::new(), Vec::new()),
        |(path, args)| (path.clone(), args.to_vec()),
    );
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let some = |list: &[String]| Some(list.to_vec()).filter(|l| !l.is_empty());
    wire::ContainerInspect {
        id: container.id.to_string(),
        created: container.created.into(),
        path,
        args,
        state: state(container),
        image: container.image_id.clone(),
        name: format!("/{}", container.name),
        driver: "overlay2".to_owned(),
        platform: "linux".to_owned(),
        host_config: wire::HostConfig {
            log_config: wire::LogConfig {
                kind: "json-file".to_owned(),
                config: None,
            },
            network_mode: network_mode(container),
            restart_policy: wire::RestartPolicyName {
                name: "no".to_owned(),
                maximum_retry_count: 0,
            },
            cap_add: some(&container.cap_add),
            cap_drop: some(&container.cap_drop),
            readonly_rootfs: container.read_only,
            memory: signed(container.memory_bytes),
            nano_cpus: signed(container.nano_cpus),
            pids_limit: (container.pids > 0).then(|| signed(container.pids)),
            ..wire::HostConfig::default()
        },
        graph_driver: wire::DriverData {
            data: None,
            name: "overlay2".to_owned(),
        },
        mounts: container.mounts.iter().map(mount).collect(),
        config: wire::ContainerConfig {
            hostname: container.hostname.clone(),
            user: container.user.clone(),
            tty: container.tty,
            env: Some(container.env.clone()),
            cmd: some(&container.command),
            image: container.image.clone(),
            working_dir: container.working_dir.clone(),
            labels: Some(container.labels.clone()),
            ..wire::ContainerConfig::default()
        },
        network_settings: network_settings(container),
        ..wire::ContainerInspect::default()
    }
}

fn state(container: &ContainerInfo) -> wire::ContainerState {
    let is = |state| container.state == state;
    wire::ContainerState {
        status: container.state.as_str().to_owned(),
        running: is(ContainerState::Running) || is(ContainerState::Paused),
        paused: is(ContainerState::Paused),
        restarting: false,
        oom_killed: container.oom_killed,
        dead: is(ContainerState::Dead),
        pid: container.pid,
        exit_code: container.exit_code,
        error: container.error.clone(),
        started_at: container.started_at.into(),
        finished_at: container.finished_at.into(),
        health: container.health.as_ref().map(health),
    }
}

fn health(health: &ContainerHealth) -> wire::ContainerHealth {
    let result = |result: &HealthResult| wire::HealthResult {
        start: result.start.into(),
        end: result.end.into(),
        exit_code: result.exit_code,
        output: result.output.clone(),
    };
    wire::ContainerHealth {
        status: health.status.to_owned(),
        failing_streak: health.failing_streak,
        log: health.log.iter().map(result).collect(),
    }
}

fn network_settings(container: &ContainerInfo) -> wire::NetworkSettings {
    let mut ports: BTreeMap<String, Option<Vec<wire::PortBinding>>> = BTreeMap::new();
    for port in &container.ports {
        let bindings = ports
            .entry(format!("{}/{}", port.container, port.protocol))
            .or_default();
        if let Some((addr, number)) = port.host {
            bindings.get_or_insert_default().push(wire::PortBinding {
                host_ip: addr.to_string(),
                host_port: number.to_string(),
            });
        }
    }
    wire::NetworkSettings {
        ports,
        networks: networks(&container.networks),
        ..wire::NetworkSettings::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_dockers() {
        let cases = [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (180, "3 minutes"),
            (3600, "About an hour"),
            (7200, "2 hours"),
            (3 * 86_400, "3 days"),
            (21 * 86_400, "3 weeks"),
            (90 * 86_400, "3 months"),
            (800 * 86_400, "2 years"),
        ];
        for (seconds, text) in cases {
            assert_eq!(human_duration(seconds), text);
        }
    }
}
