//! Services and what they are made of (moby `api/types/swarm/{service,task,container}.go`).

use super::{Map, Platform, Time, Version, json::base64_bytes, object};

object! {
    /// A service as listed and inspected.
    Service {
        id: String = "ID";
        version: Version = "Version";
        created_at: Time = "CreatedAt";
        updated_at: Time = "UpdatedAt";
        spec: ServiceSpec = "Spec";
        previous_spec: Option<ServiceSpec> = "PreviousSpec" omitempty;
        endpoint: Endpoint = "Endpoint";
        update_status: Option<UpdateStatus> = "UpdateStatus" omitempty;
        /// Only in lists that were asked for with `status=true`.
        service_status: Option<ServiceStatus> = "ServiceStatus" omitempty;
        job_status: Option<JobStatus> = "JobStatus" omitempty;
    }

    /// What the user asks for.
    ServiceSpec {
        name: String = "Name" omitempty;
        labels: Map = "Labels";
        task_template: TaskSpec = "TaskTemplate";
        mode: ServiceMode = "Mode";
        update_config: Option<UpdateConfig> = "UpdateConfig" omitempty;
        rollback_config: Option<UpdateConfig> = "RollbackConfig" omitempty;
        /// Before API 1.25; the same as `TaskTemplate.Networks`.
        networks: Vec<NetworkAttachmentConfig> = "Networks" omitempty;
        endpoint_spec: Option<EndpointSpec> = "EndpointSpec" omitempty;
    }

    /// Exactly one is set; none means `Replicated` with one replica.
    ServiceMode {
        replicated: Option<Replicated> = "Replicated" omitempty;
        global: Option<Global> = "Global" omitempty;
        replicated_job: Option<ReplicatedJob> = "ReplicatedJob" omitempty;
        global_job: Option<Global> = "GlobalJob" omitempty;
    }

    Replicated {
        replicas: Option<u64> = "Replicas" omitempty;
    }

    /// `{}`.
    Global {}

    ReplicatedJob {
        max_concurrent: Option<u64> = "MaxConcurrent" omitempty;
        total_completions: Option<u64> = "TotalCompletions" omitempty;
    }

    UpdateConfig {
        parallelism: u64 = "Parallelism";
        /// Nanoseconds.
        delay: i64 = "Delay" omitempty;
        /// `pause`, `continue` or `rollback`.
        failure_action: String = "FailureAction" omitempty;
        /// Nanoseconds.
        monitor: i64 = "Monitor" omitempty;
        #[serde(serialize_with = "super::json::go_float")]
        max_failure_ratio: f32 = "MaxFailureRatio";
        /// `stop-first` or `start-first`.
        order: String = "Order";
    }

    UpdateStatus {
        state: String = "State" omitempty;
        started_at: Option<Time> = "StartedAt" omitempty;
        completed_at: Option<Time> = "CompletedAt" omitempty;
        message: String = "Message" omitempty;
    }

    ServiceStatus {
        running_tasks: u64 = "RunningTasks";
        desired_tasks: u64 = "DesiredTasks";
        completed_tasks: u64 = "CompletedTasks";
    }

    JobStatus {
        job_iteration: Version = "JobIteration";
        last_execution: Time = "LastExecution";
    }

    /// What the allocator gave.
    Endpoint {
        spec: EndpointSpec = "Spec";
        ports: Vec<PortConfig> = "Ports" omitempty;
        virtual_ips: Vec<VirtualIp> = "VirtualIPs" omitempty;
    }

    EndpointSpec {
        /// `vip` or `dnsrr`.
        mode: String = "Mode" omitempty;
        ports: Vec<PortConfig> = "Ports" omitempty;
    }

    PortConfig {
        name: String = "Name" omitempty;
        /// `tcp`, `udp` or `sctp`.
        protocol: String = "Protocol" omitempty;
        target_port: u32 = "TargetPort" omitempty;
        published_port: u32 = "PublishedPort" omitempty;
        /// `ingress` or `host`.
        publish_mode: String = "PublishMode" omitempty;
    }

    VirtualIp {
        network_id: String = "NetworkID" omitempty;
        /// With the prefix of the network: `10.0.0.2/24`. Prometheus gives up on anything else.
        addr: String = "Addr" omitempty;
    }

    /// Answer to a create.
    ServiceCreated {
        id: String = "ID" omitempty;
        warnings: Option<Vec<String>> = "Warnings";
    }

    /// Answer to an update.
    ServiceUpdated {
        warnings: Option<Vec<String>> = "Warnings";
    }

