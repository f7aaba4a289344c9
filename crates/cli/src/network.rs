//! `shoal network …`.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use crate::{
    api::Request,
    error::{CliError, Result},
    inspect,
    json::{put, text},
    opts::{Filter, Filters, list},
    output::{self, Columns, Row, human, table},
    session::Session,
};

#[derive(Debug, Subcommand)]
pub(crate) enum NetworkCommand {
    /// Connect a container to a network
    #[command(override_usage = "shoal network connect [OPTIONS] NETWORK CONTAINER")]
    Connect {
        /// Add network-scoped alias for the container
        #[arg(long, value_name = "strings", value_delimiter = ',')]
        alias: Vec<String>,
        /// IPv4 address (e.g., "172.30.100.104")
        #[arg(
            long,
            value_name = "string",
            default_value = "",
            hide_default_value = true
        )]
        ip: String,
        #[arg(hide = true, value_name = "NETWORK")]
        network: String,
        #[arg(hide = true, value_name = "CONTAINER")]
        container: String,
    },
    /// Create a network
    #[command(override_usage = "shoal network create [OPTIONS] NETWORK")]
    Create(Box<CreateArgs>),
    /// Disconnect a container from a network
    #[command(override_usage = "shoal network disconnect [OPTIONS] NETWORK CONTAINER")]
    Disconnect {
        /// Force the container to disconnect from a network
        #[arg(short, long)]
        force: bool,
        #[arg(hide = true, value_name = "NETWORK")]
        network: String,
        #[arg(hide = true, value_name = "CONTAINER")]
        container: String,
    },
    /// Display detailed information on one or more networks
    #[command(override_usage = "shoal network inspect [OPTIONS] NETWORK [NETWORK...]")]
    Inspect {
        /// Format output using a custom template: 'json' or a Go template
        #[arg(
            short,
            long,
            value_name = "string",
            default_value = "",
            hide_default_value = true
        )]
        format: String,
        /// Verbose output for diagnostics
        #[arg(short, long)]
        verbose: bool,
        #[arg(hide = true, required = true, value_name = "NETWORK")]
        networks: Vec<String>,
    },
    /// List networks
    #[command(visible_alias = "list", override_usage = "shoal network ls [OPTIONS]")]
    Ls(ListArgs),
    /// Remove all unused networks
    #[command(override_usage = "shoal network prune [OPTIONS]")]
    Prune {
        /// Provide filter values (e.g. "until=<timestamp>")
        #[arg(long, value_name = "filter")]
        filter: Vec<Filter>,
        /// Do not prompt for confirmation
        #[arg(short, long)]
        force: bool,
    },
    /// Remove one or more networks
    #[command(
        visible_alias = "remove",
        override_usage = "shoal network rm NETWORK [NETWORK...]"
    )]
    Rm {
        /// Do not error if the network does not exist
        #[arg(short, long)]
        force: bool,
        #[arg(hide = true, required = true, value_name = "NETWORK")]
        networks: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Enable manual container attachment
    #[arg(long)]
    attachable: bool,
    /// Auxiliary IPv4 or IPv6 addresses used by Network driver
    #[arg(long, value_name = "map")]
    aux_address: Vec<String>,
    /// The network from which to copy the configuration
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    config_from: String,
    /// Create a configuration only network
    #[arg(long)]
    config_only: bool,
    /// Driver to manage the Network
    #[arg(short, long, value_name = "string", default_value = "bridge")]
    driver: String,
    /// IPv4 or IPv6 Gateway for the master subnet
    #[arg(long, value_name = "strings", value_delimiter = ',')]
    gateway: Vec<String>,
    /// Create swarm routing-mesh network
    #[arg(long)]
    ingress: bool,
    /// Restrict external access to the network
    #[arg(long)]
    internal: bool,
    /// Allocate container ip from a sub-range
    #[arg(long, value_name = "strings", value_delimiter = ',')]
    ip_range: Vec<String>,
    /// IP Address Management Driver
    #[arg(long, value_name = "string", default_value = "default")]
    ipam_driver: String,
    /// Set IPAM driver specific options
    #[arg(long, value_name = "map")]
    ipam_opt: Vec<String>,
    /// Enable or disable IPv4 address assignment (default true)
    #[arg(long, value_name = "bool", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    ipv4: Option<bool>,
    /// Enable or disable IPv6 address assignment
    #[arg(long, value_name = "bool", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    ipv6: Option<bool>,
    /// Set metadata on a network
    #[arg(long, value_name = "list", value_parser = list::label)]
    label: Vec<String>,
    /// Set driver specific options
    #[arg(short, long, value_name = "map")]
    opt: Vec<String>,
    /// Control the network's scope
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    scope: String,
    /// Subnet in CIDR format that represents a network segment
    #[arg(long, value_name = "strings", value_delimiter = ',')]
    subnet: Vec<String>,
    #[arg(hide = true, value_name = "NETWORK")]
    name: String,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Provide filter values (e.g. "driver=bridge")
    #[arg(short, long, value_name = "filter")]
    filter: Vec<Filter>,
    /// Format output: 'table', 'table TEMPLATE', 'json' or a Go template
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    format: String,
    /// Do not truncate the output
    #[arg(long)]
    no_trunc: bool,
    /// Only display network IDs
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) async fn run(session: &Session, command: NetworkCommand) -> Result {
    let api = &session.api;
    match command {
        NetworkCommand::Connect {
            alias,
            ip,
            network,
            container,
        } => {
            let mut endpoint = Map::new();
            put(&mut endpoint, "Aliases", alias);
            if !ip.is_empty() {
                endpoint.insert("IPAMConfig".into(), json!({ "IPv4Address": ip }));
            }
            let body = json!({"Container": container, "EndpointConfig": endpoint});
            api.done(Request::post(&["networks", &network, "connect"]).json(&body))
                .await
        }
        NetworkCommand::Create(args) => {
            let request = Request::post(&["networks", "create"]).json(&create_request(&args)?);
            let created = api.json(request).await?;
            let warning = text(&created, "/Warning");
            if !warning.is_empty() {
                output::note(format!("WARNING: {warning}"));
            }
            output::line(text(&created, "/Id"))
        }
        NetworkCommand::Disconnect {
            force,
            network,
            container,
        } => {
            let body = json!({"Container": container, "Force": force});
            api.done(Request::post(&["networks", &network, "disconnect"]).json(&body))
                .await
        }
        NetworkCommand::Inspect {
            format,
            verbose,
            networks,
        } => {
            inspect::print(api, &networks, &format, |network| {
                Request::get(&["networks", network])
                    .query("verbose", if verbose { "true" } else { "" })
            })
            .await
        }
        NetworkCommand::Ls(args) => ls(session, &args).await,
        NetworkCommand::Prune { filter, force } => prune(session, &filter, force).await,
        NetworkCommand::Rm { force, networks } => {
            let request = |network: &str| Request::delete(&["networks", network]);
            session.remove(&networks, force, request).await
        }
    }
}

