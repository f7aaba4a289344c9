use std::sync::Arc;

use openraft::{
    StorageError,
    testing::log::{StoreBuilder, Suite},
};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::world::keys;
use crate::{
    feed::{Feed, FeedLimits},
    log::Log,
    machine::Machine,
    raft::TypeConfig,
    snapshot::Snapshots,
    state::State,
    wal::{Wal, WalConfig},
};

struct Builder;

impl StoreBuilder<TypeConfig, Log, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, Log, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().expect("a directory");
        let wal = Wal::open(WalConfig {
            dir: dir.path().join("log"),
            member: 0,
            keys: keys(),
            segment_bytes: 4096,
            cache_bytes: 500,
        })
        .expect("the log opens");
        let (snapshots, restored) = Snapshots::open(&dir.path().join("snapshots"), &keys(), None)
            .expect("the directory opens");
        let limits = FeedLimits {
            commits: 10,
            changes: 10,
        };
        let machine = Machine::new(
            restored,
            Arc::new(watch::channel(Arc::new(State::default())).0),
            Feed::new(State::default().version(), limits),
            snapshots,
            CancellationToken::new(),
        );
        Ok((dir, Log::new(wal), machine))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn log_and_state_machine_conform_to_what_openraft_expects() {
    let result = Suite::test_all(Builder).await;
    result.expect("the whole suite passes");
}
