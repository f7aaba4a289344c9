//! Snapshots on disk: the state after one entry, so that the log before it can go.
//!
//! A snapshot gets its name only when all of it is on disk, and the ones before it stay until then; so
//! a crash at any point leaves one that the log follows on. At most two are kept.

mod file;
#[cfg(test)]
mod tests;

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, FileExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio_util::task::TaskTracker;

pub use self::file::SnapshotError;
use crate::{
    key::KeyRing,
    seal::FileKey,
    state::State,
    stored::{Point, SnapshotHead},
    wal::sync_dir,
};

const SUFFIX: &str = ".snapshot";
const KEPT: usize = 2;
const COPY_BYTES: usize = 1 << 18;

/// The snapshots of one member.
#[derive(Clone)]
pub(crate) struct Snapshots(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    keys: KeyRing,
    /// The newest; also held while files are renamed and removed.
    current: Mutex<Option<(SnapshotHead, SnapshotFile)>>,
    temporary: AtomicU64,
    /// Work on the disk that is under way.
    work: TaskTracker,
}

/// A snapshot that stays readable even when its name is removed.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotFile {
    file: Arc<File>,
    /// Of the records, which follow the header.
    bytes: u64,
    key: FileKey,
    /// Set for one that was received, and is not a snapshot of ours yet.
    received: Option<Arc<Received>>,
}

#[derive(Debug)]
struct Received {
    temporary: Temporary,
    head: SnapshotHead,
    state: State,
}

/// A file without a proper name. It goes with this, unless it was renamed.
#[derive(Debug)]
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Usually gone already, under its new name.
        let _ = fs::remove_file(&self.0);
    }
}

impl SnapshotFile {
    pub(crate) fn len(&self) -> u64 {
        self.bytes
    }

    /// Reads sealed records at `offset`; zero at the end.
    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file
            .read_at(buffer, file::FILE_HEADER_BYTES as u64 + offset)
    }

    /// What the records are sealed under.
    pub(crate) fn key(&self) -> &FileKey {
        &self.key
    }
}