    /// What a task is made from.
    TaskSpec {
        container_spec: Option<ContainerSpec> = "ContainerSpec" omitempty;
        plugin_spec: Option<serde_json::Value> = "PluginSpec" omitempty;
        network_attachment_spec: Option<serde_json::Value> = "NetworkAttachmentSpec" omitempty;
        resources: Option<ResourceRequirements> = "Resources" omitempty;
        restart_policy: Option<RestartPolicy> = "RestartPolicy" omitempty;
        placement: Option<Placement> = "Placement" omitempty;
        networks: Vec<NetworkAttachmentConfig> = "Networks" omitempty;
        log_driver: Option<DriverConfig> = "LogDriver" omitempty;
        force_update: u64 = "ForceUpdate";
        /// `container` (or empty), `plugin` or `attachment`.
        runtime: String = "Runtime" omitempty;
    }

    ResourceRequirements {
        limits: Option<Limit> = "Limits" omitempty;
        reservations: Option<Resources> = "Reservations" omitempty;
        swap_bytes: Option<i64> = "SwapBytes" omitempty;
        memory_swappiness: Option<i64> = "MemorySwappiness" omitempty;
    }

    Limit {
        nano_cpus: i64 = "NanoCPUs" omitempty;
        memory_bytes: i64 = "MemoryBytes" omitempty;
        pids: i64 = "Pids" omitempty;
    }

    Resources {
        nano_cpus: i64 = "NanoCPUs" omitempty;
        memory_bytes: i64 = "MemoryBytes" omitempty;
        generic_resources: Vec<GenericResource> = "GenericResources" omitempty;
    }

    /// Exactly one is set.
    GenericResource {
        named: Option<NamedResource> = "NamedResourceSpec" omitempty;
        discrete: Option<DiscreteResource> = "DiscreteResourceSpec" omitempty;
    }

    NamedResource {
        kind: String = "Kind" omitempty;
        value: String = "Value" omitempty;
    }

    DiscreteResource {
        kind: String = "Kind" omitempty;
        value: i64 = "Value" omitempty;
    }

    RestartPolicy {
        /// `none`, `on-failure` or `any`.
        condition: String = "Condition" omitempty;
        /// Nanoseconds.
        delay: Option<i64> = "Delay" omitempty;
        max_attempts: Option<u64> = "MaxAttempts" omitempty;
        /// Nanoseconds.
        window: Option<i64> = "Window" omitempty;
    }

    Placement {
        constraints: Vec<String> = "Constraints" omitempty;
        preferences: Vec<PlacementPreference> = "Preferences" omitempty;
        max_replicas: u64 = "MaxReplicas" omitempty;
        platforms: Vec<Platform> = "Platforms" omitempty;
    }

    PlacementPreference {
        spread: Option<Spread> = "Spread";
    }

    Spread {
        spread_descriptor: String = "SpreadDescriptor";
    }

    NetworkAttachmentConfig {
        /// Id or name.
        target: String = "Target" omitempty;
        aliases: Vec<String> = "Aliases" omitempty;
        driver_opts: Map = "DriverOpts" omitempty;
    }

    /// A driver by name, for logs, volumes and networks.
    DriverConfig {
        name: String = "Name" omitempty;
        options: Map = "Options" omitempty;
    }

    ContainerSpec {
        image: String = "Image" omitempty;
        labels: Map = "Labels" omitempty;
        command: Vec<String> = "Command" omitempty;
        args: Vec<String> = "Args" omitempty;
        hostname: String = "Hostname" omitempty;
        env: Vec<String> = "Env" omitempty;
        dir: String = "Dir" omitempty;
        user: String = "User" omitempty;
        groups: Vec<String> = "Groups" omitempty;
        privileges: Option<Privileges> = "Privileges" omitempty;
        init: Option<bool> = "Init" omitempty;
        stop_signal: String = "StopSignal" omitempty;
        tty: bool = "TTY" omitempty;
        open_stdin: bool = "OpenStdin" omitempty;
        read_only: bool = "ReadOnly" omitempty;
        mounts: Vec<Mount> = "Mounts" omitempty;
        /// Nanoseconds.
        stop_grace_period: Option<i64> = "StopGracePeriod" omitempty;
        healthcheck: Option<HealthConfig> = "Healthcheck" omitempty;
        hosts: Vec<String> = "Hosts" omitempty;
        dns_config: Option<DnsConfig> = "DNSConfig" omitempty;
        secrets: Vec<FileReference> = "Secrets" omitempty;
        configs: Vec<FileReference> = "Configs" omitempty;
        isolation: String = "Isolation" omitempty;
        sysctls: Map = "Sysctls" omitempty;
        capability_add: Vec<String> = "CapabilityAdd" omitempty;
        capability_drop: Vec<String> = "CapabilityDrop" omitempty;
        ulimits: Vec<Ulimit> = "Ulimits" omitempty;
        oom_score_adj: i64 = "OomScoreAdj" omitempty;
    }

