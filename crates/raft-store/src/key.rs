//! The key under which a member's files are sealed, and where it is kept.
//!
//! A data key seals nothing itself: each file has a key of its own, derived from or wrapped under it
//! with a random salt (see `seal`). So a data key can serve any number of files, and a lost disk
//! without it is noise.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use aws_lc_rs::hkdf;
use zeroize::Zeroize;

use crate::wal::sync_dir;

pub(crate) const KEY_BYTES: usize = 32;
pub(crate) const KEY_ID_BYTES: usize = 16;

/// What the files of one member are sealed under: 256 random bits. Wiped from memory when dropped,
/// and shown by no formatter.
#[derive(Clone, PartialEq, Eq)]
pub struct DataKey([u8; KEY_BYTES]);

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("{action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{} holds {found} bytes and not a key of {KEY_BYTES}; restore it from a backup, without it \
         the cluster state of this member cannot be read",
        path.display()
    )]
    Length { path: PathBuf, found: usize },
    #[error("{} can be read by others (mode {mode:04o}); chmod it to 0600", path.display())]
    Open { path: PathBuf, mode: u32 },
}

impl DataKey {
    pub fn generate() -> Self {
        Self(random())
    }

    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// For wrapping it under another key.
    pub fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// The key in the file at `path`, which is made, with mode 0600, if there is none. Of several that
    /// make it at once all get the same; after a crash it is whole or not there. Blocks on the disk.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        if let Some(found) = Self::load(path)? {
            return Ok(found);
        }
        let io = |action| {
            let path = path.to_owned();
            move |source| KeyError::Io {
                action,
                path,
                source,
            }
        };
        let key = Self::generate();
        let suffix: [u8; 8] = random();
        let temporary = path.with_extension(format!("{:016x}.tmp", u64::from_ne_bytes(suffix)));
        let written = write_new(&temporary, &key.0);
        // A link, and not a rename, so that a key that is there by now is not replaced.
        let linked = written.and_then(|()| fs::hard_link(&temporary, path));
        let removed = fs::remove_file(&temporary);
        match linked {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let found = Self::load(path)?;
                return found.ok_or_else(|| io("read")(io::ErrorKind::NotFound.into()));
            }
            Err(error) => return Err(io("write")(error)),
        }
        removed.map_err(io("clean up beside"))?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        sync_dir(dir.unwrap_or_else(|| Path::new("."))).map_err(io("write"))?;
        Ok(key)
    }

    /// The key in the file at `path`, if there is one.
    pub fn load(path: &Path) -> Result<Option<Self>, KeyError> {
        let io = |source| KeyError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        };
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        let mode = file.metadata().map_err(io)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Open {
                path: path.to_owned(),
                mode,
            });
        }
        let mut bytes = [0; KEY_BYTES + 1];
        let mut found = 0;
        while found < bytes.len() {
            match file.read(&mut bytes[found..]).map_err(io)? {
                0 => break,
                read => found += read,
            }
        }
        let key = bytes[..KEY_BYTES].try_into().map(Self);
        bytes.zeroize();
        match key {
            Ok(key) if found == KEY_BYTES => Ok(Some(key)),
            _ => Err(KeyError::Length {
                path: path.to_owned(),
                found,
            }),
        }
    }

    /// Tells this key from others, and nothing else about it.
    pub(crate) fn id(&self) -> [u8; KEY_ID_BYTES] {
        let derived = self.derive(&[], b"shoal data key id");
        *derived
            .first_chunk()
            .expect("an id is shorter than what is derived")
    }

    /// Another key, of which neither this one nor one of another salt or purpose can be told.
    pub(crate) fn derive(&self, salt: &[u8], purpose: &[u8]) -> [u8; KEY_BYTES] {
        let mut derived = [0; KEY_BYTES];
        hkdf::Salt::new(hkdf::HKDF_SHA256, salt)
            .extract(&self.0)
            .expand(&[purpose], hkdf::HKDF_SHA256)
            .and_then(|key| key.fill(&mut derived))
            .expect("HKDF gives as much as the hash is long");
        derived
    }
}

impl Drop for DataKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(..)")
    }
}

/// The key that new files are sealed under, and older ones that some files may still need.
#[derive(Debug, Clone)]
pub(crate) struct KeyRing {
    pub(crate) current: DataKey,
    pub(crate) older: Vec<DataKey>,
}

impl KeyRing {
    /// The key of this id, if it is here.
    pub(crate) fn find(&self, id: &[u8]) -> Option<&DataKey> {
        let mut keys = std::iter::once(&self.current).chain(&self.older);
        keys.find(|key| key.id() == id)
    }
}

pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("aws-lc ends the process rather than fail here");
    bytes
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_file_is_made_once_for_its_owner_alone_and_read_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("data.key");
        assert_eq!(DataKey::load(&path).expect("it can be looked for"), None);
        let keys: Vec<DataKey> = std::thread::scope(|scope| {
            let makers: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| DataKey::load_or_create(&path)))
                .collect();
            let made = makers.into_iter().map(std::thread::ScopedJoinHandle::join);
            made.map(|key| key.expect("it ends").expect("it has a key"))
                .collect()
        });
        assert!(keys.windows(2).all(|two| two[0] == two[1]));
        let mode = fs::metadata(&path).expect("it is there").mode();
        assert_eq!(mode & 0o777, 0o600);
        let left = fs::read_dir(dir.path()).expect("it is there").count();
        assert_eq!(left, 1, "no unfinished file is left");
        assert_ne!(DataKey::generate(), DataKey::generate());
    }

    #[test]
    fn a_key_file_that_is_open_to_others_or_no_key_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("data.key");
        fs::write(&path, [7; 31]).expect("it can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("it is ours");
        let error = DataKey::load_or_create(&path).expect_err("it is open");
        assert!(
            matches!(error, KeyError::Open { mode: 0o640, .. }),
            "{error}"
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
        let error = DataKey::load_or_create(&path).expect_err("it is short");
        assert!(
            matches!(error, KeyError::Length { found: 31, .. }),
            "{error}"
        );
        assert_eq!(fs::read(&path).expect("it is there"), [7; 31]);
    }

    #[test]
    fn a_key_shows_itself_in_no_text_and_derives_what_it_always_did() {
        let key = DataKey::from_bytes([0x5a; 32]);
        assert_eq!(format!("{key:?}"), "DataKey(..)");
        // As RFC 5869 has it, by another implementation.
        assert_eq!(hex(&key.id()), "3f6f31cf09189fb34d8588e64fb63176");
        assert_eq!(
            hex(&key.derive(&[1; 32], b"purpose")),
            "19de8052939b290af8197d4afe0b5867df49d1ca69f90cd8124b657e076aa786"
        );
        assert_ne!(key.derive(&[1], b"a"), key.derive(&[2], b"a"));
        assert_ne!(key.derive(&[1], b"a"), key.derive(&[1], b"b"));
    }

    fn hex(bytes: &[u8]) -> String {
        use std::fmt::Write;
        let mut text = String::new();
        for byte in bytes {
            write!(text, "{byte:02x}").expect("a string takes all");
        }
        text
    }
}
