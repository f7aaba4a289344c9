//! `service update`: edits the spec that the daemon gave, and leaves alone whatever no flag names.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::{
    args::{CredentialSpec, UpdateArgs},
    lookup::{self, References},
    spec::{self, UpdateSettings},
};
use crate::{
    api::Api,
    error::{CliError, Result},
    json::{object, put, take_array, take_strings, text},
    opts::{GoDuration, generic, list},
};

/// Applies the flags to `spec`, which is a service's current one.
pub(crate) async fn apply(api: &Api, args: &UpdateArgs, spec: &mut Value) -> Result {
    let root = spec
        .as_object_mut()
        .ok_or_else(|| CliError::message("the daemon's answer has no service spec"))?;
    labels(root, &args.label_rm, &args.label_add);
    replicas(root, args.common.replicas)?;
    configuration(
        root,
        "UpdateConfig",
        &UpdateSettings::from(&args.common.update_config),
    );
    configuration(
        root,
        "RollbackConfig",
        &UpdateSettings::from(&args.common.rollback_config),
    );
    endpoint(root, args);

    let task = object(root, "TaskTemplate");
    resources(task, args)?;
    if spec::has_restart(&args.common) {
        let policy = object(task, "RestartPolicy");
        if policy.is_empty() {
            *policy = spec::default_restart();
        }
        spec::set_restart(policy, &args.common);
    }
    placement(task, args);
    networks(api, task, args).await?;
    if let Some(name) = args
        .common
        .log_driver
        .as_deref()
        .filter(|name| !name.is_empty())
    {
        task.insert(
            "LogDriver".into(),
            spec::log_driver(name, &args.common.log_opt),
        );
    }
    if args.force {
        let count = task.get("ForceUpdate").and_then(Value::as_u64).unwrap_or(0);
        task.insert("ForceUpdate".into(), (count + 1).into());
    }
    let container = object(task, "ContainerSpec");
    container_settings(container, args)?;
    files(api, container, args).await
}

fn container_settings(container: &mut Map<String, Value>, args: &UpdateArgs) -> Result {
    let common = &args.common;
    labels(
        container,
        &args.container_label_rm,
        &args.container_label_add,
    );
    let texts = [
        ("Image", &args.image),
        ("Dir", &common.workdir),
        ("User", &common.user),
        ("Hostname", &common.hostname),
        ("Isolation", &common.isolation),
        ("StopSignal", &common.stop_signal),
    ];
    for (key, value) in texts {
        if let Some(value) = value {
            put(container, key, value.as_str());
        }
    }
    for (key, words) in [("Args", &args.args), ("Command", &common.entrypoint)] {
        if let Some(words) = words {
            put(container, key, words.0.clone());
        }
    }
    if let Some(init) = common.init {
        container.insert("Init".into(), init.into());
    }
    for (key, flag) in [("TTY", common.tty), ("ReadOnly", common.read_only)] {
        if let Some(flag) = flag {
            put(container, key, flag);
        }
    }
    if let Some(GoDuration(grace)) = common.stop_grace_period {
        container.insert("StopGracePeriod".into(), grace.into());
    }
    if let Some(score) = common.oom_score_adj {
        put(container, "OomScoreAdj", score);
    }
    environment(container, args);
    mounts(container, args)?;
    pairs(container, "Sysctls", &args.sysctl_rm, &args.sysctl_add);
    ulimits(container, args);
    edit_sorted(container, "Groups", &args.group_rm, &args.group_add, false);
    dns(container, args);
    hosts(container, args);
    health(container, args)?;
    capabilities(container, &common.cap_add, &common.cap_drop);
    Ok(())
}

/// Labels: the field itself is always there, even when it is empty.
fn labels(map: &mut Map<String, Value>, remove: &[String], add: &[String]) {
    pairs(map, "Labels", remove, add);
}

fn pairs(map: &mut Map<String, Value>, key: &str, remove: &[String], add: &[String]) {
    if let Some(Value::Object(current)) = map.get_mut(key) {
        for name in remove {
            current.remove(name.split('=').next().unwrap_or(name));
        }
    }
    if !add.is_empty() {
        let current = object(map, key);
        for (name, value) in list::pairs(add) {
            current.insert(name, value.into());
        }
    }
    // `Labels` of the service itself has no `omitempty`; a container's has, as have sysctls.
    let at_service = map.contains_key("TaskTemplate");
    if !at_service && map.get(key).is_some_and(crate::json::is_empty) {
        map.remove(key);
    }
}

