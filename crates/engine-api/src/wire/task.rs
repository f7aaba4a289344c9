//! Tasks (moby `api/types/swarm/task.go`).

use super::{GenericResource, Map, PortConfig, TaskSpec, Time, Version, object};

object! {
    Task {
        id: String = "ID";
        version: Version = "Version";
        created_at: Time = "CreatedAt";
        updated_at: Time = "UpdatedAt";
        name: String = "Name" omitempty;
        labels: Map = "Labels";
        spec: TaskSpec = "Spec";
        service_id: String = "ServiceID" omitempty;
        /// From 1; 0 (left out) for tasks of global services.
        slot: u64 = "Slot" omitempty;
        node_id: String = "NodeID" omitempty;
        status: TaskStatus = "Status";
        desired_state: String = "DesiredState" omitempty;
        networks_attachments: Vec<NetworkAttachment> = "NetworksAttachments" omitempty;
        generic_resources: Vec<GenericResource> = "GenericResources" omitempty;
        job_iteration: Option<Version> = "JobIteration" omitempty;
        volumes: Option<Vec<serde_json::Value>> = "Volumes";
    }

    TaskStatus {
        timestamp: Time = "Timestamp";
        state: String = "State" omitempty;
        message: String = "Message" omitempty;
        err: String = "Err" omitempty;
        container_status: Option<ContainerStatus> = "ContainerStatus" omitempty;
        port_status: PortStatus = "PortStatus";
    }

    ContainerStatus {
        container_id: String = "ContainerID";
        pid: u32 = "PID";
        exit_code: i32 = "ExitCode";
    }

    /// Host-mode ports.
    PortStatus {
        ports: Vec<PortConfig> = "Ports" omitempty;
    }

    NetworkAttachment {
        network: SwarmNetwork = "Network";
        /// With the prefix of the network: `10.0.0.3/24`.
        addresses: Vec<String> = "Addresses" omitempty;
    }

    /// A network inside a task, which Docker writes in another shape than [`super::NetworkInspect`].
    SwarmNetwork {
        id: String = "ID";
        version: Version = "Version";
        created_at: Time = "CreatedAt";
        updated_at: Time = "UpdatedAt";
        spec: SwarmNetworkSpec = "Spec";
        driver_state: super::DriverConfig = "DriverState";
        ipam_options: Option<SwarmIpam> = "IPAMOptions" omitempty;
    }

    SwarmNetworkSpec {
        name: String = "Name" omitempty;
        labels: Map = "Labels";
        driver_configuration: Option<super::DriverConfig> = "DriverConfiguration" omitempty;
        ipv6_enabled: bool = "IPv6Enabled" omitempty;
        internal: bool = "Internal" omitempty;
        attachable: bool = "Attachable" omitempty;
        ingress: bool = "Ingress" omitempty;
        ipam_options: Option<SwarmIpam> = "IPAMOptions" omitempty;
        scope: String = "Scope" omitempty;
    }

    SwarmIpam {
        driver: super::DriverConfig = "Driver";
        configs: Vec<SwarmIpamConfig> = "Configs" omitempty;
    }

    SwarmIpamConfig {
        subnet: String = "Subnet" omitempty;
        range: String = "Range" omitempty;
        gateway: String = "Gateway" omitempty;
    }
}
