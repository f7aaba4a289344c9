//! A group of one, made of what a single member of a lost group has.
//!
//! When a majority is gone for good, nothing can be agreed on any more, not even to go on without it.
//! So the decision is taken outside of Raft, by a person, and written where the others would have
//! been asked: one entry behind the last of the log says that this member is all there is.
//!
//! What it keeps true:
//! - All entries of the log count, also those that nobody knows to be committed: some of them were
//!   acknowledged, and it cannot be told which.
//! - The entry, a vote in a higher term and a new group number are one record of the log. After a crash
//!   there is all of it or nothing.
//! - Members of the old group that come back cannot take the new one over. They may well be a majority
//!   of the old one, elect a leader and reach any term; but every message carries the number of the
//!   group, which is random, and a member that has one listens to no other. That is checked before
//!   Raft sees the message, so that no vote or term of theirs gets in; and the new group asks none of
//!   them anything, because they are not its members.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    sync::mpsc,
};

use shoal_types::RaftId;

use super::OpenError;
use crate::{
    key::random,
    stored::{Ballot, Body, Item, Members, Point, SnapshotHead},
    wal::{Done, Wal},
};

/// How much of the log is looked at at a time.
const READ_BYTES: usize = 4 << 20;

/// A number that no other group has. Zero is none.
pub(super) fn new_group() -> u64 {
    u64::from_ne_bytes(random()).max(1)
}

/// Makes the member of `wal` the only one of a new group, unless it is alone already. Blocks on the
/// disk.
pub(super) fn make(
    wal: &Wal,
    snapshot: Option<&SnapshotHead>,
    dir: &Path,
    me: RaftId,
) -> Result<(), OpenError> {
    let io = |source| OpenError::Io {
        action: "make a new group in",
        path: dir.to_owned(),
        source,
    };
    let in_snapshot = snapshot.and_then(|head| head.last);
    if in_snapshot.map(|at| at.index) > wal.last().map(|at| at.index) {
        // Its log ends before: it was received, and nothing was written since.
        wal.purge(in_snapshot.expect("it is greater than something"))
            .map_err(io)?;
    }
    let Some(last) = wal.last() else {
        return Err(OpenError::NoGroup {
            dir: dir.to_owned(),
        });
    };
    let members = last_members(wal).map_err(io)?;
    let members = members.or_else(|| snapshot.map(|head| head.members.clone()));
    let alone = alone(me, &members.unwrap_or_default());
    let Some(alone) = alone else {
        return Ok(());
    };
    let marks = wal.marks();
    let term = marks.vote.map_or(0, |vote| vote.term).max(last.term) + 1;
    let vote = Ballot {
        term,
        candidate: me.0,
        committed: true,
    };
    let item = Item {
        at: Point {
            term,
            leader: me.0,
            index: last.index + 1,
        },
        body: Body::Members(alone),
    };
    let group = new_group();
    let (done, told) = mpsc::channel();
    let tell = Done::new(move |result| {
        let _ = done.send(result);
    });
    wal.leave_alone(group, vote, item, tell).map_err(io)?;
    let written = told.recv();
    written
        .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
        .map_err(io)?;
    tracing::warn!(
        dir = %dir.display(),
        term,
        group.from = marks.group.map(|group| format!("{group:016x}")),
        group.to = format!("{group:016x}"),
        "this member is the only one of a new raft group"
    );
    Ok(())
}

/// The members when `me` is the only one of them; `None` when it is already.
fn alone(me: RaftId, members: &Members) -> Option<Members> {
    let addr = members.addresses.get(&me.0).cloned().unwrap_or_default();
    let alone = Members {
        configs: vec![BTreeSet::from([me.0])],
        addresses: BTreeMap::from([(me.0, addr)]),
    };
    (alone != *members).then_some(alone)
}

/// The members as of the last entry of the log that says who they are.
fn last_members(wal: &Wal) -> io::Result<Option<Members>> {
    let mut found = None;
    let mut from = 0;
    loop {
        let items = match wal.read(from, u64::MAX, READ_BYTES) {
            Ok(items) => items,
            Err(disk) => disk.run()?,
        };
        let Some(last) = items.last() else {
            return Ok(found);
        };
        from = last.at.index + 1;
        let members = items.into_iter().rev().find_map(|item| match item.body {
            Body::Members(members) => Some(members),
            Body::Blank | Body::Command(_) => None,
        });
        found = members.or(found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_alone_stays_as_it_is_and_who_is_not_keeps_its_address() {
        let members = |configs: &[&[u64]], addresses: &[u64]| Members {
            configs: configs
                .iter()
                .map(|c| c.iter().copied().collect())
                .collect(),
            addresses: addresses
                .iter()
                .map(|id| (*id, format!("host{id}")))
                .collect(),
        };
        let only = members(&[&[1]], &[1]);
        assert_eq!(alone(RaftId(1), &only), None);
        for before in [
            members(&[&[1, 2, 3]], &[1, 2, 3]),
            members(&[&[1, 2], &[2, 3]], &[1, 2, 3]),
            members(&[&[1]], &[1, 2]),
            members(&[&[2]], &[1, 2]),
        ] {
            assert_eq!(alone(RaftId(1), &before), Some(only.clone()));
        }
    }
}
