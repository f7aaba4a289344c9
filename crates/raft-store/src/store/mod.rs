//! One member of the group: opened from its directory, asked, told, shut down.

mod alone;
mod answer;
mod health;
mod leadership;
mod lock;
mod members;
mod propose;
mod succession;

use std::{
    fs::DirBuilder, io, os::unix::fs::DirBuilderExt, path::PathBuf, sync::Arc, time::Duration,
};

use openraft::{async_runtime::WatchReceiver, errors::Fatal};
use shoal_types::{RaftId, Version};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

pub use self::{
    answer::AnswerError,
    health::MemberHealth,
    leadership::Leadership,
    members::{BootstrapError, Member, MembershipError},
    propose::{ProposeError, ReadError, StorageError},
};
use self::{
    lock::DirLock,
    succession::{Seen, Succession},
};
use crate::{
    config::{RaftTuning, StoreConfig, TuningError},
    feed::{Commit, Commits, Feed, FeedLimits, TooOld},
    key::KeyRing,
    log::Log,
    machine::Machine,
    peers::{Network, NoPeers, Peers},
    raft::{Raft, TypeConfig},
    snapshot::{SnapshotError, Snapshots},
    state::State,
    wal::{Wal, WalConfig, WalError},
};

/// A commit keeps the objects before and after it alive; a service has hundreds of tasks.
const CHANGES_PER_COMMIT: usize = 16;
const SNAPSHOT_TIMEOUT: Duration = Duration::from_mins(5);
const SNAPSHOT_RETRY: Duration = Duration::from_millis(200);

/// Why a store cannot be opened. The directory is as it was.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Tuning(#[from] TuningError),
    #[error("{action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is in use by another daemon; stop that one first, or choose another directory", dir.display())]
    InUse { dir: PathBuf },
    #[error(
        "there is no cluster state in {} to make a new cluster of; make one from nothing instead",
        dir.display()
    )]
    NoGroup { dir: PathBuf },
    #[error("read the raft log")]
    Log(#[from] WalError),
    #[error("read the snapshot of the cluster state")]
    Snapshot(#[from] SnapshotError),
    #[error("start raft with the data in {}: {reason}", dir.display())]
    Raft { dir: PathBuf, reason: String },
}

/// Why there is no new snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotRequestError {
    #[error("the store is shut down")]
    Stopped,
    #[error("the snapshot is not written yet; it is still being tried")]
    Timeout,
}

/// Numbers to watch a member by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreStats {
    /// `fdatasync` calls of the log since it was opened.
    pub log_flushes: u64,
    /// Index of the last entry of the log.
    pub last_index: u64,
    /// Index of the last entry that only the snapshot holds.
    pub purged_index: u64,
    /// Index of the last entry in the newest snapshot.
    pub snapshot_index: u64,
}

/// A handle on one member of the group. Copies share it.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    id: RaftId,
    tuning: RaftTuning,
    raft: Raft,
    wal: Wal,
    snapshots: Snapshots,
    shown: Arc<watch::Sender<Arc<State>>>,
    feed: Feed,
    leadership: watch::Receiver<Leadership>,
    seen: Seen,
    in_flight: Semaphore,
    stopped: CancellationToken,
    lock: DirLock,
}

impl Store {
    /// Opens a member that is, and stays, alone in its group.
    pub async fn open(config: StoreConfig) -> Result<Self, OpenError> {
        Self::open_with_peers(config, Arc::new(NoPeers)).await
    }

    /// Opens the member whose state is in the directory, or a new one that has no group yet: it gets
    /// one by `bootstrap`, or when the leader of another adds it.
    pub async fn open_with_peers(
        config: StoreConfig,
        peers: Arc<dyn Peers>,
    ) -> Result<Self, OpenError> {
        Self::open_as(config, peers, false).await
    }

    /// Opens a member of a group that has lost its majority for good as the only member of a new group,
    /// with all of the state and everything in its log; it leads as soon as it is open, and others can
    /// be added. Those of the old group are not listened to any more, whatever they decide: they have
    /// to start with empty directories and new ids. A member that is alone already stays as it is.
    ///
    /// What this member had not heard of is lost, even if it was acknowledged: choose the one that is
    /// most up to date.
    pub async fn open_alone(config: StoreConfig, peers: Arc<dyn Peers>) -> Result<Self, OpenError> {
        Self::open_as(config, peers, true).await
    }

