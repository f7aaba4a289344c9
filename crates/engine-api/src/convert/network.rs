//! Networks, in both directions.

use shoal_types::{
    object::Network,
    spec::{Ipam, Ipv4Net, NetworkSpec},
};

use super::{Result, SpecError, created, dns_name, only_empty, updated, version};
use crate::{engine::LocalNetwork, wire};

/// What Docker calls the only kind of driver options that Shoal can honour by doing nothing more.
const ENCRYPTED: &str = "encrypted";
/// Docker's name for the option with a network's VXLAN id.
const VXLAN_IDS: &str = "com.docker.network.driver.overlay.vxlanid_list";

pub(crate) fn network_spec(request: wire::NetworkCreate) -> Result<NetworkSpec> {
    dns_name(&request.name, "Name")?;
    if matches!(request.name.as_str(), "host" | "none" | "default") {
        let message = format!(
            "operation is not permitted on predefined {} network",
            request.name
        );
        return Err(SpecError::invalid("Name", message));
    }
    let driver = match request.driver.as_str() {
        // Docker's default is a bridge of one node; here every network spans the cluster.
        "" => "bridge",
        driver @ ("bridge" | "overlay") => driver,
        other => {
            let message =
                format!("could not find plugin {other} in v2 plugin registry: use overlay");
            return Err(SpecError::invalid("Driver", message));
        }
    };
    match request.scope.as_str() {
        "" | "swarm" => {}
        "local" if driver == "bridge" => {}
        other => {
            let message = format!("a network of driver {driver} cannot have the scope {other:?}");
            return Err(SpecError::invalid("Scope", message));
        }
    }
    if request.enable_ipv6 == Some(true) {
        return Err(SpecError::unsupported(
            "EnableIPv6",
            "networks have IPv4 addresses only",
        ));
    }
    if request.enable_ipv4 == Some(false) {
        return Err(SpecError::unsupported(
            "EnableIPv4",
            "networks always have IPv4 addresses",
        ));
    }
    let config_only = "networks are not made from the configuration of others";
    only_empty(&request.config_only, "ConfigOnly", config_only)?;
    let config_from = request.config_from.unwrap_or_default();
    only_empty(&config_from, "ConfigFrom", config_only)?;
    if request.options.contains_key(ENCRYPTED) {
        return Err(SpecError::unsupported(
            "Options.encrypted",
            "traffic between nodes is not encrypted yet",
        ));
    }
    Ok(NetworkSpec {
        name: request.name,
        labels: request.labels,
        driver: driver.to_owned(),
        driver_options: request.options,
        internal: request.internal,
        attachable: request.attachable,
        ingress: request.ingress,
        ipam: ipam(request.ipam.unwrap_or_default())?,
    })
}

fn ipam(ipam: wire::Ipam) -> Result<Ipam> {
    if !matches!(ipam.driver.as_str(), "" | "default") {
        let message = format!("there is no IPAM driver {:?}; use default", ipam.driver);
        return Err(SpecError::unsupported("IPAM.Driver", message));
    }
    let options = ipam.options.unwrap_or_default();
    only_empty(
        &options,
        "IPAM.Options",
        "the default IPAM driver takes no options",
    )?;
    let mut configs = ipam.config.unwrap_or_default().into_iter();
    let config = configs.next().unwrap_or_default();
    if configs.next().is_some() {
        return Err(SpecError::unsupported(
            "IPAM.Config[1]",
            "a network has one subnet",
        ));
    }
    only_empty(
        &config.aux_address,
        "IPAM.Config[0].AuxiliaryAddresses",
        "addresses cannot be set aside",
    )?;
    let subnet = subnet(&config.subnet, "IPAM.Config[0].Subnet")?;
    let range = self::subnet(&config.ip_range, "IPAM.Config[0].IPRange")?;
    let gateway = match config.gateway.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| {
            SpecError::invalid(
                "IPAM.Config[0].Gateway",
                format!("invalid gateway address {text:?}"),
            )
        })?),
    };
    let inside = |message: &str, field: &str| {
        Err(SpecError::invalid(
            format!("IPAM.Config[0].{field}"),
            message,
        ))
    };
    match (subnet, gateway) {
        (None, Some(_)) => inside("a gateway needs a subnet", "Gateway"),
        (Some(net), Some(gateway)) if !net.contains(gateway) => {
            inside("no matching subnet for gateway", "Gateway")
        }
        _ => Ok(()),
    }?;
    match (subnet, range) {
        (None, Some(_)) => inside("an address range needs a subnet", "IPRange"),
        (Some(net), Some(range))
            if !net.contains(range.addr()) || range.prefix() < net.prefix() =>
        {
            inside("no matching subnet for range", "IPRange")
        }
        _ => Ok(()),
    }?;
    Ok(Ipam {
        subnet,
        gateway,
        range,
    })
}

