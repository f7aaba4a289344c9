//! Commands to propose, and stores to propose them to.

use std::{path::Path, time::Duration};

use shoal_types::{
    ConfigId, NetworkId, NodeId, RaftId, SecretId, ServiceId, TaskId, Timestamp, Version,
    object::{Config, Meta},
};

use crate::{Change, Command, DataKey, RaftTuning, Store, StoreConfig, key::KeyRing};

macro_rules! ids {
    ($($name:ident => $kind:ident),+ $(,)?) => {$(
        pub(crate) fn $name(number: u64) -> $kind {
            let mut bytes = [0; 17];
            bytes[9..].copy_from_slice(&number.to_be_bytes());
            $kind::from_random(bytes)
        }
    )+};
}

ids! {
    config_id => ConfigId,
    network_id => NetworkId,
    node_id => NodeId,
    secret_id => SecretId,
    service_id => ServiceId,
    task_id => TaskId,
}

/// Creates the config of this number. Two of the same number cannot both succeed.
pub(crate) fn create(number: u64) -> Command {
    create_sized(number, 100)
}

pub(crate) fn create_sized(number: u64, bytes: usize) -> Command {
    let config = Config {
        id: config_id(number),
        meta: Meta::default(),
        name: format!("config-{number}"),
        labels: std::collections::BTreeMap::default(),
        data: vec![b'x'; bytes],
    };
    Command {
        at: Timestamp(i64::try_from(number).expect("a small number")),
        changes: vec![Change::CreateConfig(Box::new(config))],
    }
}

pub(crate) fn label(number: u64, version: Version, value: &str) -> Command {
    Command {
        at: Timestamp(0),
        changes: vec![Change::UpdateConfigLabels {
            id: config_id(number),
            version,
            labels: vec![("label".to_owned(), value.to_owned())],
        }],
    }
}

pub(crate) fn remove(number: u64) -> Command {
    Command {
        at: Timestamp(0),
        changes: vec![Change::RemoveConfig {
            id: config_id(number),
        }],
    }
}

/// Short times and small files.
pub(crate) fn tuning() -> RaftTuning {
    RaftTuning {
        heartbeat: Duration::from_millis(60),
        election_min: Duration::from_millis(300),
        election_max: Duration::from_millis(600),
        segment_bytes: 64 << 10,
        cache_bytes: 64 << 10,
        propose_timeout: Duration::from_secs(5),
        ..RaftTuning::default()
    }
}

pub(crate) fn config(dir: &Path) -> StoreConfig {
    StoreConfig {
        dir: dir.to_owned(),
        raft: RaftId(1),
        tuning: tuning(),
        key: key(),
        older_keys: Vec::new(),
    }
}

/// The same for each member of each test, so that a directory can be opened again.
pub(crate) fn key() -> DataKey {
    DataKey::from_bytes([0x42; 32])
}

pub(crate) fn keys() -> KeyRing {
    KeyRing {
        current: key(),
        older: Vec::new(),
    }
}

/// A member that leads the group of which it is all.
pub(crate) async fn lone(config: StoreConfig) -> Store {
    let store = Store::open(config).await.expect("the store opens");
    store.bootstrap().await.expect("it becomes the leader");
    store
}
