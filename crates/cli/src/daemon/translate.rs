//! From the node's own values to the API's.

use std::{error::Error, sync::Arc};

use shoal_engine_api::engine::{
    ContainerHealth, ContainerInfo, ContainerMount, ContainerNetwork, ContainerPort,
    ContainerState, EngineError, HealthResult, HistoryItem, ImageDescriptor, ImageDetails,
    ImageInfo, ImagePlatform, ImageSettings, Progress, ProgressSink, Removed, Result, VolumeInfo,
};
use shoal_node_agent::{
    Health, HealthStatus, LocalTask, MountSource, Probe, TaskMount, Volume, VolumeError, Volumes,
    container_id, expanded,
    image::{
        self, Image, Loaded, LookupError, PullError, RegistryAuth, RegistryError, ResolveError,
    },
    runtime::Phase,
};
use shoal_types::{
    Timestamp,
    object::{Network, NodeDescription},
    spec::{HealthCheck, Protocol, PublishMode},
};

/// Bytes between the writer of an archive and the client that reads it.
pub(crate) const PIPE_BYTES: usize = 256 << 10;

/// Ends the comparison of a platform: this machine's own, in Docker's words.
fn own_platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("linux/{architecture}")
}

pub(crate) fn check_platform(platform: Option<&str>) -> Result<()> {
    let own = own_platform();
    match platform {
        Some(other) if other != own && !other.starts_with(&format!("{own}/")) => Err(
            EngineError::NotSupported(format!("platform {other} on a {own} node")),
        ),
        _ => Ok(()),
    }
}

pub(crate) fn auth(header: Option<&str>) -> Result<Option<RegistryAuth>> {
    let auth = header
        .filter(|text| !text.is_empty())
        .map(RegistryAuth::from_header)
        .transpose();
    auth.map(Option::flatten)
        .map_err(|error| EngineError::Invalid(chain(&error)))
}

pub(crate) fn credentials(auth: shoal_engine_api::wire::RegistryAuth) -> RegistryAuth {
    let mut credentials = RegistryAuth::basic(auth.username, auth.password);
    credentials.identity_token = auth.identity_token;
    credentials.registry_token = auth.registry_token;
    credentials.server_address = auth.server_address;
    credentials
}

pub(crate) fn sink(progress: ProgressSink) -> image::ProgressSink {
    image::ProgressSink::new(move |line| {
        progress.send(Progress {
            status: line.status,
            id: line.id,
            current: line.current,
            total: line.total,
        });
    })
}

pub(crate) fn loaded(loaded: &Loaded) -> String {
    match loaded {
        Loaded::Reference(name) => name.clone(),
        Loaded::Id(id) => id.to_string(),
    }
}

pub(crate) fn removed(removed: image::Removed) -> Removed {
    match removed {
        image::Removed::Untagged(name) => Removed::Untagged(name),
        image::Removed::Deleted(id) => Removed::Deleted(id.to_string()),
    }
}

pub(crate) fn descriptor(found: image::DistributionInfo) -> ImageDescriptor {
    let platforms = found.platforms.into_iter().map(|platform| ImagePlatform {
        architecture: platform.architecture,
        os: platform.os,
        variant: platform.variant.unwrap_or_default(),
    });
    ImageDescriptor {
        media_type: found.descriptor.media_type,
        digest: found.descriptor.digest.to_string(),
        size: found.descriptor.size,
        platforms: platforms.collect(),
    }
}

pub(crate) fn image_info(image: &Image, containers: i64) -> ImageInfo {
    let config = image.config.oci().config().clone().unwrap_or_default();
    ImageInfo {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        created: image.created.map_or(Timestamp::EPOCH, from_jiff),
        size: image.size,
        labels: config
            .labels()
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect(),
        containers,
    }
}

