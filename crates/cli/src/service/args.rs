//! The flags of `service create` and `service update`, word for word Docker's.

use std::path::PathBuf;

use clap::Args;

use crate::opts::{
    Bytes, FileReference, GoDuration, Mount, NanoCpus, NetworkAttachment, Ports, PositiveDuration,
    ShellWords, Ulimit, float32, generic, int, list, uint,
};

/// Flags that both commands have.
#[derive(Debug, Args, Default)]
pub(crate) struct Common {
    /// Add Linux capabilities
    #[arg(long, value_name = "list")]
    pub(crate) cap_add: Vec<String>,
    /// Drop Linux capabilities
    #[arg(long, value_name = "list")]
    pub(crate) cap_drop: Vec<String>,
    /// Credential spec for managed service account (Windows only)
    #[arg(long, value_name = "credential-spec")]
    pub(crate) credential_spec: Option<CredentialSpec>,
    /// Exit immediately instead of waiting for the service to converge
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Endpoint mode (vip or dnsrr)
    #[arg(long, value_name = "string")]
    pub(crate) endpoint_mode: Option<String>,
    /// Overwrite the default ENTRYPOINT of the image
    #[arg(long, value_name = "command")]
    pub(crate) entrypoint: Option<ShellWords>,
    /// Command to run to check health
    #[arg(long, value_name = "string")]
    pub(crate) health_cmd: Option<String>,
    /// Time between running the check (ms|s|m|h)
    #[arg(long, value_name = "duration", allow_hyphen_values = true)]
    pub(crate) health_interval: Option<PositiveDuration>,
    /// Consecutive failures needed to report unhealthy
    #[arg(long, value_name = "int", value_parser = int, allow_hyphen_values = true)]
    pub(crate) health_retries: Option<i64>,
    /// Time between running the check during the start period (ms|s|m|h)
    #[arg(long, value_name = "duration", allow_hyphen_values = true)]
    pub(crate) health_start_interval: Option<PositiveDuration>,
    /// Start period for the container to initialize before counting retries towards unstable (ms|s|m|h)
    #[arg(long, value_name = "duration", allow_hyphen_values = true)]
    pub(crate) health_start_period: Option<PositiveDuration>,
    /// Maximum time to allow one check to run (ms|s|m|h)
    #[arg(long, value_name = "duration", allow_hyphen_values = true)]
    pub(crate) health_timeout: Option<PositiveDuration>,
    /// Container hostname
    #[arg(long, value_name = "string")]
    pub(crate) hostname: Option<String>,
    /// Use an init inside each service container to forward signals and reap processes
    #[arg(long, value_name = "bool", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub(crate) init: Option<bool>,
    /// Service container isolation mode
    #[arg(long, value_name = "string")]
    pub(crate) isolation: Option<String>,
    /// Limit CPUs
    #[arg(long, value_name = "decimal")]
    pub(crate) limit_cpu: Option<NanoCpus>,
    /// Limit Memory
    #[arg(long, value_name = "bytes")]
    pub(crate) limit_memory: Option<Bytes>,
    /// Limit maximum number of processes (default 0 = unlimited)
    #[arg(long, value_name = "int", value_parser = int, allow_hyphen_values = true)]
    pub(crate) limit_pids: Option<i64>,
    /// Logging driver for service
    #[arg(long, value_name = "string")]
    pub(crate) log_driver: Option<String>,
    /// Logging driver options
    #[arg(long, value_name = "list", value_parser = list::env)]
    pub(crate) log_opt: Vec<String>,
    /// Number of job tasks to run concurrently (default equal to --replicas)
    #[arg(long, value_name = "uint", value_parser = uint, allow_hyphen_values = true)]
    pub(crate) max_concurrent: Option<u64>,
    /// Swap Bytes (-1 for unlimited)
    #[arg(long, value_name = "bytes", allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<Bytes>,
    /// Tune memory swappiness (0-100), -1 to reset to default
    #[arg(long, value_name = "int", value_parser = int, allow_hyphen_values = true)]
    pub(crate) memory_swappiness: Option<i64>,
    /// Disable any container-specified HEALTHCHECK
    #[arg(long)]
    pub(crate) no_healthcheck: bool,
    /// Do not query the registry to resolve image digest and supported platforms
    #[arg(long)]
    pub(crate) no_resolve_image: bool,
    /// Tune host's OOM preferences (-1000 to 1000)
    #[arg(long, value_name = "int", value_parser = int, allow_hyphen_values = true)]
    pub(crate) oom_score_adj: Option<i64>,
    /// Suppress progress output
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Mount the container's root filesystem as read only
    #[arg(long, value_name = "bool", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub(crate) read_only: Option<bool>,
    /// Number of tasks
    #[arg(long, value_name = "uint", value_parser = uint, allow_hyphen_values = true)]
    pub(crate) replicas: Option<u64>,
    /// Maximum number of tasks per node (default 0 = unlimited)
    #[arg(long, value_name = "uint", value_parser = uint, allow_hyphen_values = true)]
    pub(crate) replicas_max_per_node: Option<u64>,
    /// Reserve CPUs
    #[arg(long, value_name = "decimal")]
    pub(crate) reserve_cpu: Option<NanoCpus>,
    /// Reserve Memory
    #[arg(long, value_name = "bytes")]
    pub(crate) reserve_memory: Option<Bytes>,
    /// Restart when condition is met ("none", "on-failure", "any")
    #[arg(long, value_name = "string")]
    pub(crate) restart_condition: Option<String>,
    /// Delay between restart attempts (ns|us|ms|s|m|h)
    #[arg(long, value_name = "duration", allow_hyphen_values = true)]
    pub(crate) restart_delay: Option<GoDuration>,
    /// Maximum number of restarts before giving up
    #[arg(long, value_name = "uint", value_parser = uint, allow_hyphen_values = true)]
    pub(crate) restart_max_attempts: Option<u64>,
    /// Window used to evaluate the restart policy (ns|us|ms|s|m|h)
    #[arg(long, value_name = "duration", allow_hyphen_values = true)]
    pub(crate) restart_window: Option<GoDuration>,
    #[command(flatten)]
    pub(crate) rollback_config: RollbackFlags,
    /// Time to wait before force killing a container (ns|us|ms|s|m|h)
    #[arg(long, value_name = "duration", allow_hyphen_values = true)]
    pub(crate) stop_grace_period: Option<GoDuration>,
    /// Signal to stop the container
    #[arg(long, value_name = "string")]
    pub(crate) stop_signal: Option<String>,
    /// Allocate a pseudo-TTY
    #[arg(short, long, value_name = "bool", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub(crate) tty: Option<bool>,
    #[command(flatten)]
    pub(crate) update_config: UpdateFlags,
    /// Username or UID (format: <name|uid>[:<group|gid>])
    #[arg(short, long, value_name = "string")]
    pub(crate) user: Option<String>,
    /// Send registry authentication details to swarm agents
    #[arg(long)]
    pub(crate) with_registry_auth: bool,
    /// Working directory inside the container
    #[arg(short, long, value_name = "string")]
    pub(crate) workdir: Option<String>,
}