    Privileges {
        credential_spec: Option<CredentialSpec> = "CredentialSpec";
        selinux_context: Option<SeLinux> = "SELinuxContext";
        seccomp: Option<Seccomp> = "Seccomp" omitempty;
        app_armor: Option<AppArmor> = "AppArmor" omitempty;
        no_new_privileges: bool = "NoNewPrivileges";
    }

    CredentialSpec {
        config: String = "Config";
        file: String = "File";
        registry: String = "Registry";
    }

    SeLinux {
        disable: bool = "Disable";
        user: String = "User";
        role: String = "Role";
        kind: String = "Type";
        level: String = "Level";
    }

    Seccomp {
        /// `default`, `unconfined` or `custom`.
        mode: String = "Mode" omitempty;
        #[serde(with = "base64_bytes")]
        profile: Vec<u8> = "Profile" omitempty;
    }

    AppArmor {
        /// `default` or `disabled`.
        mode: String = "Mode" omitempty;
    }

    HealthConfig {
        test: Vec<String> = "Test" omitempty;
        /// Nanoseconds, as the three after it.
        interval: i64 = "Interval" omitempty;
        timeout: i64 = "Timeout" omitempty;
        start_period: i64 = "StartPeriod" omitempty;
        start_interval: i64 = "StartInterval" omitempty;
        retries: i64 = "Retries" omitempty;
    }

    DnsConfig {
        nameservers: Vec<String> = "Nameservers" omitempty;
        search: Vec<String> = "Search" omitempty;
        options: Vec<String> = "Options" omitempty;
    }

    /// A secret or a config as a file; which of the two pairs of id and name is set says which.
    FileReference {
        file: Option<File> = "File" omitempty;
        runtime: Option<serde_json::Value> = "Runtime" omitempty;
        secret_id: String = "SecretID" omitempty;
        secret_name: String = "SecretName" omitempty;
        config_id: String = "ConfigID" omitempty;
        config_name: String = "ConfigName" omitempty;
    }

    File {
        name: String = "Name";
        uid: String = "UID";
        gid: String = "GID";
        mode: u32 = "Mode";
    }

    Ulimit {
        name: String = "Name";
        hard: i64 = "Hard" omitempty;
        soft: i64 = "Soft" omitempty;
    }

    Mount {
        /// `bind`, `volume`, `tmpfs`, `npipe`, `cluster` or `image`.
        kind: String = "Type" omitempty;
        source: String = "Source" omitempty;
        target: String = "Target" omitempty;
        read_only: bool = "ReadOnly" omitempty;
        consistency: String = "Consistency" omitempty;
        bind_options: Option<BindOptions> = "BindOptions" omitempty;
        volume_options: Option<VolumeOptions> = "VolumeOptions" omitempty;
        image_options: Option<ImageOptions> = "ImageOptions" omitempty;
        tmpfs_options: Option<TmpfsOptions> = "TmpfsOptions" omitempty;
        cluster_options: Option<Global> = "ClusterOptions" omitempty;
    }

    BindOptions {
        propagation: String = "Propagation" omitempty;
        non_recursive: bool = "NonRecursive" omitempty;
        create_mountpoint: bool = "CreateMountpoint" omitempty;
        read_only_non_recursive: bool = "ReadOnlyNonRecursive" omitempty;
        read_only_force_recursive: bool = "ReadOnlyForceRecursive" omitempty;
    }

    VolumeOptions {
        no_copy: bool = "NoCopy" omitempty;
        labels: Map = "Labels" omitempty;
        subpath: String = "Subpath" omitempty;
        driver_config: Option<DriverConfig> = "DriverConfig" omitempty;
    }

    ImageOptions {
        subpath: String = "Subpath" omitempty;
    }

    TmpfsOptions {
        size_bytes: i64 = "SizeBytes" omitempty;
        mode: u32 = "Mode" omitempty;
        options: Vec<Vec<String>> = "Options" omitempty;
    }
}
