//! The write-ahead log: entries, votes, truncations and purges, in the order they were decided.
//!
//! ```text
//! append, vote, … ─► queue ─► writer thread ─► segment files     (one fdatasync for all that waits)
//!        │                        │
//!        └──────► tail ◄──────────┘ positions
//!                  │
//! readers ◄────────┴ memory, or the file
//! ```
//! What it keeps true:
//! - Order on disk is the order of calls; whoever is told "done" finds its records after any crash.
//! - An entry can be read from the moment it is appended, flushed or not.
//! - Damage is found and named, never skipped. Only a write that was cut short, and so was never
//!   reported as done, is dropped.
//! - After the first write that fails nothing more is accepted.
//! - Memory is bounded: a few dozen bytes for each entry, and the newest entries up to a limit.

mod record;
mod recover;
mod segment;
mod spare;
mod tail;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, FileExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

pub(crate) use self::{record::Marks, segment::sync_dir, writer::Done};
use self::{
    record::Record,
    segment::Segment,
    spare::SpareStatus,
    tail::{Found, Tail},
    writer::{Op, Order, Writer},
};
use crate::{
    key::KeyRing,
    record::Place,
    stored::{Ballot, Item, Point},
};

#[derive(Debug, Clone)]
pub(crate) struct WalConfig {
    pub(crate) dir: PathBuf,
    /// Whose log it is.
    pub(crate) member: u64,
    /// Size of a segment file; one that has to hold a larger record is larger.
    pub(crate) segment_bytes: u64,
    pub(crate) keys: KeyRing,
    /// Entries are kept in memory up to this much, the newest ones.
    pub(crate) cache_bytes: usize,
}

/// Why the log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    #[error("{action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{} is damaged at offset {offset}: {reason}; restore the directory from a backup, or remove \
         this member from the cluster and let it join again with an empty one",
        path.display()
    )]
    Damaged {
        path: PathBuf,
        offset: u64,
        reason: String,
    },
    #[error("read the record at offset {offset} of {}", path.display())]
    Record {
        path: PathBuf,
        offset: u64,
        #[source]
        source: shoal_transport::codec::DecodeError,
    },
    #[error(
        "{} is missing while later segments are there; restore the directory from a backup, or \
         remove this member from the cluster and let it join again with an empty one",
        path.display()
    )]
    Missing { path: PathBuf },
    #[error(
        "entries {from} to {to} are missing from the log in {}; restore the directory from a \
         backup, or remove this member from the cluster and let it join again with an empty one",
        dir.display()
    )]
    Gap { dir: PathBuf, from: u64, to: u64 },
    #[error(
        "{} was written in format {found}, which this release does not read; upgrade it, or go back \
         to the release that wrote the data",
        path.display()
    )]
    Format { path: PathBuf, found: u32 },
    #[error(
        "{} is sealed under another data key; use the key that this directory was written with, \
         nothing was changed",
        path.display()
    )]
    OtherKey { path: PathBuf },
    #[error("{} is not a file of the log; move it elsewhere", path.display())]
    Foreign { path: PathBuf },
    #[error(
        "the log in {} belongs to raft member {found}, not {expected}; use the directory that \
         belongs to this member",
        dir.display()
    )]
    OtherMember {
        dir: PathBuf,
        found: u64,
        expected: u64,
    },
}

impl WalError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// A handle on an open log. Copies share it; it is closed by [`Wal::close`], or with the last copy.
#[derive(Clone)]
pub(crate) struct Wal(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Order>,
    spare: SpareStatus,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
}

struct Shared {
    tail: Mutex<Tail>,
    flushes: AtomicU64,
}

