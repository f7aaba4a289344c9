//! Stored services into Docker's JSON.

use shoal_types::{
    object::{Endpoint, Service, UpdateStatus},
    spec::{
        ContainerSpec, EndpointMode, FailureAction, FileReference, GenericResource, HealthCheck,
        PortConfig, Privileges, PublishMode, Resources, RestartCondition, RestartPolicy,
        SeccompMode, ServiceMode, ServiceSpec, TaskSpec, UpdateConfig, UpdateOrder,
    },
};

use super::{created, mount::mount_out, nanos, updated, version};
use crate::wire;

/// `prefix` gives the prefix length of a network, since Docker writes virtual IPs with it.
/// With `defaults`, what the user left out is written as it takes effect.
pub(crate) fn service(
    service: &Service,
    defaults: bool,
    prefix: &dyn Fn(shoal_types::NetworkId) -> u8,
) -> wire::Service {
    let job = matches!(
        service.spec.mode,
        ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob
    );
    wire::Service {
        id: service.id.to_string(),
        version: version(&service.meta),
        created_at: created(&service.meta),
        updated_at: updated(&service.meta),
        spec: service_spec_out(&service.spec, defaults),
        previous_spec: service
            .previous
            .as_ref()
            .map(|p| service_spec_out(&p.spec, defaults)),
        endpoint: service
            .endpoint
            .as_ref()
            .map_or_else(wire::Endpoint::default, |e| {
                endpoint(e, &service.spec, prefix)
            }),
        update_status: service.update.as_ref().map(update_status),
        service_status: None,
        job_status: job.then(|| wire::JobStatus {
            job_iteration: wire::Version {
                index: service.spec_version.0,
            },
            last_execution: updated(&service.meta),
        }),
    }
}

pub(crate) fn service_spec_out(spec: &ServiceSpec, defaults: bool) -> wire::ServiceSpec {
    let job = matches!(
        spec.mode,
        ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob
    );
    wire::ServiceSpec {
        name: spec.name.clone(),
        labels: spec.labels.clone(),
        task_template: task_spec_out(&spec.task, defaults),
        mode: mode(spec.mode),
        update_config: update_config(&spec.update, defaults && !job),
        rollback_config: update_config(&spec.rollback, defaults && !job),
        networks: Vec::new(),
        endpoint_spec: Some(wire::EndpointSpec {
            mode: endpoint_mode(spec.endpoint.mode).to_owned(),
            ports: spec.endpoint.ports.iter().map(port_config).collect(),
        }),
    }
}

fn mode(mode: ServiceMode) -> wire::ServiceMode {
    let none = wire::ServiceMode::default();
    match mode {
        ServiceMode::Replicated { replicas } => wire::ServiceMode {
            replicated: Some(wire::Replicated {
                replicas: Some(replicas),
            }),
            ..none
        },
        ServiceMode::Global => wire::ServiceMode {
            global: Some(wire::Global {}),
            ..none
        },
        ServiceMode::ReplicatedJob {
            max_concurrent,
            total_completions,
        } => wire::ServiceMode {
            replicated_job: Some(wire::ReplicatedJob {
                max_concurrent: Some(max_concurrent),
                total_completions: Some(total_completions),
            }),
            ..none
        },
        ServiceMode::GlobalJob => wire::ServiceMode {
            global_job: Some(wire::Global {}),
            ..none
        },
    }
}

fn update_config(config: &UpdateConfig, always: bool) -> Option<wire::UpdateConfig> {
    (always || *config != UpdateConfig::default()).then(|| wire::UpdateConfig {
        parallelism: config.parallelism,
        delay: nanos(config.delay),
        failure_action: match config.failure_action {
            FailureAction::Pause => "pause",
            FailureAction::Continue => "continue",
            FailureAction::Rollback => "rollback",
        }
        .to_owned(),
        monitor: nanos(config.monitor),
        max_failure_ratio: config.max_failure_ratio,
        order: match config.order {
            UpdateOrder::StopFirst => "stop-first",
            UpdateOrder::StartFirst => "start-first",
        }
        .to_owned(),
    })
}

fn endpoint_mode(mode: EndpointMode) -> &'static str {
    match mode {
        EndpointMode::Vip => "vip",
        EndpointMode::DnsRoundRobin => "dnsrr",
    }
}

