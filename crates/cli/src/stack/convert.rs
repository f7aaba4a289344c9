//! A project's objects in the API's words, under the names that they have in the cluster (docker/cli `cli/compose/convert`).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::compose::{
    self, CredentialSpec, Deploy, FileObject, FileUse, HealthCheck, LogDriver, Mount, Network,
    Port, Project, Resources, RestartPolicy, Service, UpdateConfig, Volume,
};
use crate::{
    json::{put, ratio},
    opts::{Bytes, FileReference, GoDuration, NanoCpus, Ulimit, list},
};

/// On everything that a stack has.
pub(super) const NAMESPACE: &str = "com.docker.stack.namespace";
/// On services: their image as the file names it.
pub(super) const IMAGE: &str = "com.docker.stack.image";
/// The network of services that name none.
const DEFAULT_NETWORK: &str = "default";

/// Why an object cannot be made, without its name.
pub(super) type Result<T, E = String> = std::result::Result<T, E>;

/// A stack, which lends its objects its name.
pub(super) struct Stack<'a>(pub(super) &'a str);

impl Stack<'_> {
    pub(super) fn scope(&self, name: &str) -> String {
        format!("{}_{name}", self.0)
    }

    /// The name that an object was given, else its own in the stack.
    fn name(&self, given: &str, own: &str) -> String {
        if given.is_empty() {
            self.scope(own)
        } else {
            given.to_owned()
        }
    }

    fn labels(&self, labels: &BTreeMap<String, String>) -> Value {
        let mut labels = labels.clone();
        labels.insert(NAMESPACE.to_owned(), self.0.to_owned());
        json!(labels)
    }

    /// The networks that services use: those to make, and the names of those that must be there.
    pub(super) fn networks(&self, project: &Project) -> (Vec<Value>, Vec<String>) {
        let (mut made, mut external) = (Vec::new(), Vec::new());
        for name in used_networks(project) {
            let network = project.networks.0.get(name);
            let unnamed = Network::default();
            let network = network.unwrap_or(&unnamed);
            if network.external.external {
                external.push(network.name.clone());
            } else {
                made.push(self.network(name, network));
            }
        }
        (made, external)
    }

    fn network(&self, name: &str, network: &Network) -> Value {
        let driver = match network.driver.as_str() {
            "" => "overlay",
            driver => driver,
        };
        let mut body = json!({
            "Name": self.name(&network.name, name),
            "Driver": driver,
            "Options": network.driver_opts.0,
            "Internal": network.internal,
            "Attachable": network.attachable,
            "Labels": self.labels(&network.labels.0),
        });
        let ipam = &network.ipam;
        if !ipam.driver.is_empty() || !ipam.config.is_empty() {
            let pools = ipam
                .config
                .iter()
                .map(|pool| json!({"Subnet": pool.subnet}));
            body["IPAM"] = json!({"Driver": ipam.driver, "Config": pools.collect::<Vec<_>>()});
        }
        body
    }

    /// A secret or config that the stack makes.
    pub(super) fn file_object(&self, name: &str, object: &FileObject) -> Result<Value> {
        let mut spec = json!({
            "Name": self.name(&object.name, name),
            "Labels": self.labels(&object.labels.0),
        });
        if object.driver.is_empty() {
            spec["Data"] = crate::object::read(&object.file)
                .map_err(|error| error.to_string())?
                .into();
        } else {
            spec["Driver"] = json!({"Name": object.driver, "Options": object.driver_opts.0});
        }
        if !object.template_driver.is_empty() {
            spec["Templating"] = json!({ "Name": object.template_driver });
        }
        Ok(spec)
    }

    /// What a service uses of `objects`, as files.
    pub(super) fn file_references(
        &self,
        kind: &str,
        uses: &[FileUse],
        objects: &BTreeMap<String, FileObject>,
    ) -> Result<Vec<FileReference>> {
        let or_zero = |id: &str| if id.is_empty() { "0" } else { id }.to_owned();
        uses.iter()
            .map(|used| {
                let target = match used.target.as_str() {
                    "" => &used.source,
                    _ => &used.target,
                };
                Ok(FileReference {
                    source: self.object_name(kind, &used.source, objects)?,
                    target: target.clone(),
                    uid: or_zero(&used.uid),
                    gid: or_zero(&used.gid),
                    mode: used.mode.unwrap_or(0o444),
                })
            })
            .collect()
    }

    /// The name in the cluster of a secret or config of the file.
    pub(super) fn object_name(
        &self,
        kind: &str,
        name: &str,
        objects: &BTreeMap<String, FileObject>,
    ) -> Result<String> {
        let object = objects
            .get(name)
            .ok_or_else(|| format!("undefined {kind} {name:?}"))?;
        Ok(self.name(&object.name, name))
    }

    /// The spec of a service, but for its secrets and configs.
    pub(super) fn service(
        &self,
        name: &str,
        service: &Service,
        project: &Project,
    ) -> Result<Value> {
        let deploy = &service.deploy;
        let mut labels = self.labels(&deploy.labels.0);
        labels[IMAGE] = service.image.as_str().into();
        let mut task = Map::new();
        task.insert("ContainerSpec".into(), self.container(service, project)?);
        if let Some(driver) = &service.logging.0 {
            task.insert("LogDriver".into(), log_driver(driver));
        }
        task.insert("Resources".into(), resources(&deploy.resources)?);
        if let Some(policy) = restart(&service.restart, deploy.restart_policy.as_ref())? {
            task.insert("RestartPolicy".into(), policy);
        }
        task.insert("Placement".into(), placement(deploy));
        task.insert("Networks".into(), self.attachments(name, service, project)?);
        task.insert("ForceUpdate".into(), 0.into());
        let mut spec = json!({
            "Name": self.scope(name),
            "Labels": labels,
            "TaskTemplate": task,
            "Mode": mode(deploy)?,
            "EndpointSpec": endpoint(&deploy.endpoint_mode, &service.ports.0),
        });
        for (key, config) in [
            ("UpdateConfig", &deploy.update_config),
            ("RollbackConfig", &deploy.rollback_config),
        ] {
            if let Some(config) = config {
                spec[key] = update(config);
            }
        }
        Ok(spec)
    }

    fn container(&self, service: &Service, project: &Project) -> Result<Value> {
        let mut spec = Map::new();
        put(&mut spec, "Image", service.image.as_str());
        put(&mut spec, "Command", service.entrypoint.0.clone());
        put(&mut spec, "Args", service.command.0.clone());
        put(&mut spec, "Hostname", service.hostname.as_str());
        let hosts = service.extra_hosts.0.iter();
        let hosts: Vec<String> = hosts.filter_map(|host| list::hosts_line(host)).collect();
        put(&mut spec, "Hosts", hosts);
        if !service.dns.0.is_empty() || !service.dns_search.0.is_empty() {
            let mut dns = Map::new();
            put(&mut dns, "Nameservers", service.dns.0.clone());
            put(&mut dns, "Search", service.dns_search.0.clone());
            spec.insert("DNSConfig".into(), Value::Object(dns));
        }
        if let Some(health) = &service.healthcheck {
            spec.insert("Healthcheck".into(), healthcheck(health)?);
        }
        let variables = service.environment.0.iter();
        let variables: Vec<String> = variables
            .map(|(name, value)| match value {
                Some(value) => format!("{name}={value}"),
                None => name.clone(),
            })
            .collect();
        put(&mut spec, "Env", variables);
        spec.insert("Labels".into(), self.labels(&service.labels.0));
        put(&mut spec, "Dir", service.working_dir.as_str());
        put(&mut spec, "User", service.user.as_str());
        let mounts = service.volumes.0.iter();
        let mounts: Vec<Value> = mounts
            .map(|mount| self.mount(mount, &project.volumes.0))
            .collect::<Result<_>>()?;
        put(&mut spec, "Mounts", mounts);
        if let Some(GoDuration(grace)) = service.stop_grace_period {
            spec.insert("StopGracePeriod".into(), grace.into());
        }
        put(&mut spec, "StopSignal", service.stop_signal.as_str());
        put(&mut spec, "TTY", service.tty);
        put(&mut spec, "OpenStdin", service.stdin_open);
        put(&mut spec, "ReadOnly", service.read_only);
        put(&mut spec, "Isolation", service.isolation.as_str());
        if let Some(init) = service.init {
            spec.insert("Init".into(), init.into());
        }
        put(&mut spec, "Sysctls", json!(service.sysctls.0));
        let (add, drop) = list::capabilities(&service.cap_add, &service.cap_drop);
        put(&mut spec, "CapabilityAdd", add);
        put(&mut spec, "CapabilityDrop", drop);
        let ulimits = service.ulimits.0.iter();
        let ulimits: Vec<Value> = ulimits
            .map(|(name, limit)| {
                let (name, soft, hard) = (name.clone(), limit.soft, limit.hard);
                Ulimit { name, soft, hard }.to_json()
            })
            .collect();
        put(&mut spec, "Ulimits", ulimits);
        put(&mut spec, "OomScoreAdj", service.oom_score_adj);
        Ok(Value::Object(spec))
    }

    /// The networks of a service, each with the service's own name as its last alias.
    fn attachments(&self, own: &str, service: &Service, project: &Project) -> Result<Value> {
        let mut attachments = Vec::new();
        for name in networks_of(service) {
            let network = project.networks.0.get(name);
            if network.is_none() && name != DEFAULT_NETWORK {
                return Err(format!("undefined network {name:?}"));
            }
            let target = self.name(network.map_or("", |network| &network.name), name);
            let used = service.networks.0.get(name).and_then(Option::as_ref);
            let mut aliases = used.map(|used| used.aliases.clone()).unwrap_or_default();
            if is_user_defined(&target) {
                aliases.push(own.to_owned());
            }
            let mut attachment = Map::new();
            put(&mut attachment, "Target", target.as_str());
            put(&mut attachment, "Aliases", aliases);
            let options = used.map(|used| &used.driver_opts.0);
            put(&mut attachment, "DriverOpts", json!(options));
            attachments.push((target, Value::Object(attachment)));
        }
        attachments.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(attachments
            .into_iter()
            .map(|(_, network)| network)
            .collect())
    }

    fn mount(&self, mount: &Mount, volumes: &BTreeMap<String, Volume>) -> Result<Value> {
        let kind = mount.kind.as_str();
        let options = [
            ("bind", mount.bind.is_some()),
            ("volume", mount.volume.is_some()),
            ("image", mount.image.is_some()),
            ("tmpfs", mount.tmpfs.is_some()),
            ("cluster", mount.cluster.is_some()),
        ];
        let own = if kind == "npipe" { "bind" } else { kind };
        if let Some((other, _)) = options.iter().find(|(name, given)| *given && *name != own) {
            return Err(format!("{other} options are incompatible with type {kind}"));
        }
        let mut out = Map::new();
        out.insert("Type".into(), kind.into());
        put(&mut out, "Source", mount.source.as_str());
        put(&mut out, "Target", mount.target.as_str());
        put(&mut out, "ReadOnly", mount.read_only);
        put(&mut out, "Consistency", mount.consistency.as_str());
        match kind {
            "tmpfs" if !mount.source.is_empty() => {
                return Err("invalid tmpfs source, source must be empty".to_owned());
            }
            "bind" | "npipe" | "image" | "cluster" if mount.source.is_empty() => {
                return Err(format!("invalid {kind} source, source cannot be empty"));
            }
            "volume" if mount.source.is_empty() => {}
            "volume" => self.volume(&mut out, mount, volumes)?,
            "bind" | "npipe" => {
                if let Some(bind) = &mount.bind {
                    let mut options = Map::new();
                    put(&mut options, "Propagation", bind.propagation.as_str());
                    out.insert("BindOptions".into(), Value::Object(options));
                }
            }
            "tmpfs" => {
                if let Some(tmpfs) = &mount.tmpfs {
                    let mut options = Map::new();
                    put(&mut options, "SizeBytes", tmpfs.size);
                    out.insert("TmpfsOptions".into(), Value::Object(options));
                }
            }
            "image" => {
                if let Some(image) = &mount.image {
                    let mut options = Map::new();
                    put(&mut options, "Subpath", image.subpath.as_str());
                    out.insert("ImageOptions".into(), Value::Object(options));
                }
            }
            "cluster" => {
                out.insert("ClusterOptions".into(), json!({}));
                if !mount.source.starts_with("group:") {
                    let volume = defined(volumes, &mount.source)?;
                    out["Source"] = self.name(&volume.name, &mount.source).into();
                }
            }
            _ => {
                return Err("volume type must be volume, bind, tmpfs, npipe, or cluster".to_owned());
            }
        }
        Ok(Value::Object(out))
    }

    fn volume(
        &self,
        out: &mut Map<String, Value>,
        mount: &Mount,
        volumes: &BTreeMap<String, Volume>,
    ) -> Result<()> {
        let volume = defined(volumes, &mount.source)?;
        out["Source"] = self.name(&volume.name, &mount.source).into();
        let mut options = Map::new();
        if let Some(given) = &mount.volume {
            put(&mut options, "NoCopy", given.no_copy);
            put(&mut options, "Subpath", given.subpath.as_str());
        }
        if !volume.external.external {
            options.insert("Labels".into(), self.labels(&volume.labels.0));
            if !volume.driver.is_empty() || !volume.driver_opts.0.is_empty() {
                let mut driver = Map::new();
                put(&mut driver, "Name", volume.driver.as_str());
                put(&mut driver, "Options", json!(volume.driver_opts.0));
                options.insert("DriverConfig".into(), Value::Object(driver));
            }
        }
        out.insert("VolumeOptions".into(), Value::Object(options));
        Ok(())
    }
}