    async fn open_as(
        config: StoreConfig,
        peers: Arc<dyn Peers>,
        alone: bool,
    ) -> Result<Self, OpenError> {
        let raft_config = config.tuning.check()?;
        let StoreConfig {
            dir,
            raft: id,
            tuning,
            key,
            older_keys,
        } = config;
        let keys = KeyRing {
            current: key,
            older: older_keys,
        };
        let disk = {
            let (dir, tuning) = (dir.clone(), tuning.clone());
            tokio::task::spawn_blocking(move || Disk::open(&dir, id, &tuning, keys, alone))
        };
        let Disk {
            lock,
            wal,
            snapshots,
            restored,
        } = disk.await.map_err(|error| OpenError::Raft {
            dir: dir.clone(),
            reason: error.to_string(),
        })??;

        let state = restored.as_ref().map(|(_, state)| state.clone());
        let state = state.unwrap_or_default();
        let limits = FeedLimits {
            commits: tuning.feed_commits,
            changes: tuning.feed_commits.saturating_mul(CHANGES_PER_COMMIT),
        };
        let feed = Feed::new(state.version(), limits);
        let shown = Arc::new(watch::channel(Arc::new(state)).0);
        let stopped = CancellationToken::new();
        let machine = Machine::new(
            restored,
            shown.clone(),
            feed.clone(),
            snapshots.clone(),
            stopped.clone(),
        );
        let network = Network::new(id.0, wal.clone(), peers, &tuning);
        let log = Log::new(wal.clone());
        let raft = Raft::new(id.0, Arc::new(raft_config), network.clone(), log, machine);
        let raft = raft.await.map_err(|fatal| OpenError::Raft {
            dir: dir.clone(),
            reason: fatal.to_string(),
        })?;
        let metrics = raft.server_metrics();
        network.follow(move |member| {
            let metrics = metrics.borrow_watched();
            let node = metrics.membership_config.membership().get_node(&member)?;
            Some(node.addr.clone())
        });
        let (announced, leadership) = leadership::channel();
        let patience = tuning.election_max;
        let seen = Seen::nothing();
        tokio::spawn(leadership::follow(
            raft.clone(),
            seen.watch(),
            patience,
            announced,
            stopped.clone(),
        ));
        let succession = Succession {
            me: id.0,
            raft: raft.clone(),
            network,
            seen: seen.clone(),
            tuning: tuning.clone(),
        };
        tokio::spawn(succession.run(stopped.clone()));
        let in_flight = Semaphore::new(tuning.in_flight_bytes.min(Semaphore::MAX_PERMITS));
        let store = Self(Arc::new(Inner {
            id,
            tuning,
            raft,
            wal,
            snapshots,
            shown,
            feed,
            leadership,
            seen,
            in_flight,
            stopped,
            lock,
        }));
        let started = async {
            if store.is_alone().await? {
                // Nobody else can have been elected, so there is nothing to wait for.
                store.0.raft.trigger().elect(false).await?;
            }
            Ok(())
        };
        match started.await {
            Ok(()) => Ok(store),
            Err::<(), Fatal<TypeConfig>>(fatal) => Err(OpenError::Raft {
                dir,
                reason: fatal.to_string(),
            }),
        }
    }

    pub fn id(&self) -> RaftId {
        self.0.id
    }

    /// The group it belongs to, once it does. `open_alone` makes another one.
    pub fn group(&self) -> Option<u64> {
        self.0.wal.marks().group
    }

    /// The newest state this member has applied.
    pub fn state(&self) -> Arc<State> {
        self.0.shown.borrow().clone()
    }

