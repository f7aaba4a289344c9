//! Docker's service spec into the stored one, with Docker's defaults filled in
//! (swarmkit `api/defaults/service.go`, `manager/controlapi/service.go`).

use std::{collections::BTreeSet, time::Duration};

use shoal_types::{
    NetworkId,
    spec::{
        EndpointMode, EndpointSpec, FailureAction, GenericResource, NetworkAttachmentSpec,
        Placement, Platform, PortConfig, Protocol, PublishMode, Resources, RestartCondition,
        RestartPolicy, ServiceMode, ServiceSpec, TaskSpec, UpdateConfig, UpdateOrder,
    },
};

use super::{Result, SpecError, container::container_spec, dns_name, duration, only_empty};
use crate::wire;

/// Finds what a spec refers to by name or id.
pub(crate) trait Resolve {
    fn network(&self, reference: &str) -> Option<NetworkId>;
}

/// At least a thousandth of a processor.
const MIN_NANO_CPUS: i64 = 1_000_000;
const MIN_MEMORY_BYTES: i64 = 4 << 20;

/// An empty name stays empty: the caller chooses one.
pub(crate) fn service_spec(
    spec: wire::ServiceSpec,
    registry_auth: Option<String>,
    resolve: &dyn Resolve,
) -> Result<ServiceSpec> {
    if !spec.name.is_empty() {
        dns_name(&spec.name, "Name")?;
    }
    let mode = mode(&spec.mode)?;
    let job = matches!(
        mode,
        ServiceMode::ReplicatedJob { .. } | ServiceMode::GlobalJob
    );
    let jobs_do_not_update = "update configuration is not allowed for jobs";
    if job && spec.update_config.is_some() {
        return Err(SpecError::invalid("UpdateConfig", jobs_do_not_update));
    }
    if job && spec.rollback_config.is_some() {
        return Err(SpecError::invalid("RollbackConfig", jobs_do_not_update));
    }
    let mut template = spec.task_template;
    if template.networks.is_empty() {
        template.networks = spec.networks;
    }
    Ok(ServiceSpec {
        name: spec.name,
        labels: spec.labels,
        task: task_spec(template, registry_auth, job, resolve)?.into(),
        mode,
        update: update_config(spec.update_config, "UpdateConfig")?,
        rollback: update_config(spec.rollback_config, "RollbackConfig")?,
        endpoint: endpoint_spec(spec.endpoint_spec.unwrap_or_default())?,
    })
}

fn mode(mode: &wire::ServiceMode) -> Result<ServiceMode> {
    let wire::ServiceMode {
        replicated,
        global,
        replicated_job,
        global_job,
    } = mode;
    match (replicated, global, replicated_job, global_job) {
        (None, None, None, None) => Ok(ServiceMode::Replicated { replicas: 1 }),
        (Some(r), None, None, None) => Ok(ServiceMode::Replicated {
            replicas: r.replicas.unwrap_or(1),
        }),
        (None, Some(_), None, None) => Ok(ServiceMode::Global),
        (None, None, Some(job), None) => {
            let max_concurrent = job.max_concurrent.unwrap_or(1);
            Ok(ServiceMode::ReplicatedJob {
                max_concurrent,
                total_completions: job.total_completions.unwrap_or(max_concurrent),
            })
        }
        (None, None, None, Some(_)) => Ok(ServiceMode::GlobalJob),
        _ => Err(SpecError::invalid(
            "Mode",
            "must specify only one service mode",
        )),
    }
}

