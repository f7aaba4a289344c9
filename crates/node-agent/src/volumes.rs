//! The volumes of a node: directories that outlive containers.
//!
//! `volumes/NAME` holds `_data`, which containers mount, and `volume.json`. A volume appears and goes by
//! one rename, so that it is always whole or not there; what a crash leaves half done lies in `.making`
//! or `.removing`, and is removed when the store is opened again.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use shoal_types::{ContainerId, Timestamp};

use crate::clock;

/// The label Docker gives volumes without a name of their own.
const ANONYMOUS_LABEL: &str = "com.docker.volume.anonymous";

const MAKING: &str = ".making";
const REMOVING: &str = ".removing";

#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("volume name is too short, names should be at least two alphanumeric characters")]
    TooShort,
    #[error(
        "{name:?} includes invalid characters for a local volume name, only \
         \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use \
         absolute path"
    )]
    Name { name: String },
    #[error("get {name}: no such volume")]
    NotFound { name: String },
    /// `users` are containers' ids.
    #[error("remove {name}: volume is in use - [{}]", users.join(", "))]
    InUse { name: String, users: Vec<String> },
    #[error(
        "the record of volume {name} is damaged; restore {path}, or remove the volume's directory"
    )]
    Damaged {
        name: String,
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A volume of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    pub name: String,
    pub created: Timestamp,
    pub labels: BTreeMap<String, String>,
    /// What containers mount.
    pub mountpoint: PathBuf,
    /// The container it was made for, and goes with.
    pub owner: Option<ContainerId>,
}

impl Volume {
    pub fn is_anonymous(&self) -> bool {
        self.labels.contains_key(ANONYMOUS_LABEL)
    }
}

/// `volume.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    created: Timestamp,
    labels: BTreeMap<String, String>,
    owner: Option<ContainerId>,
}

const RECORD_VERSION: u32 = 1;

/// The volumes below one directory. One process at a time.
#[derive(Debug)]
pub struct Volumes {
    dir: PathBuf,
    /// Held while volumes are made or removed, and while it is decided whether they may be.
    changing: Mutex<u64>,
}

