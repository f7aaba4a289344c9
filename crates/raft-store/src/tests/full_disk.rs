//! A disk without room: a tmpfs of a few hundred KiB.

use std::{fs, path::Path, time::Duration};

use super::world::{config, create_sized, lone, tuning};
use crate::{ProposeError, RaftTuning, StorageError, StoreConfig};

/// A mount that goes with this.
pub(super) struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    pub(super) fn new(kib: u32) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={kib}k"), "tmpfs"])
            .arg(dir.path())
            .status()
            .expect("mount runs");
        assert!(mounted.success(), "this test needs root to mount a tmpfs");
        Self(dir)
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(self.path())
            .status();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_with_the_reason_and_recovers_when_there_is_room() {
    let disk = Tmpfs::new(640);
    let config = StoreConfig {
        dir: disk.path().join("store"),
        tuning: RaftTuning {
            segment_bytes: 64 << 10,
            ..tuning()
        },
        ..config(disk.path())
    };
    let store = lone(config.clone()).await;
    let ballast = disk.path().join("ballast");
    fs::write(&ballast, vec![1; 200 << 10]).expect("there is room");
    let mut accepted = 0;
    let error = loop {
        match store.propose(create_sized(accepted, 8000)).await {
            Ok(_) => accepted += 1,
            Err(error) => break error,
        }
        assert!(accepted < 200, "the disk is never full");
    };
    match &error {
        ProposeError::Storage(StorageError::NoRoom(source)) => {
            assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
        }
        other => panic!("{other:?}"),
    }
    // Reading goes on, and what was accepted is there.
    let state = store.read().await.expect("it still leads");
    assert_eq!(state.configs().count() as u64, accepted);

    fs::remove_file(&ballast).expect("it is there");
    let again = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            if let Ok(applied) = store.propose(create_sized(accepted, 100)).await {
                return applied;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    again.await.expect("it notices the room by itself");
    store.shutdown().await;
    let store = lone(config).await;
    let state = store.read().await.expect("it leads");
    assert_eq!(state.configs().count() as u64, accepted + 1);
    store.shutdown().await;
}

#[tokio::test]
async fn a_store_that_finds_no_room_at_all_does_not_open_and_leaves_no_trace() {
    let disk = Tmpfs::new(32);
    let config = StoreConfig {
        dir: disk.path().join("store"),
        ..config(disk.path())
    };
    let error = crate::Store::open(config.clone()).await.err();
    let error = error.expect("a segment does not fit");
    let source = std::error::Error::source(&error).map(ToString::to_string);
    assert!(format!("{error}: {source:?}").contains("log"), "{error}");
    let left = fs::read_dir(config.dir.join("log"))
        .expect("it is there")
        .count();
    assert_eq!(left, 0);
}
