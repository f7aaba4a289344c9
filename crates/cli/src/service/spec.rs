//! `service create`: flags into the API's service spec.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{
    args::{Common, CreateArgs, CredentialSpec, RollbackFlags, UpdateFlags},
    lookup::{self, References},
};
use crate::{
    api::Api,
    error::{CliError, Result},
    json::{put, ratio},
    opts::{FileReference, GoDuration, Ports, PositiveDuration, Ulimit, generic, list},
};

/// The whole spec, networks, secrets and configs resolved to their ids.
pub(crate) async fn create(api: &Api, args: &CreateArgs) -> Result<Value> {
    let common = &args.common;
    let env = environment(args)?;
    let health = health(common)?;
    let mode = mode(args)?;
    let update = update_config(&common.update_config);
    let rollback = rollback_config(&common.rollback_config);
    let is_job = mode.get("ReplicatedJob").is_some() || mode.get("GlobalJob").is_some();
    if is_job && (update.is_some() || rollback.is_some()) {
        return Err(CliError::message(
            "update and rollback configuration is not supported for jobs",
        ));
    }
    let mut networks = Vec::new();
    for network in &args.network {
        let id = lookup::network(api, &network.target).await?;
        networks.push(network.to_json(&id));
    }
    networks.sort_by(|a, b| a["Target"].as_str().cmp(&b["Target"].as_str()));

    let mut container = container(args, env, health);
    let (credential, configs) = configs(api, common.credential_spec.as_ref(), &args.config).await?;
    if let Some(credential) = credential {
        container.insert("Privileges".into(), privileges(&credential));
    }
    put(&mut container, "Configs", configs);
    let secrets = lookup::references(api, References::Secrets, &args.secret).await?;
    put(&mut container, "Secrets", secrets);

    let mut task = Map::new();
    task.insert("ContainerSpec".into(), Value::Object(container));
    task.insert("Resources".into(), resources(args)?);
    if let Some(restart) = restart(common) {
        task.insert("RestartPolicy".into(), restart);
    }
    task.insert("Placement".into(), placement(args));
    put(&mut task, "Networks", networks);
    if let Some(driver) = common.log_driver.as_deref().filter(|name| !name.is_empty()) {
        task.insert("LogDriver".into(), log_driver(driver, &common.log_opt));
    }
    task.insert("ForceUpdate".into(), 0.into());

    let mut endpoint = Map::new();
    let mode_name = common.endpoint_mode.as_deref().unwrap_or("vip");
    put(&mut endpoint, "Mode", mode_name.to_lowercase());
    put(&mut endpoint, "Ports", ports(&args.publish));

    let mut spec = Map::new();
    put(&mut spec, "Name", args.name.as_deref().unwrap_or(""));
    spec.insert("Labels".into(), json!(list::pairs(&args.label)));
    spec.insert("TaskTemplate".into(), Value::Object(task));
    spec.insert("Mode".into(), mode);
    if let Some(update) = update {
        spec.insert("UpdateConfig".into(), update);
    }
    if let Some(rollback) = rollback {
        spec.insert("RollbackConfig".into(), rollback);
    }
    spec.insert("EndpointSpec".into(), Value::Object(endpoint));
    Ok(Value::Object(spec))
}

