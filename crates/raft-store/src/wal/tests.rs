use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex, mpsc},
};

use proptest::prelude::*;

use super::{segment::FILE_HEADER_BYTES, *};
use crate::{
    stored::{Body, Members},
    tests::world::keys,
};

fn config(dir: &Path) -> WalConfig {
    WalConfig {
        dir: dir.to_owned(),
        member: 1,
        keys: keys(),
        segment_bytes: 4096,
        cache_bytes: 2000,
    }
}

fn open(dir: &Path) -> Wal {
    Wal::open(config(dir)).expect("the log opens")
}

fn point(term: u64, index: u64) -> Point {
    Point {
        term,
        leader: 1,
        index,
    }
}

/// An entry of a size that depends on `size`.
fn item(term: u64, index: u64, size: usize) -> Item {
    let addresses = [(index, "x".repeat(size))].into();
    Item {
        at: point(term, index),
        body: Body::Members(Members {
            configs: Vec::new(),
            addresses,
        }),
    }
}

/// Appends and waits until it is on disk.
fn append(wal: &Wal, items: impl IntoIterator<Item = Item>) {
    let (done, told) = mpsc::channel();
    let tell = Done::new(move |result| done.send(result).expect("somebody waits"));
    wal.append(items, tell).expect("the log takes entries");
    told.recv().expect("it is told").expect("it is written");
}

fn save_vote(wal: &Wal, vote: Ballot) {
    let (done, told) = mpsc::channel();
    let tell = Done::new(move |result| done.send(result).expect("somebody waits"));
    wal.save_vote(vote, tell).expect("the log takes votes");
    told.recv().expect("it is told").expect("it is written");
}

fn all(wal: &Wal) -> Vec<Item> {
    wal.read(0, u64::MAX, usize::MAX)
        .or_else(|disk| disk.run().map_err(drop))
        .expect("all entries can be read")
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(dir)
        .expect("the directory is there")
        .map(|entry| entry.expect("it can be read").path())
        .filter(|path| path.extension().is_some_and(|e| e == "wal"))
        .collect();
    paths.sort();
    paths
}

#[derive(Debug, Clone)]
enum Step {
    Append { count: u64, size: usize },
    Truncate { back: u64 },
    Purge { ahead: u64 },
    Vote { term: u64 },
    Committed,
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (1u64..8, 0usize..1500).prop_map(|(count, size)| Step::Append { count, size }),
        1 => (0u64..9).prop_map(|back| Step::Truncate { back }),
        1 => (0u64..12).prop_map(|ahead| Step::Purge { ahead }),
        1 => (0u64..100).prop_map(|term| Step::Vote { term }),
        1 => Just(Step::Committed),
        2 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 0..40)
}

/// What the log should be.
#[derive(Default)]
struct Model {
    items: Vec<Item>,
    purged: Option<Point>,
    vote: Option<Ballot>,
    committed: Option<Point>,
}

impl Model {
    fn next(&self) -> u64 {
        let after_purge = self.purged.map_or(0, |purged| purged.index + 1);
        self.items
            .last()
            .map_or(after_purge, |item| item.at.index + 1)
    }

