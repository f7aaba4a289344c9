//! What a spec must look like (SwarmKit `manager/controlapi`); the messages are Swarm's.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use shoal_raft_store::{Kind, State};
use shoal_transport::codec;
use shoal_types::{
    ServiceId,
    spec::{
        ContainerSpec, EndpointMode, EndpointSpec, FileReference, NetworkSpec, PublishMode,
        Resources, ServiceMode, ServiceSpec, UpdateConfig,
    },
};

use super::ControlError;
use crate::schedule::Constraint;

const MAX_NAME: usize = 63;
const MAX_FILE_NAME: usize = 64;
const MIN_NANO_CPUS: u64 = 1_000_000;
const MIN_MEMORY: u64 = 4 << 20;
/// Tasks of one service. Far more than a cluster holds, and few enough to be counted one by one.
const MAX_TASKS: u64 = 1_000_000;
/// A spec as it is stored: the task of every replica carries its own copy.
const MAX_SPEC_BYTES: usize = 1 << 20;
/// A secret is smaller than this.
const MAX_SECRET_BYTES: usize = 500 << 10;
/// A config is at most this large.
const MAX_CONFIG_BYTES: usize = 1000 << 10;

type Checked = Result<(), ControlError>;

/// Checks `spec` by itself and against what is in `state`. `id` is the service it is for, when there
/// is one already.
pub(super) fn service(state: &State, id: Option<ServiceId>, spec: &ServiceSpec) -> Checked {
    object_name(&spec.name)?;
    size(spec)?;
    mode(spec.mode)?;
    resources("TaskTemplate.Resources.Limits", &spec.task.limits)?;
    resources(
        "TaskTemplate.Resources.Reservations",
        &spec.task.reservations,
    )?;
    let constraints = Constraint::parse_all(&spec.task.placement.constraints);
    constraints.map_err(|error| {
        ControlError::invalid("TaskTemplate.Placement.Constraints", error.to_string())
    })?;
    update("UpdateConfig", &spec.update)?;
    update("RollbackConfig", &spec.rollback)?;
    container(&spec.task.container)?;
    endpoint(&spec.endpoint)?;
    networks(state, spec)?;
    files(state, spec)?;
    port_conflicts(state, id, spec)
}

fn size(spec: &ServiceSpec) -> Checked {
    let bytes = match codec::encode(spec) {
        Ok(encoded) => encoded.len(),
        Err(error) => return Err(ControlError::invalid("", error.to_string())),
    };
    if bytes <= MAX_SPEC_BYTES {
        return Ok(());
    }
    Err(ControlError::invalid(
        "",
        format!(
            "the service spec takes {bytes} bytes, at most {MAX_SPEC_BYTES} are allowed: put large \
             values into configs"
        ),
    ))
}

fn mode(mode: ServiceMode) -> Checked {
    let (field, count) = match mode {
        ServiceMode::Replicated { replicas } => ("Mode.Replicated.Replicas", replicas),
        ServiceMode::ReplicatedJob {
            total_completions, ..
        } => ("Mode.ReplicatedJob.TotalCompletions", total_completions),
        ServiceMode::Global | ServiceMode::GlobalJob => return Ok(()),
    };
    if count <= MAX_TASKS {
        return Ok(());
    }
    let message = format!("a service cannot have {count} tasks: at most {MAX_TASKS} are allowed");
    Err(ControlError::invalid(field, message))
}

fn resources(field: &str, resources: &Resources) -> Checked {
    if resources.nano_cpus != 0 && resources.nano_cpus < MIN_NANO_CPUS {
        #[expect(clippy::cast_precision_loss, reason = "the value is below a million")]
        let cpus = resources.nano_cpus as f64 / 1e9;
        let message = format!("invalid cpu value {cpus}: Must be at least 0.001");
        return Err(ControlError::invalid(format!("{field}.NanoCPUs"), message));
    }
    if resources.memory_bytes != 0 && resources.memory_bytes < MIN_MEMORY {
        let message = format!(
            "invalid memory value {}: Must be at least 4MiB",
            resources.memory_bytes
        );
        return Err(ControlError::invalid(
            format!("{field}.MemoryBytes"),
            message,
        ));
    }
    Ok(())
}