async fn prune(session: &Session, filter: &[Filter], force: bool) -> Result {
    const WHAT: &str = "all custom networks not used by at least one container";
    let filters = Filters::new(filter);
    let report = session.prune("network", WHAT, force, &filters).await?;
    let deleted = report["NetworksDeleted"].as_array().into_iter().flatten();
    let removed: Vec<&str> = deleted.filter_map(Value::as_str).collect();
    if removed.is_empty() {
        return Ok(());
    }
    output::line(format!("Deleted Networks:\n{}\n", removed.join("\n")))
}

fn create_request(args: &CreateArgs) -> Result<Value> {
    let mut body = json!({
        "Name": args.name,
        "Driver": args.driver,
        "Scope": args.scope,
        "IPAM": {
            "Driver": args.ipam_driver,
            "Options": list::pairs(&args.ipam_opt),
            "Config": ipam(args)?,
        },
        "Internal": args.internal,
        "Attachable": args.attachable,
        "Ingress": args.ingress,
        "ConfigOnly": args.config_only,
        "ConfigFrom": null,
        "Options": list::pairs(&args.opt),
        "Labels": list::pairs(&args.label),
    });
    if !args.config_from.is_empty() {
        body["ConfigFrom"] = json!({ "Network": args.config_from });
    }
    for (key, flag) in [("EnableIPv4", args.ipv4), ("EnableIPv6", args.ipv6)] {
        if let Some(flag) = flag {
            body[key] = flag.into();
        }
    }
    Ok(body)
}