impl Shared {
    fn tail(&self) -> MutexGuard<'_, Tail> {
        // Every change of the tail is finished or not begun when a panic could strike.
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wal {
    /// Opens the log in the directory, which is created if need be. Blocks on the disk.
    pub(crate) fn open(config: WalConfig) -> Result<Self, WalError> {
        let dir = config.dir.clone();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(WalError::io("create", &dir))?;
        let recovered = recover::recover(&config)?;
        let shared = Arc::new(Shared {
            tail: Mutex::new(recovered.tail),
            flushes: AtomicU64::new(0),
        });
        let started = Writer::start(config, shared.clone(), recovered.sealed, recovered.resume);
        let writer = started.map_err(WalError::io("write the log in", &dir))?;
        let spare = writer.spare_status();
        let (queue, ops) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("wal-writer".to_owned())
            .spawn(move || writer.run(&ops))
            .map_err(WalError::io("start the writer of", &dir))?;
        Ok(Self(Arc::new(Inner {
            shared,
            queue,
            spare,
            writer: Mutex::new(Some(thread)),
        })))
    }

    /// Hands over entries that follow on the last one; `done` is told when they are on disk.
    pub(crate) fn append(
        &self,
        items: impl IntoIterator<Item = Item>,
        done: Done,
    ) -> io::Result<()> {
        let mut tail = self.usable()?;
        let items = items
            .into_iter()
            .map(|item| {
                let item = Arc::new(item);
                tail.push(item.clone()).map(|ticket| (ticket, item))
            })
            .collect::<io::Result<Vec<_>>>()?;
        // Sent under the lock, so that the order in the queue is the order in the tail.
        self.send(&mut tail, Op::Append { items, done })
    }

    pub(crate) fn save_vote(&self, vote: Ballot, done: Done) -> io::Result<()> {
        let mut tail = self.usable()?;
        tail.marks.vote = Some(vote);
        self.send(&mut tail, Op::Vote(vote, done))
    }

    /// Notes which group this member belongs to. One that has anything of a group keeps to it: then the
    /// answer is false, and `done` hears nothing but that it was not needed.
    pub(crate) fn join_group(&self, group: u64, done: Done) -> io::Result<bool> {
        let mut tail = self.usable()?;
        if tail.marks.group == Some(group) {
            self.send(&mut tail, Op::Sync(done))?;
            return Ok(true);
        }
        let is_fresh =
            tail.last().is_none() && tail.marks.purged.is_none() && tail.marks.vote.is_none();
        if tail.marks.group.is_some() && !is_fresh {
            return Ok(false);
        }
        tail.marks.group = Some(group);
        self.send(&mut tail, Op::Group(group, done))?;
        Ok(true)
    }

    /// Appends the entry after which this member is the only one of a new group, votes for itself in
    /// it, and forgets the group before, all at once.
    pub(crate) fn leave_alone(
        &self,
        group: u64,
        vote: Ballot,
        item: Item,
        done: Done,
    ) -> io::Result<()> {
        let mut tail = self.usable()?;
        let item = Arc::new(item);
        let ticket = tail.push(item.clone())?;
        tail.marks.vote = Some(vote);
        tail.marks.group = Some(group);
        let item = (ticket, item);
        let alone = Op::Alone {
            group,
            vote,
            item,
            done,
        };
        self.send(&mut tail, alone)
    }

    /// Keeps the entries up to and with `last`.
    pub(crate) fn truncate_after(&self, last: Option<u64>) -> io::Result<()> {
        let mut tail = self.usable()?;
        tail.truncate_after(last);
        self.send(&mut tail, Op::TruncateAfter(last))
    }

    /// Forgets the entries up to and with `upto`.
    pub(crate) fn purge(&self, upto: Point) -> io::Result<()> {
        let mut tail = self.usable()?;
        tail.purge(upto);
        self.send(&mut tail, Op::Purge(upto))
    }

    /// Notes how far the log is known to be committed. Reaches the disk with the next record, and does
    /// not wake the writer before.
    pub(crate) fn save_committed(&self, committed: Point) -> io::Result<()> {
        let mut tail = self.usable()?;
        tail.marks.committed = Some(committed);
        tail.committed_news = Some(committed);
        Ok(())
    }

    pub(crate) fn marks(&self) -> Marks {
        self.0.shared.tail().marks
    }

    /// The last entry, or the last one purged when there is none.
    pub(crate) fn last(&self) -> Option<Point> {
        let tail = self.0.shared.tail();
        tail.last().or(tail.marks.purged)
    }

    /// The entries of `from..to` that there are; `Err` holds a read that has to go to the disk.
    pub(crate) fn read(&self, from: u64, to: u64, max_bytes: usize) -> Result<Vec<Item>, DiskRead> {
        let found = self.0.shared.tail().find(from, to, max_bytes);
        if found.iter().all(|entry| matches!(entry, Found::Memory(_))) {
            let items = found.iter().filter_map(|entry| match entry {
                Found::Memory(item) => Some((**item).clone()),
                Found::Disk(..) => None,
            });
            Ok(items.collect())
        } else {
            Err(DiskRead(found))
        }
    }

    /// Why the disk has no room for another segment, if so.
    pub(crate) fn low_on_space(&self) -> Option<io::Error> {
        self.0.spare.failure()
    }

    /// The error that ended the log, if one did.
    pub(crate) fn failure(&self) -> Option<io::Error> {
        self.0.shared.tail().poison.as_ref().map(writer::poisoned)
    }

    /// Whether some of it is sealed under an older key.
    pub(crate) fn needs_older_keys(&self) -> bool {
        let tail = self.0.shared.tail();
        tail.segments.values().any(|segment| !segment.is_current)
    }

    /// How often the log was flushed since it was opened.
    pub(crate) fn flushes(&self) -> u64 {
        self.0.shared.flushes.load(Ordering::Relaxed)
    }

    /// Writes what is queued and ends the writer; everything after it is refused. Blocks on the disk.
    pub(crate) fn close(&self) {
        self.0.close();
    }

    /// The tail, unless the log has failed.
    fn usable(&self) -> io::Result<MutexGuard<'_, Tail>> {
        let tail = self.0.shared.tail();
        match &tail.poison {
            Some(error) => Err(writer::poisoned(error)),
            None => Ok(tail),
        }
    }

