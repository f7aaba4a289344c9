//! Secrets and configs (moby `api/types/swarm/{secret,config}.go`).

use super::{DriverConfig, Map, Time, Version, json::base64_bytes, object};

object! {
    Secret {
        id: String = "ID";
        version: Version = "Version";
        created_at: Time = "CreatedAt";
        updated_at: Time = "UpdatedAt";
        spec: SecretSpec = "Spec";
    }

    SecretSpec {
        name: String = "Name" omitempty;
        labels: Map = "Labels";
        /// Sent by clients, never sent to them.
        #[serde(with = "base64_bytes")]
        data: Vec<u8> = "Data" omitempty;
        driver: Option<DriverConfig> = "Driver" omitempty;
        templating: Option<DriverConfig> = "Templating" omitempty;
    }

    Config {
        id: String = "ID";
        version: Version = "Version";
        created_at: Time = "CreatedAt";
        updated_at: Time = "UpdatedAt";
        spec: ConfigSpec = "Spec";
    }

    ConfigSpec {
        name: String = "Name" omitempty;
        labels: Map = "Labels";
        #[serde(with = "base64_bytes")]
        data: Vec<u8> = "Data" omitempty;
        templating: Option<DriverConfig> = "Templating" omitempty;
    }

    /// Answer to the creation of a secret or config.
    Created {
        id: String = "ID";
    }
}
