//! What a Compose file can say, by the schema that Docker's stacks have (version 3.13).

use std::collections::BTreeMap;

use super::{
    field::{Count, Field, Named, sections},
    node::{Fault, Node},
    values::{
        Attachments, External, FileUse, Hosts, Keyed, Loose, Mount, Options, Pairs, Port, Test,
        Texts, Ulimit, Variables, Words,
    },
};
use crate::opts::{Bytes, GoDuration};

sections! {
    /// A whole file, or several laid over each other.
    Project: extensions {
        version: String = "version";
        services: Named<Service> = "services";
        networks: Objects<Network> = "networks";
        volumes: Objects<Volume> = "volumes";
        secrets: Objects<FileObject> = "secrets";
        configs: Objects<FileObject> = "configs";
    }

    Service: extensions {
        build: Build = "build";
        cap_add: Vec<String> = "cap_add";
        cap_drop: Vec<String> = "cap_drop";
        cgroupns_mode: String = "cgroupns_mode";
        cgroup_parent: String = "cgroup_parent";
        command: Words = "command";
        configs: Keyed<FileUse> = "configs";
        container_name: String = "container_name";
        credential_spec: CredentialSpec = "credential_spec";
        depends_on: Vec<String> = "depends_on";
        deploy: Deploy = "deploy";
        devices: Vec<String> = "devices";
        dns: Texts = "dns";
        dns_search: Texts = "dns_search";
        domainname: String = "domainname";
        entrypoint: Words = "entrypoint";
        environment: Variables = "environment";
        env_file: Texts = "env_file";
        expose: Vec<Loose> = "expose";
        external_links: Vec<String> = "external_links";
        extra_hosts: Hosts = "extra_hosts";
        hostname: String = "hostname";
        healthcheck: Option<HealthCheck> = "healthcheck";
        image: String = "image";
        init: Option<bool> = "init";
        ipc: String = "ipc";
        isolation: String = "isolation";
        labels: Pairs = "labels";
        links: Vec<String> = "links";
        logging: Logging = "logging";
        mac_address: String = "mac_address";
        network_mode: String = "network_mode";
        networks: Attachments = "networks";
        pid: Option<String> = "pid";
        ports: Keyed<Port> = "ports";
        privileged: bool = "privileged";
        read_only: bool = "read_only";
        restart: String = "restart";
        secrets: Keyed<FileUse> = "secrets";
        security_opt: Vec<String> = "security_opt";
        shm_size: Loose = "shm_size";
        stdin_open: bool = "stdin_open";
        stop_grace_period: Option<GoDuration> = "stop_grace_period";
        stop_signal: String = "stop_signal";
        sysctls: Pairs = "sysctls";
        tmpfs: Texts = "tmpfs";
        tty: bool = "tty";
        ulimits: Named<Ulimit> = "ulimits";
        user: String = "user";
        oom_score_adj: i64 = "oom_score_adj";
        userns_mode: String = "userns_mode";
        volumes: Keyed<Mount> = "volumes";
        working_dir: String = "working_dir";
    }

    CredentialSpec {
        config: String = "config";
        file: String = "file";
        registry: String = "registry";
    }

    Deploy: nullable {
        mode: String = "mode";
        replicas: Option<Count> = "replicas";
        labels: Pairs = "labels";
        update_config: Option<UpdateConfig> = "update_config";
        rollback_config: Option<UpdateConfig> = "rollback_config";
        resources: Resources = "resources";
        restart_policy: Option<RestartPolicy> = "restart_policy";
        placement: Placement = "placement";
        endpoint_mode: String = "endpoint_mode";
    }

    HealthCheck {
        test: Test = "test";
        timeout: Option<GoDuration> = "timeout";
        interval: Option<GoDuration> = "interval";
        retries: Option<Count> = "retries";
        start_period: Option<GoDuration> = "start_period";
        start_interval: Option<GoDuration> = "start_interval";
        disable: bool = "disable";
    }

    UpdateConfig {
        parallelism: Option<Count> = "parallelism";
        delay: GoDuration = "delay";
        failure_action: String = "failure_action";
        monitor: GoDuration = "monitor";
        max_failure_ratio: f32 = "max_failure_ratio";
        order: Order = "order";
    }

    Resources {
        limits: Option<Limits> = "limits";
        reservations: Option<Reservations> = "reservations";
    }

    Limits {
        cpus: String = "cpus";
        memory: Bytes = "memory";
        pids: i64 = "pids";
    }

    Reservations {
        cpus: String = "cpus";
        memory: Bytes = "memory";
        generic_resources: Vec<GenericResource> = "generic_resources";
    }

    GenericResource {
        discrete: Option<DiscreteResource> = "discrete_resource_spec";
    }

    DiscreteResource {
        kind: String = "kind";
        value: i64 = "value";
    }

    RestartPolicy {
        condition: String = "condition";
        delay: Option<GoDuration> = "delay";
        max_attempts: Option<Count> = "max_attempts";
        window: Option<GoDuration> = "window";
    }

    Placement {
        constraints: Vec<String> = "constraints";
        preferences: Vec<Preference> = "preferences";
        max_replicas_per_node: u64 = "max_replicas_per_node";
    }

    Preference { spread: String = "spread"; }

    ServiceNetwork {
        aliases: Vec<String> = "aliases";
        driver_opts: Options = "driver_opts";
        ipv4_address: String = "ipv4_address";
        ipv6_address: String = "ipv6_address";
    }

    Network: nullable extensions {
        name: String = "name";
        driver: String = "driver";
        driver_opts: Options = "driver_opts";
        ipam: Ipam = "ipam";
        external: External = "external";
        internal: bool = "internal";
        attachable: bool = "attachable";
        labels: Pairs = "labels";
    }

    Ipam {
        driver: String = "driver";
        config: Vec<IpamPool> = "config";
    }

    IpamPool { subnet: String = "subnet"; }

    Volume: nullable extensions {
        name: String = "name";
        driver: String = "driver";
        driver_opts: Options = "driver_opts";
        external: External = "external";
        labels: Pairs = "labels";
    }

    /// A secret or config.
    FileObject: extensions {
        name: String = "name";
        file: String = "file";
        external: External = "external";
        labels: Pairs = "labels";
        driver: String = "driver";
        driver_opts: Options = "driver_opts";
        template_driver: String = "template_driver";
    }
}