fn endpoint(
    endpoint: &Endpoint,
    spec: &ServiceSpec,
    prefix: &dyn Fn(shoal_types::NetworkId) -> u8,
) -> wire::Endpoint {
    wire::Endpoint {
        spec: wire::EndpointSpec {
            mode: endpoint_mode(endpoint.mode).to_owned(),
            ports: spec.endpoint.ports.iter().map(port_config).collect(),
        },
        ports: endpoint.ports.iter().map(port_config).collect(),
        virtual_ips: endpoint
            .virtual_ips
            .iter()
            .map(|vip| wire::VirtualIp {
                network_id: vip.network.to_string(),
                addr: format!("{}/{}", vip.addr, prefix(vip.network)),
            })
            .collect(),
    }
}

pub(crate) fn port_config(port: &PortConfig) -> wire::PortConfig {
    wire::PortConfig {
        name: port.name.clone(),
        protocol: port.protocol.as_str().to_owned(),
        target_port: port.target.into(),
        published_port: port.published.into(),
        publish_mode: match port.mode {
            PublishMode::Ingress => "ingress",
            PublishMode::Host => "host",
        }
        .to_owned(),
    }
}

fn update_status(status: &UpdateStatus) -> wire::UpdateStatus {
    wire::UpdateStatus {
        state: status.state.as_str().to_owned(),
        started_at: Some(status.started_at.into()),
        completed_at: status.completed_at.map(Into::into),
        message: status.message.clone(),
    }
}

pub(crate) fn task_spec_out(spec: &TaskSpec, defaults: bool) -> wire::TaskSpec {
    wire::TaskSpec {
        container_spec: Some(container_spec(&spec.container, defaults)),
        resources: resources(&spec.limits, &spec.reservations, defaults),
        restart_policy: restart_policy(&spec.restart, defaults),
        placement: placement(&spec.placement, defaults),
        networks: spec
            .networks
            .iter()
            .map(|n| wire::NetworkAttachmentConfig {
                target: n.network.to_string(),
                aliases: n.aliases.clone(),
                driver_opts: wire::Map::new(),
            })
            .collect(),
        force_update: spec.force_update,
        log_driver: spec.log_driver.as_ref().map(|driver| wire::DriverConfig {
            name: driver.name.clone(),
            options: driver.options.clone(),
        }),
        runtime: "container".to_owned(),
        ..wire::TaskSpec::default()
    }
}

fn resources(
    limits: &Resources,
    reservations: &Resources,
    defaults: bool,
) -> Option<wire::ResourceRequirements> {
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let limit = wire::Limit {
        nano_cpus: signed(limits.nano_cpus),
        memory_bytes: signed(limits.memory_bytes),
        pids: signed(limits.pids),
    };
    let reserved = wire::Resources {
        nano_cpus: signed(reservations.nano_cpus),
        memory_bytes: signed(reservations.memory_bytes),
        generic_resources: generic_resources(&reservations.generic),
    };
    let any = limit != wire::Limit::default() || reserved != wire::Resources::default();
    (defaults || any).then(|| wire::ResourceRequirements {
        limits: Some(limit).filter(|l| defaults || *l != wire::Limit::default()),
        reservations: Some(reserved).filter(|r| defaults || *r != wire::Resources::default()),
        ..wire::ResourceRequirements::default()
    })
}

pub(crate) fn generic_resources(resources: &[GenericResource]) -> Vec<wire::GenericResource> {
    let out = |resource: &GenericResource| match resource {
        GenericResource::Named { kind, value } => wire::GenericResource {
            named: Some(wire::NamedResource {
                kind: kind.clone(),
                value: value.clone(),
            }),
            discrete: None,
        },
        GenericResource::Discrete { kind, count } => wire::GenericResource {
            named: None,
            discrete: Some(wire::DiscreteResource {
                kind: kind.clone(),
                value: i64::try_from(*count).unwrap_or(i64::MAX),
            }),
        },
    };
    resources.iter().map(out).collect()
}

fn restart_policy(policy: &RestartPolicy, defaults: bool) -> Option<wire::RestartPolicy> {
    (defaults || *policy != RestartPolicy::default()).then(|| wire::RestartPolicy {
        condition: match policy.condition {
            RestartCondition::None => "none",
            RestartCondition::OnFailure => "on-failure",
            RestartCondition::Any => "any",
        }
        .to_owned(),
        delay: Some(nanos(policy.delay)),
        max_attempts: Some(policy.max_attempts),
        window: Some(nanos(policy.window)).filter(|w| *w != 0),
    })
}