fn defined<'a>(volumes: &'a BTreeMap<String, Volume>, name: &str) -> Result<&'a Volume> {
    volumes
        .get(name)
        .ok_or_else(|| format!("undefined volume {name:?}"))
}

fn networks_of(service: &Service) -> Vec<&str> {
    if service.networks.0.is_empty() {
        return vec![DEFAULT_NETWORK];
    }
    service.networks.0.keys().map(String::as_str).collect()
}

fn used_networks(project: &Project) -> BTreeSet<&str> {
    let services = project.services.0.values();
    services.flat_map(networks_of).collect()
}

/// Whether the network is none that every node has by itself.
pub(super) fn is_user_defined(network: &str) -> bool {
    !matches!(network, "bridge" | "host" | "none" | "default" | "nat")
        && !network.starts_with("container:")
}

fn log_driver(driver: &LogDriver) -> Value {
    let mut out = Map::new();
    put(&mut out, "Name", driver.driver.as_str());
    put(&mut out, "Options", json!(driver.options.0));
    Value::Object(out)
}

fn nanos(duration: Option<GoDuration>) -> i64 {
    duration.unwrap_or_default().0
}

fn healthcheck(health: &HealthCheck) -> Result<Value> {
    if health.disable {
        return if health.test.0.is_empty() {
            Ok(json!({"Test": ["NONE"]}))
        } else {
            Err("test and disable can't be set at the same time".to_owned())
        };
    }
    let mut out = Map::new();
    put(&mut out, "Test", health.test.0.clone());
    put(&mut out, "Interval", nanos(health.interval));
    put(&mut out, "Timeout", nanos(health.timeout));
    put(&mut out, "StartPeriod", nanos(health.start_period));
    put(&mut out, "StartInterval", nanos(health.start_interval));
    put(&mut out, "Retries", health.retries.unwrap_or_default().0);
    Ok(Value::Object(out))
}

