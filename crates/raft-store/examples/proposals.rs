//! How many proposals a second a group takes, and how many flushes of the leader's log that costs.
//!
//! `cargo run --release -p shoal-raft-store --example proposals [DIR] [SECONDS]`: each line is one
//! number of members, over the in-process router and on one disk, and of proposers that wait for one
//! answer before the next proposal, every answer on the disks of a majority.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use shoal_raft_store::{Change, Command, DataKey, RaftTuning, Router, Store, StoreConfig};
use shoal_types::{
    ConfigId, RaftId, Timestamp,
    object::{Config, Meta},
};

const DATA_BYTES: usize = 256;

#[expect(clippy::print_stdout, reason = "printing is what it is for")]
#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let seconds = args.next().map_or(Ok(3), |text| text.parse())?;
    let dir = dir.join(format!("shoal-proposals-{}", std::process::id()));
    println!("members  proposers  proposals/s  mean latency  flushes  proposals/flush");
    for members in [1, 3] {
        let dir = dir.join(members.to_string());
        for line in measure(&dir, members, Duration::from_secs(seconds)).await? {
            println!("{members:>7}  {line}");
        }
    }
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

async fn measure(
    dir: &Path,
    members: u64,
    time: Duration,
) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let router = Router::new();
    let mut stores = Vec::new();
    for id in (1..=members).map(RaftId) {
        let config = StoreConfig {
            dir: dir.join(id.to_string()),
            raft: id,
            tuning: RaftTuning::default(),
            key: DataKey::generate(),
            older_keys: Vec::new(),
        };
        let store = Store::open_with_peers(config, router.peers(id)).await?;
        router.attach(id, store.clone());
        stores.push(store);
    }
    let store = stores[0].clone();
    store.bootstrap().await?;
    for other in &stores[1..] {
        let id = other.id();
        store.add_member(id, format!("member-{id}")).await?;
    }
    let mut lines = Vec::new();
    let mut base = 0;
    for proposers in [1u64, 16, 100] {
        let before = store.stats();
        let start = Instant::now();
        let tasks: Vec<_> = (0..proposers)
            .map(|proposer| tokio::spawn(propose(store.clone(), base + proposer, proposers, time)))
            .collect();
        let mut count = 0u64;
        for task in tasks {
            count += task.await?;
        }
        let took = start.elapsed();
        let flushes = store.stats().log_flushes - before.log_flushes;
        base += 100_000_000;
        let per = |n: u64, d: u64| n / d.max(1);
        let rate = per(count * 1000, u64::try_from(took.as_millis())?);
        let latency = took * u32::try_from(proposers)? / u32::try_from(count.max(1))?;
        let batch = per(count, flushes);
        lines.push(format!(
            "{proposers:>9}  {rate:>11}  {latency:>12.1?}  {flushes:>7}  {batch:>15}"
        ));
    }
    for store in stores.iter().rev() {
        store.shutdown().await;
    }
    Ok(lines)
}

/// Creates a config and removes the one before, so that the state does not grow.
async fn propose(store: Store, first: u64, step: u64, time: Duration) -> u64 {
    let start = Instant::now();
    let mut count = 0;
    let mut number = first;
    let mut previous = None;
    while start.elapsed() < time {
        let mut bytes = [0; 17];
        bytes[9..].copy_from_slice(&number.to_be_bytes());
        let id = ConfigId::from_random(bytes);
        let config = Config {
            id,
            meta: Meta::default(),
            name: format!("config-{number}"),
            labels: std::collections::BTreeMap::new(),
            data: vec![b'x'; DATA_BYTES],
        };
        let mut changes = vec![Change::CreateConfig(Box::new(config))];
        changes.extend(previous.map(|id| Change::RemoveConfig { id }));
        let command = Command {
            at: Timestamp(0),
            changes,
        };
        if store.propose(command).await.is_err() {
            break;
        }
        previous = Some(id);
        count += 1;
        number += step;
    }
    count
}
