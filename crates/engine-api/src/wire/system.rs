//! The engine itself (moby `api/types/{types,system}`).

use std::collections::BTreeMap;

use super::{ContainerSummary, GenericResource, ImageSummary, Map, SwarmInfo, object};

object! {
    /// `GET /version`.
    VersionInfo {
        platform: PlatformName = "Platform" omitempty;
        components: Vec<Component> = "Components" omitempty;
        version: String = "Version";
        api_version: String = "ApiVersion";
        min_api_version: String = "MinAPIVersion" omitempty;
        git_commit: String = "GitCommit";
        /// Version of the compiler; named after Docker's.
        go_version: String = "GoVersion";
        os: String = "Os";
        arch: String = "Arch";
        kernel_version: String = "KernelVersion" omitempty;
        experimental: bool = "Experimental" omitempty;
        build_time: String = "BuildTime" omitempty;
    }

    PlatformName {
        name: String = "Name";
    }

    Component {
        name: String = "Name";
        version: String = "Version";
        details: Map = "Details" omitempty;
    }

    /// `GET /info`.
    Info {
        id: String = "ID";
        containers: u64 = "Containers";
        containers_running: u64 = "ContainersRunning";
        containers_paused: u64 = "ContainersPaused";
        containers_stopped: u64 = "ContainersStopped";
        images: u64 = "Images";
        driver: String = "Driver";
        driver_status: Vec<[String; 2]> = "DriverStatus";
        system_status: Vec<[String; 2]> = "SystemStatus" omitempty;
        plugins: Plugins = "Plugins";
        memory_limit: bool = "MemoryLimit";
        swap_limit: bool = "SwapLimit";
        cpu_cfs_period: bool = "CpuCfsPeriod";
        cpu_cfs_quota: bool = "CpuCfsQuota";
        cpu_shares: bool = "CPUShares";
        cpu_set: bool = "CPUSet";
        pids_limit: bool = "PidsLimit";
        ipv4_forwarding: bool = "IPv4Forwarding";
        debug: bool = "Debug";
        n_fd: u64 = "NFd";
        oom_kill_disable: bool = "OomKillDisable";
        n_goroutines: u64 = "NGoroutines";
        system_time: String = "SystemTime";
        logging_driver: String = "LoggingDriver";
        cgroup_driver: String = "CgroupDriver";
        cgroup_version: String = "CgroupVersion" omitempty;
        n_events_listener: u64 = "NEventsListener";
        kernel_version: String = "KernelVersion";
        operating_system: String = "OperatingSystem";
        os_version: String = "OSVersion";
        os_type: String = "OSType";
        architecture: String = "Architecture";
        index_server_address: String = "IndexServerAddress";
        registry_config: Registries = "RegistryConfig";
        n_cpu: u64 = "NCPU";
        mem_total: u64 = "MemTotal";
        generic_resources: Option<Vec<GenericResource>> = "GenericResources";
        docker_root_dir: String = "DockerRootDir";
        http_proxy: String = "HttpProxy";
        https_proxy: String = "HttpsProxy";
        no_proxy: String = "NoProxy";
        name: String = "Name";
        /// `key=value`.
        labels: Vec<String> = "Labels";
        experimental_build: bool = "ExperimentalBuild";
        server_version: String = "ServerVersion";
        runtimes: BTreeMap<String, Runtime> = "Runtimes";
        default_runtime: String = "DefaultRuntime";
        swarm: SwarmInfo = "Swarm";
        live_restore_enabled: bool = "LiveRestoreEnabled";
        isolation: String = "Isolation";
        init_binary: String = "InitBinary";
        containerd_commit: Commit = "ContainerdCommit";
        runc_commit: Commit = "RuncCommit";
        init_commit: Commit = "InitCommit";
        /// `name=seccomp,profile=builtin`…
        security_options: Vec<String> = "SecurityOptions";
        product_license: String = "ProductLicense" omitempty;
        default_address_pools: Vec<AddressPool> = "DefaultAddressPools" omitempty;
        cdi_spec_dirs: Vec<String> = "CDISpecDirs";
        warnings: Option<Vec<String>> = "Warnings";
    }

    AddressPool {
        base: String = "Base";
        size: u32 = "Size";
    }

    Plugins {
        volume: Vec<String> = "Volume";
        network: Vec<String> = "Network";
        authorization: Option<Vec<String>> = "Authorization";
        log: Vec<String> = "Log";
    }

    Registries {
        insecure_registry_cidrs: Vec<String> = "InsecureRegistryCIDRs";
        index_configs: BTreeMap<String, IndexInfo> = "IndexConfigs";
        mirrors: Option<Vec<String>> = "Mirrors";
    }

    IndexInfo {
        name: String = "Name";
        mirrors: Vec<String> = "Mirrors";
        secure: bool = "Secure";
        official: bool = "Official";
    }

    Runtime {
        path: String = "path" omitempty;
    }

    Commit {
        id: String = "ID";
        expected: String = "Expected" omitempty;
    }

    /// `GET /system/df`.
    DiskUsage {
        layers_size: i64 = "LayersSize";
        images: Option<Vec<ImageSummary>> = "Images";
        containers: Option<Vec<ContainerSummary>> = "Containers";
        volumes: Option<Vec<super::Volume>> = "Volumes";
        build_cache: Option<Vec<BuildCacheUsage>> = "BuildCache";
    }

    /// `GET /doctor`, which Docker does not have.
    Diagnosis {
        findings: Vec<String> = "Findings";
        warnings: Vec<String> = "Warnings";
    }

    BuildCacheUsage {
        id: String = "ID";
        size: i64 = "Size";
    }
}