pub(crate) fn image_details(image: &Image) -> ImageDetails {
    let document = image.config.oci();
    let docker = image.config.docker();
    let config = document.config().clone().unwrap_or_default();
    let health = docker.healthcheck.as_ref().map(|check| HealthCheck {
        test: check.test.clone(),
        interval: check.interval,
        timeout: check.timeout,
        start_period: check.start_period,
        start_interval: check.start_interval,
        retries: check.retries,
    });
    ImageDetails {
        info: image_info(image, -1),
        architecture: document.architecture().to_string(),
        os: document.os().to_string(),
        variant: document.variant().clone().unwrap_or_default(),
        author: document.author().clone().unwrap_or_default(),
        comment: docker.comment.clone().unwrap_or_default(),
        settings: ImageSettings {
            user: config.user().clone().unwrap_or_default(),
            exposed_ports: config.exposed_ports().clone().unwrap_or_default(),
            env: config.env().clone().unwrap_or_default(),
            entrypoint: config.entrypoint().clone().unwrap_or_default(),
            cmd: config.cmd().clone().unwrap_or_default(),
            volumes: config.volumes().clone().unwrap_or_default(),
            working_dir: config.working_dir().clone().unwrap_or_default(),
            stop_signal: config.stop_signal().clone().unwrap_or_default(),
            shell: docker.shell.clone().unwrap_or_default(),
            on_build: docker.on_build.clone(),
            health,
        },
        layers: image.diff_ids().iter().map(ToString::to_string).collect(),
        history: image
            .history
            .iter()
            .map(|step| HistoryItem {
                created: step.created.map_or(Timestamp::EPOCH, from_jiff),
                created_by: step.created_by.clone(),
                comment: step.comment.clone(),
                size: step.size,
            })
            .collect(),
    }
}

/// A task's container, as `ps` and `inspect` show it.
pub(crate) fn container(
    local: &LocalTask,
    phase: &Phase,
    image: Option<&Image>,
    networks: &[Arc<Network>],
    here: &NodeDescription,
    mounts: Vec<ContainerMount>,
) -> ContainerInfo {
    let task = &local.task;
    let expanded = |text: &str| expanded(text, task, here);
    let spec = &task.spec.container;
    let id = container_id(&task.id);
    let config = image
        .and_then(|image| image.config.oci().config().clone())
        .unwrap_or_default();
    let default = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let mut command = match (spec.command.is_empty(), spec.args.is_empty()) {
        (false, _) => spec.command.clone(),
        (true, _) => default(config.entrypoint()),
    };
    if !spec.command.is_empty() || !spec.args.is_empty() {
        command.extend(spec.args.iter().cloned());
    } else {
        command.extend(default(config.cmd()));
    }

    let node = task.node;
    let mut labels: std::collections::BTreeMap<String, String> = config
        .labels()
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect();
    labels.extend(spec.labels.clone());
    labels.extend([
        (
            "com.docker.swarm.node.id".to_owned(),
            node.map(|n| n.to_string()).unwrap_or_default(),
        ),
        (
            "com.docker.swarm.service.id".to_owned(),
            task.service.to_string(),
        ),
        (
            "com.docker.swarm.service.name".to_owned(),
            task.service_name.clone(),
        ),
        ("com.docker.swarm.task".to_owned(), String::new()),
        ("com.docker.swarm.task.id".to_owned(), task.id.to_string()),
        ("com.docker.swarm.task.name".to_owned(), task.name()),
    ]);

    let mut info = ContainerInfo {
        id,
        name: task.name(),
        image: spec.image.clone(),
        image_id: image.map(|image| image.id.to_string()).unwrap_or_default(),
        command,
        created: task.meta.created_at,
        labels,
        state: ContainerState::Created,
        pid: 0,
        started_at: Timestamp::EPOCH,
        finished_at: Timestamp::EPOCH,
        exit_code: 0,
        oom_killed: false,
        error: String::new(),
        task: Some(task.id),
        service: Some(task.service),
        node,
        hostname: match expanded(&spec.hostname) {
            none if none.is_empty() => id.short().to_owned(),
            name => name,
        },
        env: environment(
            default(config.env()),
            spec.env.iter().map(|one| expanded(one)),
        ),
        working_dir: if spec.dir.is_empty() {
            config.working_dir().clone().unwrap_or_default()
        } else {
            spec.dir.clone()
        },
        user: if spec.user.is_empty() {
            config.user().clone().unwrap_or_default()
        } else {
            spec.user.clone()
        },
        tty: spec.tty,
        networks: container_networks(local, networks),
        ports: container_ports(local, config.exposed_ports().iter().flatten()),
        mounts,
        memory_bytes: task.spec.limits.memory_bytes,
        nano_cpus: task.spec.limits.nano_cpus,
        pids: task.spec.limits.pids,
        cap_add: spec.cap_add.clone(),
        cap_drop: spec.cap_drop.clone(),
        read_only: spec.read_only,
        health: local.health.as_ref().map(health),
    };
    match phase {
        Phase::Created { pid } => info.pid = *pid,
        Phase::Running(started) => {
            info.state = ContainerState::Running;
            info.pid = started.pid;
            info.started_at = from_jiff(started.started_at);
        }
        Phase::Exited(exit) => {
            info.state = ContainerState::Exited;
            info.exit_code = exit.code;
            info.oom_killed = exit.oom_killed;
            info.finished_at = from_jiff(exit.at);
            info.error = exit.reason.clone().unwrap_or_default();
        }
    }
    info
}

