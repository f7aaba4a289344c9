//! Files that are given to a container, and kept nowhere else.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::prepare::InvalidSpec;

/// A file whose content the container gets read-only, from a tmpfs that no other process sees: it is never on a disk, nor
/// swapped where the kernel can do without (`noswap`, Linux 6.4), and goes with the container. A file of the same path in the
/// image or in a mount is covered.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerFile {
    /// Absolute path in the container.
    pub target: String,
    /// The file's owner.
    pub uid: u32,
    /// The file's group.
    pub gid: u32,
    /// Permission bits, at most 07777.
    pub mode: u32,
    /// The content.
    #[serde(serialize_with = "encode", deserialize_with = "decode")]
    pub data: Vec<u8>,
}

/// Without the content, which may be a secret.
impl fmt::Debug for ContainerFile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ContainerFile")
            .field("target", &self.target)
            .field("uid", &self.uid)
            .field("gid", &self.gid)
            .field("mode", &format_args!("{:o}", self.mode))
            .field("data", &format_args!("{} bytes", self.data.len()))
            .finish()
    }
}

pub(super) fn check(file: &ContainerFile) -> Result<(), InvalidSpec> {
    let invalid = |why| InvalidSpec::invalid("files", format!("{}: {why}", file.target));
    let named = file.target.trim_end_matches('/').rsplit('/').next();
    if !file.target.starts_with('/') || named.is_none_or(|name| matches!(name, "" | "." | "..")) {
        return Err(invalid("the target must be the absolute path of a file"));
    }
    if file.target.contains('\0') {
        return Err(invalid("contains a NUL character"));
    }
    if file.mode > 0o7777 {
        return Err(invalid("the mode has more than permission bits"));
    }
    // As an id, the largest number means "leave it as it is" to the kernel.
    if file.uid == u32::MAX || file.gid == u32::MAX {
        return Err(invalid("4294967295 is no user or group"));
    }
    Ok(())
}

fn encode<S: Serializer>(data: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(data))
}

fn decode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
    STANDARD.decode(text.as_bytes()).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(target: &str) -> ContainerFile {
        ContainerFile {
            target: target.to_owned(),
            uid: 1,
            gid: 2,
            mode: 0o440,
            data: b"do not show me".to_vec(),
        }
    }

    #[test]
    fn content_is_not_shown() {
        let text = format!("{:?}", file("/run/secrets/a"));
        assert!(
            text.contains("14 bytes") && !text.contains("100, 111"),
            "{text}"
        );
    }

    #[test]
    fn targets_must_be_paths_of_files() {
        assert!(check(&file("/a/b")).is_ok());
        for target in ["", "a", "/", "/a/..", "/a/.", "/a\0b"] {
            assert!(check(&file(target)).is_err(), "{target:?}");
        }
        let loose = ContainerFile {
            mode: 0o10_000,
            ..file("/a")
        };
        assert!(check(&loose).is_err());
        let nobody = ContainerFile {
            uid: u32::MAX,
            ..file("/a")
        };
        assert!(check(&nobody).is_err());
    }

    proptest! {
        #[test]
        fn content_crosses_the_socket_as_it_is(data: Vec<u8>) {
            let sent = ContainerFile { data, ..file("/a") };
            let bytes = serde_json::to_vec(&sent).unwrap();
            prop_assert_eq!(serde_json::from_slice::<ContainerFile>(&bytes).unwrap(), sent);
        }
    }
}
