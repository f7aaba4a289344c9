//! The flags of `shoal daemon`: dockerd's where they mean the same, and a few of our own.

use std::path::PathBuf;

use clap::Args;

use crate::opts::{GoDuration, boolean, generic, list};

/// Run the engine of a node
#[derive(Debug, Args)]
#[command(override_usage = "shoal daemon [OPTIONS]")]
pub(crate) struct DaemonArgs {
    /// Parent cgroup of all containers
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) cgroup_parent: String,
    /// Daemon configuration file
    #[arg(long, value_name = "string", default_value = "/etc/shoal/daemon.json")]
    pub(crate) config_file: PathBuf,
    /// Root directory of persistent state
    #[arg(long, value_name = "string", default_value = "/var/lib/shoal")]
    pub(crate) data_root: PathBuf,
    /// Enable debug mode
    #[arg(short = 'D', long)]
    pub(crate) debug: bool,
    /// Pools of addresses for networks of this node (base=CIDR,size=BITS)
    #[arg(long, value_name = "pool-options", value_parser = address_pool)]
    pub(crate) default_address_pool: Vec<AddressPool>,
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
    /// Set the logging format ("text"|"json")
    #[arg(long, value_name = "string", default_value = "text", value_parser = ["text", "json"], hide_possible_values = true)]
    pub(crate) log_format: String,
    /// Set the logging level ("debug"|"info"|"warn"|"error"|"fatal")
    #[arg(short, long, value_name = "string", default_value = "info", value_parser = ["trace", "debug", "info", "warn", "error", "fatal"], hide_possible_values = true)]
    pub(crate) log_level: String,
    /// Advertise user-defined resource
    #[arg(long, value_name = "list", value_parser = generic::entry)]
    pub(crate) node_generic_resource: Vec<String>,
    /// Path to use for daemon PID file
    #[arg(short, long, value_name = "string", default_value = "/run/shoal.pid")]
    pub(crate) pidfile: PathBuf,
    /// Preferred registry mirror
    #[arg(long, value_name = "list")]
    pub(crate) registry_mirror: Vec<String>,
    /// Set the default shutdown timeout
    #[arg(
        long,
        value_name = "int",
        default_value = "15",
        allow_hyphen_values = true
    )]
    pub(crate) shutdown_timeout: i64,
    /// Use TLS; implied by --tlsverify
    #[arg(long)]
    pub(crate) tls: bool,
    /// Trust certs signed only by this CA
    #[arg(long, value_name = "string")]
    pub(crate) tlscacert: Option<PathBuf>,
    /// Path to TLS certificate file
    #[arg(long, value_name = "string")]
    pub(crate) tlscert: Option<PathBuf>,
    /// Path to TLS key file
    #[arg(long, value_name = "string")]
    pub(crate) tlskey: Option<PathBuf>,
    /// Use TLS and verify the remote
    #[arg(long)]
    pub(crate) tlsverify: bool,
    /// Validate daemon configuration and exit
    #[arg(long)]
    pub(crate) validate: bool,
    /// Address for metrics of this daemon (host:port)
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) metrics_addr: String,
    /// Keep containers alive while the daemon is away; always so, accepted for dockerd's sake
    #[arg(long, value_name = "bool", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean, default_value = "true", hide_default_value = true)]
    pub(crate) live_restore: bool,
    /// How often a node reports to its manager (0s: as the cluster says)
    #[arg(long, value_name = "duration", default_value = "0s", hide = true)]
    pub(crate) heartbeat: GoDuration,
}

/// Networks of this node are cut from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AddressPool {
    pub(crate) base: shoal_types::spec::Ipv4Net,
    /// Prefix length of each network, not shorter than that of `base`.
    pub(crate) size: u8,
}

fn address_pool(text: &str) -> Result<AddressPool, crate::opts::BadValue> {
    let bad = crate::opts::BadValue::new;
    let (mut base, mut size) = (None, None);
    for field in crate::opts::csv::fields(text)? {
        match field.split_once('=') {
            Some(("base", value)) => {
                let net: shoal_types::spec::Ipv4Net = value
                    .parse()
                    .map_err(|error| bad(format!("invalid base pool {value:?}: {error}")))?;
                base = Some(net);
            }
            Some(("size", value)) => {
                let bits = value.parse::<u8>().ok().filter(|bits| *bits <= 32);
                size = Some(bits.ok_or_else(|| {
                    bad(format!("invalid size value: {value} (must be integer)"))
                })?);
            }
            Some((key, _)) => return Err(bad(format!("unexpected key '{key}' in '{field}'"))),
            None => {
                return Err(bad(format!(
                    "invalid field '{field}' must be a key=value pair"
                )));
            }
        }
    }
    match (base, size) {
        (Some(base), Some(size)) if size >= base.prefix() => Ok(AddressPool { base, size }),
        (Some(base), Some(size)) => Err(bad(format!(
            "a network of /{size} does not fit into the pool {base}"
        ))),
        _ => Err(bad("a pool needs base= and size=".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_need_a_base_and_a_size_that_fits() {
        let pool = address_pool("base=10.10.0.0/16,size=24").unwrap();
        assert_eq!(
            (pool.base.to_string().as_str(), pool.size),
            ("10.10.0.0/16", 24)
        );
        let error = |text: &str| address_pool(text).unwrap_err().to_string();
        assert_eq!(error("base=10.0.0.0/16"), "a pool needs base= and size=");
        assert_eq!(
            error("base=10.0.0.0/16,size=8"),
            "a network of /8 does not fit into the pool 10.0.0.0/16"
        );
        assert_eq!(error("x=1"), "unexpected key 'x' in 'x=1'");
    }
}