fn cpus(text: &str) -> Result<i64> {
    if text.is_empty() {
        return Ok(0);
    }
    let NanoCpus(cpus) = text
        .parse()
        .map_err(|error: crate::opts::BadValue| error.to_string())?;
    Ok(cpus)
}

fn resources(resources: &Resources) -> Result<Value> {
    let mut out = Map::new();
    let amounts = |cpu: &str, Bytes(memory): Bytes| {
        let mut amounts = Map::new();
        put(&mut amounts, "NanoCPUs", cpus(cpu)?);
        put(&mut amounts, "MemoryBytes", memory);
        Ok::<_, String>(amounts)
    };
    if let Some(given) = &resources.limits {
        let mut limits = amounts(&given.cpus, given.memory)?;
        put(&mut limits, "Pids", given.pids);
        out.insert("Limits".into(), Value::Object(limits));
    }
    if let Some(given) = &resources.reservations {
        let mut reservations = amounts(&given.cpus, given.memory)?;
        let generic = given.generic_resources.iter();
        let generic: Vec<Value> = generic
            .filter_map(|resource| resource.discrete.as_ref())
            .map(|discrete| {
                json!({"DiscreteResourceSpec": {"Kind": discrete.kind, "Value": discrete.value}})
            })
            .collect();
        put(&mut reservations, "GenericResources", generic);
        out.insert("Reservations".into(), Value::Object(reservations));
    }
    Ok(Value::Object(out))
}