impl Snapshots {
    /// Opens the directory, which is created if need be, and reads the newest snapshot that is whole.
    /// One that is not whole is an error when the entries since the one before it are gone:
    /// `purged` is the last entry that the log does not hold any more. Blocks on the disk.
    pub(crate) fn open(
        dir: &Path,
        keys: &KeyRing,
        purged: Option<Point>,
    ) -> Result<(Self, Option<(SnapshotHead, State)>), SnapshotError> {
        Self::check_keys(dir, keys)?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(SnapshotError::io("create", dir))?;
        remove_unfinished(dir).map_err(SnapshotError::io("clean", dir))?;
        let mut first_error = None;
        let mut found = None;
        for path in list(dir).map_err(SnapshotError::io("read", dir))? {
            let read = file::key_of(&path, keys)
                .and_then(|key| file::read(&path, &key).map(|(head, state)| (head, state, key)));
            match read {
                Ok((head, state, key)) => {
                    let file = open_read(&path)
                        .and_then(|file| SnapshotFile::new(file, key, None))
                        .map_err(SnapshotError::io("open", &path))?;
                    found = Some((head, state, file));
                    break;
                }
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        let last = found.as_ref().and_then(|(head, ..)| head.last);
        if let Some(purged) = purged
            && last.is_none_or(|last| last.index < purged.index)
        {
            return Err(first_error.unwrap_or_else(|| SnapshotError::Missing {
                dir: dir.to_owned(),
                index: purged.index,
            }));
        }
        if let Some(error) = first_error {
            tracing::warn!(
                error = %error,
                cause = std::error::Error::source(&error).map(tracing::field::display),
                "snapshot is not readable; the log still holds what was in it"
            );
        }
        let current = found
            .as_ref()
            .map(|(head, _, file)| (head.clone(), file.clone()));
        let inner = Inner {
            dir: dir.to_owned(),
            keys: keys.clone(),
            current: Mutex::new(current),
            temporary: AtomicU64::new(0),
            work: TaskTracker::new(),
        };
        let state = found.map(|(head, state, _)| (head, state));
        Ok((Self(Arc::new(inner)), state))
    }

    /// Whether all snapshots in the directory can be opened with these keys, as far as their headers
    /// are whole. Changes nothing. Blocks on the disk.
    pub(crate) fn check_keys(dir: &Path, keys: &KeyRing) -> Result<(), SnapshotError> {
        let paths = match list(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            paths => paths.map_err(SnapshotError::io("read", dir))?,
        };
        for path in paths {
            // Damage is judged later, when it is known what is needed.
            if let Err(error @ (SnapshotError::OtherKey { .. } | SnapshotError::Format { .. })) =
                file::key_of(&path, keys)
            {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Whether one of them is sealed under an older key, or cannot be told. Blocks on the disk.
    pub(crate) fn need_older_keys(&self) -> bool {
        let current = KeyRing {
            current: self.0.keys.current.clone(),
            older: Vec::new(),
        };
        // Held so that none is removed meanwhile.
        let _held = self.lock();
        let mut paths = list(&self.0.dir).unwrap_or_default().into_iter();
        paths.any(|path| file::key_of(&path, &current).is_err())
    }

    /// Does something that blocks on the disk on a thread for such things.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let done = self.0.work.spawn_blocking(work).await;
        done.map_err(io::Error::other)?
    }

    /// Returns when nothing works on the directory any more.
    pub(crate) async fn finish(&self) {
        self.0.work.close();
        self.0.work.wait().await;
    }

    pub(crate) fn current(&self) -> Option<(SnapshotHead, SnapshotFile)> {
        self.lock().clone()
    }

    /// Writes a snapshot of `state`. Blocks on the disk.
    pub(crate) fn write(
        &self,
        head: &SnapshotHead,
        state: &State,
    ) -> io::Result<(SnapshotHead, SnapshotFile)> {
        let temporary = self.temporary();
        let key = FileKey::generate();
        let mut file = self.begin(&temporary, &key)?;
        file::write(&mut file, &key, head, state)?;
        let file = SnapshotFile::new(file, key, None)?;
        self.adopt(&temporary, head, &file)?;
        // When a newer one was installed meanwhile, that one counts.
        Ok(self.current().unwrap_or_else(|| (head.clone(), file)))
    }

    /// Somewhere to put the bytes of a snapshot that another member sends.
    pub(crate) fn receive(&self, key: FileKey) -> io::Result<Incoming> {
        let temporary = self.temporary();
        let file = self.begin(&temporary, &key)?;
        Ok(Incoming {
            temporary,
            file,
            key,
        })
    }

    /// A new file that holds the header.
    fn begin(&self, temporary: &Temporary, key: &FileKey) -> io::Result<File> {
        let mut file = file::create(&temporary.0)?;
        file.write_all(&file::header(key, &self.0.keys.current))?;
        Ok(file)
    }

    /// Makes a snapshot from elsewhere the newest one here, and gives its state. Blocks on the disk.
    pub(crate) fn install(&self, data: &SnapshotFile) -> io::Result<(SnapshotHead, State)> {
        let copy;
        let received = if let Some(received) = &data.received {
            received
        } else {
            copy = self.copy(data)?;
            &copy
        };
        let file = open_read(&received.temporary.0)?;
        let file = SnapshotFile::new(file, data.key.clone(), None)?;
        self.adopt(&received.temporary, &received.head, &file)?;
        Ok((received.head.clone(), received.state.clone()))
    }

    fn copy(&self, data: &SnapshotFile) -> io::Result<Arc<Received>> {
        let mut incoming = self.receive(data.key.clone())?;
        let mut buffer = vec![0; COPY_BYTES];
        let mut offset = 0;
        loop {
            match data.read_at(&mut buffer, offset)? {
                0 => break,
                read => {
                    incoming.write(&buffer[..read])?;
                    offset += read as u64;
                }
            }
        }
        let file = incoming.finish()?;
        Ok(file.received.expect("a snapshot that was received says so"))
    }

    /// Gives a finished file its name and lets the oldest ones go.
    fn adopt(
        &self,
        temporary: &Temporary,
        head: &SnapshotHead,
        file: &SnapshotFile,
    ) -> io::Result<()> {
        let mut current = self.lock();
        if current
            .as_ref()
            .is_some_and(|(newest, _)| newest.last > head.last)
        {
            return Ok(());
        }
        let last = head.last;
        let name = format!(
            "{:016x}-{:016x}{SUFFIX}",
            last.map_or(0, |last| last.index),
            last.map_or(0, |last| last.term),
        );
        fs::rename(&temporary.0, self.0.dir.join(name))?;
        sync_dir(&self.0.dir)?;
        *current = Some((head.clone(), file.clone()));
        for old in list(&self.0.dir)?.iter().skip(KEPT) {
            if let Err(error) = fs::remove_file(old) {
                tracing::warn!(path = %old.display(), %error, "old snapshot not removed");
            }
        }
        Ok(())
    }

    fn temporary(&self) -> Temporary {
        let number = self.0.temporary.fetch_add(1, Ordering::Relaxed);
        Temporary(self.0.dir.join(format!("{number}.tmp")))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(SnapshotHead, SnapshotFile)>> {
        self.0
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A snapshot that is being received.
pub(crate) struct Incoming {
    temporary: Temporary,
    file: File,
    key: FileKey,
}

impl Incoming {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// Flushes and checks all of it. Blocks on the disk.
    pub(crate) fn finish(self) -> io::Result<SnapshotFile> {
        self.file.sync_all()?;
        let (head, state) = file::read(&self.temporary.0, &self.key)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let received = Received {
            temporary: self.temporary,
            head,
            state,
        };
        SnapshotFile::new(self.file, self.key, Some(Arc::new(received)))
    }
}

impl SnapshotFile {
    fn new(file: File, key: FileKey, received: Option<Arc<Received>>) -> io::Result<Self> {
        let bytes = file.metadata()?.len();
        Ok(Self {
            file: Arc::new(file),
            bytes: bytes.saturating_sub(file::FILE_HEADER_BYTES as u64),
            key,
            received,
        })
    }

    /// What a received snapshot says it is of.
    pub(crate) fn received_head(&self) -> Option<&SnapshotHead> {
        self.received.as_ref().map(|received| &received.head)
    }
}

fn open_read(path: &Path) -> io::Result<File> {
    File::open(path)
}

/// Removes what a crash left unfinished. Only while nothing else uses the directory.
fn remove_unfinished(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "tmp") {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// The snapshots in `dir`, newest first.
fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(SUFFIX) {
            found.push(path);
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}