/// The image's variables, with those of the service in the place of equal names.
fn environment(image: Vec<String>, service: impl Iterator<Item = String>) -> Vec<String> {
    fn name(variable: &str) -> &str {
        variable.split_once('=').map_or(variable, |(name, _)| name)
    }
    let mut all = image;
    for variable in service {
        all.retain(|other| name(other) != name(&variable));
        // A name alone takes the image's variable away.
        if variable.contains('=') {
            all.push(variable);
        }
    }
    all
}

fn health(health: &Health) -> ContainerHealth {
    let result = |probe: &Probe| HealthResult {
        start: probe.start,
        end: probe.end,
        exit_code: probe.exit_code,
        output: probe.output.clone(),
    };
    ContainerHealth {
        status: match health.status {
            HealthStatus::Starting => "starting",
            HealthStatus::Healthy => "healthy",
            HealthStatus::Unhealthy => "unhealthy",
        },
        failing_streak: health.failing_streak,
        log: health.log.iter().map(result).collect(),
    }
}

fn container_networks(local: &LocalTask, networks: &[Arc<Network>]) -> Vec<ContainerNetwork> {
    let attachments = local.task.attachments.iter();
    attachments
        .map(|attachment| {
            let network = networks
                .iter()
                .find(|network| network.id == attachment.network);
            ContainerNetwork {
                name: network
                    .map_or_else(|| attachment.network.to_string(), |n| n.spec.name.clone()),
                id: attachment.network.to_string(),
                addr: attachment.addr,
                prefix: network.map_or(32, |n| n.subnet.prefix()),
                gateway: network.map(|n| n.gateway),
                mac: String::new(),
                aliases: attachment.aliases.clone(),
            }
        })
        .collect()
}

/// Ports in host mode are the container's own; those of the ingress network are its service's. Then those that the
/// image exposes, each `80` or `80/tcp`.
fn container_ports<'a>(
    local: &LocalTask,
    exposed: impl Iterator<Item = &'a String>,
) -> Vec<ContainerPort> {
    let published = local.task.endpoint.ports.iter().map(|port| ContainerPort {
        protocol: port.protocol,
        container: port.target,
        host: (port.mode == PublishMode::Host && port.published != 0)
            .then_some((std::net::Ipv4Addr::UNSPECIFIED, port.published)),
    });
    let mut ports: Vec<ContainerPort> = published.collect();
    for text in exposed {
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
            .into_iter()
            .find(|known| known.as_str() == protocol);
        if let (Some(protocol), Ok(container)) = (protocol, number.parse())
            && !ports
                .iter()
                .any(|port| port.protocol == protocol && port.container == container)
        {
            ports.push(ContainerPort {
                protocol,
                container,
                host: None,
            });
        }
    }
    ports
}