fn update(field: &str, config: &UpdateConfig) -> Checked {
    if (0.0..=1.0).contains(&config.max_failure_ratio) {
        return Ok(());
    }
    Err(ControlError::invalid(
        format!("{field}.MaxFailureRatio"),
        "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1",
    ))
}

fn container(spec: &ContainerSpec) -> Checked {
    const FIELD: &str = "TaskTemplate.ContainerSpec";
    let invalid = |field: &str, message: String| {
        Err(ControlError::invalid(format!("{FIELD}.{field}"), message))
    };
    if spec.image.is_empty() {
        let message = "ContainerSpec: image reference must be provided";
        return invalid("Image", message.to_owned());
    }
    if !is_image_reference(&spec.image) {
        let message = format!(
            "ContainerSpec: {:?} is not a valid repository/tag",
            spec.image
        );
        return invalid("Image", message);
    }
    let mut targets = BTreeSet::new();
    for mount in &spec.mounts {
        if !mount.target.is_absolute() {
            let message = format!(
                "invalid mount target, must be an absolute path: {}",
                mount.target.display()
            );
            return invalid("Mounts", message);
        }
        if !targets.insert(&mount.target) {
            let target = mount.target.display();
            return invalid(
                "Mounts",
                format!("ContainerSpec: duplicate mount point: {target}"),
            );
        }
    }
    if let Some(health) = &spec.health {
        for (name, value) in [
            ("Interval", health.interval),
            ("Timeout", health.timeout),
            ("StartPeriod", health.start_period),
            ("StartInterval", health.start_interval),
        ] {
            if !value.is_zero() && value < Duration::from_millis(1) {
                let message = format!(
                    "ContainerSpec: {name} in HealthConfig cannot be less than one millisecond"
                );
                return invalid("Healthcheck", message);
            }
        }
    }
    Ok(())
}

fn endpoint(spec: &EndpointSpec) -> Checked {
    let invalid = |message: &str| Err(ControlError::invalid("EndpointSpec.Ports", message));
    let mut published = BTreeSet::new();
    for port in &spec.ports {
        if port.target == 0 {
            return invalid("EndpointSpec: a port needs a target port between 1 and 65535");
        }
        if spec.mode == EndpointMode::DnsRoundRobin && port.mode == PublishMode::Ingress {
            return invalid(
                "EndpointSpec: port published with ingress mode can't be used with dnsrr mode",
            );
        }
        if port.published != 0 && !published.insert((port.protocol, port.published)) {
            return invalid("EndpointSpec: duplicate published ports provided");
        }
    }
    Ok(())
}

fn networks(state: &State, spec: &ServiceSpec) -> Checked {
    const FIELD: &str = "TaskTemplate.Networks";
    let mut seen = BTreeSet::new();
    for attachment in &spec.task.networks {
        let network = state
            .network(&attachment.network)
            .ok_or_else(|| ControlError::not_found(Kind::Network, attachment.network))?;
        if network.spec.ingress {
            let message = format!(
                "Service cannot be explicitly attached to the ingress network {:?}",
                network.spec.name
            );
            return Err(ControlError::invalid(FIELD, message));
        }
        if !seen.insert(network.id) {
            let message = format!("network {:?} is named more than once", network.spec.name);
            return Err(ControlError::invalid(FIELD, message));
        }
    }
    Ok(())
}