/// The options of a build, which a stack ignores; a text is its context.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Build(BuildOptions);

sections! {
    BuildOptions: open {
        context: String = "context";
        dockerfile: String = "dockerfile";
        args: Variables = "args";
        labels: Pairs = "labels";
        cache_from: Texts = "cache_from";
        extra_hosts: Hosts = "extra_hosts";
        network: String = "network";
        target: String = "target";
    }
}

impl Field for Build {
    fn read(node: &Node) -> Result<Self, Fault> {
        let Some(context) = node.as_text() else {
            return BuildOptions::read(node).map(Self);
        };
        Ok(Self(BuildOptions {
            context: context.to_owned(),
            ..BuildOptions::default()
        }))
    }

    fn merge(&mut self, over: Self) {
        self.0.merge(over.0);
    }

    fn write(&self) -> Node {
        self.0.write()
    }
}

/// Where a task's output goes. Options of another driver are not mixed in.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Logging(pub(crate) Option<LogDriver>);

sections! {
    LogDriver {
        driver: String = "driver";
        options: Options = "options";
    }
}

impl Field for Logging {
    fn read(node: &Node) -> Result<Self, Fault> {
        LogDriver::read(node).map(|driver| Self(Some(driver)))
    }

    fn merge(&mut self, over: Self) {
        match (&mut self.0, over.0) {
            (Some(base), Some(over))
                if base.driver == over.driver
                    || base.driver.is_empty()
                    || over.driver.is_empty() =>
            {
                base.merge(over);
            }
            (_, None) => {}
            (base, over) => *base = over,
        }
    }

    fn write(&self) -> Node {
        self.0.write()
    }
}

/// Which comes first in an update: the new task or the end of the old one.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Order(pub(crate) String);

impl Field for Order {
    fn read(node: &Node) -> Result<Self, Fault> {
        match node.as_text() {
            Some(order @ ("start-first" | "stop-first")) => Ok(Self(order.to_owned())),
            _ => Err(node.fault("must be one of the following: \"start-first\", \"stop-first\"")),
        }
    }

    fn write(&self) -> Node {
        self.0.write()
    }
}

/// Networks, volumes, secrets or configs: a later file replaces one as a whole.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Objects<T>(pub(crate) BTreeMap<String, T>);

impl<T: Field> Field for Objects<T> {
    fn read(node: &Node) -> Result<Self, Fault> {
        Named::read(node).map(|named| Self(named.0))
    }

    fn merge(&mut self, over: Self) {
        self.0.extend(over.0);
    }

    fn write(&self) -> Node {
        super::field::sorted(self.0.iter().map(|(name, object)| (name, object.write())))
    }
}