/// How tasks of an older spec are replaced.
#[derive(Debug, Args, Default)]
#[expect(
    clippy::struct_field_names,
    reason = "fields are named as the flags are"
)]
pub(crate) struct UpdateFlags {
    /// Delay between updates (ns|us|ms|s|m|h)
    #[arg(long, value_name = "duration", allow_hyphen_values = true)]
    pub(crate) update_delay: Option<GoDuration>,
    /// Action on update failure ("pause", "continue", "rollback")
    #[arg(long, value_name = "string")]
    pub(crate) update_failure_action: Option<String>,
    /// Failure rate to tolerate during an update
    #[arg(long, value_name = "float", value_parser = float32)]
    pub(crate) update_max_failure_ratio: Option<f32>,
    /// Duration after each task update to monitor for failure (ns|us|ms|s|m|h)
    #[arg(long, value_name = "duration", allow_hyphen_values = true)]
    pub(crate) update_monitor: Option<GoDuration>,
    /// Update order ("start-first", "stop-first")
    #[arg(long, value_name = "string")]
    pub(crate) update_order: Option<String>,
    /// Maximum number of tasks updated simultaneously (0 to update all at once)
    #[arg(long, value_name = "uint", value_parser = uint, allow_hyphen_values = true)]
    pub(crate) update_parallelism: Option<u64>,
}