fn container(args: &CreateArgs, env: Vec<String>, health: Option<Value>) -> Map<String, Value> {
    let common = &args.common;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (image, words) = args
        .words
        .split_first()
        .expect("the image is a required argument");
    let mut spec = Map::new();
    put(&mut spec, "Image", image.as_str());
    put(
        &mut spec,
        "Labels",
        json!(list::pairs(&args.container_label)),
    );
    if let Some(entrypoint) = &common.entrypoint {
        put(&mut spec, "Command", entrypoint.0.clone());
    }
    put(&mut spec, "Args", words);
    put(&mut spec, "Hostname", text(&common.hostname));
    put(&mut spec, "Env", env);
    put(&mut spec, "Dir", text(&common.workdir));
    put(&mut spec, "User", text(&common.user));
    put(&mut spec, "Groups", args.group.clone());
    spec.insert("Init".into(), common.init.unwrap_or(false).into());
    put(&mut spec, "StopSignal", text(&common.stop_signal));
    put(&mut spec, "TTY", common.tty.unwrap_or(false));
    put(&mut spec, "ReadOnly", common.read_only.unwrap_or(false));
    let mounts: Vec<Value> = args.mount.iter().map(|mount| mount.0.clone()).collect();
    put(&mut spec, "Mounts", mounts);
    if let Some(GoDuration(grace)) = common.stop_grace_period {
        spec.insert("StopGracePeriod".into(), grace.into());
    }
    if let Some(health) = health {
        spec.insert("Healthcheck".into(), health);
    }
    let hosts: Vec<String> = args
        .host
        .iter()
        .filter_map(|host| list::hosts_line(host))
        .collect();
    put(&mut spec, "Hosts", hosts);
    let mut dns = Map::new();
    put(&mut dns, "Nameservers", args.dns.clone());
    put(&mut dns, "Search", args.dns_search.clone());
    put(&mut dns, "Options", args.dns_option.clone());
    spec.insert("DNSConfig".into(), Value::Object(dns));
    put(&mut spec, "Isolation", text(&common.isolation));
    put(&mut spec, "Sysctls", json!(list::pairs(&args.sysctl)));
    let (add, drop) = list::capabilities(&common.cap_add, &common.cap_drop);
    put(&mut spec, "CapabilityAdd", add);
    put(&mut spec, "CapabilityDrop", drop);
    put(&mut spec, "Ulimits", ulimits(&args.ulimit));
    put(&mut spec, "OomScoreAdj", common.oom_score_adj.unwrap_or(0));
    spec
}

fn environment(args: &CreateArgs) -> Result<Vec<String>> {
    let mut variables = Vec::new();
    for file in &args.env_file {
        variables.extend(list::env_file(file)?);
    }
    variables.extend(args.env.iter().cloned());
    Ok(list::merge_env(variables))
}

fn mode(args: &CreateArgs) -> Result<Value> {
    let common = &args.common;
    let jobs = "replicated or replicated-job";
    let replicas = (common.replicas.is_some(), "replicas", jobs);
    let per_node = common.replicas_max_per_node.is_some_and(|most| most > 0);
    let per_node = (per_node, "replicas-max-per-node", jobs);
    let concurrent = (
        common.max_concurrent.is_some(),
        "max-concurrent",
        "replicated-job",
    );
    let (mode, refused) = match args.mode.as_str() {
        "global" => (json!({"Global": {}}), vec![replicas, per_node, concurrent]),
        "global-job" => (
            json!({"GlobalJob": {}}),
            vec![per_node, concurrent, replicas],
        ),
        "replicated" => {
            let replicated = optional([("Replicas", common.replicas)]);
            (json!({ "Replicated": replicated }), vec![concurrent])
        }
        "replicated-job" => {
            let job = optional([
                ("MaxConcurrent", common.max_concurrent.or(common.replicas)),
                ("TotalCompletions", common.replicas),
            ]);
            (json!({ "ReplicatedJob": job }), Vec::new())
        }
        other => {
            return Err(CliError::message(format!(
                "Unknown mode: {other}, only replicated and global supported"
            )));
        }
    };
    match refused.iter().find(|(given, ..)| *given) {
        Some((_, flag, modes)) => Err(CliError::message(format!(
            "{flag} can only be used with {modes} mode"
        ))),
        None => Ok(mode),
    }
}

/// An object of those fields that were given, zeros too.
fn optional<const N: usize>(fields: [(&str, Option<u64>); N]) -> Value {
    let given = fields
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?.into())));
    Value::Object(given.collect())
}

fn health(common: &Common) -> Result<Option<Value>> {
    let command = common.health_cmd.as_deref().unwrap_or("");
    let retries = common.health_retries.unwrap_or(0);
    let nanos = |duration: &Option<PositiveDuration>| duration.map_or(0, |d| d.0.0);
    let durations = [
        ("Interval", &common.health_interval),
        ("Timeout", &common.health_timeout),
        ("StartPeriod", &common.health_start_period),
        ("StartInterval", &common.health_start_interval),
    ];
    let any = !command.is_empty()
        || retries != 0
        || durations.iter().any(|(_, duration)| duration.is_some());
    if common.no_healthcheck {
        return if any {
            Err(no_healthcheck_conflict())
        } else {
            Ok(Some(json!({"Test": ["NONE"]})))
        };
    }
    if !any {
        return Ok(None);
    }
    let mut health = Map::new();
    if !command.is_empty() {
        health.insert("Test".into(), json!(["CMD-SHELL", command]));
    }
    for (key, duration) in durations {
        put(&mut health, key, nanos(duration));
    }
    put(&mut health, "Retries", retries);
    Ok(Some(Value::Object(health)))
}