fn files(state: &State, spec: &ServiceSpec) -> Checked {
    let container = &spec.task.container;
    for file in &container.secrets {
        if state.secret(&file.id).is_none() {
            return Err(ControlError::not_found(Kind::Secret, &file.name));
        }
    }
    for file in &container.configs {
        if state.config(&file.id).is_none() {
            return Err(ControlError::not_found(Kind::Config, &file.name));
        }
    }
    targets("secret", "Secrets", &container.secrets)?;
    targets("config", "Configs", &container.configs)
}

fn targets<Id>(word: &str, field: &str, files: &[FileReference<Id>]) -> Checked {
    let mut seen = BTreeMap::new();
    for file in files {
        let field = format!("TaskTemplate.ContainerSpec.{field}");
        if file.target.is_empty() {
            let message = format!(
                "malformed {word} reference, no target given for '{}'",
                file.name
            );
            return Err(ControlError::invalid(field, message));
        }
        if let Some(other) = seen.insert(&file.target, &file.name) {
            let message = format!(
                "{word} references '{other}' and '{}' have a conflicting target: '{}'",
                file.name, file.target
            );
            return Err(ControlError::invalid(field, message));
        }
    }
    Ok(())
}

/// A port that one service publishes through the ingress network is free for no other; two that
/// publish it on their own nodes are kept apart by the scheduler.
fn port_conflicts(state: &State, id: Option<ServiceId>, spec: &ServiceSpec) -> Checked {
    let wanted = spec.endpoint.ports.iter().filter(|p| p.published != 0);
    for port in wanted {
        let (protocol, published) = (port.protocol, port.published);
        let others = |other: &ServiceId| Some(*other) != id;
        let ingress = state.port_owner(protocol, published).filter(others);
        let host = state.host_port_users(protocol, published).find(others);
        let (other, how) = match (ingress, host, port.mode) {
            (Some(other), _, _) => (other, "an ingress port"),
            (None, Some(other), PublishMode::Ingress) => (other, "a host-published port"),
            _free => continue,
        };
        let name = state.service(&other).map_or("", |other| &other.spec.name);
        let message =
            format!("port '{published}' is already in use by service '{name}' ({other}) as {how}");
        return Err(ControlError::invalid("EndpointSpec.Ports", message));
    }
    Ok(())
}