    fn check(&self, wal: &Wal) {
        assert_eq!(all(wal), self.items);
        let marks = wal.marks();
        assert_eq!(marks.vote, self.vote);
        assert_eq!(marks.purged, self.purged);
        assert_eq!(marks.committed, self.committed);
        let last = self.items.last().map(|item| item.at);
        assert_eq!(wal.last(), last.or(self.purged));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_sequence_of_writes_and_reopenings_equals_a_vector(steps in steps()) {
        let dir = tempfile::tempdir().expect("a directory");
        let mut wal = open(dir.path());
        let mut model = Model::default();
        for (term, step) in (1..).zip(steps) {
            match step {
                Step::Append { count, size } => {
                    let next = model.next();
                    let items = (next..next + count).map(|index| item(term, index, size));
                    let items: Vec<_> = items.collect();
                    append(&wal, items.clone());
                    model.items.extend(items);
                }
                Step::Truncate { back } => {
                    let keep = model.items.len().saturating_sub(usize::try_from(back).expect("small"));
                    let last = model.items[..keep].last().map(|item| item.at);
                    model.items.truncate(keep);
                    let last = last.or(model.purged).map(|point| point.index);
                    wal.truncate_after(last).expect("the log takes truncations");
                }
                Step::Purge { ahead } => {
                    let first = model.purged.map_or(0, |purged| purged.index + 1);
                    let upto = point(term, first + ahead);
                    model.items.retain(|item| item.at.index > upto.index);
                    model.purged = Some(upto);
                    wal.purge(upto).expect("the log takes purges");
                }
                Step::Vote { term } => {
                    let vote = Ballot { term, candidate: 2, committed: false };
                    save_vote(&wal, vote);
                    model.vote = Some(vote);
                }
                Step::Committed => {
                    if let Some(last) = wal.last() {
                        wal.save_committed(last).expect("the log takes marks");
                        model.committed = Some(last);
                    }
                }
                Step::Reopen => {
                    wal.close();
                    wal = open(dir.path());
                }
            }
            model.check(&wal);
        }
        drop(wal);
        model.check(&open(dir.path()));
    }
}

#[test]
fn purged_segments_are_removed_and_their_marks_are_not_lost() {
    let dir = tempfile::tempdir().expect("a directory");
    let wal = open(dir.path());
    let vote = Ballot {
        term: 7,
        candidate: 3,
        committed: true,
    };
    save_vote(&wal, vote);
    for index in 0..50 {
        append(&wal, [item(1, index, 500)]);
    }
    let before = segments(dir.path()).len();
    assert!(before > 5, "{before} segments");
    wal.purge(point(1, 48)).expect("the log takes purges");
    append(&wal, [item(1, 50, 500)]);
    drop(wal);
    assert!(segments(dir.path()).len() <= 3);
    let wal = open(dir.path());
    assert_eq!(all(&wal), [item(1, 49, 500), item(1, 50, 500)]);
    assert_eq!(wal.marks().vote, Some(vote));
    assert_eq!(wal.marks().purged, Some(point(1, 48)));
}

#[test]
fn a_record_larger_than_a_segment_gets_one_of_its_size() {
    let dir = tempfile::tempdir().expect("a directory");
    let wal = open(dir.path());
    let items = [item(1, 0, 10), item(1, 1, 100_000), item(1, 2, 10)];
    append(&wal, items.clone());
    drop(wal);
    assert_eq!(all(&open(dir.path())), items);
}

#[test]
fn old_entries_leave_memory_and_are_read_from_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let wal = open(dir.path());
    let items: Vec<_> = (0..100).map(|index| item(1, index, 50)).collect();
    append(&wal, items.clone());
    assert!(wal.read(0, 1, usize::MAX).is_err(), "it is only on disk");
    assert!(wal.read(99, 100, usize::MAX).is_ok(), "it is in memory");
    assert_eq!(all(&wal), items);
    let disk = wal.read(10, 90, 300).expect_err("it is only on disk");
    let some = disk.run().expect("it can be read");
    assert!(!some.is_empty() && some.len() < 10);
    assert_eq!(some, items[10..10 + some.len()]);
}

#[test]
fn many_waiters_share_a_flush() {
    let dir = tempfile::tempdir().expect("a directory");
    let wal = Wal::open(WalConfig {
        segment_bytes: 1 << 20,
        ..config(dir.path())
    })
    .expect("the log opens");
    let (done, told) = mpsc::channel();
    for index in 0..1000 {
        let done = done.clone();
        let tell = Done::new(move |result| done.send(result).expect("somebody waits"));
        wal.append([item(1, index, 10)], tell).expect("it is taken");
    }
    drop(done);
    assert_eq!(told.iter().flatten().count(), 1000);
    assert!(wal.flushes() < 200, "{} flushes", wal.flushes());
}

/// A log of two whole batches and a last one of several entries, and where the last batch starts.
fn three_batches(dir: &Path) -> (PathBuf, usize, usize) {
    let wal = open(dir);
    append(&wal, [item(1, 0, 30), item(1, 1, 30)]);
    append(&wal, [item(1, 2, 30)]);
    let before = used(&segments(dir)[0]);
    append(&wal, [item(1, 3, 30), item(1, 4, 60), item(1, 5, 5)]);
    drop(wal);
    let path = segments(dir).remove(0);
    let after = used(&path);
    (path, before, after)
}

fn used(path: &Path) -> usize {
    let bytes = fs::read(path).expect("the segment can be read");
    let end = bytes
        .iter()
        .rposition(|b| *b != 0)
        .map_or(0, |last| last + 1);
    end.next_multiple_of(8)
}

