//! `shoal swarm …`.

mod ca;
mod lock;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use self::{
    ca::{CaArgs, CaSettings, apply_ca, ca},
    lock::{UnlockKeyArgs, print_unlock_command, unlock, unlock_key},
};
use crate::{
    api::Request,
    error::{CliError, Result},
    inspect,
    json::{number, object, put, text},
    opts::{BadValue, GoDuration, int, uint},
    output,
    session::Session,
};

#[derive(Debug, Subcommand)]
pub(crate) enum SwarmCommand {
    /// Display and rotate the root CA
    #[command(override_usage = "shoal swarm ca [OPTIONS]")]
    Ca(CaArgs),
    /// Initialize a swarm
    #[command(override_usage = "shoal swarm init [OPTIONS]")]
    Init(InitArgs),
    /// Join a swarm as a node and/or manager
    #[command(override_usage = "shoal swarm join [OPTIONS] HOST:PORT")]
    Join(JoinArgs),
    /// Manage join tokens
    #[command(override_usage = "shoal swarm join-token [OPTIONS] (worker|manager)")]
    JoinToken(JoinTokenArgs),
    /// Leave the swarm
    #[command(override_usage = "shoal swarm leave [OPTIONS]")]
    Leave {
        /// Force this node to leave the swarm, ignoring warnings
        #[arg(short, long)]
        force: bool,
    },
    /// Unlock swarm
    #[command(override_usage = "shoal swarm unlock")]
    Unlock,
    /// Manage the unlock key
    #[command(override_usage = "shoal swarm unlock-key [OPTIONS]")]
    UnlockKey(UnlockKeyArgs),
    /// Update the swarm
    #[command(
        override_usage = "shoal swarm update [OPTIONS]",
        arg_required_else_help = true
    )]
    Update(UpdateArgs),
}

/// Settings of the cluster.
#[derive(Debug, Args, Default)]
pub(crate) struct Settings {
    #[command(flatten)]
    ca: CaSettings,
    /// Dispatcher heartbeat period (ns|us|ms|s|m|h) (default 5s)
    #[arg(long, value_name = "duration")]
    dispatcher_heartbeat: Option<GoDuration>,
    /// Number of additional Raft snapshots to retain
    #[arg(long, value_name = "uint", value_parser = uint)]
    max_snapshots: Option<u64>,
    /// Number of log entries between Raft snapshots (default 10000)
    #[arg(long, value_name = "uint", value_parser = uint)]
    snapshot_interval: Option<u64>,
    /// Task history retention limit (default 5)
    #[arg(long, value_name = "int", value_parser = int, allow_hyphen_values = true)]
    task_history_limit: Option<i64>,
    /// Enable manager autolocking (requiring an unlock key to start a stopped manager)
    #[arg(long, value_name = "bool", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    autolock: Option<bool>,
}

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    #[command(flatten)]
    settings: Settings,
    /// Advertised address (format: "<ip|interface>[:port]")
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    advertise_addr: String,
    /// Availability of the node ("active", "pause", "drain") (default "active")
    #[arg(long, value_name = "string")]
    availability: Option<String>,
    /// Address or interface to use for data path traffic (format: "<ip|interface>")
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    data_path_addr: String,
    /// Port number to use for data path traffic (1024 - 49151). If no value is set or is set to 0, the default port (4789) is used.
    #[arg(
        long,
        value_name = "uint32",
        default_value = "0",
        hide_default_value = true
    )]
    data_path_port: u32,
    /// default address pool in CIDR format
    #[arg(long, value_name = "ipNetSlice", value_delimiter = ',', value_parser = cidr)]
    default_addr_pool: Vec<String>,
    /// default address pool subnet mask length
    #[arg(long, value_name = "uint32", default_value = "24")]
    default_addr_pool_mask_length: u32,
    /// Force create a new cluster from current state
    #[arg(long)]
    force_new_cluster: bool,
    /// Listen address (format: "<ip|interface>[:port]")
    #[arg(long, value_name = "node-addr", default_value = "0.0.0.0:2377", value_parser = node_addr)]
    listen_addr: String,
}

#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// Advertised address (format: "<ip|interface>[:port]")
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    advertise_addr: String,
    /// Availability of the node ("active", "pause", "drain") (default "active")
    #[arg(long, value_name = "string")]
    availability: Option<String>,
    /// Address or interface to use for data path traffic (format: "<ip|interface>")
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    data_path_addr: String,
    /// Listen address (format: "<ip|interface>[:port]")
    #[arg(long, value_name = "node-addr", default_value = "0.0.0.0:2377", value_parser = node_addr)]
    listen_addr: String,
    /// Token for entry into the swarm
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    token: String,
    #[arg(hide = true, value_name = "HOST:PORT")]
    remote: String,
}

#[derive(Debug, Args)]
pub(crate) struct JoinTokenArgs {
    /// Only display token
    #[arg(short, long)]
    quiet: bool,
    /// Rotate join token
    #[arg(long)]
    rotate: bool,
    #[arg(hide = true, value_name = "worker|manager")]
    role: String,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    #[command(flatten)]
    settings: Settings,
}