fn placement(placement: &shoal_types::spec::Placement, defaults: bool) -> Option<wire::Placement> {
    let out = wire::Placement {
        constraints: placement.constraints.clone(),
        preferences: placement
            .spread
            .iter()
            .map(|label| wire::PlacementPreference {
                spread: Some(wire::Spread {
                    spread_descriptor: label.clone(),
                }),
            })
            .collect(),
        max_replicas: placement.max_replicas_per_node,
        platforms: placement
            .platforms
            .iter()
            .map(|p| wire::Platform {
                architecture: p.architecture.clone(),
                os: p.os.clone(),
            })
            .collect(),
    };
    (defaults || out != wire::Placement::default()).then_some(out)
}

fn container_spec(spec: &ContainerSpec, defaults: bool) -> wire::ContainerSpec {
    wire::ContainerSpec {
        image: spec.image.clone(),
        labels: spec.labels.clone(),
        command: spec.command.clone(),
        args: spec.args.clone(),
        hostname: spec.hostname.clone(),
        env: spec.env.clone(),
        dir: spec.dir.clone(),
        user: spec.user.clone(),
        groups: spec.groups.clone(),
        privileges: privileges(&spec.privileges),
        init: spec.init,
        stop_signal: spec.stop_signal.clone(),
        tty: spec.tty,
        open_stdin: spec.open_stdin,
        read_only: spec.read_only,
        mounts: spec.mounts.iter().map(mount_out).collect(),
        stop_grace_period: Some(nanos(spec.stop_grace))
            .filter(|grace| defaults || *grace != 10_000_000_000),
        healthcheck: spec.health.as_ref().map(health_check),
        hosts: spec.hosts.clone(),
        // Docker always writes it, empty as it may be.
        dns_config: Some(wire::DnsConfig {
            nameservers: spec.dns.nameservers.clone(),
            search: spec.dns.search.clone(),
            options: spec.dns.options.clone(),
        }),
        secrets: spec
            .secrets
            .iter()
            .map(|secret| wire::FileReference {
                secret_id: secret.id.to_string(),
                secret_name: secret.name.clone(),
                ..file_reference(secret)
            })
            .collect(),
        configs: spec
            .configs
            .iter()
            .map(|config| wire::FileReference {
                config_id: config.id.to_string(),
                config_name: config.name.clone(),
                ..file_reference(config)
            })
            .collect(),
        isolation: "default".to_owned(),
        sysctls: spec.sysctls.clone(),
        capability_add: spec.cap_add.clone(),
        capability_drop: spec.cap_drop.clone(),
        ulimits: spec
            .ulimits
            .iter()
            .map(|u| wire::Ulimit {
                name: u.name.clone(),
                hard: u.hard,
                soft: u.soft,
            })
            .collect(),
        oom_score_adj: spec.oom_score_adj.into(),
    }
}

fn file_reference<Id>(reference: &FileReference<Id>) -> wire::FileReference {
    wire::FileReference {
        file: Some(wire::File {
            name: reference.target.clone(),
            uid: reference.uid.clone(),
            gid: reference.gid.clone(),
            mode: reference.mode,
        }),
        ..wire::FileReference::default()
    }
}

fn privileges(privileges: &Privileges) -> Option<wire::Privileges> {
    if *privileges == Privileges::default() {
        return None;
    }
    let seccomp = |mode: &str, profile: &[u8]| wire::Seccomp {
        mode: mode.to_owned(),
        profile: profile.to_vec(),
    };
    Some(wire::Privileges {
        seccomp: match &privileges.seccomp {
            SeccompMode::Default => None,
            SeccompMode::Unconfined => Some(seccomp("unconfined", b"")),
            SeccompMode::Custom(profile) => Some(seccomp("custom", profile)),
        },
        app_armor: privileges.apparmor_disabled.then(|| wire::AppArmor {
            mode: "disabled".to_owned(),
        }),
        no_new_privileges: privileges.no_new_privileges,
        ..wire::Privileges::default()
    })
}

pub(crate) fn health_check(health: &HealthCheck) -> wire::HealthConfig {
    wire::HealthConfig {
        test: health.test.clone(),
        interval: nanos(health.interval),
        timeout: nanos(health.timeout),
        start_period: nanos(health.start_period),
        start_interval: nanos(health.start_interval),
        retries: health.retries.into(),
    }
}