fn replicas(root: &mut Map<String, Value>, replicas: Option<u64>) -> Result {
    let Some(replicas) = replicas else {
        return Ok(());
    };
    match root
        .get_mut("Mode")
        .and_then(|mode| mode.get_mut("Replicated"))
    {
        Some(Value::Object(replicated)) => {
            replicated.insert("Replicas".into(), replicas.into());
            Ok(())
        }
        _ => Err(CliError::message(
            "replicas can only be used with replicated mode",
        )),
    }
}

fn configuration(root: &mut Map<String, Value>, key: &str, settings: &UpdateSettings<'_>) {
    if !settings.is_empty() {
        settings.apply(object(root, key));
    }
}

fn endpoint(root: &mut Map<String, Value>, args: &UpdateArgs) {
    if let Some(mode) = &args.common.endpoint_mode {
        put(object(root, "EndpointSpec"), "Mode", mode.as_str());
    }
    if args.publish_add.is_empty() && args.publish_rm.is_empty() {
        return;
    }
    let endpoint = object(root, "EndpointSpec");
    let key = |port: &Value| {
        let number = |name| crate::json::number(port, name);
        format!(
            "{}:{}/{}/{}",
            number("/PublishedPort"),
            number("/TargetPort"),
            text(port, "/Protocol"),
            text(port, "/PublishMode")
        )
    };
    let or = |value: &str, default: &str| {
        if value.is_empty() {
            default.to_owned()
        } else {
            value.to_owned()
        }
    };
    let current: BTreeMap<String, Value> = take_array(endpoint, "Ports")
        .into_iter()
        .rev()
        .map(|port| (key(&port), port))
        .collect();
    let removed = |port: &Value| {
        args.publish_rm
            .iter()
            .flat_map(|ports| &ports.0)
            .any(|remove| {
                remove.protocol == or(text(port, "/Protocol"), "tcp")
                    && u64::from(remove.target) == crate::json::number(port, "/TargetPort")
                    && remove.mode == or(text(port, "/PublishMode"), "ingress")
            })
    };
    let mut ports: Vec<Value> = current
        .values()
        .filter(|port| !removed(port))
        .cloned()
        .collect();
    let added = args.publish_add.iter().flat_map(|ports| &ports.0);
    ports.extend(
        added
            .map(crate::opts::port::Port::to_json)
            .filter(|port| !current.contains_key(&key(port))),
    );
    ports.sort_by_key(key);
    put(endpoint, "Ports", ports);
}

fn resources(task: &mut Map<String, Value>, args: &UpdateArgs) -> Result {
    let common = &args.common;
    let limits = [
        ("NanoCPUs", common.limit_cpu.map(|cpu| cpu.0)),
        ("MemoryBytes", common.limit_memory.map(|memory| memory.0)),
        ("Pids", common.limit_pids),
    ];
    let reservations = [
        ("NanoCPUs", common.reserve_cpu.map(|cpu| cpu.0)),
        ("MemoryBytes", common.reserve_memory.map(|memory| memory.0)),
    ];
    let groups = [("Limits", &limits[..]), ("Reservations", &reservations[..])];
    for (group, values) in groups {
        if values.iter().all(|(_, value)| value.is_none()) {
            continue;
        }
        let resources = object(task, "Resources");
        object(resources, "Limits");
        object(resources, "Reservations");
        for (key, value) in values {
            if let Some(value) = value {
                put(object(resources, group), key, *value);
            }
        }
    }
    if let Some(swap) = common.memory_swap {
        object(task, "Resources").insert("SwapBytes".into(), swap.0.into());
    }
    if let Some(swappiness) = common.memory_swappiness {
        object(task, "Resources").insert("MemorySwappiness".into(), swappiness.into());
    }
    generic_resources(task, args)
}