fn task_spec(
    template: wire::TaskSpec,
    registry_auth: Option<String>,
    job: bool,
    resolve: &dyn Resolve,
) -> Result<TaskSpec> {
    match template.runtime.as_str() {
        "" | "container" => {}
        "plugin" | "attachment" => {
            return Err(SpecError::unsupported(
                "TaskTemplate.Runtime",
                format!("only containers can be run, not {}s", template.runtime),
            ));
        }
        other => {
            let message = format!("unknown runtime {other:?}");
            return Err(SpecError::invalid("TaskTemplate.Runtime", message));
        }
    }
    let container_only = "only containers can be run";
    only_empty(
        &template.plugin_spec,
        "TaskTemplate.PluginSpec",
        container_only,
    )?;
    only_empty(
        &template.network_attachment_spec,
        "TaskTemplate.NetworkAttachmentSpec",
        container_only,
    )?;
    log_driver(template.log_driver.as_ref())?;
    let container = template.container_spec.ok_or_else(|| {
        SpecError::invalid(
            "TaskTemplate.ContainerSpec",
            "TaskSpec: missing runtime: a container spec must be provided",
        )
    })?;
    let resources = template.resources.unwrap_or_default();
    let swap = "swap cannot be limited for a service";
    only_empty(
        &resources.swap_bytes,
        "TaskTemplate.Resources.SwapBytes",
        swap,
    )?;
    let swappiness = resources.memory_swappiness.filter(|s| *s != -1);
    only_empty(&swappiness, "TaskTemplate.Resources.MemorySwappiness", swap)?;
    Ok(TaskSpec {
        container: container_spec(container, registry_auth)?,
        limits: limits(&resources.limits.unwrap_or_default())?,
        reservations: reservations(resources.reservations.unwrap_or_default())?,
        restart: restart_policy(template.restart_policy.unwrap_or_default(), job)?,
        placement: placement(template.placement.unwrap_or_default())?,
        networks: networks(template.networks, resolve)?,
        force_update: template.force_update,
    })
}

/// The node keeps output in its own format, which is what `json-file` and `local` are asked for.
fn log_driver(driver: Option<&wire::DriverConfig>) -> Result<()> {
    let Some(driver) = driver else { return Ok(()) };
    if !matches!(driver.name.as_str(), "" | "json-file" | "local") {
        return Err(SpecError::unsupported(
            "TaskTemplate.LogDriver.Name",
            format!("there is no log driver {:?}; use json-file", driver.name),
        ));
    }
    match driver.options.keys().next() {
        None => Ok(()),
        Some(option) => Err(SpecError::unsupported(
            format!("TaskTemplate.LogDriver.Options.{option}"),
            "the log driver takes no options",
        )),
    }
}

fn limits(limit: &wire::Limit) -> Result<Resources> {
    const FIELD: &str = "TaskTemplate.Resources.Limits";
    Ok(Resources {
        nano_cpus: nano_cpus(limit.nano_cpus, FIELD)?,
        memory_bytes: memory(limit.memory_bytes, FIELD)?,
        // Docker's -1 is no limit either.
        pids: u64::try_from(limit.pids).unwrap_or(0),
        generic: Vec::new(),
    })
}

fn reservations(resources: wire::Resources) -> Result<Resources> {
    const FIELD: &str = "TaskTemplate.Resources.Reservations";
    let generic = resources
        .generic_resources
        .into_iter()
        .enumerate()
        .map(|(n, resource)| {
            let field = format!("{FIELD}.GenericResources[{n}]");
            let discrete = resource.discrete.ok_or_else(|| {
                let message =
                    "Named Generic Resources is not supported for service create or update";
                SpecError::invalid(&field, message)
            })?;
            let count = u64::try_from(discrete.value)
                .ok()
                .filter(|count| *count > 0);
            let count = count.ok_or_else(|| {
                let message = format!("invalid generic-resource count {}", discrete.value);
                SpecError::invalid(&field, message)
            })?;
            Ok(GenericResource::Discrete {
                kind: discrete.kind,
                count,
            })
        });
    Ok(Resources {
        nano_cpus: nano_cpus(resources.nano_cpus, FIELD)?,
        memory_bytes: memory(resources.memory_bytes, FIELD)?,
        pids: 0,
        generic: generic.collect::<Result<_>>()?,
    })
}