pub(crate) fn container_mount(mount: &TaskMount, volumes: &Volumes) -> ContainerMount {
    let (kind, name, source, propagation) = match &mount.source {
        MountSource::Bind(bind) => (
            "bind",
            String::new(),
            bind.source.to_string_lossy().into_owned(),
            bind.propagation.clone(),
        ),
        MountSource::Volume(volume) => {
            let mountpoint = volumes.mountpoint(&volume.name);
            let mountpoint = mountpoint.to_string_lossy().into_owned();
            ("volume", volume.name.clone(), mountpoint, String::new())
        }
        MountSource::Tmpfs(_) => ("tmpfs", String::new(), String::new(), String::new()),
    };
    ContainerMount {
        kind,
        name,
        source,
        target: mount.target.to_string_lossy().into_owned(),
        read_only: mount.read_only,
        propagation,
    }
}

pub(crate) fn volume(volume: Volume) -> VolumeInfo {
    VolumeInfo {
        mountpoint: volume.mountpoint.to_string_lossy().into_owned(),
        name: volume.name,
        created: volume.created,
        labels: volume.labels,
    }
}

/// Docker begins what it says of a volume with what was to be done.
pub(crate) fn volume_error(action: &str, name: &str, error: VolumeError) -> EngineError {
    match error {
        VolumeError::NotFound { .. } => EngineError::Missing(error.to_string()),
        VolumeError::InUse { .. } => EngineError::Conflict(error.to_string()),
        VolumeError::TooShort | VolumeError::Name { .. } => {
            EngineError::Invalid(format!("{action} {name}: {error}"))
        }
        other => failed(format!("{action} {name}"), other),
    }
}

pub(crate) fn lookup_error(error: LookupError) -> EngineError {
    match error {
        LookupError::NotFound(reference) => EngineError::NotFound {
            kind: "image",
            reference,
        },
        LookupError::Ambiguous(_) => EngineError::Invalid(error.to_string()),
    }
}

pub(crate) fn pull_error(reference: &str, error: PullError) -> EngineError {
    match error {
        PullError::Reference(error) => EngineError::Invalid(error.to_string()),
        PullError::Registry(error) => registry_error(reference, error),
        other => failed(format!("pull {reference}"), other),
    }
}

pub(crate) fn resolve_error(reference: &str, error: ResolveError) -> EngineError {
    match error {
        ResolveError::Reference(error) => EngineError::Invalid(error.to_string()),
        error @ ResolveError::Server(_) => EngineError::Invalid(error.to_string()),
        ResolveError::Registry(error) => registry_error(reference, error),
        ResolveError::Document(error) => failed(format!("read the image {reference}"), error),
    }
}

fn registry_error(reference: &str, error: RegistryError) -> EngineError {
    match error {
        RegistryError::Unauthorized { .. } => EngineError::Unauthorized(chain(&error)),
        // Docker answers 404 with the registry's own words.
        error if error.is_not_found() => EngineError::Missing(chain(&error)),
        error => failed(format!("ask the registry for {reference}"), error),
    }
}

pub(crate) fn tag_error(reference: &str, error: image::TagError) -> EngineError {
    match error {
        image::TagError::Lookup(error) => lookup_error(error),
        image::TagError::Reference(error) => EngineError::Invalid(error.to_string()),
        image::TagError::Digest => EngineError::Invalid(error.to_string()),
        image::TagError::Index(_) => failed(format!("tag {reference}"), error),
    }
}

pub(crate) fn remove_error(reference: &str, error: image::RemoveError) -> EngineError {
    match error {
        image::RemoveError::Lookup(error) => lookup_error(error),
        image::RemoveError::Index(_) => failed(format!("remove {reference}"), error),
        conflict => EngineError::Conflict(conflict.to_string()),
    }
}

fn failed(what: String, source: impl Error + Send + Sync + 'static) -> EngineError {
    EngineError::Failed {
        what,
        source: Box::new(source),
    }
}

pub(crate) fn from_jiff(at: jiff::Timestamp) -> Timestamp {
    Timestamp(i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX))
}

/// A time that jiff can't hold is further away than any log.
pub(crate) fn to_jiff(at: Timestamp) -> jiff::Timestamp {
    jiff::Timestamp::from_nanosecond(i128::from(at.0)).unwrap_or(jiff::Timestamp::MAX)
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
