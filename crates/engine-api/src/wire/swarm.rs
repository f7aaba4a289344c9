//! The swarm itself (moby `api/types/swarm/swarm.go`).

use super::{DriverConfig, Map, Time, TlsInfo, Version, object};

object! {
    /// `GET /swarm`.
    Swarm {
        id: String = "ID";
        version: Version = "Version";
        created_at: Time = "CreatedAt";
        updated_at: Time = "UpdatedAt";
        spec: SwarmSpec = "Spec";
        tls_info: TlsInfo = "TLSInfo";
        root_rotation_in_progress: bool = "RootRotationInProgress";
        default_addr_pool: Vec<String> = "DefaultAddrPool";
        subnet_size: u32 = "SubnetSize";
        data_path_port: u32 = "DataPathPort";
        join_tokens: JoinTokens = "JoinTokens";
    }

    /// The same without the tokens, inside `GET /info`.
    ClusterInfo {
        id: String = "ID";
        version: Version = "Version";
        created_at: Time = "CreatedAt";
        updated_at: Time = "UpdatedAt";
        spec: SwarmSpec = "Spec";
        tls_info: TlsInfo = "TLSInfo";
        root_rotation_in_progress: bool = "RootRotationInProgress";
        default_addr_pool: Vec<String> = "DefaultAddrPool";
        subnet_size: u32 = "SubnetSize";
        data_path_port: u32 = "DataPathPort";
    }

    JoinTokens {
        worker: String = "Worker";
        manager: String = "Manager";
    }

    SwarmSpec {
        name: String = "Name" omitempty;
        labels: Map = "Labels";
        orchestration: Orchestration = "Orchestration";
        raft: Raft = "Raft";
        dispatcher: Dispatcher = "Dispatcher";
        ca_config: CaConfig = "CAConfig";
        task_defaults: TaskDefaults = "TaskDefaults";
        encryption_config: Encryption = "EncryptionConfig";
    }

    Orchestration {
        /// Tasks kept for each slot; negative: all.
        task_history_retention_limit: Option<i64> = "TaskHistoryRetentionLimit" omitempty;
    }

    Raft {
        snapshot_interval: u64 = "SnapshotInterval" omitempty;
        keep_old_snapshots: Option<u64> = "KeepOldSnapshots" omitempty;
        log_entries_for_slow_followers: u64 = "LogEntriesForSlowFollowers" omitempty;
        election_tick: i64 = "ElectionTick";
        heartbeat_tick: i64 = "HeartbeatTick";
    }

    Dispatcher {
        /// Nanoseconds.
        heartbeat_period: i64 = "HeartbeatPeriod" omitempty;
    }

    CaConfig {
        /// Nanoseconds.
        node_cert_expiry: i64 = "NodeCertExpiry" omitempty;
        external_cas: Vec<ExternalCa> = "ExternalCAs" omitempty;
        signing_ca_cert: String = "SigningCACert" omitempty;
        signing_ca_key: String = "SigningCAKey" omitempty;
        force_rotate: u64 = "ForceRotate" omitempty;
    }

    ExternalCa {
        protocol: String = "Protocol";
        url: String = "URL";
        options: Map = "Options" omitempty;
        ca_cert: String = "CACert";
    }

    TaskDefaults {
        log_driver: Option<DriverConfig> = "LogDriver" omitempty;
    }

    Encryption {
        auto_lock_managers: bool = "AutoLockManagers";
    }

    InitRequest {
        listen_addr: String = "ListenAddr";
        advertise_addr: String = "AdvertiseAddr";
        data_path_addr: String = "DataPathAddr";
        data_path_port: u32 = "DataPathPort";
        force_new_cluster: bool = "ForceNewCluster";
        spec: SwarmSpec = "Spec";
        auto_lock_managers: bool = "AutoLockManagers";
        /// `active`, `pause` or `drain`; empty: `active`.
        availability: String = "Availability";
        default_addr_pool: Vec<String> = "DefaultAddrPool";
        subnet_size: u32 = "SubnetSize";
    }

    JoinRequest {
        listen_addr: String = "ListenAddr";
        advertise_addr: String = "AdvertiseAddr";
        data_path_addr: String = "DataPathAddr";
        remote_addrs: Vec<String> = "RemoteAddrs";
        join_token: String = "JoinToken";
        availability: String = "Availability";
    }

    UnlockKey {
        unlock_key: String = "UnlockKey";
    }

    /// The part of `GET /info` about the swarm.
    SwarmInfo {
        node_id: String = "NodeID";
        node_addr: String = "NodeAddr";
        /// `inactive`, `pending`, `active`, `error` or `locked`.
        local_node_state: String = "LocalNodeState";
        control_available: bool = "ControlAvailable";
        error: String = "Error";
        remote_managers: Option<Vec<Peer>> = "RemoteManagers";
        nodes: u64 = "Nodes" omitempty;
        managers: u64 = "Managers" omitempty;
        cluster: Option<ClusterInfo> = "Cluster" omitempty;
        warnings: Vec<String> = "Warnings" omitempty;
    }

    Peer {
        node_id: String = "NodeID";
        addr: String = "Addr";
    }
}