fn nano_cpus(value: i64, field: &str) -> Result<u64> {
    if value != 0 && value < MIN_NANO_CPUS {
        #[expect(clippy::cast_precision_loss, reason = "shown to a person")]
        let cpus = value as f64 / 1e9;
        let message = format!("invalid cpu value {cpus}: Must be at least 0.001");
        return Err(SpecError::invalid(format!("{field}.NanoCPUs"), message));
    }
    Ok(value.unsigned_abs())
}

fn memory(value: i64, field: &str) -> Result<u64> {
    if value != 0 && value < MIN_MEMORY_BYTES {
        let message = format!("invalid memory value {value}: Must be at least 4MiB");
        return Err(SpecError::invalid(format!("{field}.MemoryBytes"), message));
    }
    Ok(value.unsigned_abs())
}

fn restart_policy(policy: wire::RestartPolicy, job: bool) -> Result<RestartPolicy> {
    const FIELD: &str = "TaskTemplate.RestartPolicy";
    let default = RestartPolicy::default();
    let condition = match policy.condition.as_str() {
        // A job that ended well is done: "any" means the same as "on-failure" for it.
        "" if job => RestartCondition::OnFailure,
        "" => default.condition,
        "none" => RestartCondition::None,
        "on-failure" => RestartCondition::OnFailure,
        "any" => RestartCondition::Any,
        other => {
            let message = format!("invalid RestartCondition: {other:?}");
            return Err(SpecError::invalid(format!("{FIELD}.Condition"), message));
        }
    };
    Ok(RestartPolicy {
        condition,
        delay: policy.delay.map_or(Ok(default.delay), |delay| {
            let message = "TaskSpec: restart-delay cannot be negative";
            duration(delay, &format!("{FIELD}.Delay"), message)
        })?,
        max_attempts: policy.max_attempts.unwrap_or(0),
        window: policy.window.map_or(Ok(Duration::ZERO), |window| {
            let message = "TaskSpec: restart-window cannot be negative";
            duration(window, &format!("{FIELD}.Window"), message)
        })?,
    })
}

fn placement(placement: wire::Placement) -> Result<Placement> {
    let spread = placement
        .preferences
        .into_iter()
        .enumerate()
        .map(|(n, preference)| {
            let field = format!("TaskTemplate.Placement.Preferences[{n}]");
            let spread = preference.spread.ok_or_else(|| {
                SpecError::invalid(field, "a placement preference must be a spread")
            })?;
            Ok(spread.spread_descriptor)
        });
    Ok(Placement {
        spread: spread.collect::<Result<_>>()?,
        constraints: placement.constraints,
        max_replicas_per_node: placement.max_replicas,
        platforms: placement
            .platforms
            .into_iter()
            .map(|p| Platform {
                architecture: p.architecture,
                os: p.os,
            })
            .collect(),
    })
}

fn networks(
    networks: Vec<wire::NetworkAttachmentConfig>,
    resolve: &dyn Resolve,
) -> Result<Vec<NetworkAttachmentSpec>> {
    let attach = |(n, network): (usize, wire::NetworkAttachmentConfig)| {
        let field = format!("TaskTemplate.Networks[{n}]");
        only_empty(
            &network.driver_opts,
            &format!("{field}.DriverOpts"),
            "an attachment takes no options",
        )?;
        let id = resolve
            .network(&network.target)
            .ok_or_else(|| SpecError::NotFound {
                field: format!("{field}.Target"),
                kind: "network",
                reference: network.target.clone(),
            })?;
        Ok(NetworkAttachmentSpec {
            network: id,
            aliases: network.aliases,
        })
    };
    networks.into_iter().enumerate().map(attach).collect()
}

