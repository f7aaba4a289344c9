//! What a disk holds without its key.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use shoal_types::Timestamp;
use shoal_types::object::{Meta, Secret};

use super::{
    group::Group,
    world::{config, create, key, lone, secret_id, tuning},
};
use crate::{
    Change, Command, DataKey, OpenError, RaftTuning, SnapshotError, Store, StoreConfig, WalError,
};

const NEEDLE: &[u8] = b"correct horse battery staple";

fn secret(number: u64) -> Command {
    let secret = Secret {
        id: secret_id(number),
        meta: Meta::default(),
        name: format!("needle-name-{number}"),
        labels: BTreeMap::default(),
        data: NEEDLE.to_vec(),
    };
    Command {
        at: Timestamp(0),
        changes: vec![Change::CreateSecret(Box::new(secret))],
    }
}

/// Every file below `dir` and what is in it.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("it can be read") {
            let path = entry.expect("it can be read").path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                found.insert(path.clone(), fs::read(&path).expect("it can be read"));
            }
        }
    }
    found
}

fn assert_nothing_shows(dir: &Path) {
    let files = files(dir);
    let count = |suffix: &str| {
        let names = files.keys().map(|path| path.to_string_lossy());
        names.filter(|name| name.ends_with(suffix)).count()
    };
    assert!(
        count(".wal") > 0 && count(".snapshot") > 0,
        "{:?}",
        files.keys()
    );
    for (path, bytes) in &files {
        for needle in [NEEDLE, b"needle-name"] {
            let at = bytes.windows(needle.len()).position(|part| part == needle);
            assert_eq!(at, None, "{}", path.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_file_shows_anything_of_a_secret_on_any_member() {
    let tuning = RaftTuning {
        snapshot_after: 40,
        keep_entries: 5,
        ..tuning()
    };
    let mut group = Group::new(2, tuning).await;
    let leader = group.leader().await;
    for number in 0..100 {
        leader.propose(secret(number)).await.expect("it leads");
    }
    leader.snapshot().await.expect("it is written");
    // One that gets all of it as a snapshot from a member with another key.
    group.start(shoal_types::RaftId(3)).await;
    leader
        .add_member(shoal_types::RaftId(3), "member-3")
        .await
        .expect("it catches up");
    leader.propose(secret(100)).await.expect("it leads");
    let state = group.settled().await;
    let found = state.secret(&secret_id(7)).expect("it is there");
    assert_eq!(found.data, NEEDLE);
    for store in group.members.values() {
        store.snapshot().await.expect("it is written");
    }
    for id in group.members.keys() {
        assert_nothing_shows(&group.dir.path().join(id.to_string()));
    }
    let ids: Vec<_> = group.members.keys().copied().collect();
    for id in ids {
        group.stop(id).await;
        group.start(id).await;
    }
    assert_eq!(group.settled().await.secrets().count(), 101);
    group.end().await;
}

#[tokio::test]
async fn another_key_is_named_as_such_and_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = lone(config(dir.path())).await;
    for number in 0..20 {
        store.propose(create(number)).await.expect("it leads");
    }
    store.snapshot().await.expect("it is written");
    store.shutdown().await;
    // What a crash may leave has to stay as well.
    fs::write(dir.path().join("log/next.tmp"), [0; 99]).expect("it can be written");
    fs::write(dir.path().join("snapshots/9.tmp"), "x").expect("it can be written");
    let wrong = StoreConfig {
        key: DataKey::generate(),
        ..config(dir.path())
    };
    let before = files(dir.path());
    let error = Store::open(wrong.clone()).await.err();
    let error = error.expect("the key is another one");
    assert!(
        matches!(error, OpenError::Snapshot(SnapshotError::OtherKey { .. })),
        "{error}"
    );
    assert!(files(dir.path()) == before);
    // The log alone says so too.
    fs::rename(dir.path().join("snapshots"), dir.path().join("away")).expect("it is there");
    let error = Store::open(wrong)
        .await
        .err()
        .expect("the key is another one");
    assert!(
        matches!(error, OpenError::Log(WalError::OtherKey { .. })),
        "{error}"
    );
    fs::rename(dir.path().join("away"), dir.path().join("snapshots")).expect("it is there");
    assert!(files(dir.path()) == before);
    let store = lone(config(dir.path())).await;
    assert_eq!(store.state().configs().count(), 20);
    store.shutdown().await;
}

#[tokio::test]
async fn a_new_key_takes_over_while_the_older_one_is_still_known() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = lone(config(dir.path())).await;
    for number in 0..10 {
        store.propose(create(number)).await.expect("it leads");
    }
    store.snapshot().await.expect("it is written");
    store.propose(create(10)).await.expect("it leads");
    store.shutdown().await;

    let new = DataKey::generate();
    let both = StoreConfig {
        key: new.clone(),
        older_keys: vec![DataKey::generate(), key()],
        tuning: RaftTuning {
            keep_entries: 0,
            ..tuning()
        },
        ..config(dir.path())
    };
    let store = lone(both).await;
    assert_eq!(store.state().configs().count(), 11);
    assert!(store.needs_older_keys());
    let mut number = 11;
    while store.needs_older_keys() {
        // Entries go in bundles.
        for _ in 0..70 {
            store.propose(create(number)).await.expect("it leads");
            number += 1;
        }
        store.snapshot().await.expect("it is written");
        assert!(number < 1000, "the older key is needed for ever");
    }
    store.shutdown().await;
    let only_new = StoreConfig {
        key: new,
        ..config(dir.path())
    };
    let store = lone(only_new).await;
    assert_eq!(store.state().configs().count() as u64, number);
    store.shutdown().await;
}