#[test]
fn a_write_cut_short_at_any_byte_loses_nothing_that_was_reported() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, before, after) = three_batches(dir.path());
    let whole = fs::read(&path).expect("the segment can be read");
    for cut in before..after {
        // The rest of the file as it was prepared, or the file ends there.
        for zeros in [true, false] {
            let mut torn = whole.clone();
            torn[cut..].fill(0);
            if !zeros {
                torn.truncate(cut);
            }
            fs::write(&path, &torn).expect("the segment can be written");
            let wal = open(dir.path());
            let found = all(&wal);
            assert!(
                found.len() >= 3 && found.len() < 6
                    || torn[..after.min(torn.len())] == whole[..after.min(torn.len())],
                "cut at {cut}"
            );
            assert_eq!(found[..3], [item(1, 0, 30), item(1, 1, 30), item(1, 2, 30)]);
            // It goes on from there, and what it writes then is found again.
            let next = item(2, found.len() as u64, 20);
            append(&wal, [next.clone()]);
            drop(wal);
            let wal = open(dir.path());
            assert_eq!(all(&wal)[..found.len()], found);
            assert_eq!(all(&wal)[found.len()..], [next]);
            drop(wal);
            fs::write(&path, &whole).expect("the segment can be written");
            for extra in &segments(dir.path())[1..] {
                fs::remove_file(extra).expect("it can be removed");
            }
        }
    }
}

#[test]
fn a_new_group_is_there_as_a_whole_or_not_at_all_after_a_crash() {
    let dir = tempfile::tempdir().expect("a directory");
    let wal = open(dir.path());
    let ballot = |term| Ballot {
        term,
        candidate: 1,
        committed: true,
    };
    wal.join_group(5, Done::new(drop)).expect("it is fresh");
    append(&wal, [item(1, 0, 30), item(1, 1, 30)]);
    save_vote(&wal, ballot(1));
    let path = segments(dir.path()).remove(0);
    let before = used(&path);
    assert!(
        !wal.join_group(6, Done::new(drop)).expect("it is asked"),
        "it has a group"
    );
    let (done, told) = mpsc::channel();
    let tell = Done::new(move |result| done.send(result).expect("somebody waits"));
    let alone = item(2, 2, 40);
    wal.leave_alone(6, ballot(2), alone.clone(), tell)
        .expect("it is taken");
    told.recv().expect("it is told").expect("it is written");
    assert!(wal.join_group(6, Done::new(drop)).expect("it is the same"));
    drop(wal);
    let after = used(&path);
    let whole = fs::read(&path).expect("the segment can be read");
    let mut seen = [0, 0];
    for cut in before..=after {
        let mut torn = whole.clone();
        torn[cut..].fill(0);
        fs::write(&path, &torn).expect("the segment can be written");
        let wal = open(dir.path());
        let found = (wal.marks().group, wal.marks().vote, all(&wal).len());
        let old = (Some(5), Some(ballot(1)), 2);
        let new = (Some(6), Some(ballot(2)), 3);
        assert!(found == old || found == new, "cut at {cut}: {found:?}");
        seen[usize::from(found == new)] += 1;
        drop(wal);
        for extra in &segments(dir.path())[1..] {
            fs::remove_file(extra).expect("it can be removed");
        }
    }
    assert!(seen[0] > 50 && seen[1] > 0, "{seen:?}");
    fs::write(&path, &whole).expect("the segment can be written");
    assert_eq!(all(&open(dir.path()))[2], alone);
}

#[test]
fn blocks_of_one_write_may_reach_the_disk_in_any_order() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, before, after) = three_batches(dir.path());
    let mut torn = fs::read(&path).expect("the segment can be read");
    // The first frame of the last batch is missing, the others are there.
    torn[before..before + 16].fill(0);
    fs::write(&path, &torn).expect("the segment can be written");
    let wal = open(dir.path());
    assert_eq!(all(&wal).len(), 3);
    drop(wal);
    assert!(used(&path) <= after, "nothing of it is left behind the end");
    assert_eq!(all(&open(dir.path())).len(), 3);
}

#[test]
fn every_flipped_bit_in_acknowledged_data_is_an_error_that_names_the_place() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, before, _) = three_batches(dir.path());
    let whole = fs::read(&path).expect("the segment can be read");
    for byte in 0..before {
        let mut flipped = whole.clone();
        flipped[byte] ^= 1 << (byte % 8);
        fs::write(&path, &flipped).expect("the segment can be written");
        let padding = (76..FILE_HEADER_BYTES).contains(&byte);
        match Wal::open(config(dir.path())) {
            Err(WalError::Damaged {
                path: named,
                offset,
                ..
            }) => {
                assert_eq!(named, path);
                assert!(offset <= byte as u64, "{offset} for a bit in {byte}");
            }
            Err(WalError::Format { .. }) => panic!("byte {byte}: the checksum covers the format"),
            Err(other) => panic!("byte {byte}: {other}"),
            Ok(_) => panic!("byte {byte} was not noticed, padding: {padding}"),
        }
    }
}