fn subnet(text: &str, field: &str) -> Result<Option<Ipv4Net>> {
    if text.is_empty() {
        return Ok(None);
    }
    if text.contains(':') {
        return Err(SpecError::unsupported(
            field,
            "networks have IPv4 addresses only",
        ));
    }
    let error = |reason: String| SpecError::invalid(field, format!("invalid subnet: {reason}"));
    text.parse()
        .map(Some)
        .map_err(|e: shoal_types::spec::ParseNetError| error(e.to_string()))
}

/// As `GET /networks/{id}` writes it; lists have no containers.
pub(crate) fn network_inspect(network: &Network) -> wire::NetworkInspect {
    wire::NetworkInspect {
        name: network.spec.name.clone(),
        id: network.id.to_string(),
        created: created(&network.meta),
        scope: "swarm".to_owned(),
        driver: network.spec.driver.clone(),
        enable_ipv4: true,
        enable_ipv6: false,
        ipam: wire::Ipam {
            driver: "default".to_owned(),
            options: None,
            config: Some(vec![wire::IpamConfig {
                subnet: network.subnet.to_string(),
                ip_range: network
                    .spec
                    .ipam
                    .range
                    .map(|r| r.to_string())
                    .unwrap_or_default(),
                gateway: network.gateway.to_string(),
                aux_address: wire::Map::new(),
            }]),
        },
        internal: network.spec.internal,
        attachable: network.spec.attachable,
        ingress: network.spec.ingress,
        config_from: wire::ConfigReference::default(),
        config_only: false,
        containers: None,
        options: Some(options(network)),
        labels: Some(network.spec.labels.clone()),
        peers: Vec::new(),
        services: std::collections::BTreeMap::new(),
    }
}

/// The same, of a network that this node knows no more of.
pub(crate) fn local_network(network: LocalNetwork) -> wire::NetworkInspect {
    wire::NetworkInspect {
        name: network.name,
        id: network.id.to_string(),
        scope: "swarm".to_owned(),
        driver: network.driver,
        enable_ipv4: true,
        ipam: wire::Ipam {
            driver: "default".to_owned(),
            options: None,
            config: Some(vec![wire::IpamConfig {
                subnet: network.subnet.to_string(),
                gateway: network.gateway.to_string(),
                ..wire::IpamConfig::default()
            }]),
        },
        internal: network.internal,
        ingress: network.ingress,
        options: Some(wire::Map::from([(
            VXLAN_IDS.to_owned(),
            network.vni.to_string(),
        )])),
        labels: Some(wire::Map::new()),
        ..wire::NetworkInspect::default()
    }
}

/// The networks that every cluster begins with.
pub(crate) fn is_predefined(name: &str) -> bool {
    matches!(name, "bridge" | "ingress")
}

/// As a task shows the networks it is in.
pub(crate) fn swarm_network(network: &Network) -> wire::SwarmNetwork {
    let ipam = wire::SwarmIpam {
        driver: wire::DriverConfig {
            name: "default".to_owned(),
            options: wire::Map::new(),
        },
        configs: vec![wire::SwarmIpamConfig {
            subnet: network.subnet.to_string(),
            range: network
                .spec
                .ipam
                .range
                .map(|r| r.to_string())
                .unwrap_or_default(),
            gateway: network.gateway.to_string(),
        }],
    };
    wire::SwarmNetwork {
        id: network.id.to_string(),
        version: version(&network.meta),
        created_at: created(&network.meta),
        updated_at: updated(&network.meta),
        spec: wire::SwarmNetworkSpec {
            name: network.spec.name.clone(),
            labels: network.spec.labels.clone(),
            driver_configuration: Some(wire::DriverConfig {
                name: network.spec.driver.clone(),
                options: network.spec.driver_options.clone(),
            }),
            ipv6_enabled: false,
            internal: network.spec.internal,
            attachable: network.spec.attachable,
            ingress: network.spec.ingress,
            ipam_options: Some(ipam.clone()),
            scope: "swarm".to_owned(),
        },
        driver_state: wire::DriverConfig {
            name: network.spec.driver.clone(),
            options: options(network),
        },
        ipam_options: Some(ipam),
    }
}

/// The user's options and the VXLAN id, under the name that Docker gives it.
fn options(network: &Network) -> wire::Map {
    let mut options = network.spec.driver_options.clone();
    options.insert(VXLAN_IDS.to_owned(), network.vni.to_string());
    options
}
