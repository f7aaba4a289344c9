//! A process that is killed in the middle of its work.
//!
//! The test runs itself again as a child that proposes as fast as it can and prints every write that
//! was acknowledged; the parent kills it at a random moment, opens the directory, and compares.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command as Process, Stdio},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::world::{config, config_id, create_sized, lone, tuning};
use crate::{RaftTuning, Store, StoreConfig};

const CHILD_DIR: &str = "SHOAL_CRASH_CHILD_DIR";
const CHILD_START: &str = "SHOAL_CRASH_CHILD_START";
/// How often the child is killed; `SHOAL_CRASH_ROUNDS` asks for more.
const ROUNDS: u64 = 20;
const WRITERS: u64 = 4;

/// Small files and frequent snapshots, so that most kinds of work are hit.
fn small(dir: &Path) -> StoreConfig {
    StoreConfig {
        tuning: RaftTuning {
            segment_bytes: 16 << 10,
            snapshot_after: 100,
            keep_entries: 20,
            cache_bytes: 4096,
            ..tuning()
        },
        ..config(dir)
    }
}

/// Not a test of its own: without the variables it has nothing to do.
#[test]
fn child_that_writes_until_it_is_killed() {
    let (Ok(dir), Ok(start)) = (std::env::var(CHILD_DIR), std::env::var(CHILD_START)) else {
        return;
    };
    let start: u64 = start.parse().expect("a number");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let store = lone(small(Path::new(&dir))).await;
        let writers = (0..WRITERS).map(|writer| write_forever(store.clone(), start, writer));
        futures_util::future::join_all(writers).await;
    });
}

/// Each writer has its own numbers, and takes them in order.
async fn write_forever(store: Store, start: u64, writer: u64) {
    for number in (start + writer..).step_by(usize::try_from(WRITERS).expect("small")) {
        let size = usize::try_from(number * 37 % 1500).expect("small");
        let applied = store.propose(create_sized(number, size)).await;
        applied.expect("the store takes it");
        let line = format!("ok {number}\n");
        let mut out = std::io::stdout().lock();
        // Past the capture of the test harness, and gone before the next write.
        out.write_all(line.as_bytes()).expect("the parent listens");
        out.flush().expect("the parent listens");
    }
}

#[test]
fn nothing_that_was_acknowledged_is_lost_when_the_process_is_killed() {
    let dir = tempfile::tempdir().expect("a directory");
    let rounds = std::env::var("SHOAL_CRASH_ROUNDS");
    let rounds = rounds.map_or(ROUNDS, |text| text.parse().expect("a number"));
    let seed = std::env::var("SHOAL_SEED").map_or(7, |text| text.parse().expect("a number"));
    let mut rng = StdRng::seed_from_u64(seed);
    let mut acknowledged = BTreeSet::new();
    let mut start = 1;
    for round in 0..rounds {
        let delay = Duration::from_millis(rng.random_range(5..250));
        let fresh = run_and_kill(dir.path(), start, delay);
        acknowledged.extend(fresh);

        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let present = runtime.block_on(async {
            let store = lone(small(dir.path())).await;
            let state = store.read().await.expect("it leads");
            store.shutdown().await;
            let numbers = state.configs().map(|config| {
                let number = config.name.strip_prefix("config-").expect("our name");
                let number: u64 = number.parse().expect("our number");
                assert_eq!(config.id, config_id(number));
                assert_eq!(config.data.len() as u64, number * 37 % 1500);
                number
            });
            numbers.collect::<BTreeSet<u64>>()
        });
        let lost: Vec<_> = acknowledged.difference(&present).collect();
        assert!(lost.is_empty(), "seed {seed}, round {round}: lost {lost:?}");
        // Each writer waits for one write before the next, so its numbers have no holes.
        for writer in 0..WRITERS {
            let mut own = present
                .range(start..)
                .filter(|n| (*n - start) % WRITERS == writer);
            let own: Vec<u64> = own.by_ref().copied().collect();
            let expected = (0..).map(|i| start + writer + i * WRITERS);
            assert!(own.iter().copied().eq(expected.take(own.len())), "{own:?}");
        }
        start = present.last().map_or(1, |last| last + 1);
    }
    assert!(acknowledged.len() > 100, "only {}", acknowledged.len());
}

/// Runs the child for `delay` after its first write, and gives what it said it wrote.
fn run_and_kill(dir: &Path, start: u64, delay: Duration) -> Vec<u64> {
    let mut child = Process::new(std::env::current_exe().expect("this program"))
        .args([
            "tests::crash::child_that_writes_until_it_is_killed",
            "--exact",
            "--nocapture",
        ])
        .env(CHILD_DIR, dir)
        .env(CHILD_START, start.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the child starts");
    let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let mut said = Vec::new();
    let mut take = |line: String| {
        let number = line
            .split_once("ok ")
            .and_then(|(_, n)| n.parse::<u64>().ok());
        said.extend(number);
        number.is_some()
    };
    loop {
        let line = lines.next().expect("the child writes before it ends");
        if take(line.expect("it can be read")) {
            break;
        }
    }
    let killer = std::thread::spawn(move || {
        std::thread::sleep(delay);
        child.kill().expect("it runs");
        child.wait().expect("it is ours");
    });
    for line in lines {
        take(line.expect("it can be read"));
    }
    killer.join().expect("the child is gone");
    said
}