pub(super) fn no_healthcheck_conflict() -> CliError {
    CliError::message("--no-healthcheck conflicts with --health-* options")
}

fn resources(args: &CreateArgs) -> Result<Value> {
    let common = &args.common;
    let mut limits = Map::new();
    put(
        &mut limits,
        "NanoCPUs",
        common.limit_cpu.map_or(0, |cpu| cpu.0),
    );
    put(
        &mut limits,
        "MemoryBytes",
        common.limit_memory.map_or(0, |memory| memory.0),
    );
    put(&mut limits, "Pids", common.limit_pids.unwrap_or(0));
    let mut reservations = Map::new();
    put(
        &mut reservations,
        "NanoCPUs",
        common.reserve_cpu.map_or(0, |cpu| cpu.0),
    );
    put(
        &mut reservations,
        "MemoryBytes",
        common.reserve_memory.map_or(0, |memory| memory.0),
    );
    let generic: Vec<Value> = generic::resources(&args.generic_resource)?
        .into_iter()
        .map(|(_, resource)| resource)
        .collect();
    put(&mut reservations, "GenericResources", generic);
    let mut resources = json!({"Limits": limits, "Reservations": reservations});
    if let Some(swap) = common.memory_swap {
        resources["SwapBytes"] = swap.0.into();
    }
    if let Some(swappiness) = common.memory_swappiness {
        resources["MemorySwappiness"] = swappiness.into();
    }
    Ok(resources)
}

fn placement(args: &CreateArgs) -> Value {
    let mut placement = Map::new();
    put(&mut placement, "Constraints", args.constraint.clone());
    let preferences: Vec<Value> = args.placement_pref.iter().map(preference).collect();
    put(&mut placement, "Preferences", preferences);
    put(
        &mut placement,
        "MaxReplicas",
        args.common.replicas_max_per_node.unwrap_or(0),
    );
    Value::Object(placement)
}

pub(super) fn preference(spread: &super::args::Spread) -> Value {
    json!({"Spread": {"SpreadDescriptor": spread.0}})
}

/// SwarmKit's restart policy for services that name none.
pub(super) fn default_restart() -> Map<String, Value> {
    Map::from_iter([
        ("Condition".to_owned(), "any".into()),
        ("Delay".to_owned(), 5_000_000_000_i64.into()),
        ("MaxAttempts".to_owned(), 0.into()),
    ])
}

/// Sets what the `--restart-*` flags say; whether they say anything.
pub(super) fn set_restart(policy: &mut Map<String, Value>, common: &Common) {
    if let Some(condition) = &common.restart_condition {
        put(policy, "Condition", condition.as_str());
    }
    if let Some(GoDuration(delay)) = common.restart_delay {
        policy.insert("Delay".into(), delay.into());
    }
    if let Some(attempts) = common.restart_max_attempts {
        policy.insert("MaxAttempts".into(), attempts.into());
    }
    if let Some(GoDuration(window)) = common.restart_window {
        policy.insert("Window".into(), window.into());
    }
}

pub(super) fn has_restart(common: &Common) -> bool {
    common.restart_condition.is_some()
        || common.restart_delay.is_some()
        || common.restart_max_attempts.is_some()
        || common.restart_window.is_some()
}

fn restart(common: &Common) -> Option<Value> {
    has_restart(common).then(|| {
        let mut policy = default_restart();
        set_restart(&mut policy, common);
        Value::Object(policy)
    })
}

/// The six settings of an update or a rollback.
pub(super) struct UpdateSettings<'a> {
    parallelism: Option<u64>,
    delay: Option<GoDuration>,
    failure_action: Option<&'a str>,
    monitor: Option<GoDuration>,
    max_failure_ratio: Option<f32>,
    order: Option<&'a str>,
}

impl<'a> From<&'a UpdateFlags> for UpdateSettings<'a> {
    fn from(flags: &'a UpdateFlags) -> Self {
        Self {
            parallelism: flags.update_parallelism,
            delay: flags.update_delay,
            failure_action: flags.update_failure_action.as_deref(),
            monitor: flags.update_monitor,
            max_failure_ratio: flags.update_max_failure_ratio,
            order: flags.update_order.as_deref(),
        }
    }
}