fn generic_resources(task: &mut Map<String, Value>, args: &UpdateArgs) -> Result {
    if args.generic_resource_add.is_empty() && args.generic_resource_rm.is_empty() {
        return Ok(());
    }
    let added = generic::resources(&args.generic_resource_add)?;
    let reservations = object(object(task, "Resources"), "Reservations");
    let mut current = BTreeMap::new();
    for resource in take_array(reservations, "GenericResources") {
        let kind = text(&resource, "/DiscreteResourceSpec/Kind").to_owned();
        if kind.is_empty() {
            return Err(CliError::message(format!(
                "invalid generic-resource `{resource}` for service task"
            )));
        }
        current.insert(kind, resource);
    }
    current.extend(added);
    for kind in &args.generic_resource_rm {
        if current.remove(kind).is_none() {
            return Err(CliError::message(format!(
                "could not find generic-resource `{kind}` to remove it"
            )));
        }
    }
    put(
        reservations,
        "GenericResources",
        current.into_values().collect::<Vec<_>>(),
    );
    Ok(())
}

fn placement(task: &mut Map<String, Value>, args: &UpdateArgs) {
    if !args.constraint_add.is_empty() || !args.constraint_rm.is_empty() {
        let placement = object(task, "Placement");
        edit_sorted(
            placement,
            "Constraints",
            &args.constraint_rm,
            &args.constraint_add,
            false,
        );
    }
    if !args.placement_pref_add.is_empty() || !args.placement_pref_rm.is_empty() {
        let placement = object(task, "Placement");
        let mut preferences = take_array(placement, "Preferences");
        let descriptor = "/Spread/SpreadDescriptor";
        preferences.retain(|preference| {
            let by = text(preference, descriptor);
            !args.placement_pref_rm.iter().any(|remove| remove.0 == by)
        });
        preferences.extend(args.placement_pref_add.iter().map(spec::preference));
        put(placement, "Preferences", preferences);
    }
    if let Some(most) = args.common.replicas_max_per_node {
        put(object(task, "Placement"), "MaxReplicas", most);
    }
}

async fn networks(api: &Api, task: &mut Map<String, Value>, args: &UpdateArgs) -> Result {
    if args.network_add.is_empty() && args.network_rm.is_empty() {
        return Ok(());
    }
    let mut remove = BTreeSet::new();
    for name in &args.network_rm {
        remove.insert(lookup::network(api, name).await?);
    }
    let mut networks = take_array(task, "Networks");
    networks.retain(|network| !remove.contains(text(network, "/Target")));
    for network in &args.network_add {
        let id = lookup::network(api, &network.target).await?;
        if networks.iter().any(|other| text(other, "/Target") == id) {
            return Err(CliError::message(format!(
                "service is already attached to network {}",
                network.target
            )));
        }
        networks.push(network.to_json(&id));
    }
    networks.sort_by(|a, b| text(a, "/Target").cmp(text(b, "/Target")));
    put(task, "Networks", networks);
    Ok(())
}

fn environment(container: &mut Map<String, Value>, args: &UpdateArgs) {
    if args.env_add.is_empty() && args.env_rm.is_empty() {
        return;
    }
    let key = |variable: &str| variable.split('=').next().unwrap_or("").to_owned();
    let mut env = take_strings(container, "Env");
    env.retain(|variable| !args.env_rm.contains(&key(variable)));
    for variable in &args.env_add {
        let place = env.iter().position(|other| key(other) == key(variable));
        match place {
            Some(place) => env[place].clone_from(variable),
            None => env.push(variable.clone()),
        }
    }
    put(container, "Env", env);
}

fn mounts(container: &mut Map<String, Value>, args: &UpdateArgs) -> Result {
    let target = |mount: &Value| text(mount, "/Target").to_owned();
    let mut by_target = BTreeMap::new();
    for mount in &args.mount_add {
        if by_target
            .insert(target(&mount.0), mount.0.clone())
            .is_some()
        {
            return Err(CliError::message("duplicate mount target"));
        }
    }
    for mount in take_array(container, "Mounts") {
        by_target.entry(target(&mount)).or_insert(mount);
    }
    let mut mounts: Vec<Value> = by_target.into_values().collect();
    mounts.retain(|mount| !args.mount_rm.contains(&target(mount)));
    // By source; those of the same source stay in the order of their targets.
    mounts.sort_by(|a, b| text(a, "/Source").cmp(text(b, "/Source")));
    put(container, "Mounts", mounts);
    Ok(())
}

