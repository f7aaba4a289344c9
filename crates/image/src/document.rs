//! An image's configuration document: the OCI fields, Docker's additions, and the exact bytes.

use std::{ops::Deref, sync::Arc, time::Duration};

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;
use serde_json::Value;

use crate::digest::{Digest, ImageId};

/// The bytes are not an image configuration.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    #[error("image configuration is not valid JSON of the expected shape")]
    Parse(#[from] serde_json::Error),
    #[error("image configuration names {count} layers; overlay stacks at most {max}", max = MAX_LAYERS)]
    TooManyLayers { count: usize },
    #[error("image configuration")]
    DiffId(#[from] crate::digest::ParseDigestError),
    #[error("image is for operating system {0:?}; only linux images can run")]
    OperatingSystem(String),
}

/// `OVL_MAX_STACK` of the kernel's fs/overlayfs.
const MAX_LAYERS: usize = 500;

/// What Docker keeps in a configuration beyond the OCI specification
/// (moby `api/types/container/config.go`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DockerFields {
    pub healthcheck: Option<Healthcheck>,
    /// The shell of the Dockerfile's shell form.
    pub shell: Option<Vec<String>>,
    pub on_build: Vec<String>,
    /// Seconds between the stop signal and SIGKILL.
    pub stop_timeout: Option<i64>,
    pub docker_version: Option<String>,
    pub comment: Option<String>,
}

/// How to ask whether a container is healthy. A zero means "the default".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", args…]` or `["CMD-SHELL", command]`.
    pub test: Vec<String>,
    pub interval: Duration,
    pub timeout: Duration,
    pub start_period: Duration,
    pub start_interval: Duration,
    pub retries: u32,
}

/// A parsed configuration. Derefs to the OCI part.
#[derive(Debug, Clone)]
pub struct ImageDocument {
    raw: Arc<[u8]>,
    oci: ImageConfiguration,
    docker: DockerFields,
    diff_ids: Vec<Digest>,
}

impl ImageDocument {
    pub fn parse(raw: &[u8]) -> Result<Self, DocumentError> {
        let mut value: Value = serde_json::from_slice(raw)?;
        // Go writes empty maps and lists as null; to the OCI types null and absent must be one.
        strip_nulls(&mut value);
        let wire: DockerDocument = DockerDocument::deserialize(&value)?;
        let oci: ImageConfiguration = serde_json::from_value(value)?;
        let os = oci.os().to_string();
        if os != "linux" {
            return Err(DocumentError::OperatingSystem(os));
        }
        let diff_ids: Vec<Digest> = oci
            .rootfs()
            .diff_ids()
            .iter()
            .map(|id| id.parse())
            .collect::<Result<_, _>>()?;
        if diff_ids.len() > MAX_LAYERS {
            return Err(DocumentError::TooManyLayers {
                count: diff_ids.len(),
            });
        }
        Ok(Self {
            raw: raw.into(),
            docker: wire.into(),
            oci,
            diff_ids,
        })
    }

    /// The bytes whose digest is the image's id.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    pub fn oci(&self) -> &ImageConfiguration {
        &self.oci
    }

    pub fn docker(&self) -> &DockerFields {
        &self.docker
    }

    /// Digests of the plain layer archives, lowest first.
    pub fn diff_ids(&self) -> &[Digest] {
        &self.diff_ids
    }

    pub fn id(&self) -> ImageId {
        ImageId(Digest::of(&self.raw))
    }
}

impl Deref for ImageDocument {
    type Target = ImageConfiguration;

    fn deref(&self) -> &ImageConfiguration {
        &self.oci
    }
}

fn strip_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(strip_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(strip_nulls),
        _ => {}
    }
}

#[derive(Deserialize)]
struct DockerDocument {
    #[serde(default)]
    config: DockerConfig,
    docker_version: Option<String>,
    comment: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct DockerConfig {
    healthcheck: Option<WireHealthcheck>,
    shell: Option<Vec<String>>,
    on_build: Vec<String>,
    stop_timeout: Option<i64>,
}

/// Durations are nanoseconds, as Go's.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct WireHealthcheck {
    test: Vec<String>,
    interval: i64,
    timeout: i64,
    start_period: i64,
    start_interval: i64,
    retries: i64,
}

impl From<DockerDocument> for DockerFields {
    fn from(wire: DockerDocument) -> Self {
        Self {
            healthcheck: wire.config.healthcheck.map(Healthcheck::from),
            shell: wire.config.shell,
            on_build: wire.config.on_build,
            stop_timeout: wire.config.stop_timeout,
            docker_version: wire.docker_version.filter(|text| !text.is_empty()),
            comment: wire.comment.filter(|text| !text.is_empty()),
        }
    }
}

impl From<WireHealthcheck> for Healthcheck {
    fn from(wire: WireHealthcheck) -> Self {
        let duration = |nanos: i64| Duration::from_nanos(u64::try_from(nanos).unwrap_or(0));
        Self {
            test: wire.test,
            interval: duration(wire.interval),
            timeout: duration(wire.timeout),
            start_period: duration(wire.start_period),
            start_interval: duration(wire.start_interval),
            retries: u32::try_from(wire.retries).unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_own_fields_and_nulls_are_read() {
        let raw = br#"{"architecture":"amd64","os":"linux","docker_version":"28.2.2",
            "config":{"Cmd":["sh"],"Volumes":null,"ExposedPorts":null,"OnBuild":["RUN x"],"Labels":null,
            "Shell":["/bin/bash","-c"],"StopTimeout":7,
            "Healthcheck":{"Test":["CMD","true"],"Interval":3000000000,"Retries":4}},
            "rootfs":{"type":"layers","diff_ids":[]}}"#;
        let document = ImageDocument::parse(raw).unwrap();
        let docker = document.docker();
        let check = docker.healthcheck.as_ref().unwrap();
        assert_eq!(check.interval, Duration::from_secs(3));
        assert_eq!(check.retries, 4);
        assert_eq!(docker.stop_timeout, Some(7));
        assert_eq!(docker.on_build, ["RUN x"]);
        assert_eq!(
            document.config().as_ref().unwrap().cmd().as_ref().unwrap(),
            &["sh"]
        );
        assert_eq!(document.id().0, Digest::of(raw));
    }

    #[test]
    fn images_of_other_systems_are_refused() {
        let raw =
            br#"{"architecture":"amd64","os":"windows","rootfs":{"type":"layers","diff_ids":[]}}"#;
        assert!(matches!(
            ImageDocument::parse(raw),
            Err(DocumentError::OperatingSystem(_))
        ));
    }
}