impl<'a> From<&'a RollbackFlags> for UpdateSettings<'a> {
    fn from(flags: &'a RollbackFlags) -> Self {
        Self {
            parallelism: flags.rollback_parallelism,
            delay: flags.rollback_delay,
            failure_action: flags.rollback_failure_action.as_deref(),
            monitor: flags.rollback_monitor,
            max_failure_ratio: flags.rollback_max_failure_ratio,
            order: flags.rollback_order.as_deref(),
        }
    }
}

impl UpdateSettings<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.parallelism.is_none()
            && self.delay.is_none()
            && self.failure_action.is_none()
            && self.monitor.is_none()
            && self.max_failure_ratio.is_none()
            && self.order.is_none()
    }

    /// Sets what was given in `config`, which is SwarmKit's default when the service had none.
    pub(super) fn apply(&self, config: &mut Map<String, Value>) {
        if config.is_empty() {
            *config = Map::from_iter([
                ("Parallelism".to_owned(), 1.into()),
                ("FailureAction".to_owned(), "pause".into()),
                ("Monitor".to_owned(), 5_000_000_000_i64.into()),
                ("MaxFailureRatio".to_owned(), 0.into()),
                ("Order".to_owned(), "stop-first".into()),
            ]);
        }
        if let Some(parallelism) = self.parallelism {
            config.insert("Parallelism".into(), parallelism.into());
        }
        if let Some(GoDuration(delay)) = self.delay {
            put(config, "Delay", delay);
        }
        if let Some(action) = self.failure_action {
            put(config, "FailureAction", action);
        }
        if let Some(GoDuration(monitor)) = self.monitor {
            put(config, "Monitor", monitor);
        }
        if let Some(most) = self.max_failure_ratio {
            config.insert("MaxFailureRatio".into(), ratio(most));
        }
        if let Some(order) = self.order {
            config.insert("Order".into(), order.into());
        }
    }

    fn to_json(&self) -> Option<Value> {
        (!self.is_empty()).then(|| {
            let mut config = Map::new();
            self.apply(&mut config);
            Value::Object(config)
        })
    }
}

fn update_config(flags: &UpdateFlags) -> Option<Value> {
    UpdateSettings::from(flags).to_json()
}

fn rollback_config(flags: &RollbackFlags) -> Option<Value> {
    UpdateSettings::from(flags).to_json()
}

pub(super) fn log_driver(name: &str, options: &[String]) -> Value {
    let mut driver = Map::new();
    put(&mut driver, "Name", name);
    put(&mut driver, "Options", json!(list::pairs(options)));
    Value::Object(driver)
}

fn ports(publish: &[Ports]) -> Vec<Value> {
    publish
        .iter()
        .flat_map(|ports| ports.0.iter().map(crate::opts::port::Port::to_json))
        .collect()
}

/// Sorted by name, the last one of a name.
fn ulimits(limits: &[Ulimit]) -> Vec<Value> {
    let names: BTreeSet<&str> = limits.iter().map(|limit| limit.name.as_str()).collect();
    names
        .into_iter()
        .filter_map(|name| limits.iter().rev().find(|limit| limit.name == name))
        .map(Ulimit::to_json)
        .collect()
}

pub(crate) fn privileges(credential: &Value) -> Value {
    json!({"CredentialSpec": credential, "SELinuxContext": null, "NoNewPrivileges": false})
}

/// The credential spec with its config's id, and all config references.
async fn configs(
    api: &Api,
    credential: Option<&CredentialSpec>,
    files: &[FileReference],
) -> Result<(Option<Value>, Vec<Value>)> {
    let mut configs = lookup::references(api, References::Configs, files).await?;
    let credential = match credential {
        None | Some(CredentialSpec::None) => None,
        Some(spec @ CredentialSpec::Config(name)) => {
            let reference = lookup::runtime_config(api, name).await?;
            let id = crate::json::text(&reference, "/ConfigID").to_owned();
            configs.push(reference);
            Some(spec.to_json(&id))
        }
        Some(spec) => Some(spec.to_json("")),
    };
    Ok((credential, configs))
}