fn ulimits(container: &mut Map<String, Value>, args: &UpdateArgs) {
    let mut limits: BTreeMap<String, Value> = take_array(container, "Ulimits")
        .into_iter()
        .map(|limit| (text(&limit, "/Name").to_owned(), limit))
        .collect();
    for name in list::pairs(&args.ulimit_rm).keys() {
        limits.remove(name);
    }
    for limit in &args.ulimit_add {
        limits.insert(limit.name.clone(), limit.to_json());
    }
    put(
        container,
        "Ulimits",
        limits.into_values().collect::<Vec<_>>(),
    );
}

/// Adds, then removes, then sorts; nothing happens when nothing was asked for.
fn edit_sorted(
    map: &mut Map<String, Value>,
    key: &str,
    remove: &[String],
    add: &[String],
    unique: bool,
) {
    if remove.is_empty() && add.is_empty() {
        return;
    }
    let mut items = take_strings(map, key);
    items.extend(add.iter().cloned());
    items.retain(|item| !remove.contains(item));
    items.sort();
    if unique {
        items.dedup();
    }
    put(map, key, items);
}

fn dns(container: &mut Map<String, Value>, args: &UpdateArgs) {
    let lists = [
        ("Nameservers", &args.dns_rm, &args.dns_add),
        ("Search", &args.dns_search_rm, &args.dns_search_add),
        ("Options", &args.dns_option_rm, &args.dns_option_add),
    ];
    if lists
        .iter()
        .all(|(_, remove, add)| remove.is_empty() && add.is_empty())
    {
        return;
    }
    let config = object(container, "DNSConfig");
    for (key, remove, add) in lists {
        // Docker sorts all three as soon as one of them changes.
        let mut items = take_strings(config, key);
        items.extend(add.iter().cloned());
        items.retain(|item| !remove.contains(item));
        items.sort();
        items.dedup();
        put(config, key, items);
    }
}

/// Lines of `/etc/hosts` may carry several names; a removed name leaves the others.
fn hosts(container: &mut Map<String, Value>, args: &UpdateArgs) {
    if args.host_add.is_empty() && args.host_rm.is_empty() {
        return;
    }
    let mut hosts: Vec<String> = Vec::new();
    for line in take_strings(container, "Hosts") {
        let mut words = line.split_whitespace();
        let Some(ip) = words.next() else {
            continue;
        };
        let removed = |name: &str| {
            args.host_rm.iter().any(|remove| {
                let (host, address) = remove.split_once(':').unwrap_or((remove, ""));
                host == name && (address.is_empty() || address == ip)
            })
        };
        let names: Vec<&str> = words.filter(|name| !removed(name)).collect();
        if !names.is_empty() {
            hosts.push(format!("{ip} {}", names.join(" ")));
        }
    }
    hosts.extend(
        args.host_add
            .iter()
            .filter_map(|host| list::hosts_line(host)),
    );
    let mut seen = BTreeSet::new();
    hosts.retain(|line| seen.insert(line.clone()));
    put(container, "Hosts", hosts);
}

fn health(container: &mut Map<String, Value>, args: &UpdateArgs) -> Result {
    let common = &args.common;
    let durations = [
        ("Interval", common.health_interval),
        ("Timeout", common.health_timeout),
        ("StartPeriod", common.health_start_period),
        ("StartInterval", common.health_start_interval),
    ];
    let any = common.health_cmd.is_some()
        || common.health_retries.is_some()
        || durations.iter().any(|(_, duration)| duration.is_some());
    if common.no_healthcheck {
        if any {
            return Err(spec::no_healthcheck_conflict());
        }
        container.insert("Healthcheck".into(), json!({"Test": ["NONE"]}));
        return Ok(());
    }
    if !any {
        return Ok(());
    }
    let health = object(container, "Healthcheck");
    if health.get("Test").is_some_and(|test| test[0] == "NONE") {
        health.remove("Test");
    }
    for (key, duration) in durations {
        if let Some(duration) = duration {
            put(health, key, duration.0.0);
        }
    }
    if let Some(retries) = common.health_retries {
        put(health, "Retries", retries);
    }
    match common.health_cmd.as_deref() {
        Some("") => {
            health.remove("Test");
        }
        Some(command) => {
            health.insert("Test".into(), json!(["CMD-SHELL", command]));
        }
        None => {}
    }
    Ok(())
}