/// How an update is taken back.
#[derive(Debug, Args, Default)]
#[expect(
    clippy::struct_field_names,
    reason = "fields are named as the flags are"
)]
pub(crate) struct RollbackFlags {
    /// Delay between task rollbacks (ns|us|ms|s|m|h)
    #[arg(long, value_name = "duration", allow_hyphen_values = true)]
    pub(crate) rollback_delay: Option<GoDuration>,
    /// Action on rollback failure ("pause", "continue")
    #[arg(long, value_name = "string")]
    pub(crate) rollback_failure_action: Option<String>,
    /// Failure rate to tolerate during a rollback
    #[arg(long, value_name = "float", value_parser = float32)]
    pub(crate) rollback_max_failure_ratio: Option<f32>,
    /// Duration after each task rollback to monitor for failure (ns|us|ms|s|m|h)
    #[arg(long, value_name = "duration", allow_hyphen_values = true)]
    pub(crate) rollback_monitor: Option<GoDuration>,
    /// Rollback order ("start-first", "stop-first")
    #[arg(long, value_name = "string")]
    pub(crate) rollback_order: Option<String>,
    /// Maximum number of tasks rolled back simultaneously (0 to roll back all at once)
    #[arg(long, value_name = "uint", value_parser = uint, allow_hyphen_values = true)]
    pub(crate) rollback_parallelism: Option<u64>,
}

/// Create a new service
#[derive(Debug, Args)]
#[command(override_usage = "shoal service create [OPTIONS] IMAGE [COMMAND] [ARG...]")]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Specify configurations to expose to the service
    #[arg(long, value_name = "config", value_parser = FileReference::config)]
    pub(crate) config: Vec<FileReference>,
    /// Placement constraints
    #[arg(long, value_name = "list")]
    pub(crate) constraint: Vec<String>,
    /// Container labels
    #[arg(long, value_name = "list", value_parser = list::label)]
    pub(crate) container_label: Vec<String>,
    /// Set custom DNS servers
    #[arg(long, value_name = "list", value_parser = list::ip)]
    pub(crate) dns: Vec<String>,
    /// Set DNS options
    #[arg(long, value_name = "list")]
    pub(crate) dns_option: Vec<String>,
    /// Set custom DNS search domains
    #[arg(long, value_name = "list", value_parser = list::domain)]
    pub(crate) dns_search: Vec<String>,
    /// Set environment variables
    #[arg(short, long, value_name = "list", value_parser = list::env)]
    pub(crate) env: Vec<String>,
    /// Read in a file of environment variables
    #[arg(long, value_name = "list")]
    pub(crate) env_file: Vec<PathBuf>,
    /// User defined resources
    #[arg(long, value_name = "list", value_parser = generic::entry)]
    pub(crate) generic_resource: Vec<String>,
    /// Set one or more supplementary user groups for the container
    #[arg(long, value_name = "list")]
    pub(crate) group: Vec<String>,
    /// Set one or more custom host-to-IP mappings (host:ip)
    #[arg(long, value_name = "list", value_parser = list::extra_host)]
    pub(crate) host: Vec<String>,
    /// Service labels
    #[arg(short, long, value_name = "list", value_parser = list::label)]
    pub(crate) label: Vec<String>,
    /// Service mode ("replicated", "global", "replicated-job", "global-job")
    #[arg(long, value_name = "string", default_value = "replicated")]
    pub(crate) mode: String,
    /// Attach a filesystem mount to the service
    #[arg(long, value_name = "mount")]
    pub(crate) mount: Vec<Mount>,
    /// Service name
    #[arg(long, value_name = "string")]
    pub(crate) name: Option<String>,
    /// Network attachments
    #[arg(long, value_name = "network")]
    pub(crate) network: Vec<NetworkAttachment>,
    /// Add a placement preference
    #[arg(long, value_name = "pref", value_parser = spread)]
    pub(crate) placement_pref: Vec<Spread>,
    /// Publish a port as a node port
    #[arg(short, long, value_name = "port")]
    pub(crate) publish: Vec<Ports>,
    /// Specify secrets to expose to the service
    #[arg(long, value_name = "secret", value_parser = FileReference::secret)]
    pub(crate) secret: Vec<FileReference>,
    /// Sysctl options
    #[arg(long, value_name = "list")]
    pub(crate) sysctl: Vec<String>,
    /// Ulimit options
    #[arg(long, value_name = "ulimit")]
    pub(crate) ulimit: Vec<Ulimit>,
    /// The image, then the command's words: flags end at the image.
    #[arg(hide = true, required = true, value_name = "IMAGE", num_args = 1..)]
    pub(crate) words: Vec<String>,
}

