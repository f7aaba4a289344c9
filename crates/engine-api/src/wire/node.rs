//! Nodes (moby `api/types/swarm/node.go`).

use super::{Map, Resources, Time, Version, json::base64_bytes, object};

object! {
    Node {
        id: String = "ID";
        version: Version = "Version";
        created_at: Time = "CreatedAt";
        updated_at: Time = "UpdatedAt";
        spec: NodeSpec = "Spec";
        description: NodeDescription = "Description";
        status: NodeStatus = "Status";
        manager_status: Option<ManagerStatus> = "ManagerStatus" omitempty;
    }

    NodeSpec {
        name: String = "Name" omitempty;
        labels: Map = "Labels";
        /// `worker` or `manager`.
        role: String = "Role" omitempty;
        /// `active`, `pause` or `drain`.
        availability: String = "Availability" omitempty;
    }

    NodeDescription {
        hostname: String = "Hostname" omitempty;
        platform: Platform = "Platform";
        resources: Resources = "Resources";
        engine: EngineDescription = "Engine";
        tls_info: TlsInfo = "TLSInfo";
    }

    Platform {
        architecture: String = "Architecture" omitempty;
        os: String = "OS" omitempty;
    }

    EngineDescription {
        engine_version: String = "EngineVersion" omitempty;
        labels: Map = "Labels" omitempty;
        plugins: Vec<PluginDescription> = "Plugins" omitempty;
    }

    PluginDescription {
        kind: String = "Type" omitempty;
        name: String = "Name" omitempty;
    }

    TlsInfo {
        /// PEM.
        trust_root: String = "TrustRoot" omitempty;
        #[serde(with = "base64_bytes")]
        cert_issuer_subject: Vec<u8> = "CertIssuerSubject" omitempty;
        #[serde(with = "base64_bytes")]
        cert_issuer_public_key: Vec<u8> = "CertIssuerPublicKey" omitempty;
    }

    NodeStatus {
        /// `unknown`, `down`, `ready` or `disconnected`.
        state: String = "State" omitempty;
        message: String = "Message" omitempty;
        addr: String = "Addr" omitempty;
    }

    ManagerStatus {
        leader: bool = "Leader" omitempty;
        reachability: Reachability = "Reachability" omitempty;
        addr: String = "Addr" omitempty;
    }
}

/// `unknown`, `unreachable` or `reachable`.
pub type Reachability = String;