/// A subnet with what belongs to it.
struct Subnet<'a> {
    text: &'a str,
    range: &'a str,
    gateway: &'a str,
    auxiliary: Map<String, Value>,
}

/// Gives each range, gateway and auxiliary address to the subnet that it lies in.
fn ipam(args: &CreateArgs) -> Result<Vec<Value>> {
    if args.subnet.len() < args.ip_range.len() || args.subnet.len() < args.gateway.len() {
        return Err(CliError::message(
            "every ip-range or gateway must have a corresponding subnet",
        ));
    }
    let mut subnets: Vec<Subnet<'_>> = Vec::new();
    for text in &args.subnet {
        for other in &subnets {
            if contains(text, other.text)? || contains(other.text, text)? {
                return Err(CliError::message(
                    "multiple overlapping subnet configuration is not supported",
                ));
            }
        }
        // Checks the text even when it is the only one.
        contains(text, text)?;
        subnets.push(Subnet {
            text,
            range: "",
            gateway: "",
            auxiliary: Map::new(),
        });
    }
    for range in &args.ip_range {
        parse_cidr(range)?;
        let subnet = holder(&mut subnets, range, "range")?;
        if !subnet.range.is_empty() {
            return Err(CliError::message(format!(
                "cannot configure multiple ranges ({range}, {}) on the same subnet ({})",
                subnet.range, subnet.text
            )));
        }
        subnet.range = range;
    }
    for gateway in &args.gateway {
        let subnet = holder(&mut subnets, gateway, "gateway")?;
        if !subnet.gateway.is_empty() {
            return Err(CliError::message(format!(
                "cannot configure multiple gateways ({gateway}, {}) for the same subnet ({})",
                subnet.gateway, subnet.text
            )));
        }
        subnet.gateway = gateway;
    }
    for (name, address) in list::pairs(&args.aux_address) {
        let subnet = holder(&mut subnets, &address, "aux-address")?;
        subnet.auxiliary.insert(name, address.into());
    }
    Ok(subnets
        .into_iter()
        .map(|subnet| {
            let mut config = Map::new();
            put(&mut config, "Subnet", subnet.text);
            put(&mut config, "IPRange", subnet.range);
            put(&mut config, "Gateway", subnet.gateway);
            put(&mut config, "AuxiliaryAddresses", subnet.auxiliary);
            Value::Object(config)
        })
        .collect())
}

fn holder<'a, 'b>(
    subnets: &'a mut [Subnet<'b>],
    address: &str,
    what: &str,
) -> Result<&'a mut Subnet<'b>> {
    for subnet in subnets {
        if contains(subnet.text, address)? {
            return Ok(subnet);
        }
    }
    Err(CliError::message(format!(
        "no matching subnet for {what} {address}"
    )))
}

fn parse_cidr(text: &str) -> Result<(IpAddr, u32)> {
    let invalid = || CliError::message(format!("invalid CIDR address: {text}"));
    let (address, bits) = text.split_once('/').ok_or_else(invalid)?;
    let address: IpAddr = address.parse().map_err(|_| invalid())?;
    let bits: u32 = bits.parse().map_err(|_| invalid())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    if bits > most {
        return Err(invalid());
    }
    Ok((address, bits))
}