fn update_config(config: Option<wire::UpdateConfig>, field: &str) -> Result<UpdateConfig> {
    let default = UpdateConfig::default();
    let Some(config) = config else {
        return Ok(default);
    };
    let failure_action = match config.failure_action.as_str() {
        "" | "pause" => FailureAction::Pause,
        "continue" => FailureAction::Continue,
        "rollback" if field == "UpdateConfig" => FailureAction::Rollback,
        // There is nothing to go back to from a rollback: it stops, as in Docker.
        "rollback" => FailureAction::Pause,
        other => {
            let message = format!("unrecognized update failure action {other}");
            return Err(SpecError::invalid(
                format!("{field}.FailureAction"),
                message,
            ));
        }
    };
    let order = match config.order.as_str() {
        "" | "stop-first" => UpdateOrder::StopFirst,
        "start-first" => UpdateOrder::StartFirst,
        other => {
            let message = format!("unrecognized updateconfig order: {other}");
            return Err(SpecError::invalid(format!("{field}.Order"), message));
        }
    };
    if !(0.0..=1.0).contains(&config.max_failure_ratio) {
        return Err(SpecError::invalid(
            format!("{field}.MaxFailureRatio"),
            "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1",
        ));
    }
    let monitor = duration(
        config.monitor,
        &format!("{field}.Monitor"),
        "TaskSpec: update-monitor cannot be negative",
    )?;
    Ok(UpdateConfig {
        parallelism: config.parallelism,
        delay: duration(
            config.delay,
            &format!("{field}.Delay"),
            "TaskSpec: update-delay cannot be negative",
        )?,
        failure_action,
        monitor: if monitor.is_zero() {
            default.monitor
        } else {
            monitor
        },
        max_failure_ratio: config.max_failure_ratio,
        order,
    })
}

fn endpoint_spec(spec: wire::EndpointSpec) -> Result<EndpointSpec> {
    let mode = match spec.mode.as_str() {
        "" | "vip" => EndpointMode::Vip,
        "dnsrr" => EndpointMode::DnsRoundRobin,
        other => {
            let message = format!("invalid endpoint mode {other:?}: expected vip or dnsrr");
            return Err(SpecError::invalid("EndpointSpec.Mode", message));
        }
    };
    let ports = spec.ports.into_iter().enumerate();
    let ports: Vec<PortConfig> = ports
        .map(|(n, port)| port_config(n, port))
        .collect::<Result<_>>()?;
    let mut taken = BTreeSet::new();
    for (n, port) in ports.iter().enumerate() {
        let field = format!("EndpointSpec.Ports[{n}]");
        if mode == EndpointMode::DnsRoundRobin && port.mode == PublishMode::Ingress {
            return Err(SpecError::invalid(
                field,
                "EndpointSpec: port published with ingress mode can't be used with dnsrr mode",
            ));
        }
        // The same port twice is a mistake unless the engine is to choose the number.
        if port.published != 0 && !taken.insert((port.protocol, port.published)) {
            return Err(SpecError::invalid(
                field,
                "EndpointSpec: duplicate published ports provided",
            ));
        }
    }
    Ok(EndpointSpec { mode, ports })
}

fn port_config(n: usize, port: wire::PortConfig) -> Result<PortConfig> {
    let field = |name: &str| format!("EndpointSpec.Ports[{n}].{name}");
    let protocol = match port.protocol.as_str() {
        "" | "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => {
            let message = format!("invalid protocol {other:?}: expected tcp, udp or sctp");
            return Err(SpecError::invalid(field("Protocol"), message));
        }
    };
    let mode = match port.publish_mode.as_str() {
        "" | "ingress" => PublishMode::Ingress,
        "host" => PublishMode::Host,
        other => {
            let message = format!("invalid publish mode {other:?}: expected ingress or host");
            return Err(SpecError::invalid(field("PublishMode"), message));
        }
    };
    let number = |value: u32, name: &str| {
        u16::try_from(value).map_err(|_| {
            SpecError::invalid(
                field(name),
                format!("invalid port {value}: must be at most 65535"),
            )
        })
    };
    let target = number(port.target_port, "TargetPort")?;
    if target == 0 {
        return Err(SpecError::invalid(
            field("TargetPort"),
            "a target port must be provided",
        ));
    }
    Ok(PortConfig {
        name: port.name,
        protocol,
        target,
        published: number(port.published_port, "PublishedPort")?,
        mode,
    })
}