impl Volumes {
    /// Makes `dir` where it is missing, and ends what a crash has cut short.
    pub fn open(dir: PathBuf) -> Result<Self, VolumeError> {
        for name in [MAKING, REMOVING] {
            let path = dir.join(name);
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", &path)(error));
                }
                _ => make_dir(&path, 0o700).map_err(failed("make", &path))?,
            }
        }
        Ok(Self {
            dir,
            changing: Mutex::new(0),
        })
    }

    /// Where the content of the volume `name` is.
    pub fn mountpoint(&self, name: &str) -> PathBuf {
        self.dir.join(name).join("_data")
    }

    /// All volumes, by name. Those whose record cannot be read are left out.
    pub fn list(&self) -> Result<Vec<Volume>, VolumeError> {
        self.list_named(|_| true)
    }

    fn list_named(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<Volume>, VolumeError> {
        let entries = fs::read_dir(&self.dir).map_err(failed("read", &self.dir))?;
        let mut volumes = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed("read", &self.dir))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if check_name(&name).is_err() || !wanted(&name) {
                continue;
            }
            match self.get(&name) {
                Ok(volume) => volumes.push(volume),
                Err(VolumeError::NotFound { .. }) => {}
                Err(error) => {
                    tracing::warn!(error = crate::error_chain(&error), "volume not readable");
                }
            }
        }
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    pub fn get(&self, name: &str) -> Result<Volume, VolumeError> {
        let not_found = || VolumeError::NotFound {
            name: name.to_owned(),
        };
        // A name that cannot be is not looked for: it could lead out of the directory.
        check_name(name).map_err(|_| not_found())?;
        let path = self.dir.join(name).join("volume.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(not_found()),
            Err(error) => return Err(failed("read", &path)(error)),
        };
        let record: Record =
            serde_json::from_slice(&bytes).map_err(|source| VolumeError::Damaged {
                name: name.to_owned(),
                path,
                source,
            })?;
        Ok(Volume {
            name: name.to_owned(),
            created: record.created,
            labels: record.labels,
            mountpoint: self.mountpoint(name),
            owner: record.owner,
        })
    }

    /// Bytes of the files of the volume `name`, as their lengths say.
    pub fn size(&self, name: &str) -> Result<u64, VolumeError> {
        let mut open = vec![self.get(name)?.mountpoint];
        let mut bytes = 0;
        while let Some(directory) = open.pop() {
            let entries = match fs::read_dir(&directory) {
                // A container may take anything away meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(failed("read", &directory))?,
            };
            for entry in entries.flatten() {
                // Of a link itself, not of what it points to.
                match entry.metadata() {
                    Ok(metadata) if metadata.is_dir() => open.push(entry.path()),
                    Ok(metadata) => bytes += metadata.len(),
                    Err(_) => {}
                }
            }
        }
        Ok(bytes)
    }

    /// The volume `name`, made if there is none; one that exists stays as it is.
    pub fn ensure(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
        owner: Option<ContainerId>,
    ) -> Result<Volume, VolumeError> {
        check_name(name)?;
        let _changing = self.changing();
        match self.get(name) {
            Err(VolumeError::NotFound { .. }) => {}
            other => return other,
        }
        let mut record = Record {
            version: RECORD_VERSION,
            created: clock::now(),
            labels: labels.clone(),
            owner,
        };
        if owner.is_some() {
            record
                .labels
                .insert(ANONYMOUS_LABEL.to_owned(), String::new());
        }
        self.make(name, &record)?;
        self.get(name)
    }

    fn make(&self, name: &str, record: &Record) -> Result<(), VolumeError> {
        let (making, place) = (self.dir.join(MAKING).join(name), self.dir.join(name));
        // A try before this one may have failed half-way.
        remove_tree(&making)?;
        // Others may pass, as the user a container's program runs as does; only root may look around.
        make_dir(&making, 0o701).map_err(failed("make", &making))?;
        let data = making.join("_data");
        make_dir(&data, 0o755).map_err(failed("make", &data))?;
        let path = making.join("volume.json");
        let bytes = serde_json::to_vec(record).expect("a record is plain data with string keys");
        let write = || -> io::Result<()> {
            fs::write(&path, bytes)?;
            fs::File::open(&path)?.sync_all()
        };
        write().map_err(failed("write", &path))?;
        fs::rename(&making, &place).map_err(failed("make", &place))?;
        let sync = fs::File::open(&self.dir).and_then(|dir| dir.sync_all());
        sync.map_err(failed("sync", &self.dir))
    }

    /// Removes the volume `name`, unless `users` names containers that need it; asked under the lock
    /// that making volumes takes, so that none comes to be used meanwhile.
    pub fn remove(
        &self,
        name: &str,
        users: impl FnOnce() -> Vec<String>,
    ) -> Result<(), VolumeError> {
        let aside = {
            let mut number = self.changing();
            self.get(name)?;
            let users = users();
            if !users.is_empty() {
                let name = name.to_owned();
                return Err(VolumeError::InUse { name, users });
            }
            *number += 1;
            let aside = self.dir.join(REMOVING).join(format!("{name}.{number}"));
            let place = self.dir.join(name);
            fs::rename(&place, &aside).map_err(failed("remove", &place))?;
            aside
        };
        remove_tree(&aside)
    }

    /// Removes what was made for `owner` alone; goes on after an error, and gives all of them.
    pub fn remove_owned(&self, is_owner: impl Fn(&ContainerId) -> bool) -> Vec<VolumeError> {
        let volumes = match self.list_named(is_anonymous_name) {
            Ok(volumes) => volumes,
            Err(error) => return vec![error],
        };
        let owned = volumes
            .iter()
            .filter(|v| v.owner.as_ref().is_some_and(&is_owner));
        owned
            .filter_map(|volume| self.remove(&volume.name, Vec::new).err())
            .filter(|error| !matches!(error, VolumeError::NotFound { .. }))
            .collect()
    }

    fn changing(&self) -> MutexGuard<'_, u64> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// 64 hex digits.
