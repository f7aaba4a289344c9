//! Files named by the digest of their content.
//!
//! A blob appears under its name only whole and verified: it is written below `tmp/`, synced, and
//! renamed. Compressed layers stay after they were unpacked. They cost a third of the unpacked
//! size, and are what makes push and save exact: packing a directory again would give other bytes
//! and so another digest.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::digest::Digest;

pub(crate) struct Blobs {
    directory: PathBuf,
    temporary: PathBuf,
    counter: AtomicU64,
}

impl Blobs {
    /// Makes the directories; what is in `temporary` belongs to nobody after an unclean end.
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        let directory = root.join("blobs/sha256");
        let temporary = root.join("tmp");
        std::fs::create_dir_all(&directory)?;
        std::fs::create_dir_all(&temporary)?;
        Ok(Self {
            directory,
            temporary,
            counter: AtomicU64::new(0),
        })
    }

    pub(crate) fn temporary(&self) -> &Path {
        &self.temporary
    }

    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(digest.hex())
    }

    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.path(digest).exists()
    }

    pub(crate) fn open_blob(&self, digest: &Digest) -> io::Result<File> {
        File::open(self.path(digest))
    }

    pub(crate) fn read(&self, digest: &Digest) -> io::Result<Vec<u8>> {
        std::fs::read(self.path(digest))
    }

    /// A fresh path below `tmp/`, deleted with the guard.
    pub(crate) fn temporary_path(&self, purpose: &str) -> TemporaryPath {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        TemporaryPath(Some(self.temporary.join(format!("{purpose}-{number}"))))
    }

    /// Keeps `bytes` under their digest.
    pub(crate) fn put(&self, bytes: &[u8]) -> io::Result<Digest> {
        let digest = Digest::of(bytes);
        if self.has(&digest) {
            return Ok(digest);
        }
        let temporary = self.temporary_path("blob");
        let file = File::create_new(temporary.path())?;
        io::Write::write_all(&mut &file, bytes)?;
        file.sync_data()?;
        self.keep(temporary, &digest)?;
        Ok(digest)
    }

    /// Gives a finished, synced file its name. The caller has verified the digest.
    pub(crate) fn keep(&self, temporary: TemporaryPath, digest: &Digest) -> io::Result<()> {
        std::fs::rename(temporary.path(), self.path(digest))?;
        temporary.forget();
        File::open(&self.directory)?.sync_all()
    }

    pub(crate) fn delete(&self, digest: &Digest) -> io::Result<()> {
        match std::fs::remove_file(self.path(digest)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Digests of all blobs; files with other names are listed apart.
    pub(crate) fn list(&self) -> io::Result<(Vec<Digest>, Vec<PathBuf>)> {
        let (mut digests, mut strangers) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir(&self.directory)? {
            let entry = entry?;
            match format!("sha256:{}", entry.file_name().to_string_lossy()).parse() {
                Ok(digest) => digests.push(digest),
                Err(_) => strangers.push(entry.path()),
            }
        }
        Ok((digests, strangers))
    }
}

/// A file or directory below `tmp/` that goes with this value.
pub(crate) struct TemporaryPath(Option<PathBuf>);

impl TemporaryPath {
    pub(crate) fn path(&self) -> &Path {
        self.0.as_deref().expect("a path until it is forgotten")
    }

    /// It was renamed away, or somebody else deletes it.
    pub(crate) fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for TemporaryPath {
    fn drop(&mut self) {
        if let Some(path) = self.0.take()
            && let Err(errno) = crate::unpack::tree::remove_tree(&path)
        {
            tracing::warn!(path = %path.display(), %errno, "temporary file left behind until the next start");
        }
    }
}
