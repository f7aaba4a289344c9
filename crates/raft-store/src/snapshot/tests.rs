use shoal_types::Version;

use super::*;
use crate::tests::world::{create, keys};

fn state(count: u64) -> State {
    let mut state = State::default();
    for number in 1..=count {
        let applied = state.apply(Version(number), &create(number));
        applied.expect("the name is free");
    }
    state
}

fn head(index: u64) -> SnapshotHead {
    SnapshotHead {
        last: Some(Point {
            term: 1,
            leader: 1,
            index,
        }),
        ..SnapshotHead::default()
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("it is there");
    let names = entries.map(|entry| entry.expect("it can be read").file_name());
    names
        .map(|name| name.to_string_lossy().into_owned())
        .collect()
}

#[test]
fn the_newest_two_are_kept_and_the_newest_is_read_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let (snapshots, found) = Snapshots::open(dir.path(), &keys(), None).expect("it opens");
    assert!(found.is_none());
    for index in [3, 5, 9] {
        let written = snapshots.write(&head(index), &state(index));
        written.expect("it is written");
    }
    // One that is older than what is there by now changes nothing.
    snapshots
        .write(&head(4), &state(4))
        .expect("it is not needed");
    assert_eq!(names(dir.path()).len(), 2);
    fs::write(dir.path().join("7.tmp"), "half a snapshot").expect("it can be written");
    let (snapshots, found) = Snapshots::open(dir.path(), &keys(), None).expect("it opens");
    assert_eq!(found, Some((head(9), state(9))));
    assert_eq!(names(dir.path()).len(), 2, "what a crash left is gone");
    let (current, _) = snapshots.current().expect("there is one");
    assert_eq!(current, head(9));
}

#[test]
fn damage_is_noticed_and_the_one_before_serves_if_the_log_follows_on_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let (snapshots, _) = Snapshots::open(dir.path(), &keys(), None).expect("it opens");
    snapshots.write(&head(2), &state(2)).expect("it is written");
    snapshots.write(&head(3), &state(3)).expect("it is written");
    drop(snapshots);
    let newest = list(dir.path()).expect("it can be read").remove(0);
    let whole = fs::read(&newest).expect("it can be read");
    let purged = |index| head(index).last;
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (at % 8);
        // Every third time the end is missing instead.
        if at % 3 == 0 {
            damaged = whole[..at].to_vec();
        }
        fs::write(&newest, &damaged).expect("it can be written");
        let error = Snapshots::open(dir.path(), &keys(), purged(3)).err();
        let error = error.expect("the log does not follow on the one before");
        assert!(
            matches!(
                error,
                SnapshotError::Damaged { .. } | SnapshotError::Record { .. }
            ),
            "byte {at}: {error}"
        );
        let (_, found) =
            Snapshots::open(dir.path(), &keys(), purged(2)).expect("the one before serves");
        assert_eq!(found, Some((head(2), state(2))));
    }
}

#[test]
fn a_snapshot_stays_readable_for_who_has_it_and_installs_elsewhere() {
    let dir = tempfile::tempdir().expect("a directory");
    let (snapshots, _) = Snapshots::open(dir.path(), &keys(), None).expect("it opens");
    let (_, file) = snapshots.write(&head(5), &state(5)).expect("it is written");
    for name in names(dir.path()) {
        fs::remove_file(dir.path().join(name)).expect("it can be removed");
    }
    let other = tempfile::tempdir().expect("a directory");
    let (others, _) = Snapshots::open(other.path(), &keys(), None).expect("it opens");
    let installed = others.install(&file).expect("it is whole");
    assert_eq!(installed, (head(5), state(5)));
    let (_, found) = Snapshots::open(other.path(), &keys(), None).expect("it opens");
    assert_eq!(found, Some((head(5), state(5))));
}

#[test]
fn a_received_snapshot_that_is_not_whole_leaves_no_trace() {
    let dir = tempfile::tempdir().expect("a directory");
    let (snapshots, _) = Snapshots::open(dir.path(), &keys(), None).expect("it opens");
    let mut incoming = snapshots
        .receive(FileKey::generate())
        .expect("there is room");
    incoming.write(b"not a snapshot").expect("there is room");
    assert!(incoming.finish().is_err());
    drop(
        snapshots
            .receive(FileKey::generate())
            .expect("there is room"),
    );
    assert_eq!(names(dir.path()), Vec::<String>::new());
}