/// `ADDRESS/BITS` with the host bits taken off.
fn cidr(text: &str) -> Result<String, BadValue> {
    let invalid = || BadValue::new(format!("invalid string being converted to CIDR: {text}"));
    let (address, bits) = text.trim().split_once('/').ok_or_else(invalid)?;
    let bits: u8 = bits.parse().map_err(|_| invalid())?;
    match address.parse().map_err(|_| invalid())? {
        std::net::IpAddr::V4(address) => shoal_types::spec::Ipv4Net::containing(address, bits)
            .map(|net| net.to_string())
            .ok_or_else(invalid),
        std::net::IpAddr::V6(address) => {
            let host = 128_u32.checked_sub(u32::from(bits)).ok_or_else(invalid)?;
            let mask = u128::MAX.checked_shl(host).unwrap_or(0);
            let address = std::net::Ipv6Addr::from(u128::from(address) & mask);
            Ok(format!("{address}/{bits}"))
        }
    }
}

/// `ADDRESS[:PORT]` or `:PORT`, the missing part that of the default.
fn node_addr(text: &str) -> Result<String, BadValue> {
    let invalid = || BadValue::new(format!("invalid bind address format: {text}"));
    let bare = text.strip_prefix("tcp://").unwrap_or(text);
    if bare.contains("://") || bare.contains('/') {
        return Err(invalid());
    }
    if bare.parse::<std::net::Ipv6Addr>().is_ok() {
        return Ok(format!("[{bare}]:2377"));
    }
    let (host, port) = match bare.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port),
        _ => (bare, "2377"),
    };
    let port: u16 = if port.is_empty() {
        2377
    } else {
        port.parse().map_err(|_| invalid())?
    };
    let host = if host.is_empty() { "0.0.0.0" } else { host };
    Ok(format!("{host}:{port}"))
}

pub(crate) async fn run(session: &Session, command: SwarmCommand) -> Result {
    match command {
        SwarmCommand::Ca(args) => ca(session, &args).await,
        SwarmCommand::Init(args) => init(session, &args).await,
        SwarmCommand::Join(args) => join(session, &args).await,
        SwarmCommand::JoinToken(args) => join_token(session, &args).await,
        SwarmCommand::Leave { force } => {
            let request = Request::post(&["swarm", "leave"]).flag("force", force);
            session.api.done(request).await?;
            output::line("Node left the swarm.")
        }
        SwarmCommand::Unlock => unlock(session).await,
        SwarmCommand::UnlockKey(args) => unlock_key(session, &args).await,
        SwarmCommand::Update(args) => update(session, &args).await,
    }
}

fn apply(spec: &mut Map<String, Value>, settings: &Settings, trust_root: Option<&str>) {
    if let Some(limit) = settings.task_history_limit {
        object(spec, "Orchestration").insert("TaskHistoryRetentionLimit".into(), limit.into());
    }
    if let Some(GoDuration(period)) = settings.dispatcher_heartbeat {
        put(object(spec, "Dispatcher"), "HeartbeatPeriod", period);
    }
    if let Some(keep) = settings.max_snapshots {
        object(spec, "Raft").insert("KeepOldSnapshots".into(), keep.into());
    }
    if let Some(interval) = settings.snapshot_interval {
        put(object(spec, "Raft"), "SnapshotInterval", interval);
    }
    if let Some(autolock) = settings.autolock {
        object(spec, "EncryptionConfig").insert("AutoLockManagers".into(), autolock.into());
    }
    apply_ca(spec, &settings.ca, trust_root);
}

fn availability(given: Option<&str>) -> Result<String> {
    let Some(given) = given else {
        return Ok(String::new());
    };
    let lower = given.to_lowercase();
    if matches!(lower.as_str(), "active" | "pause" | "drain") {
        Ok(lower)
    } else {
        Err(CliError::message(format!(
            "invalid availability {given:?}, only active, pause and drain are supported"
        )))
    }
}

fn init_request(args: &InitArgs) -> Result<Value> {
    let mut spec = json!({
        "Labels": null, "Orchestration": {}, "Raft": {"ElectionTick": 0, "HeartbeatTick": 0},
        "Dispatcher": {}, "CAConfig": {}, "TaskDefaults": {},
        "EncryptionConfig": {"AutoLockManagers": false},
    });
    if let Some(spec) = spec.as_object_mut() {
        apply(spec, &args.settings, None);
    }
    Ok(json!({
        "ListenAddr": args.listen_addr,
        "AdvertiseAddr": args.advertise_addr,
        "DataPathAddr": args.data_path_addr,
        "DataPathPort": args.data_path_port,
        "ForceNewCluster": args.force_new_cluster,
        "Spec": spec,
        "AutoLockManagers": args.settings.autolock.unwrap_or(false),
        "Availability": availability(args.availability.as_deref())?,
        "DefaultAddrPool": args.default_addr_pool,
        "SubnetSize": args.default_addr_pool_mask_length,
    }))
}