/// The policy of `deploy`, else what `restart` of a single container means here.
fn restart(restart: &str, policy: Option<&RestartPolicy>) -> Result<Option<Value>> {
    let mut out = Map::new();
    if let Some(policy) = policy {
        put(&mut out, "Condition", policy.condition.as_str());
        for (key, duration) in [("Delay", policy.delay), ("Window", policy.window)] {
            if let Some(GoDuration(nanos)) = duration {
                out.insert(key.into(), nanos.into());
            }
        }
        if let Some(compose::Count(attempts)) = policy.max_attempts {
            out.insert("MaxAttempts".into(), attempts.into());
        }
        return Ok(Some(Value::Object(out)));
    }
    let (name, attempts) = restart.split_once(':').unwrap_or((restart, ""));
    let condition = match name {
        "" | "no" => return Ok(None),
        "always" | "unless-stopped" => "any",
        "on-failure" => "on-failure",
        _ => {
            return Err(format!(
                "invalid restart policy: unknown policy '{name}' (must be one of 'no', 'always', 'on-failure', or 'unless-stopped')"
            ));
        }
    };
    out.insert("Condition".into(), condition.into());
    if !attempts.is_empty() {
        let most: u64 = attempts.parse().map_err(|_| {
            "invalid restart policy format: maximum retry count must be an integer".to_owned()
        })?;
        put(&mut out, "MaxAttempts", most);
    }
    Ok(Some(Value::Object(out)))
}

