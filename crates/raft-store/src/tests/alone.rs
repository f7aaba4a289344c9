//! A group that has lost its majority, and goes on as a group of one.

use std::{sync::Arc, time::Duration};

use shoal_types::RaftId;
use tokio::time::timeout;

use super::{
    group::{Group, PATIENCE, leads},
    world::{config, config_id, create, tuning},
};
use crate::{Leadership, MembershipError, NoPeers, OpenError, RaftTuning, Router, Store};

const SURVIVOR: RaftId = RaftId(1);

/// A group of three with some state, of which all but the first are stopped, the first last.
async fn lost(tuning: RaftTuning) -> Group {
    let mut group = Group::new(3, tuning).await;
    let leader = group.leader().await;
    for number in 0..30 {
        leader.propose(create(number)).await.expect("it leads");
    }
    group.settled().await;
    for id in [3, 2, 1].map(RaftId) {
        group.stop(id).await;
    }
    group
}

async fn open_alone(group: &mut Group) -> Store {
    let config = group.config(SURVIVOR);
    let store = Store::open_alone(config, group.router.peers(SURVIVOR)).await;
    let store = store.expect("it opens");
    group.router.attach(SURVIVOR, store.clone());
    store
        .bootstrap()
        .await
        .expect("it has a group and leads it");
    store
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_three_goes_on_alone_with_all_it_had_and_grows_again() {
    let mut group = lost(tuning()).await;
    let alone = open_alone(&mut group).await;
    assert_eq!(alone.state().configs().count(), 30);
    let members = alone.members();
    assert_eq!(members.len(), 1);
    assert!(members[0].id == SURVIVOR && members[0].voter);
    alone.propose(create(30)).await.expect("it leads");
    let number = alone.group();
    alone.shutdown().await;
    // Asked for again, it changes nothing; and it needs not be asked for again.
    let alone = open_alone(&mut group).await;
    assert_eq!(alone.group(), number);
    alone.shutdown().await;
    group.start(SURVIVOR).await;
    for id in [4, 5].map(RaftId) {
        group.start(id).await;
    }
    let leader = group.leader().await;
    assert_eq!(leader.group(), number);
    for id in [4, 5].map(RaftId) {
        let added = leader.add_member(id, format!("member-{id}")).await;
        added.expect("it is added");
    }
    leader.propose(create(31)).await.expect("it leads");
    assert_eq!(group.settled().await.configs().count(), 32);
    group.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_group_cannot_take_over_even_with_a_majority_and_a_higher_term() {
    let quick = RaftTuning {
        propose_timeout: Duration::from_secs(2),
        ..tuning()
    };
    let mut group = lost(quick).await;
    let alone = open_alone(&mut group).await;
    let mut leadership = alone.leadership();
    let led = *leadership.borrow_and_update();
    alone.propose(create(100)).await.expect("it leads");
    // The two others come back, are a majority of the three they know of, and go on without it.
    for id in [2, 3].map(RaftId) {
        group.start(id).await;
    }
    let mut old = group.leader().await;
    for round in 0..5 {
        // Each election takes their term further.
        let next = RaftId(5 - old.id().0);
        old.propose(create(200 + round)).await.expect("it leads");
        old.transfer_leader(next).await.expect("the other is there");
        let mut gained = group.members[&next].leadership();
        let gained = timeout(PATIENCE, gained.wait_for(|now| now.is_leader())).await;
        gained.expect("in time").expect("it runs");
        old = group.members[&next].clone();
    }
    let term = |leadership: Leadership| match leadership {
        Leadership::Leader { term } => term,
        Leadership::Follower { .. } => 0,
    };
    assert!(
        term(*old.leadership().borrow()) > term(led),
        "they are ahead"
    );
    alone.propose(create(101)).await.expect("it still leads");
    assert_eq!(*leadership.borrow_and_update(), led, "it never stopped");
    let state = alone.read().await.expect("it leads");
    assert!(state.config(&config_id(200)).is_none());
    assert!(state.config(&config_id(101)).is_some());
    assert!(old.state().config(&config_id(101)).is_none());
    assert_ne!(old.group(), alone.group());
    // Nor is one of them taken in as it is.
    let added = alone.add_member(RaftId(2), "member-2").await;
    assert!(
        matches!(added, Err(MembershipError::NoAnswer { .. })),
        "{added:?}"
    );
    assert_eq!(alone.members().len(), 1);
    assert!(leads(&old));
    alone.shutdown().await;
    group.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_whose_log_is_all_in_a_snapshot_goes_on_alone_too() {
    let tuning = RaftTuning {
        snapshot_after: 10,
        keep_entries: 0,
        ..tuning()
    };
    let mut group = lost(tuning).await;
    let alone = open_alone(&mut group).await;
    assert_eq!(alone.state().configs().count(), 30);
    alone.propose(create(30)).await.expect("it leads");
    alone.shutdown().await;
    group.end().await;
}

#[tokio::test]
async fn there_is_nothing_to_make_of_an_empty_directory() {
    let dir = tempfile::tempdir().expect("a directory");
    let error = Store::open_alone(config(dir.path()), Arc::new(NoPeers)).await;
    let error = error.err().expect("there is no state");
    assert!(matches!(error, OpenError::NoGroup { .. }), "{error}");
    // And it can still join a group.
    let router = Router::new();
    let store = Store::open_with_peers(config(dir.path()), router.peers(SURVIVOR)).await;
    let store = store.expect("it opens");
    assert_eq!(store.group(), None);
    store.shutdown().await;
}