#[test]
fn damage_in_an_earlier_segment_is_an_error_even_at_its_end() {
    let dir = tempfile::tempdir().expect("a directory");
    let wal = open(dir.path());
    for index in 0..40 {
        append(&wal, [item(1, index, 500)]);
    }
    drop(wal);
    let paths = segments(dir.path());
    let whole = fs::read(&paths[1]).expect("the segment can be read");
    // The last record of it is gone as if it had never been written.
    fs::write(&paths[1], &whole[..whole.len() - 536]).expect("the segment can be written");
    let error = Wal::open(config(dir.path())).err().expect("it is noticed");
    assert!(matches!(error, WalError::Damaged { .. }), "{error}");
    fs::write(&paths[1], &whole).expect("the segment can be written");
    fs::remove_file(&paths[2]).expect("it can be removed");
    let error = Wal::open(config(dir.path())).err().expect("it is noticed");
    assert!(matches!(error, WalError::Missing { .. }), "{error}");
    for path in &paths[..2] {
        fs::remove_file(path).expect("it can be removed");
    }
    let error = Wal::open(config(dir.path())).err().expect("it is noticed");
    assert!(matches!(error, WalError::Gap { from: 0, .. }), "{error}");
}

#[test]
fn a_crash_while_a_segment_is_started_is_no_damage() {
    let dir = tempfile::tempdir().expect("a directory");
    let wal = open(dir.path());
    append(&wal, [item(1, 0, 10)]);
    drop(wal);
    let next = segment::path_of(dir.path(), 2);
    for content in [
        vec![0; 4096],
        segment::new_header(2, &keys().current).0.to_vec(),
        vec![0; 5],
    ] {
        fs::write(&next, &content).expect("the segment can be written");
        let wal = open(dir.path());
        assert_eq!(all(&wal), [item(1, 0, 10)]);
        drop(wal);
        assert_eq!(all(&open(dir.path())), [item(1, 0, 10)]);
        for extra in &segments(dir.path())[1..] {
            fs::remove_file(extra).expect("it can be removed");
        }
    }
}

#[test]
fn another_members_log_and_foreign_files_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(open(dir.path()));
    let other = Wal::open(WalConfig {
        member: 2,
        ..config(dir.path())
    });
    let error = other.err().expect("it is member 1's");
    assert!(matches!(
        error,
        WalError::OtherMember {
            found: 1,
            expected: 2,
            ..
        }
    ));
    fs::write(dir.path().join("notes.txt"), "x").expect("it can be written");
    let error = Wal::open(config(dir.path())).err().expect("it is noticed");
    assert!(matches!(error, WalError::Foreign { .. }), "{error}");
}

#[test]
fn after_a_failed_write_everyone_is_told_once_and_nothing_is_taken() {
    let dir = tempfile::tempdir().expect("a directory");
    let wal = open(dir.path());
    append(&wal, [item(1, 0, 10)]);
    // The next segment cannot be made in a directory that is gone.
    let moved = dir.path().with_extension("gone");
    fs::rename(dir.path(), &moved).expect("it can be renamed");
    let told = Arc::new(Mutex::new(Vec::new()));
    for index in 1..30 {
        let told = told.clone();
        let tell =
            Done::new(move |result| told.lock().expect("not poisoned").push((index, result)));
        if wal.append([item(1, index, 500)], tell).is_err() {
            break;
        }
    }
    wal.close();
    let told = std::mem::take(&mut *told.lock().expect("not poisoned"));
    let indices: Vec<u64> = told.iter().map(|(index, _)| *index).collect();
    assert_eq!(indices, (1..=indices.len() as u64).collect::<Vec<_>>());
    let written = told.iter().take_while(|(_, result)| result.is_ok()).count();
    assert!(written < 20 && told[written..].iter().all(|(_, r)| r.is_err()));
    let error = wal.failure().expect("it has failed");
    assert!(
        error.to_string().contains("write the log at offset"),
        "{error}"
    );
    assert!(wal.purge(point(1, 0)).is_err());
    assert_eq!(all(&open(&moved)).len(), written + 1);
    fs::remove_dir_all(&moved).expect("it can be removed");
}
