//! The write-ahead log as openraft wants to see it.

use std::{
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
};

use openraft::{
    LogState, OptionalSend, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
};
use tokio::sync::oneshot;

use crate::{
    raft::{Entry, LogId, TypeConfig, Vote},
    stored::Ballot,
    wal::{Done, Wal},
};

/// As much as goes into one message to a follower.
const MESSAGE_BYTES: usize = 1 << 20;

#[derive(Clone)]
pub(crate) struct Log {
    wal: Wal,
}

impl Log {
    pub(crate) fn new(wal: Wal) -> Self {
        Self { wal }
    }

    async fn read(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let items = match self.wal.read(from, to, max_bytes) {
            Ok(items) => items,
            Err(disk) => tokio::task::spawn_blocking(|| disk.run())
                .await
                .map_err(io::Error::other)??,
        };
        Ok(items.into_iter().map(Entry::from).collect())
    }
}

impl RaftLogReader<TypeConfig> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(to) => *to,
            Bound::Unbounded => u64::MAX,
        };
        self.read(from, to, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, MESSAGE_BYTES).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.wal.marks().vote.map(Into::into))
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        Ok(LogState {
            last_purged_log_id: self.wal.marks().purged.map(Into::into),
            last_log_id: self.wal.last().map(Into::into),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (done, told) = oneshot::channel();
        let tell = Done::new(move |result| {
            let _ = done.send(result);
        });
        self.wal.save_vote(Ballot::from(vote), tell)?;
        told.await
            .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        match committed {
            Some(committed) => self.wal.save_committed(committed.into()),
            None => Ok(()),
        }
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        // What the log does not hold after a crash cannot be applied, whatever the mark says.
        let committed = self.wal.marks().committed.min(self.wal.last());
        Ok(committed.map(Into::into))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let done = Done::new(move |result| callback.io_completed(result));
        self.wal.append(entries.into_iter().map(Into::into), done)
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        self.wal.truncate_after(last_log_id.map(|id| id.index))
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        self.wal.purge(log_id.into())
    }
}