    /// Wakes after every batch of commits.
    pub fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.0.shown.subscribe()
    }

    /// Receives every command applied from now on.
    pub fn changes(&self) -> Commits {
        self.0.feed.receiver(None)
    }

    /// Receives every command applied after `version`, starting with those that are remembered; the
    /// first answer says so when some are not any more.
    pub fn changes_after(&self, version: Version) -> Commits {
        self.0.feed.receiver(Some(version))
    }

    /// The commands applied after `version`, as far as they are remembered.
    pub fn changes_since(&self, version: Version) -> Result<Vec<Arc<Commit>>, TooOld> {
        self.0.feed.since(version)
    }

    /// Wakes when this member starts or ceases to lead, or hears of another leader.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.0.leadership.clone()
    }

    pub fn stats(&self) -> StoreStats {
        let index = |point: Option<crate::stored::Point>| point.map_or(0, |point| point.index);
        let snapshot = self.0.snapshots.current();
        StoreStats {
            log_flushes: self.0.wal.flushes(),
            last_index: index(self.0.wal.last()),
            purged_index: index(self.0.wal.marks().purged),
            snapshot_index: index(snapshot.and_then(|(head, _)| head.last)),
        }
    }

    /// Whether files are left that need one of `older_keys`. They go by themselves, with time: after a
    /// change of keys keep the older one until this is false. Reads a few bytes from the disk.
    pub fn needs_older_keys(&self) -> bool {
        self.0.wal.needs_older_keys() || self.0.snapshots.need_older_keys()
    }

    /// Writes a snapshot of what is applied now, and lets the log before it go. Happens by itself every
    /// `snapshot_after` entries.
    pub async fn snapshot(&self) -> Result<(), SnapshotRequestError> {
        let raft = &self.0.raft;
        let wanted = self.state().version().0;
        if raft.metrics().borrow_watched().last_applied.is_none() {
            return Ok(());
        }
        let written = async {
            loop {
                raft.trigger().snapshot().await?;
                // One that was under way already ends at an older entry; then it takes another.
                let wait = raft.wait(Some(SNAPSHOT_RETRY));
                let done = wait.metrics(
                    |metrics| metrics.snapshot.is_some_and(|last| last.index >= wanted),
                    "snapshot",
                );
                if done.await.is_ok() {
                    return Ok(());
                }
            }
        };
        match tokio::time::timeout(SNAPSHOT_TIMEOUT, written).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err::<(), Fatal<TypeConfig>>(_fatal)) => Err(SnapshotRequestError::Stopped),
            Err(_elapsed) => Err(SnapshotRequestError::Timeout),
        }
    }

    /// As [`Store::shutdown`], after leadership was given to another member if there is one to take it.
    pub async fn shutdown_gracefully(&self) {
        if let Err(error) = self.hand_over().await {
            tracing::warn!(%error, "stopping without having handed leadership over");
        }
        self.shutdown().await;
    }

    /// Stops this member, with everything it was told to write on disk. Calls that are under way end
    /// with an error, and later ones do. Another store may then be opened on the directory.
    pub async fn shutdown(&self) {
        self.0.in_flight.close();
        if let Err(error) = self.0.raft.shutdown().await {
            tracing::error!(%error, "raft did not end in order");
        }
        self.0.stopped.cancel();
        self.0.snapshots.finish().await;
        let wal = self.0.wal.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || wal.close()).await {
            tracing::error!(%error, "the log did not end in order");
        }
        self.0.lock.release();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stopped.cancel();
    }
}

/// What a member has on disk.
struct Disk {
    lock: DirLock,
    wal: Wal,
    snapshots: Snapshots,
    restored: Option<(crate::stored::SnapshotHead, State)>,
}

impl Disk {
    fn open(
        dir: &std::path::Path,
        id: RaftId,
        tuning: &RaftTuning,
        keys: KeyRing,
        alone: bool,
    ) -> Result<Self, OpenError> {
        let io = |action, source| OpenError::Io {
            action,
            path: dir.to_owned(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|error| io("create", error))?;
        let lock = DirLock::take(dir).map_err(|error| io("lock", error))?;
        let lock = lock.ok_or_else(|| OpenError::InUse {
            dir: dir.to_owned(),
        })?;
        let snapshots = dir.join("snapshots");
        Snapshots::check_keys(&snapshots, &keys)?;
        let wal = Wal::open(WalConfig {
            dir: dir.join("log"),
            member: id.0,
            keys: keys.clone(),
            segment_bytes: tuning.segment_bytes,
            cache_bytes: tuning.cache_bytes,
        })?;
        let purged = wal.marks().purged;
        let (snapshots, restored) = Snapshots::open(&snapshots, &keys, purged)?;
        if alone {
            let head = restored.as_ref().map(|(head, _state)| head);
            alone::make(&wal, head, dir, id)?;
        }
        Ok(Self {
            lock,
            wal,
            snapshots,
            restored,
        })
    }
}
