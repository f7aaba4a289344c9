//! Manifests and indexes: reading them, and choosing the image for this machine.

use serde::{Deserialize, Serialize};

use crate::{catalog::Descriptor, digest::Digest};

pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Largest manifest or configuration that is read: registries refuse larger manifests.
pub(crate) const MANIFEST_MAX: u64 = 4 << 20;

/// The bytes are not a manifest that can be run.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("manifest is not valid JSON of the expected shape")]
    Parse(#[from] serde_json::Error),
    #[error(
        "Docker Image Format v1 and Docker Image manifest version 2, schema 1 support has been removed: push the image again with a current client"
    )]
    Schema1,
    /// One document that is both would be read differently by different tools (CVE-2021-41190).
    #[error("manifest has both layers and manifests")]
    Ambiguous,
    #[error("unsupported media type {0}: this is no container image")]
    MediaType(String),
    #[error("no matching manifest for linux/{architecture} in the manifest list entries")]
    NoPlatform { architecture: String },
    #[error("manifest lists nest too deeply")]
    Nested,
    #[error("manifest has {layers} layers, its configuration {diff_ids}")]
    LayerCount { layers: usize, diff_ids: usize },
}

/// What an image runs on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
    #[serde(
        rename = "os.version",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub os_version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

#[derive(Debug)]
pub(crate) enum Manifest {
    Image {
        config: Descriptor,
        layers: Vec<Descriptor>,
    },
    Index(Vec<IndexEntry>),
}

#[derive(Debug, Deserialize)]
pub(crate) struct IndexEntry {
    #[serde(flatten)]
    pub(crate) descriptor: Descriptor,
    pub(crate) platform: Option<Platform>,
    #[serde(default)]
    pub(crate) annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    #[serde(default)]
    schema_version: u32,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<IndexEntry>>,
    fs_layers: Option<serde_json::Value>,
}

impl Manifest {
    /// `header` is the content type that the registry gave; the document's own type wins.
    pub(crate) fn parse(header: Option<&str>, raw: &[u8]) -> Result<(Self, String), ManifestError> {
        let wire: Wire = serde_json::from_slice(raw)?;
        if wire.schema_version == 1 || wire.fs_layers.is_some() {
            return Err(ManifestError::Schema1);
        }
        let said = wire
            .media_type
            .as_deref()
            .or(header)
            .unwrap_or("")
            .to_owned();
        match (wire.config, wire.layers, wire.manifests) {
            (_, Some(_), Some(_)) | (Some(_), _, Some(_)) => Err(ManifestError::Ambiguous),
            (Some(config), Some(layers), None) => {
                if ![OCI_CONFIG, DOCKER_CONFIG].contains(&config.media_type.as_str()) {
                    return Err(ManifestError::MediaType(config.media_type));
                }
                let kind = if said == DOCKER_MANIFEST {
                    DOCKER_MANIFEST
                } else {
                    OCI_MANIFEST
                };
                Ok((Self::Image { config, layers }, kind.to_owned()))
            }
            (None, None, Some(entries)) => {
                let kind = if said == DOCKER_LIST {
                    DOCKER_LIST
                } else {
                    OCI_INDEX
                };
                Ok((Self::Index(entries), kind.to_owned()))
            }
            _ => Err(ManifestError::MediaType(said)),
        }
    }
}

/// The entry for this machine.
pub(crate) fn choose(entries: &[IndexEntry]) -> Result<&IndexEntry, ManifestError> {
    let (architecture, _) = host_architecture();
    choose_for(entries, architecture)
}

fn choose_for<'a>(
    entries: &'a [IndexEntry],
    architecture: &str,
) -> Result<&'a IndexEntry, ManifestError> {
    // The first of equals, as the specification asks.
    let mut best: Option<(u32, &IndexEntry)> = None;
    for entry in entries {
        let rank = match &entry.platform {
            Some(platform) => rank(platform, architecture),
            // Layouts of one platform leave it out.
            None if entries.len() == 1 => Some(0),
            None => None,
        };
        if let Some(rank) = rank
            && best.is_none_or(|(other, _)| rank > other)
        {
            best = Some((rank, entry));
        }
    }
    best.map(|(_, entry)| entry)
        .ok_or_else(|| ManifestError::NoPlatform {
            architecture: architecture.to_owned(),
        })
}