/// Adding what was dropped only takes back the drop, and the other way round; adding wins over dropping. `RESET`
/// empties a list first.
fn capabilities(container: &mut Map<String, Value>, add: &[String], drop: &[String]) {
    if add.is_empty() && drop.is_empty() {
        return;
    }
    let set = |texts: &[String]| -> BTreeSet<String> {
        texts.iter().map(|text| list::capability(text)).collect()
    };
    let mut added = set(&take_strings(container, "CapabilityAdd"));
    let mut dropped = set(&take_strings(container, "CapabilityDrop"));
    let (mut add, mut drop) = (set(add), set(drop));
    if add.remove("RESET") {
        added.clear();
    }
    if drop.remove("RESET") {
        dropped.clear();
    }
    for capability in drop.difference(&add) {
        if !added.remove(capability) {
            dropped.insert(capability.clone());
        }
    }
    for capability in add {
        if !dropped.remove(&capability) {
            added.insert(capability);
        }
    }
    for (key, set) in [("CapabilityAdd", added), ("CapabilityDrop", dropped)] {
        let list: Vec<String> = if set.contains("ALL") {
            vec!["ALL".into()]
        } else {
            set.into_iter().collect()
        };
        put(container, key, list);
    }
}

/// Secrets and configs, and the config that a credential spec needs.
async fn files(api: &Api, container: &mut Map<String, Value>, args: &UpdateArgs) -> Result {
    let mut secrets = take_array(container, "Secrets");
    secrets.retain(|secret| {
        !args
            .secret_rm
            .iter()
            .any(|name| name == text(secret, "/SecretName"))
    });
    secrets.extend(lookup::references(api, References::Secrets, &args.secret_add).await?);
    put(container, "Secrets", secrets);

    let credential = args.common.credential_spec.as_ref();
    let wanted = match credential {
        Some(CredentialSpec::Config(name)) => Some(name.as_str()),
        _ => None,
    };
    let current = container
        .get("Privileges")
        .map(|privileges| text(privileges, "/CredentialSpec/Config"))
        .filter(|id| !id.is_empty() && credential.is_none())
        .map(str::to_owned);
    let mut configs = take_array(container, "Configs");
    configs.retain(|config| {
        if config["Runtime"].is_object() {
            // Kept only while a credential spec still names it.
            current.as_deref() == Some(text(config, "/ConfigID"))
                || wanted == Some(text(config, "/ConfigName"))
        } else {
            !args
                .config_rm
                .iter()
                .any(|name| name == text(config, "/ConfigName"))
        }
    });
    configs.extend(lookup::references(api, References::Configs, &args.config_add).await?);
    let mut config_id = String::new();
    if let Some(name) = wanted {
        let known = configs
            .iter()
            .find(|config| config["Runtime"].is_object() && text(config, "/ConfigName") == name);
        let reference = if let Some(known) = known {
            known.clone()
        } else {
            let reference = lookup::runtime_config(api, name).await?;
            configs.push(reference.clone());
            reference
        };
        text(&reference, "/ConfigID").clone_into(&mut config_id);
    }
    put(container, "Configs", configs);
    match credential {
        None => {}
        Some(CredentialSpec::None) => {
            if let Some(Value::Object(privileges)) = container.get_mut("Privileges") {
                privileges.insert("CredentialSpec".into(), Value::Null);
            }
        }
        Some(credential) => {
            let credential = credential.to_json(&config_id);
            match container.get_mut("Privileges") {
                Some(Value::Object(privileges)) => {
                    privileges.insert("CredentialSpec".into(), credential);
                }
                _ => {
                    container.insert("Privileges".into(), spec::privileges(&credential));
                }
            }
        }
    }
    Ok(())
}
