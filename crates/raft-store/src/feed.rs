//! The newest commits in order, for those who want to know what changed rather than what is.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use shoal_types::{Timestamp, Version};
use tokio::sync::watch;

use crate::state::ObjectChange;

/// One applied command.
#[derive(Debug, Clone, PartialEq)]
pub struct Commit {
    pub version: Version,
    /// When, by the clock of the state.
    pub at: Timestamp,
    /// In the order in which they took effect.
    pub changes: Vec<ObjectChange>,
}

/// Commits that were asked for are not remembered any more: read the state instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("changes since version {since} are not kept any more, only those since {oldest}")]
pub struct TooOld {
    pub since: Version,
    /// The lowest version that can be asked for.
    pub oldest: Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecvError {
    /// The receiver was too slow. The next commit it gets is one after `now`; what came before is in
    /// the state.
    #[error("commits up to version {now} were missed")]
    Lagged { now: Version },
    #[error("the store is shut down")]
    Closed,
}

#[derive(Clone)]
pub(crate) struct Feed(Arc<Inner>);

struct Inner {
    ring: Mutex<Ring>,
    /// The newest version; closed when the store is.
    newest: watch::Sender<Version>,
    limits: FeedLimits,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct FeedLimits {
    pub(crate) commits: usize,
    /// Each keeps two versions of an object alive.
    pub(crate) changes: usize,
}

#[derive(Default)]
struct Ring {
    commits: VecDeque<Arc<Commit>>,
    changes: usize,
    /// Commits after this version, and no others, are here.
    floor: Version,
    newest: Version,
}

impl Feed {
    pub(crate) fn new(start: Version, limits: FeedLimits) -> Self {
        let ring = Ring {
            floor: start,
            newest: start,
            ..Ring::default()
        };
        Self(Arc::new(Inner {
            ring: Mutex::new(ring),
            newest: watch::channel(start).0,
            limits,
        }))
    }

    /// Adds commits, up to version `newest`, and wakes receivers.
    pub(crate) fn push(&self, commits: impl IntoIterator<Item = Commit>, newest: Version) {
        let mut ring = self.ring();
        for commit in commits {
            ring.changes += commit.changes.len();
            ring.commits.push_back(Arc::new(commit));
        }
        while ring.commits.len() > self.0.limits.commits
            || (ring.changes > self.0.limits.changes && ring.commits.len() > 1)
        {
            let Some(oldest) = ring.commits.pop_front() else {
                break;
            };
            ring.changes -= oldest.changes.len();
            ring.floor = oldest.version;
        }
        ring.newest = newest;
        drop(ring);
        self.0.newest.send_replace(newest);
    }

    /// The state has jumped: nobody can know what changed.
    pub(crate) fn reset(&self, version: Version) {
        let mut ring = self.ring();
        *ring = Ring {
            floor: version,
            newest: version,
            ..Ring::default()
        };
        drop(ring);
        self.0.newest.send_replace(version);
    }

    pub(crate) fn since(&self, version: Version) -> Result<Vec<Arc<Commit>>, TooOld> {
        let ring = self.ring();
        if version < ring.floor {
            return Err(TooOld {
                since: version,
                oldest: ring.floor,
            });
        }
        let start = ring.commits.partition_point(|c| c.version <= version);
        Ok(ring.commits.range(start..).cloned().collect())
    }

    /// Gives commits after `version`, or after now.
    pub(crate) fn receiver(&self, version: Option<Version>) -> Commits {
        let newest = self.0.newest.subscribe();
        let after = version.unwrap_or_else(|| self.ring().newest);
        Commits {
            ring: Arc::downgrade(&self.0),
            newest,
            after,
        }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Receives every applied command in order.
pub struct Commits {
    ring: std::sync::Weak<Inner>,
    newest: watch::Receiver<Version>,
    after: Version,
}

impl Commits {
    /// The next commit. May be dropped at any await without losing one.
    pub async fn recv(&mut self) -> Result<Arc<Commit>, RecvError> {
        loop {
            self.newest.borrow_and_update();
            if let Some(next) = self.try_next()? {
                return Ok(next);
            }
            if self.newest.changed().await.is_err() {
                return Err(RecvError::Closed);
            }
        }
    }

    /// The next commit, if it is there already.
    pub fn try_recv(&mut self) -> Result<Option<Arc<Commit>>, RecvError> {
        self.try_next()
    }

    fn try_next(&mut self) -> Result<Option<Arc<Commit>>, RecvError> {
        let feed = Feed(self.ring.upgrade().ok_or(RecvError::Closed)?);
        let ring = feed.ring();
        if self.after < ring.floor {
            self.after = ring.newest;
            return Err(RecvError::Lagged { now: ring.newest });
        }
        let at = ring.commits.partition_point(|c| c.version <= self.after);
        let next = ring.commits.get(at).cloned();
        if let Some(commit) = &next {
            self.after = commit.version;
        }
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FeedLimits = FeedLimits {
        commits: 3,
        changes: 100,
    };

    fn commit(version: u64) -> Commit {
        Commit {
            version: Version(version),
            at: Timestamp(0),
            changes: Vec::new(),
        }
    }

    #[tokio::test]
    async fn receivers_get_every_commit_in_order_or_hear_that_they_lag() {
        let feed = Feed::new(Version(10), LIMITS);
        let mut receiver = feed.receiver(None);
        feed.push([commit(11), commit(13)], Version(14));
        assert_eq!(receiver.recv().await.map(|c| c.version), Ok(Version(11)));
        assert_eq!(receiver.recv().await.map(|c| c.version), Ok(Version(13)));
        assert_eq!(receiver.try_recv(), Ok(None));
        feed.push([15, 16, 17, 18].map(commit), Version(18));
        let lagged = RecvError::Lagged { now: Version(18) };
        assert_eq!(receiver.recv().await, Err(lagged));
        feed.push([commit(19)], Version(19));
        assert_eq!(receiver.recv().await.map(|c| c.version), Ok(Version(19)));
        drop(feed);
        assert_eq!(receiver.recv().await, Err(RecvError::Closed));
    }

    #[test]
    fn changes_are_kept_since_a_floor_that_moves_with_the_limits() {
        let feed = Feed::new(Version(10), LIMITS);
        feed.push([11, 12, 13, 14].map(commit), Version(14));
        let since = |version| {
            let commits = feed.since(Version(version));
            commits.map(|c| c.iter().map(|c| c.version.0).collect::<Vec<_>>())
        };
        assert_eq!(since(12), Ok(vec![13, 14]));
        assert_eq!(since(11), Ok(vec![12, 13, 14]));
        assert_eq!(since(14), Ok(vec![]));
        let too_old = TooOld {
            since: Version(10),
            oldest: Version(11),
        };
        assert_eq!(since(10), Err(too_old));
        feed.reset(Version(30));
        assert!(since(14).is_err() && since(30) == Ok(vec![]));
    }
}
