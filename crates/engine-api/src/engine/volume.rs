//! Volumes of the node.

use std::collections::BTreeMap;

use shoal_types::Timestamp;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeInfo {
    pub name: String,
    pub created: Timestamp,
    pub labels: BTreeMap<String, String>,
    /// Where its content is on the node.
    pub mountpoint: String,
}
