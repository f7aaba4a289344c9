//! The last assignment set, on disk: a node that restarts while no manager answers goes on with the
//! tasks and networks it had. Secrets are never written; tasks that use them keep the files they have.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use shoal_transport::codec;
use shoal_types::{TaskId, wire::Assignments};
use tracing::warn;

#[derive(Debug, thiserror::Error)]
pub(crate) enum SaveError {
    #[error("write the assignments to {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Encode(#[from] codec::EncodeError),
}

#[derive(Debug, Clone)]
pub(crate) struct Saved {
    path: PathBuf,
    /// A file of this directory says of a task that its container was healthy: it keeps serving over a restart.
    healthy: PathBuf,
}

impl Saved {
    pub(crate) fn new(directory: &Path) -> Self {
        Self {
            path: directory.join("assignments"),
            healthy: directory.join("healthy"),
        }
    }

    /// What was saved; `None` when nothing was, or it can't be read any more (a manager will send it
    /// again).
    pub(crate) fn load(&self) -> Option<Arc<Assignments>> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                warn!(path = %self.path.display(), %error, "saved assignments not readable");
                return None;
            }
        };
        match codec::decode::<Assignments>(&bytes) {
            Ok(mut set) => {
                // The same set, sent again by a manager, is newer than this copy: it has the secrets.
                set.generation.0 = set.generation.0.saturating_sub(1);
                Some(Arc::new(set))
            }
            Err(error) => {
                warn!(path = %self.path.display(), %error, "saved assignments not usable");
                None
            }
        }
    }

    /// Replaces what was saved. Not flushed to the disk: after a power loss the tasks are gone too,
    /// and a manager sends the set again.
    pub(crate) fn store(&self, set: &Assignments) -> Result<(), SaveError> {
        let public = Assignments {
            secrets: Vec::new(),
            ..set.clone()
        };
        let bytes = codec::encode(&public)?;
        let temporary = self.path.with_extension("new");
        fs::write(&temporary, bytes)
            .and_then(|()| fs::rename(&temporary, &self.path))
            .map_err(|source| SaveError::Write {
                path: self.path.clone(),
                source,
            })
    }

    pub(crate) fn is_healthy(&self, task: &TaskId) -> bool {
        self.healthy.join(task.as_str()).exists()
    }

    pub(crate) fn store_healthy(&self, task: &TaskId) -> Result<(), SaveError> {
        let path = self.healthy.join(task.as_str());
        fs::create_dir_all(&self.healthy)
            .and_then(|()| fs::write(&path, ""))
            .map_err(|source| SaveError::Write { path, source })
    }

    pub(crate) fn forget_healthy(&self, task: &TaskId) {
        // What could not be removed goes with the next pruning.
        let _ = fs::remove_file(self.healthy.join(task.as_str()));
    }

    /// Forgets the tasks that are not `known`.
    pub(crate) fn prune_healthy(&self, known: impl Fn(&str) -> bool) {
        for entry in fs::read_dir(&self.healthy).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_none_or(|name| !known(name)) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    pub(crate) fn forget(&self) -> Result<(), SaveError> {
        match fs::remove_file(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(SaveError::Write {
                path: self.path.clone(),
                source,
            }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use shoal_types::{
        Generation, SecretId,
        object::{Meta, Secret},
    };

    use super::*;

    #[test]
    fn secrets_do_not_reach_the_disk() {
        let directory = tempfile::tempdir().unwrap();
        let saved = Saved::new(directory.path());
        assert_eq!(saved.load(), None);
        let secret = Secret {
            id: SecretId::from_random([1; 17]),
            meta: Meta::default(),
            name: "key".to_owned(),
            labels: Default::default(),
            data: b"do not write me".to_vec(),
        };
        let set = Assignments {
            generation: Generation(3),
            secrets: vec![Arc::new(secret)],
            ..Assignments::default()
        };
        saved.store(&set).unwrap();
        let bytes = fs::read(directory.path().join("assignments")).unwrap();
        assert!(!bytes.windows(5).any(|w| w == b"do no"));
        assert_eq!(saved.load().unwrap().generation, Generation(2));
        saved.forget().unwrap();
        saved.forget().unwrap();
        assert_eq!(saved.load(), None);
    }

    #[test]
    fn a_damaged_file_is_as_good_as_none() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("assignments"), b"\x07garbage").unwrap();
        assert_eq!(Saved::new(directory.path()).load(), None);
    }
}