/// `^[a-zA-Z0-9](?:[-_]*[A-Za-z0-9]+)*$`, at most 63 characters.
pub(super) fn object_name(name: &str) -> Checked {
    if name.is_empty() {
        return Err(ControlError::invalid("Name", "meta: name must be provided"));
    }
    if name.len() > MAX_NAME {
        return Err(ControlError::invalid(
            "Name",
            "name must be 63 characters or fewer",
        ));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.chars().all(allowed) && ends_are_alphanumeric(name) {
        return Ok(());
    }
    Err(ControlError::invalid(
        "Name",
        "name must be valid as a DNS name component",
    ))
}

/// `^[a-zA-Z0-9]+(?:[a-zA-Z0-9-_.]*[a-zA-Z0-9])?$`, at most 64 characters.
fn file_name(name: &str) -> Checked {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.len() <= MAX_FILE_NAME && name.chars().all(allowed) && ends_are_alphanumeric(name) {
        return Ok(());
    }
    Err(ControlError::invalid(
        "Name",
        "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character \
         must be [a-zA-Z0-9]",
    ))
}

fn ends_are_alphanumeric(name: &str) -> bool {
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    end(name.chars().next()) && end(name.chars().next_back())
}

pub(super) fn secret(name: &str, data: &[u8]) -> Checked {
    file_name(name)?;
    if data.is_empty() || data.len() >= MAX_SECRET_BYTES {
        return Err(ControlError::invalid(
            "Data",
            format!("secret data must be larger than 0 and less than {MAX_SECRET_BYTES} bytes"),
        ));
    }
    Ok(())
}

pub(super) fn config(name: &str, data: &[u8]) -> Checked {
    file_name(name)?;
    if data.len() > MAX_CONFIG_BYTES {
        return Err(ControlError::invalid(
            "Data",
            format!("config data must not be larger than {MAX_CONFIG_BYTES} bytes"),
        ));
    }
    Ok(())
}

pub(super) fn network(state: &State, spec: &NetworkSpec) -> Checked {
    object_name(&spec.name)?;
    if !matches!(spec.driver.as_str(), "" | "overlay" | "bridge") {
        return Err(ControlError::invalid(
            "Driver",
            format!("network driver {:?} is not known: use overlay", spec.driver),
        ));
    }
    let ipam = |field: &str, message: String| {
        Err(ControlError::invalid(
            format!("IPAM.Config.{field}"),
            message,
        ))
    };
    if let Some(subnet) = spec.ipam.subnet {
        if subnet.prefix() > 29 {
            let message = format!("subnet {subnet} is too small: use a /29 or larger");
            return ipam("Subnet", message);
        }
        if let Some(gateway) = spec.ipam.gateway
            && !subnet.contains(gateway)
        {
            let message = format!("gateway {gateway} is not in subnet {subnet}");
            return ipam("Gateway", message);
        }
        if let Some(range) = spec.ipam.range
            && !(subnet.contains(range.addr()) && range.prefix() >= subnet.prefix())
        {
            let message = format!("range {range} is not in subnet {subnet}");
            return ipam("IPRange", message);
        }
    } else if spec.ipam.gateway.is_some() || spec.ipam.range.is_some() {
        let message = "a gateway or an IP range needs a subnet".to_owned();
        return ipam("Subnet", message);
    }
    if spec.ingress {
        if spec.attachable {
            return Err(ControlError::invalid(
                "Attachable",
                "ingress network cannot be attachable",
            ));
        }
        if let Some(existing) = state.networks().find(|network| network.spec.ingress) {
            return Err(ControlError::Precondition {
                message: format!("ingress network ({}) is already present", existing.id),
            });
        }
    }
    Ok(())
}

/// `[host[:port]/]path[:tag][@algorithm:hex]`, as the distribution reference grammar has it.
fn is_image_reference(text: &str) -> bool {
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (text, None),
    };
    let digest_ok = digest.is_none_or(|digest| {
        digest.split_once(':').is_some_and(|(algorithm, hex)| {
            !algorithm.is_empty()
                && hex.len() >= 32
                && hex
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        })
    });
    let slash = name.rfind('/').map_or(0, |at| at + 1);
    let (path, tag) = match name[slash..].find(':') {
        Some(at) => (&name[..slash + at], Some(&name[slash + at + 1..])),
        None => (name, None),
    };
    let tag_ok = tag.is_none_or(|tag| {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        !tag.is_empty()
            && tag.len() <= 128
            && tag.bytes().next().is_some_and(word)
            && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
    });
    let mut parts: Vec<&str> = path.split('/').collect();
    let has_host = parts.len() > 1
        && (parts[0].contains(['.', ':']) || parts[0] == "localhost" || parts[0].starts_with('['));
    if has_host {
        let host = parts.remove(0);
        let allowed = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
        if !host.chars().all(allowed) {
            return false;
        }
    }
    let component = |part: &&str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = part.as_bytes();
        bytes.first().is_some_and(|b| inner(*b))
            && bytes.last().is_some_and(|b| inner(*b))
            && bytes.iter().all(|b| inner(*b) || b"._-".contains(b))
    };
    digest_ok && tag_ok && !path.is_empty() && parts.iter().all(component)
}

#[cfg(test)]
mod tests {
    use shoal_raft_store::{Change, Command};
    use shoal_types::{
        Timestamp, Version,
        spec::{NetworkAttachmentSpec, PortConfig, Protocol, ServiceMode},
    };

    use super::*;
    use crate::testing;