    fn send(&self, tail: &mut Tail, op: Op) -> io::Result<()> {
        self.0.send(tail, op)
    }
}

impl Inner {
    /// Queues what is to be written, and before it the newest mark of what is committed: that stands in
    /// the log behind all that was handed over before it, and so behind the entries it speaks of.
    fn send(&self, tail: &mut Tail, op: Op) -> io::Result<()> {
        let committed = tail.committed_news.take();
        self.queue.send(Order { committed, op }).map_err(|_order| {
            let text = "the log is closed";
            io::Error::new(io::ErrorKind::BrokenPipe, text)
        })
    }

    fn close(&self) {
        // If the writer is gone already, so is the need to stop it.
        let _ = self.send(&mut self.shared.tail(), Op::Stop(Done::new(|_result| {})));
        let thread = self
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

/// Entries of which some are only on disk. Reading them blocks.
pub(crate) struct DiskRead(Vec<Found>);

impl DiskRead {
    pub(crate) fn run(self) -> io::Result<Vec<Item>> {
        self.0
            .into_iter()
            .map(|entry| match entry {
                Found::Memory(item) => Ok((*item).clone()),
                Found::Disk(segment, position) => {
                    let mut bytes = vec![0; position.size];
                    segment.file.read_exact_at(&mut bytes, position.offset)?;
                    decode(&bytes, &segment, position.offset).map_err(|reason| {
                        let text = format!(
                            "{} is damaged at offset {}: {reason}",
                            segment.path.display(),
                            position.offset
                        );
                        io::Error::new(io::ErrorKind::InvalidData, text)
                    })
                }
            })
            .collect()
    }
}

fn decode(bytes: &[u8], segment: &Segment, offset: u64) -> Result<Item, String> {
    let context = segment.sequence;
    let frame = crate::record::parse(bytes, context).map_err(|error| error.to_string())?;
    let frame = frame.ok_or("the record is gone")?;
    let opened = frame.open(segment.sealer(), Place { context, offset });
    let opened = opened.map_err(|error| error.to_string())?;
    match shoal_transport::codec::decode(&opened) {
        Ok(Record::Item(item) | Record::Alone { item, .. }) => Ok(item),
        Ok(_) => Err("the record is not an entry".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
