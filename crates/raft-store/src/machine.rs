//! The state machine: applies what the group has committed, and shows the result.

use std::{io, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder, storage::EntryResponder,
    storage::RaftStateMachine,
};
use shoal_types::Version;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    command::Applied,
    feed::{Commit, Feed},
    raft::{Entry, LogId, Outcome, Snapshot, SnapshotMeta, StoredMembership, TypeConfig},
    snapshot::{SnapshotFile, Snapshots},
    state::State,
    stored::SnapshotHead,
};

/// Readers get a new state, and proposers their answers, at least this often.
const BATCH: usize = 1024;
/// Between attempts to write a snapshot while the disk is full.
const RETRY: Duration = Duration::from_secs(5);

pub(crate) struct Machine {
    state: State,
    last: Option<LogId>,
    membership: StoredMembership,
    shown: Arc<watch::Sender<Arc<State>>>,
    feed: Feed,
    snapshots: Snapshots,
    stopped: CancellationToken,
}

impl Machine {
    pub(crate) fn new(
        restored: Option<(SnapshotHead, State)>,
        shown: Arc<watch::Sender<Arc<State>>>,
        feed: Feed,
        snapshots: Snapshots,
        stopped: CancellationToken,
    ) -> Self {
        let (head, state) = restored.unwrap_or_default();
        Self {
            state,
            last: head.last.map(Into::into),
            membership: head.membership(),
            shown,
            feed,
            snapshots,
            stopped,
        }
    }

    /// Applies one entry; what it changed goes to `commits`.
    fn entry(&mut self, entry: Entry, commits: &mut Vec<Commit>) -> Outcome {
        let id = entry.log_id;
        let version = Version(id.index);
        self.last = Some(id);
        match entry.payload {
            EntryPayload::Blank => self.state.skip_to(version),
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(id), membership);
                self.state.skip_to(version);
            }
            EntryPayload::Normal(proposal) => {
                let command = proposal.command();
                let result = self.state.apply(version, command);
                return Outcome(result.map(|(applied, changes)| {
                    commits.push(Commit {
                        version,
                        at: self.state.clock(),
                        changes,
                    });
                    applied
                }));
            }
        }
        Outcome(Ok(Applied { version }))
    }

    /// Shows the state as it is now.
    fn show(&self, commits: Vec<Commit>) {
        // The state first: who hears of a commit finds it there.
        self.shown.send_replace(Arc::new(self.state.clone()));
        self.feed.push(commits, self.state.version());
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.last, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut batches = entries.ready_chunks(BATCH);
        while let Some(batch) = batches.next().await {
            let mut commits = Vec::new();
            let mut answers = Vec::new();
            for item in batch {
                let (entry, responder) = item?;
                let outcome = self.entry(entry, &mut commits);
                if let Some(responder) = responder {
                    answers.push((responder, outcome));
                }
            }
            self.show(commits);
            for (responder, outcome) in answers {
                responder.send(outcome);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            head: SnapshotHead::new(self.last.as_ref(), &self.membership),
            state: self.state.clone(),
            snapshots: self.snapshots.clone(),
            stopped: self.stopped.clone(),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotFile,
    ) -> io::Result<()> {
        let snapshots = self.snapshots.clone();
        let install = move || snapshots.install(&snapshot);
        let (head, state) = self.snapshots.run(install).await?;
        if head.meta() != *meta {
            let text = "the snapshot is not the one that was announced";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        self.last = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.state = state;
        self.shown.send_replace(Arc::new(self.state.clone()));
        self.feed.reset(self.state.version());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let current = self.snapshots.current();
        Ok(current.map(|(head, snapshot)| Snapshot {
            meta: head.meta(),
            snapshot,
        }))
    }
}

/// Writes a snapshot of a copy of the state, while the state goes on.
pub(crate) struct Builder {
    head: SnapshotHead,
    state: State,
    snapshots: Snapshots,
    stopped: CancellationToken,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    /// Tries until it works or the store is shut down: for openraft an error here would be the end of
    /// this member, and a full disk need not be.
    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        loop {
            let (snapshots, head, state) = (
                self.snapshots.clone(),
                self.head.clone(),
                self.state.clone(),
            );
            let write = move || snapshots.write(&head, &state);
            let error = match self.snapshots.run(write).await {
                Ok((head, snapshot)) => {
                    let meta = head.meta();
                    return Ok(Snapshot { meta, snapshot });
                }
                Err(error) => error,
            };
            tracing::error!(%error, "snapshot not written, the log grows meanwhile");
            // Cancel-safe: a timer and a token hold nothing.
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = self.stopped.cancelled() => return Err(error),
            }
        }
    }
}