/// Whether an address, or the address of a network, lies in `subnet`.
fn contains(subnet: &str, data: &str) -> Result<bool> {
    let (network, bits) = parse_cidr(subnet)
        .map_err(|error| CliError::message(format!("invalid subnet: {error}")))?;
    let address = if data.contains('/') {
        Some(parse_cidr(data)?.0)
    } else {
        data.parse().ok()
    };
    Ok(match (network, address) {
        (IpAddr::V4(network), Some(IpAddr::V4(address))) => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            u32::from(network) & mask == u32::from(address) & mask
        }
        (IpAddr::V6(network), Some(IpAddr::V6(address))) => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            u128::from(network) & mask == u128::from(address) & mask
        }
        _ => false,
    })
}

const COLUMNS: Columns = Columns {
    kind: "*network.networkContext",
    titles: &[
        ("ID", "NETWORK ID"),
        ("Name", "NAME"),
        ("Driver", "DRIVER"),
        ("Scope", "SCOPE"),
        ("IPv4", "IPV4"),
        ("IPv6", "IPV6"),
        ("Internal", "INTERNAL"),
        ("Labels", "LABELS"),
        ("CreatedAt", "CREATED AT"),
    ],
    table: "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}",
};

async fn ls(session: &Session, args: &ListArgs) -> Result {
    let request = Request::get(&["networks"]).filters(&Filters::new(&args.filter));
    let mut networks = session.api.list(request).await?;
    networks.sort_by(|a, b| human::natural(text(a, "/Name"), text(b, "/Name")));
    let rows: Vec<Row> = networks
        .iter()
        .map(|network| row(network, args.no_trunc))
        .collect();
    let format = session
        .config
        .format(&args.format, args.quiet, "networksFormat");
    table::print(&format, args.quiet, &COLUMNS, &rows)
}

fn row(network: &Value, whole: bool) -> Row {
    let id = text(network, "/Id");
    let flag = |key: &str| (network[key] == true).to_string();
    Row::new([
        (
            "ID",
            if whole {
                id.into()
            } else {
                human::short_id(id).into()
            },
        ),
        ("Name", text(network, "/Name").into()),
        ("Driver", text(network, "/Driver").into()),
        ("Scope", text(network, "/Scope").into()),
        ("IPv4", flag("EnableIPv4").into()),
        ("IPv6", flag("EnableIPv6").into()),
        ("Internal", flag("Internal").into()),
        ("Labels", human::labels(&network["Labels"]).into()),
        (
            "CreatedAt",
            human::go_time(&network["Created"], jiff::tz::TimeZone::UTC).into(),
        ),
    ])
    .with_labels(&network["Labels"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lie_in_their_subnets() {
        assert!(contains("10.0.0.0/8", "10.9.0.0/16").unwrap());
        assert!(!contains("10.0.0.0/24", "10.0.1.1").unwrap());
        assert!(contains("fd00::/64", "fd00::5").unwrap());
        assert!(!contains("10.0.0.0/8", "fd00::5").unwrap());
        assert!(contains("0.0.0.0/0", "1.2.3.4").unwrap());
        assert_eq!(
            contains("10.0.0.0", "x").unwrap_err().to_string(),
            "invalid subnet: invalid CIDR address: 10.0.0.0"
        );
    }

    #[test]
    fn the_table_is_docker_s() {
        let network = json!({"Id": "0123456789abcdef", "Name": "ingress", "Driver": "overlay", "Scope": "swarm"});
        assert_eq!(
            table::render("", false, &COLUMNS, &[row(&network, false)]).unwrap(),
            "NETWORK ID     NAME      DRIVER    SCOPE\n0123456789ab   ingress   overlay   swarm\n"
        );
    }
}
