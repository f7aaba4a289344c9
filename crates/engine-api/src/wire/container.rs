//! Containers, as far as they can be read (moby `api/types/container`).

use std::collections::BTreeMap;

use super::{ImageConfig, Map, Time, object};

/// The same structure as an image's own config.
pub type ContainerConfig = ImageConfig;

object! {
    /// A container in `GET /containers/json`.
    ContainerSummary {
        id: String = "Id";
        /// With a leading slash.
        names: Vec<String> = "Names";
        image: String = "Image";
        image_id: String = "ImageID";
        command: String = "Command";
        /// Seconds since the epoch.
        created: i64 = "Created";
        ports: Vec<PortSummary> = "Ports";
        size_rw: i64 = "SizeRw" omitempty;
        size_root_fs: i64 = "SizeRootFs" omitempty;
        labels: Map = "Labels";
        /// `created`, `running`, `paused`, `restarting`, `removing`, `exited` or `dead`.
        state: String = "State";
        /// For people: `Up 5 minutes`.
        status: String = "Status";
        host_config: SummaryHostConfig = "HostConfig";
        network_settings: SummaryNetworks = "NetworkSettings";
        mounts: Vec<MountPoint> = "Mounts";
    }

    PortSummary {
        ip: String = "IP" omitempty;
        private_port: u16 = "PrivatePort";
        public_port: u16 = "PublicPort" omitempty;
        kind: String = "Type";
    }

    SummaryHostConfig {
        network_mode: String = "NetworkMode" omitempty;
        annotations: Map = "Annotations" omitempty;
    }

    SummaryNetworks {
        networks: BTreeMap<String, EndpointSettings> = "Networks";
    }

    EndpointSettings {
        ipam_config: Option<serde_json::Value> = "IPAMConfig";
        links: Option<Vec<String>> = "Links";
        aliases: Option<Vec<String>> = "Aliases";
        mac_address: String = "MacAddress";
        driver_opts: Option<Map> = "DriverOpts";
        gw_priority: i64 = "GwPriority";
        network_id: String = "NetworkID";
        endpoint_id: String = "EndpointID";
        gateway: String = "Gateway";
        ip_address: String = "IPAddress";
        ip_prefix_len: u8 = "IPPrefixLen";
        ipv6_gateway: String = "IPv6Gateway";
        global_ipv6_address: String = "GlobalIPv6Address";
        global_ipv6_prefix_len: u8 = "GlobalIPv6PrefixLen";
        dns_names: Option<Vec<String>> = "DNSNames";
    }

    MountPoint {
        kind: String = "Type" omitempty;
        name: String = "Name" omitempty;
        source: String = "Source";
        destination: String = "Destination";
        driver: String = "Driver" omitempty;
        mode: String = "Mode";
        rw: bool = "RW";
        propagation: String = "Propagation";
    }

    ContainerInspect {
        id: String = "Id";
        created: Time = "Created";
        path: String = "Path";
        args: Vec<String> = "Args";
        state: ContainerState = "State";
        /// Id of the image; its name is in `config`.
        image: String = "Image";
        resolv_conf_path: String = "ResolvConfPath";
        hostname_path: String = "HostnamePath";
        hosts_path: String = "HostsPath";
        log_path: String = "LogPath";
        /// With a leading slash.
        name: String = "Name";
        restart_count: i64 = "RestartCount";
        driver: String = "Driver";
        platform: String = "Platform";
        mount_label: String = "MountLabel";
        process_label: String = "ProcessLabel";
        app_armor_profile: String = "AppArmorProfile";
        exec_ids: Option<Vec<String>> = "ExecIDs";
        /// Only when they were asked for.
        size_rw: Option<i64> = "SizeRw" omitempty;
        size_root_fs: Option<i64> = "SizeRootFs" omitempty;
        host_config: HostConfig = "HostConfig";
        graph_driver: super::image::DriverData = "GraphDriver";
        mounts: Vec<MountPoint> = "Mounts";
        config: ContainerConfig = "Config";
        network_settings: NetworkSettings = "NetworkSettings";
    }

    ContainerState {
        status: String = "Status";
        running: bool = "Running";
        paused: bool = "Paused";
        restarting: bool = "Restarting";
        oom_killed: bool = "OOMKilled";
        dead: bool = "Dead";
        pid: u32 = "Pid";
        exit_code: i32 = "ExitCode";
        error: String = "Error";
        started_at: Time = "StartedAt";
        finished_at: Time = "FinishedAt";
        health: Option<ContainerHealth> = "Health" omitempty;
    }

    ContainerHealth {
        status: String = "Status";
        failing_streak: u32 = "FailingStreak";
        log: Vec<HealthResult> = "Log";
    }

    HealthResult {
        start: Time = "Start";
        end: Time = "End";
        exit_code: i32 = "ExitCode";
        output: String = "Output";
    }

    /// The part of it that a container of a task has values for.
    HostConfig {
        binds: Option<Vec<String>> = "Binds";
        log_config: LogConfig = "LogConfig";
        network_mode: String = "NetworkMode";
        port_bindings: Option<BTreeMap<String, Vec<PortBinding>>> = "PortBindings";
        restart_policy: RestartPolicyName = "RestartPolicy";
        auto_remove: bool = "AutoRemove";
        cap_add: Option<Vec<String>> = "CapAdd";
        cap_drop: Option<Vec<String>> = "CapDrop";
        privileged: bool = "Privileged";
        readonly_rootfs: bool = "ReadonlyRootfs";
        memory: i64 = "Memory";
        nano_cpus: i64 = "NanoCpus";
        pids_limit: Option<i64> = "PidsLimit";
        isolation: String = "Isolation";
    }

    LogConfig {
        kind: String = "Type";
        config: Option<Map> = "Config";
    }

    RestartPolicyName {
        name: String = "Name";
        maximum_retry_count: i64 = "MaximumRetryCount";
    }

    PortBinding {
        host_ip: String = "HostIp";
        host_port: String = "HostPort";
    }

    NetworkSettings {
        sandbox_id: String = "SandboxID";
        sandbox_key: String = "SandboxKey";
        ports: BTreeMap<String, Option<Vec<PortBinding>>> = "Ports";
        gateway: String = "Gateway";
        ip_address: String = "IPAddress";
        ip_prefix_len: u8 = "IPPrefixLen";
        mac_address: String = "MacAddress";
        networks: BTreeMap<String, EndpointSettings> = "Networks";
    }
}
