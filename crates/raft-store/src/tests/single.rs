use std::{fs, time::Duration};

use shoal_types::{RaftId, Version};

use super::world::{config, config_id, create, create_sized, label, lone, remove, tuning};
use crate::{
    Leadership, OpenError, ProposeError, RaftTuning, ReadError, RecvError, Rejection, Store,
    StoreConfig, WalError,
};

#[tokio::test]
async fn what_was_acknowledged_is_visible_at_once_and_after_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = lone(config(dir.path())).await;
    let mut commits = store.changes();
    let first = store.propose(create(1)).await.expect("it is accepted");
    let state = store.state();
    assert_eq!(state.version(), first.version);
    let object = state.config(&config_id(1)).expect("it is there");
    assert_eq!(object.meta.version, first.version);

    let refused = store.propose(create(1)).await;
    assert!(matches!(
        refused,
        Err(ProposeError::Rejected(Rejection::Exists { .. }))
    ));
    let second = store.propose(label(1, first.version, "a")).await;
    let second = second.expect("the version is the newest");
    let refused = store.propose(label(1, first.version, "b")).await;
    assert!(matches!(
        refused,
        Err(ProposeError::Rejected(Rejection::OutOfSequence { .. }))
    ));
    for version in [first.version, second.version] {
        let commit = commits.recv().await.expect("no commit is lost");
        assert_eq!((commit.version, commit.changes.len()), (version, 1));
    }
    let since = store.changes_since(first.version).expect("it is kept");
    assert_eq!(since.len(), 1);

    let before = store.state();
    store.shutdown().await;
    let store = Store::open(config(dir.path()))
        .await
        .expect("it opens again");
    store.bootstrap().await.expect("it leads again");
    let after = store.read().await.expect("it leads");
    assert!(
        after.version() > before.version(),
        "a new term has an entry of its own, {} after {}",
        after.version(),
        before.version()
    );
    assert!(after.objects().eq(before.objects()));
    store.shutdown().await;
}

#[tokio::test]
async fn bootstrap_again_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = lone(config(dir.path())).await;
    let term = *store.leadership().borrow();
    assert!(matches!(term, Leadership::Leader { .. }));
    store.bootstrap().await.expect("it has a group");
    assert_eq!(*store.leadership().borrow(), term);
    let members = store.members();
    assert_eq!(members.len(), 1);
    assert!(members[0].voter && members[0].id == RaftId(1));
    store.shutdown().await;
}

#[tokio::test]
async fn a_member_without_a_group_refuses_and_leads_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(config(dir.path())).await.expect("it opens");
    let refused = store.propose(create(1)).await;
    assert!(matches!(
        refused,
        Err(ProposeError::NotLeader { leader: None })
    ));
    let refused = store.read().await;
    assert!(matches!(
        refused,
        Err(ReadError::NotLeader { leader: None })
    ));
    assert_eq!(store.state().version(), Version(0));
    store.snapshot().await.expect("there is nothing to do");
    store.shutdown().await;
}

#[tokio::test]
async fn a_directory_serves_one_store_at_a_time() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = lone(config(dir.path())).await;
    let error = Store::open(config(dir.path()))
        .await
        .err()
        .expect("it is taken");
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    first.shutdown().await;
    let second = Store::open(config(dir.path())).await.expect("it is free");
    second.shutdown().await;
    let other = StoreConfig {
        raft: RaftId(2),
        ..config(dir.path())
    };
    let error = Store::open(other).await.err().expect("it is member 1's");
    assert!(
        matches!(error, OpenError::Log(WalError::OtherMember { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn calls_on_a_store_that_was_shut_down_say_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = lone(config(dir.path())).await;
    let mut leadership = store.leadership();
    store.shutdown().await;
    store.shutdown().await;
    assert!(matches!(
        store.propose(create(1)).await,
        Err(ProposeError::Stopped)
    ));
    assert!(matches!(store.read().await, Err(ReadError::Stopped)));
    let lost = leadership.wait_for(|now| !now.is_leader()).await;
    assert!(lost.is_ok());
}

#[tokio::test]
async fn a_command_over_the_limit_is_refused_and_one_under_it_is_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = lone(config(dir.path())).await;
    let limit = tuning().max_command_bytes;
    let refused = store.propose(create_sized(1, limit)).await;
    assert!(matches!(refused, Err(ProposeError::TooLarge { .. })));
    let accepted = store.propose(create_sized(2, limit - 200)).await;
    accepted.expect("it is larger than a segment, and fits");
    store.shutdown().await;
}

#[tokio::test]
async fn a_snapshot_takes_the_place_of_the_log_and_both_give_the_state() {
    let dir = tempfile::tempdir().expect("a directory");
    let tuning = RaftTuning {
        snapshot_after: 200,
        keep_entries: 50,
        ..tuning()
    };
    let config = StoreConfig {
        tuning,
        ..config(dir.path())
    };
    let store = lone(config.clone()).await;
    for round in 0..5 {
        let batch = (0..200).map(|i| store.propose(create(round * 200 + i)));
        for result in futures_util::future::join_all(batch).await {
            result.expect("it is accepted");
        }
        store
            .propose(remove(round * 200))
            .await
            .expect("it is there");
    }
    store.snapshot().await.expect("it is written");
    store.propose(create(5000)).await.expect("it is accepted");
    let stats = store.stats();
    assert!(stats.purged_index > 500, "{stats:?}");
    assert!(stats.snapshot_index >= 1000, "{stats:?}");
    let before = store.state();
    store.shutdown().await;

    let names = |dir: &str| -> Vec<String> {
        let entries = fs::read_dir(config.dir.join(dir)).expect("it is there");
        let names = entries.map(|e| e.expect("it can be read").file_name());
        names.map(|n| n.to_string_lossy().into_owned()).collect()
    };
    let snapshots = names("snapshots");
    assert!(snapshots.len() <= 2, "{snapshots:?}");
    assert!(snapshots.iter().all(|name| name.ends_with(".snapshot")));
    // 64 KiB each; a thousand commands took far more of them.
    assert!(names("log").len() <= 3, "{:?}", names("log"));

    let store = lone(config.clone()).await;
    let after = store.read().await.expect("it leads");
    assert!(after.objects().eq(before.objects()));
    // What changed before the snapshot is not known any more.
    assert!(store.changes_since(Version(1)).is_err());
    let mut commits = store.changes_after(Version(1));
    assert!(matches!(
        commits.recv().await,
        Err(RecvError::Lagged { .. })
    ));
    store.shutdown().await;

    for name in snapshots {
        fs::remove_file(config.dir.join("snapshots").join(name)).expect("it can be removed");
    }
    let error = Store::open(config).await.err().expect("it is noticed");
    assert!(matches!(error, OpenError::Snapshot(_)), "{error}");
}

#[tokio::test]
async fn tasks_that_wait_for_a_state_wake_once_it_is_there() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = lone(config(dir.path())).await;
    let mut states = store.watch();
    let waiter = tokio::spawn(async move {
        let found = states.wait_for(|state| state.config(&config_id(3)).is_some());
        found.await.map(|state| state.version())
    });
    for number in 1..=3 {
        store.propose(create(number)).await.expect("it is accepted");
    }
    let version = tokio::time::timeout(Duration::from_secs(5), waiter).await;
    let version = version.expect("in time").expect("it ends").expect("open");
    assert!(
        version
            >= store
                .state()
                .config(&config_id(3))
                .expect("it is there")
                .meta
                .version
    );
    store.shutdown().await;
}