fn placement(deploy: &Deploy) -> Value {
    let mut out = Map::new();
    let placement = &deploy.placement;
    put(&mut out, "Constraints", placement.constraints.clone());
    let preferences = placement.preferences.iter();
    let preferences: Vec<Value> = preferences
        .map(|preference| json!({"Spread": {"SpreadDescriptor": preference.spread}}))
        .collect();
    put(&mut out, "Preferences", preferences);
    put(&mut out, "MaxReplicas", placement.max_replicas_per_node);
    Value::Object(out)
}

fn mode(deploy: &Deploy) -> Result<Value> {
    let replicas = deploy.replicas.map(|count| count.0);
    let refused = || Err("replicas can only be used with replicated or replicated-job mode".into());
    match deploy.mode.as_str() {
        "global" | "global-job" if replicas.is_some() => refused(),
        "global" => Ok(json!({"Global": {}})),
        "global-job" => Ok(json!({"GlobalJob": {}})),
        "replicated" | "" => Ok(match replicas {
            Some(replicas) => json!({"Replicated": {"Replicas": replicas}}),
            None => json!({"Replicated": {}}),
        }),
        "replicated-job" => Ok(match replicas {
            Some(n) => json!({"ReplicatedJob": {"MaxConcurrent": n, "TotalCompletions": n}}),
            None => json!({"ReplicatedJob": {}}),
        }),
        other => Err(format!("unknown mode: {other}")),
    }
}

fn endpoint(mode: &str, ports: &[Port]) -> Value {
    let mut ports: Vec<&Port> = ports.iter().collect();
    ports.sort_by_key(|port| (port.published, port.target, &port.protocol));
    let ports: Vec<Value> = ports
        .into_iter()
        .map(|port| {
            let mut out = Map::new();
            put(&mut out, "Protocol", port.protocol.as_str());
            put(&mut out, "TargetPort", port.target);
            put(&mut out, "PublishedPort", port.published);
            put(&mut out, "PublishMode", port.mode.as_str());
            Value::Object(out)
        })
        .collect();
    let mut out = Map::new();
    put(&mut out, "Mode", mode.to_lowercase());
    put(&mut out, "Ports", ports);
    Value::Object(out)
}

fn update(config: &UpdateConfig) -> Value {
    let mut out = Map::new();
    let parallelism = config.parallelism.map_or(1, |count| count.0);
    out.insert("Parallelism".into(), parallelism.into());
    put(&mut out, "Delay", config.delay.0);
    put(&mut out, "FailureAction", config.failure_action.as_str());
    put(&mut out, "Monitor", config.monitor.0);
    out.insert("MaxFailureRatio".into(), ratio(config.max_failure_ratio));
    put(&mut out, "Order", config.order.0.as_str());
    Value::Object(out)
}

/// The credential spec, where `config` is the id of the config that it names.
pub(super) fn credential_spec(spec: &CredentialSpec, config: &str) -> Result<Option<Value>> {
    let given: Vec<&str> = [
        ("\"Config\"", &spec.config),
        ("\"File\"", &spec.file),
        ("\"Registry\"", &spec.registry),
    ]
    .into_iter()
    .filter_map(|(name, value)| (!value.is_empty()).then_some(name))
    .collect();
    match given.as_slice() {
        [] => Ok(None),
        [_] => Ok(Some(
            json!({"Config": config, "File": spec.file, "Registry": spec.registry}),
        )),
        [first, second] => Err(format!(
            "invalid credential spec: cannot specify both {first} and {second}"
        )),
        _ => Err(format!(
            "invalid credential spec: cannot specify both {}",
            given.join(", and ")
        )),
    }
}
