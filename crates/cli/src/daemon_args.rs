//! The flags of `shoal daemon`: dockerd's where they mean the same, and a few of our own.

use std::path::PathBuf;

use clap::Args;

use crate::opts::list;

/// Run the engine of a node
#[derive(Debug, Args)]
#[command(override_usage = "shoal daemon [OPTIONS]")]
pub(crate) struct DaemonArgs {
    /// Root directory of persistent state
    #[arg(long, value_name = "string", default_value = "/var/lib/shoal")]
    pub(crate) data_root: PathBuf,
    /// Enable debug mode
    #[arg(short = 'D', long)]
    pub(crate) debug: bool,
    /// Root directory for execution state files
    #[arg(long, value_name = "string", default_value = "/run/shoal")]
    pub(crate) exec_root: PathBuf,
    /// Group for the unix socket
    #[arg(short = 'G', long, value_name = "string", default_value = "docker")]
    pub(crate) group: String,
    /// Daemon socket(s) to listen on (default unix:///run/shoal/shoal.sock)
    #[arg(short = 'H', long, value_name = "list")]
    pub(crate) host: Vec<String>,
    /// Enable insecure registry communication
    #[arg(long, value_name = "list")]
    pub(crate) insecure_registry: Vec<String>,
    /// Set key=value labels to the daemon
    #[arg(long, value_name = "list", value_parser = list::label)]
    pub(crate) label: Vec<String>,
    /// Start a cluster of this one node that listens on nothing but its socket
    #[arg(long)]
    pub(crate) local: bool,
    /// Default driver for container logs ("json-file"|"local"|"none")
    #[arg(long, value_name = "string", default_value = "json-file")]
    pub(crate) log_driver: String,
    /// Default log driver options for containers: max-size=10m, max-file=3
    #[arg(long, value_name = "list")]
    pub(crate) log_opt: Vec<String>,
    /// Set the logging format ("text"|"json")
    #[arg(long, value_name = "string", default_value = "text", value_parser = ["text", "json"], hide_possible_values = true)]
    pub(crate) log_format: String,
    /// Set the logging level ("debug"|"info"|"warn"|"error"|"fatal")
    #[arg(short, long, value_name = "string", default_value = "info", value_parser = ["trace", "debug", "info", "warn", "error", "fatal"], hide_possible_values = true)]
    pub(crate) log_level: String,
    /// Advertise user-defined resource
    #[arg(long, value_name = "list")]
    pub(crate) node_generic_resource: Vec<String>,
    /// Run tasks in memory only: no image, container or network is made. Many such workers on one machine are a load
    /// generator for managers
    #[arg(long, hide = true, conflicts_with = "local")]
    pub(crate) null_runtime: bool,
    /// Path to use for daemon PID file
    #[arg(short, long, value_name = "string", default_value = "/run/shoal.pid")]
    pub(crate) pidfile: PathBuf,
    /// Preferred registry mirror
    #[arg(long, value_name = "list")]
    pub(crate) registry_mirror: Vec<String>,
}

/// Take away everything that a daemon made
#[derive(Debug, Args)]
pub(crate) struct PurgeArgs {
    /// The daemon's root directory of persistent state
    #[arg(long, value_name = "string", default_value = "/var/lib/shoal")]
    pub(crate) data_root: PathBuf,
    /// The daemon's root directory for execution state files
    #[arg(long, value_name = "string", default_value = "/run/shoal")]
    pub(crate) exec_root: PathBuf,
}