async fn init(session: &Session, args: &InitArgs) -> Result {
    let request = Request::post(&["swarm", "init"]).json(&init_request(args)?);
    let node = session.api.json(request).await.map_err(|error| {
        let words = error.to_string();
        let ambiguous = [
            "could not choose an IP address to advertise",
            "could not find the system's IP address",
        ];
        if ambiguous.iter().any(|known| words.contains(known)) {
            CliError::message(format!("{words} - specify one with --advertise-addr"))
        } else {
            error
        }
    })?;
    let node = node.as_str().unwrap_or("");
    output::line(format!(
        "Swarm initialized: current node ({node}) is now a manager.\n"
    ))?;
    print_join_command(session, node, "worker").await?;
    output::line(
        "To add a manager to this swarm, run 'shoal swarm join-token manager' and follow the instructions.",
    )?;
    if args.settings.autolock == Some(true) {
        print_unlock_command(session).await?;
    }
    Ok(())
}

async fn print_join_command(session: &Session, node: &str, role: &str) -> Result {
    let node = session.api.json(Request::get(&["nodes", node])).await?;
    let swarm = session.api.json(Request::get(&["swarm"])).await?;
    let address = text(&node, "/ManagerStatus/Addr");
    if !node["ManagerStatus"].is_object() {
        return Ok(());
    }
    let token = token(&swarm, role);
    output::line(format!(
        "To add a {role} to this swarm, run the following command:\n\n    shoal swarm join --token {token} {address}\n"
    ))
}

fn token<'a>(swarm: &'a Value, role: &str) -> &'a str {
    match role {
        "worker" => text(swarm, "/JoinTokens/Worker"),
        _ => text(swarm, "/JoinTokens/Manager"),
    }
}

async fn join(session: &Session, args: &JoinArgs) -> Result {
    let request = json!({
        "ListenAddr": args.listen_addr,
        "AdvertiseAddr": args.advertise_addr,
        "DataPathAddr": args.data_path_addr,
        "RemoteAddrs": [args.remote],
        "JoinToken": args.token,
        "Availability": availability(args.availability.as_deref())?,
    });
    session
        .api
        .done(Request::post(&["swarm", "join"]).json(&request))
        .await?;
    let info = session.api.json(Request::get(&["info"])).await?;
    let role = if info["Swarm"]["ControlAvailable"] == true {
        "manager"
    } else {
        "worker"
    };
    output::line(format!("This node joined a swarm as a {role}."))
}

fn update_request(swarm: &Value, spec: &Value) -> Request {
    Request::post(&["swarm", "update"])
        .query("version", number(swarm, "/Version/Index").to_string())
        .json(spec)
}

async fn join_token(session: &Session, args: &JoinTokenArgs) -> Result {
    let role = args.role.as_str();
    let rotate = match role {
        "worker" => "rotateWorkerToken",
        "manager" => "rotateManagerToken",
        _ => return Err(CliError::message(format!("unknown role {role}"))),
    };
    if args.rotate {
        let swarm = session.api.json(Request::get(&["swarm"])).await?;
        let request = update_request(&swarm, &swarm["Spec"]).query(rotate, "true");
        session.api.done(request).await?;
        if !args.quiet {
            output::line(format!("Successfully rotated {role} join token.\n"))?;
        }
    }
    if args.quiet {
        let swarm = session.api.json(Request::get(&["swarm"])).await?;
        return output::line(token(&swarm, role));
    }
    let node = inspect::own_node(&session.api).await?;
    print_join_command(session, &node, role).await
}

async fn update(session: &Session, args: &UpdateArgs) -> Result {
    let swarm = session.api.json(Request::get(&["swarm"])).await?;
    let mut spec = swarm["Spec"].clone();
    let locks = |spec: &Value| spec["EncryptionConfig"]["AutoLockManagers"] == true;
    let locked_before = locks(&spec);
    if let Some(spec) = spec.as_object_mut() {
        apply(
            spec,
            &args.settings,
            Some(text(&swarm, "/TLSInfo/TrustRoot")),
        );
    }
    session.api.done(update_request(&swarm, &spec)).await?;
    output::line("Swarm updated.")?;
    if locks(&spec) && !locked_before {
        print_unlock_command(session).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_take_what_they_lack_from_the_default() {
        for (given, full) in [
            ("10.0.0.1", "10.0.0.1:2377"),
            (":4000", "0.0.0.0:4000"),
            ("eth0:1", "eth0:1"),
            ("::1", "[::1]:2377"),
            ("[::1]:5", "[::1]:5"),
        ] {
            assert_eq!(node_addr(given).unwrap(), full);
        }
        assert!(node_addr("udp://x").is_err() && node_addr("a:b").is_err());
        assert_eq!(cidr("10.1.2.3/16").unwrap(), "10.1.0.0/16");
        assert_eq!(cidr("fd00::1/64").unwrap(), "fd00::/64");
        assert!(cidr("10.0.0.0").is_err() && cidr("10.0.0.0/40").is_err());
    }
}
