//! Images of a node.

use std::collections::BTreeMap;

use shoal_types::{Timestamp, spec::HealthCheck};

/// An image as listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageInfo {
    /// `sha256:…` of its configuration.
    pub id: String,
    /// `name:tag`.
    pub repo_tags: Vec<String>,
    /// `name@sha256:…`.
    pub repo_digests: Vec<String>,
    pub created: Timestamp,
    /// Of all its layers unpacked, in bytes.
    pub size: u64,
    pub labels: BTreeMap<String, String>,
    /// Containers made from it; -1 when not counted.
    pub containers: i64,
}

/// An image in full.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageDetails {
    pub info: ImageInfo,
    /// Names in Docker's vocabulary: `amd64`, `linux`, `v8`.
    pub architecture: String,
    pub os: String,
    pub variant: String,
    pub author: String,
    pub comment: String,
    pub settings: ImageSettings,
    /// `sha256:…` of each unpacked layer, lowest first.
    pub layers: Vec<String>,
    /// Oldest first.
    pub history: Vec<HistoryItem>,
}

/// What containers of an image get unless they say otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageSettings {
    pub user: String,
    /// `80/tcp`.
    pub exposed_ports: Vec<String>,
    pub env: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub volumes: Vec<String>,
    pub working_dir: String,
    pub stop_signal: String,
    pub shell: Vec<String>,
    pub on_build: Vec<String>,
    pub health: Option<HealthCheck>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HistoryItem {
    pub created: Timestamp,
    pub created_by: String,
    pub comment: String,
    /// Bytes that the step added; 0 for one that made no layer.
    pub size: u64,
}

/// Where the file system of an archive becomes an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImportRequest {
    /// `name:tag`; empty: an image without a name.
    pub reference: String,
    pub message: String,
    /// Dockerfile instructions: `CMD ["x"]`, `ENV a=b`…
    pub changes: Vec<String>,
    /// `os/arch[/variant]`; empty: the machine's.
    pub platform: String,
}

/// One thing that a removal did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    Untagged(String),
    Deleted(String),
}

/// What a registry says of a reference.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageDescriptor {
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    pub platforms: Vec<ImagePlatform>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImagePlatform {
    pub architecture: String,
    pub os: String,
    pub variant: String,
}