/// Update a service
#[derive(Debug, Args, Default)]
#[command(override_usage = "shoal service update [OPTIONS] SERVICE")]
pub(crate) struct UpdateArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Service command args
    #[arg(long, value_name = "command", allow_hyphen_values = true)]
    pub(crate) args: Option<ShellWords>,
    /// Add or update a config file on a service
    #[arg(long, value_name = "config", value_parser = FileReference::config)]
    pub(crate) config_add: Vec<FileReference>,
    /// Remove a configuration file
    #[arg(long, value_name = "list")]
    pub(crate) config_rm: Vec<String>,
    /// Add or update a placement constraint
    #[arg(long, value_name = "list")]
    pub(crate) constraint_add: Vec<String>,
    /// Remove a constraint
    #[arg(long, value_name = "list")]
    pub(crate) constraint_rm: Vec<String>,
    /// Add or update a container label
    #[arg(long, value_name = "list", value_parser = list::label)]
    pub(crate) container_label_add: Vec<String>,
    /// Remove a container label by its key
    #[arg(long, value_name = "list")]
    pub(crate) container_label_rm: Vec<String>,
    /// Add or update a custom DNS server
    #[arg(long, value_name = "list", value_parser = list::ip)]
    pub(crate) dns_add: Vec<String>,
    /// Add or update a DNS option
    #[arg(long, value_name = "list")]
    pub(crate) dns_option_add: Vec<String>,
    /// Remove a DNS option
    #[arg(long, value_name = "list")]
    pub(crate) dns_option_rm: Vec<String>,
    /// Remove a custom DNS server
    #[arg(long, value_name = "list")]
    pub(crate) dns_rm: Vec<String>,
    /// Add or update a custom DNS search domain
    #[arg(long, value_name = "list", value_parser = list::domain)]
    pub(crate) dns_search_add: Vec<String>,
    /// Remove a DNS search domain
    #[arg(long, value_name = "list")]
    pub(crate) dns_search_rm: Vec<String>,
    /// Add or update an environment variable
    #[arg(long, value_name = "list", value_parser = list::env)]
    pub(crate) env_add: Vec<String>,
    /// Remove an environment variable
    #[arg(long, value_name = "list")]
    pub(crate) env_rm: Vec<String>,
    /// Force update even if no changes require it
    #[arg(long)]
    pub(crate) force: bool,
    /// Add a Generic resource
    #[arg(long, value_name = "list", value_parser = generic::entry)]
    pub(crate) generic_resource_add: Vec<String>,
    /// Remove a Generic resource
    #[arg(long, value_name = "list")]
    pub(crate) generic_resource_rm: Vec<String>,
    /// Add an additional supplementary user group to the container
    #[arg(long, value_name = "list")]
    pub(crate) group_add: Vec<String>,
    /// Remove a previously added supplementary user group from the container
    #[arg(long, value_name = "list")]
    pub(crate) group_rm: Vec<String>,
    /// Add a custom host-to-IP mapping ("host:ip")
    #[arg(long, value_name = "list", value_parser = list::extra_host)]
    pub(crate) host_add: Vec<String>,
    /// Remove a custom host-to-IP mapping ("host:ip")
    #[arg(long, value_name = "list")]
    pub(crate) host_rm: Vec<String>,
    /// Service image tag
    #[arg(long, value_name = "string")]
    pub(crate) image: Option<String>,
    /// Add or update a service label
    #[arg(long, value_name = "list", value_parser = list::label)]
    pub(crate) label_add: Vec<String>,
    /// Remove a label by its key
    #[arg(long, value_name = "list")]
    pub(crate) label_rm: Vec<String>,
    /// Add or update a mount on a service
    #[arg(long, value_name = "mount")]
    pub(crate) mount_add: Vec<Mount>,
    /// Remove a mount by its target path
    #[arg(long, value_name = "list")]
    pub(crate) mount_rm: Vec<String>,
    /// Add a network
    #[arg(long, value_name = "network")]
    pub(crate) network_add: Vec<NetworkAttachment>,
    /// Remove a network
    #[arg(long, value_name = "list")]
    pub(crate) network_rm: Vec<String>,
    /// Add a placement preference
    #[arg(long, value_name = "pref", value_parser = spread)]
    pub(crate) placement_pref_add: Vec<Spread>,
    /// Remove a placement preference
    #[arg(long, value_name = "pref", value_parser = spread)]
    pub(crate) placement_pref_rm: Vec<Spread>,
    /// Add or update a published port
    #[arg(long, value_name = "port")]
    pub(crate) publish_add: Vec<Ports>,
    /// Remove a published port by its target port
    #[arg(long, value_name = "port")]
    pub(crate) publish_rm: Vec<Ports>,
    /// Rollback to previous specification
    #[arg(long)]
    pub(crate) rollback: bool,
    /// Add or update a secret on a service
    #[arg(long, value_name = "secret", value_parser = FileReference::secret)]
    pub(crate) secret_add: Vec<FileReference>,
    /// Remove a secret
    #[arg(long, value_name = "list")]
    pub(crate) secret_rm: Vec<String>,
    /// Add or update a Sysctl option
    #[arg(long, value_name = "list")]
    pub(crate) sysctl_add: Vec<String>,
    /// Remove a Sysctl option
    #[arg(long, value_name = "list")]
    pub(crate) sysctl_rm: Vec<String>,
    /// Add or update a ulimit option
    #[arg(long, value_name = "ulimit")]
    pub(crate) ulimit_add: Vec<Ulimit>,
    /// Remove a ulimit option
    #[arg(long, value_name = "list")]
    pub(crate) ulimit_rm: Vec<String>,
    #[arg(hide = true, value_name = "SERVICE")]
    pub(crate) service: String,
}