/// How well a platform fits; `None` when it cannot run. Plain builds come before those for newer
/// processors: the plain one is what was tested most.
fn rank(platform: &Platform, architecture: &str) -> Option<u32> {
    if platform.os != "linux" || platform.architecture != architecture {
        return None;
    }
    match (architecture, platform.variant.as_deref().unwrap_or("")) {
        ("amd64", "" | "v1") | ("arm64", "" | "v8") | ("arm", "v7" | "") => Some(10),
        ("amd64", variant) => amd64_supports(variant).then_some(1),
        ("arm64", _) => None,
        ("arm", "v6") => Some(9),
        ("arm", "v5") => Some(8),
        (_, variant) => Some(if variant.is_empty() { 10 } else { 1 }),
    }
}

#[cfg(target_arch = "x86_64")]
fn amd64_supports(variant: &str) -> bool {
    match variant {
        "v2" => std::arch::is_x86_feature_detected!("sse4.2"),
        "v3" => std::arch::is_x86_feature_detected!("avx2"),
        "v4" => std::arch::is_x86_feature_detected!("avx512f"),
        _ => false,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn amd64_supports(_variant: &str) -> bool {
    false
}

/// This machine in Go's words.
pub(crate) fn host_architecture() -> (&'static str, Option<&'static str>) {
    match std::env::consts::ARCH {
        "x86_64" => ("amd64", None),
        "aarch64" => ("arm64", Some("v8")),
        "arm" => ("arm", Some("v7")),
        "x86" => ("386", None),
        "powerpc64" => ("ppc64le", None),
        other => (other, None),
    }
}

/// A manifest of our own making, for images that came without one.
pub(crate) fn build(config: &Descriptor, layers: &[Descriptor]) -> Vec<u8> {
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": config,
        "layers": layers,
    });
    serde_json::to_vec(&manifest).expect("a JSON value prints")
}

/// A descriptor of an image configuration.
pub(crate) fn config_descriptor(digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: OCI_CONFIG.to_owned(),
        digest,
        size,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(architecture: &str, os: &str, variant: Option<&str>, marker: &str) -> IndexEntry {
        let digest = Digest::of(marker.as_bytes());
        IndexEntry {
            descriptor: Descriptor {
                media_type: OCI_MANIFEST.to_owned(),
                digest,
                size: 1,
            },
            platform: Some(Platform {
                architecture: architecture.to_owned(),
                os: os.to_owned(),
                os_version: None,
                variant: variant.map(str::to_owned),
            }),
            annotations: std::collections::BTreeMap::default(),
        }
    }

    #[test]
    fn the_plain_build_for_this_machine_is_chosen() {
        let entries = [
            entry("unknown", "unknown", None, "attestation"),
            entry("amd64", "windows", None, "windows"),
            entry("arm", "linux", Some("v6"), "v6"),
            entry("arm", "linux", Some("v7"), "v7"),
            entry("amd64", "linux", Some("v3"), "amd64v3"),
            entry("amd64", "linux", None, "amd64"),
        ];
        let chosen =
            |architecture| choose_for(&entries, architecture).map(|e| e.descriptor.digest.clone());
        assert_eq!(chosen("amd64").unwrap(), Digest::of(b"amd64"));
        assert_eq!(chosen("arm").unwrap(), Digest::of(b"v7"));
        let error = chosen("riscv64").unwrap_err().to_string();
        assert_eq!(
            error,
            "no matching manifest for linux/riscv64 in the manifest list entries"
        );
    }

    #[test]
    fn documents_of_two_minds_and_of_old_are_refused() {
        let descriptor = format!(
            r#"{{"mediaType":"{OCI_CONFIG}","digest":"{}","size":1}}"#,
            Digest::of(b"c")
        );
        let both =
            format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":[],"manifests":[]}}"#);
        assert!(matches!(
            Manifest::parse(None, both.as_bytes()),
            Err(ManifestError::Ambiguous)
        ));
        let old = br#"{"schemaVersion":1,"fsLayers":[]}"#;
        assert!(matches!(
            Manifest::parse(None, old),
            Err(ManifestError::Schema1)
        ));
        let chart = descriptor.replace(OCI_CONFIG, "application/vnd.cncf.helm.config.v1+json");
        let chart = format!(r#"{{"schemaVersion":2,"config":{chart},"layers":[]}}"#);
        assert!(matches!(
            Manifest::parse(None, chart.as_bytes()),
            Err(ManifestError::MediaType(_))
        ));
        let good = format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":[]}}"#);
        let (_, kind) = Manifest::parse(Some(DOCKER_MANIFEST), good.as_bytes()).unwrap();
        assert_eq!(kind, DOCKER_MANIFEST);
    }
}