fn is_anonymous_name(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Docker's rule for names.
pub(crate) fn check_name(name: &str) -> Result<(), VolumeError> {
    if name.len() < 2 {
        return Err(VolumeError::TooShort);
    }
    let first = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    let rest = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if !first || !name.chars().all(rest) || name.len() > 255 {
        return Err(VolumeError::Name {
            name: name.to_owned(),
        });
    }
    Ok(())
}

fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::DirBuilder::new().mode(mode).create(path)
}

fn remove_tree(path: &Path) -> Result<(), VolumeError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VolumeError {
    let path = path.to_owned();
    move |source| VolumeError::Io {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn store() -> (tempfile::TempDir, Volumes) {
        let directory = tempfile::tempdir().unwrap();
        let volumes = Volumes::open(directory.path().join("volumes")).unwrap();
        (directory, volumes)
    }

    #[test]
    fn a_volume_is_made_once_and_found_again() {
        let (directory, volumes) = store();
        let labels = [("a".to_owned(), "b".to_owned())].into();
        let made = volumes.ensure("data", &labels, None).unwrap();
        fs::write(made.mountpoint.join("x"), "kept").unwrap();
        assert_eq!(
            volumes.ensure("data", &BTreeMap::new(), None).unwrap(),
            made
        );
        drop(volumes);
        let again = Volumes::open(directory.path().join("volumes")).unwrap();
        assert_eq!(again.list().unwrap(), std::slice::from_ref(&made));
        assert_eq!(fs::read(made.mountpoint.join("x")).unwrap(), b"kept");
    }

    #[test]
    fn one_in_use_stays() {
        let (_directory, volumes) = store();
        volumes.ensure("data", &BTreeMap::new(), None).unwrap();
        let refused = volumes
            .remove("data", || vec!["c1".to_owned()])
            .unwrap_err();
        assert_eq!(refused.to_string(), "remove data: volume is in use - [c1]");
        volumes.remove("data", Vec::new).unwrap();
        let gone = volumes.remove("data", Vec::new).unwrap_err();
        assert_eq!(gone.to_string(), "get data: no such volume");
        assert!(volumes.list().unwrap().is_empty());
    }

    #[test]
    fn anonymous_ones_go_with_their_owner() {
        let (_directory, volumes) = store();
        let owner = ContainerId::from_random([1; 32]);
        let anonymous = ContainerId::from_random([2; 32]).to_string();
        volumes.ensure("named", &BTreeMap::new(), None).unwrap();
        volumes
            .ensure(&anonymous, &BTreeMap::new(), Some(owner))
            .unwrap();
        assert!(volumes.get(&anonymous).unwrap().is_anonymous());
        assert!(volumes.remove_owned(|id| *id == owner).is_empty());
        let left: Vec<_> = volumes
            .list()
            .unwrap()
            .into_iter()
            .map(|v| v.name)
            .collect();
        assert_eq!(left, ["named"]);
    }

    #[test]
    fn what_a_crash_left_half_done_goes() {
        let (directory, volumes) = store();
        let dir = directory.path().join("volumes");
        fs::create_dir_all(dir.join(".making/half/_data")).unwrap();
        fs::create_dir_all(dir.join(".removing/old.1/_data")).unwrap();
        assert!(volumes.list().unwrap().is_empty());
        let volumes = Volumes::open(dir.clone()).unwrap();
        assert!(
            fs::read_dir(dir.join(".removing"))
                .unwrap()
                .next()
                .is_none()
        );
        volumes.ensure("half", &BTreeMap::new(), None).unwrap();
    }

    #[test]
    fn names_are_dockers() {
        for good in ["ab", "a_1.b-c", "0a"] {
            assert!(check_name(good).is_ok(), "{good:?}");
        }
        for bad in ["", "a", ".a", "a/b", "../x", "a b", "-a"] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_name_leads_out_of_the_store(name in ".{0,12}") {
            if check_name(&name).is_ok() {
                let path = Path::new("/v").join(&name);
                prop_assert_eq!(path.parent(), Some(Path::new("/v")));
                prop_assert!(path.components().count() == 3);
            }
        }
    }
}