/// A label over whose values tasks are spread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spread(pub(crate) String);

fn spread(text: &str) -> Result<Spread, crate::opts::BadValue> {
    match text.split_once('=') {
        Some(("spread", label)) => Ok(Spread(label.to_owned())),
        Some((strategy, _)) if !strategy.is_empty() => Err(crate::opts::BadValue::new(format!(
            "unsupported placement preference {strategy} (only spread is supported)"
        ))),
        _ => Err(crate::opts::BadValue::new(
            "placement preference must be of the format \"<strategy>=<arg>\"",
        )),
    }
}

/// `config://NAME`, `file://NAME`, `registry://NAME`, or empty for none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CredentialSpec {
    None,
    Config(String),
    File(String),
    Registry(String),
}

impl std::str::FromStr for CredentialSpec {
    type Err = crate::opts::BadValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once("://") {
            _ if text.is_empty() => Ok(Self::None),
            Some(("config", name)) => Ok(Self::Config(name.to_owned())),
            Some(("file", name)) => Ok(Self::File(name.to_owned())),
            Some(("registry", name)) => Ok(Self::Registry(name.to_owned())),
            _ => Err(crate::opts::BadValue::new(
                "invalid credential spec: value must be prefixed with \"config://\", \"file://\", or \"registry://\"",
            )),
        }
    }
}

impl CredentialSpec {
    /// The API's form; `config` is the id of the config that it names.
    pub(crate) fn to_json(&self, config: &str) -> serde_json::Value {
        let (config, file, registry) = match self {
            Self::None => ("", "", ""),
            Self::Config(_) => (config, "", ""),
            Self::File(name) => ("", name.as_str(), ""),
            Self::Registry(name) => ("", "", name.as_str()),
        };
        serde_json::json!({"Config": config, "File": file, "Registry": registry})
    }
}