    fn state() -> State {
        let mut state = State::default();
        let mut changes = testing::cluster_changes();
        let mut spec = spec();
        spec.name = "web".to_owned();
        spec.endpoint.ports = vec![port(8080, PublishMode::Ingress)];
        changes.push(Change::CreateService {
            id: testing::service_id(1),
            spec: Box::new(spec),
        });
        let at = Timestamp::EPOCH;
        state.apply(Version(1), &Command { at, changes }).unwrap();
        state
    }

    fn spec() -> ServiceSpec {
        testing::service_spec("api", ServiceMode::Replicated { replicas: 1 })
    }

    fn port(published: u16, mode: PublishMode) -> PortConfig {
        PortConfig {
            name: String::new(),
            protocol: Protocol::Tcp,
            target: 80,
            published,
            mode,
        }
    }

    fn error(edit: impl FnOnce(&mut ServiceSpec)) -> String {
        let mut spec = spec();
        edit(&mut spec);
        service(&state(), None, &spec).unwrap_err().to_string()
    }

    #[test]
    fn a_good_spec_passes() {
        service(&state(), None, &spec()).unwrap();
    }

    #[test]
    fn each_fault_is_told_in_swarms_words() {
        assert_eq!(
            error(|s| s.name = "a.b".to_owned()),
            "name must be valid as a DNS name component"
        );
        assert_eq!(
            error(|s| s.name = "a".repeat(64)),
            "name must be 63 characters or fewer"
        );
        assert_eq!(
            error(|s| s.mode = ServiceMode::Replicated { replicas: 1 << 63 }),
            "a service cannot have 9223372036854775808 tasks: at most 1000000 are allowed"
        );
        let large = error(|s| s.task.container.command = vec!["x".repeat(2 << 20)]);
        assert!(
            large.contains("at most 1048576 are allowed: put large values into configs"),
            "{large}"
        );
        assert_eq!(
            error(|s| s.task.limits.nano_cpus = 100_000),
            "invalid cpu value 0.0001: Must be at least 0.001"
        );
        assert_eq!(
            error(|s| s.task.reservations.memory_bytes = 1 << 20),
            "invalid memory value 1048576: Must be at least 4MiB"
        );
        assert_eq!(
            error(|s| s.task.container.image = "Not/An Image".to_owned()),
            "ContainerSpec: \"Not/An Image\" is not a valid repository/tag"
        );
        assert_eq!(
            error(|s| s.update.max_failure_ratio = 1.5),
            "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1"
        );
        assert_eq!(
            error(|s| s.task.placement.constraints = vec!["node.role=manager".to_owned()]),
            "constraint expected one operator from ==, !="
        );
        assert_eq!(
            error(|s| s.endpoint.ports = vec![port(8080, PublishMode::Ingress)]),
            format!(
                "port '8080' is already in use by service 'web' ({}) as an ingress port",
                testing::service_id(1)
            )
        );
        assert_eq!(
            error(|s| {
                s.endpoint.mode = EndpointMode::DnsRoundRobin;
                s.endpoint.ports = vec![port(80, PublishMode::Ingress)];
            }),
            "EndpointSpec: port published with ingress mode can't be used with dnsrr mode"
        );
        assert_eq!(
            error(|s| {
                let network = testing::network_id(1);
                let aliases = Vec::new();
                s.task.networks = vec![NetworkAttachmentSpec { network, aliases }];
            }),
            "Service cannot be explicitly attached to the ingress network \"ingress\""
        );
    }

    #[test]
    fn image_references_are_those_of_the_distribution_grammar() {
        for good in [
            "nginx",
            "nginx:1.27",
            "library/nginx:latest",
            "localhost:5000/a/b:c",
            "ghcr.io/x/y-z_1@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        ] {
            assert!(is_image_reference(good), "{good}");
        }
        for bad in [
            "",
            "Nginx",
            "a b",
            "a/",
            ":tag",
            "a:",
            "a@sha256:xyz",
            "-a",
            "a//b",
        ] {
            assert!(!is_image_reference(bad), "{bad}");
        }
    }
}
