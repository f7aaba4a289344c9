//! Networks (moby `api/types/network`).

use std::collections::BTreeMap;

use super::{Map, Time, object};

object! {
    NetworksPruned {
        deleted: Option<Vec<String>> = "NetworksDeleted";
    }

    NetworkInspect {
        name: String = "Name";
        id: String = "Id";
        created: Time = "Created";
        /// `swarm` or `local`.
        scope: String = "Scope";
        driver: String = "Driver";
        enable_ipv4: bool = "EnableIPv4";
        enable_ipv6: bool = "EnableIPv6";
        ipam: Ipam = "IPAM";
        internal: bool = "Internal";
        attachable: bool = "Attachable";
        ingress: bool = "Ingress";
        config_from: ConfigReference = "ConfigFrom";
        config_only: bool = "ConfigOnly";
        /// By container id; `null` in lists.
        containers: Option<BTreeMap<String, NetworkContainer>> = "Containers";
        options: Option<Map> = "Options";
        labels: Option<Map> = "Labels";
        peers: Vec<NetworkPeer> = "Peers" omitempty;
        /// By name; only with `verbose=true`.
        services: BTreeMap<String, NetworkServiceInfo> = "Services" omitempty;
    }

    Ipam {
        driver: String = "Driver";
        options: Option<Map> = "Options";
        config: Option<Vec<IpamConfig>> = "Config";
    }

    IpamConfig {
        subnet: String = "Subnet" omitempty;
        ip_range: String = "IPRange" omitempty;
        gateway: String = "Gateway" omitempty;
        aux_address: Map = "AuxiliaryAddresses" omitempty;
    }

    ConfigReference {
        network: String = "Network";
    }

    NetworkContainer {
        name: String = "Name";
        endpoint_id: String = "EndpointID";
        mac_address: String = "MacAddress";
        ipv4_address: String = "IPv4Address";
        ipv6_address: String = "IPv6Address";
    }

    NetworkPeer {
        name: String = "Name";
        ip: String = "IP";
    }

    NetworkServiceInfo {
        vip: String = "VIP";
        ports: Vec<String> = "Ports";
        local_lb_index: i64 = "LocalLBIndex";
        tasks: Vec<NetworkTask> = "Tasks";
    }

    NetworkTask {
        name: String = "Name";
        endpoint_id: String = "EndpointID";
        endpoint_ip: String = "EndpointIP";
        info: Map = "Info";
    }

    NetworkCreate {
        name: String = "Name";
        /// Before API 1.44; names are always unique here.
        check_duplicate: bool = "CheckDuplicate" omitempty;
        driver: String = "Driver";
        scope: String = "Scope";
        enable_ipv4: Option<bool> = "EnableIPv4" omitempty;
        enable_ipv6: Option<bool> = "EnableIPv6" omitempty;
        ipam: Option<Ipam> = "IPAM";
        internal: bool = "Internal";
        attachable: bool = "Attachable";
        ingress: bool = "Ingress";
        config_only: bool = "ConfigOnly";
        config_from: Option<ConfigReference> = "ConfigFrom";
        options: Map = "Options";
        labels: Map = "Labels";
    }

    NetworkCreated {
        id: String = "Id";
        warning: String = "Warning";
    }
}
