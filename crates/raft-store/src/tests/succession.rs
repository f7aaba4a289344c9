//! Leaders whose process ends, at times after which silence would not be noticed yet.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use shoal_types::RaftId;
use tokio::time::{sleep, timeout};

use super::{
    group::{Group, PATIENCE, leads},
    world::{create, tuning},
};
use crate::{Leadership, Line, Peer, PeerError, Peers, RaftTuning, SnapshotBody, Store};

/// Followers wait for a silent leader far longer than these tests do.
fn patient() -> RaftTuning {
    RaftTuning {
        election_min: Duration::from_millis(300),
        election_max: PATIENCE * 10,
        ..tuning()
    }
}

fn term(store: &Store) -> u64 {
    match *store.leadership().borrow() {
        Leadership::Leader { term } => term,
        Leadership::Follower { .. } => panic!("it does not lead"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_process_ends_is_replaced_without_waiting_for_its_silence() {
    for count in [3, 5] {
        let mut group = Group::new(count, patient()).await;
        let leader = group.leader().await;
        leader.propose(create(1)).await.expect("it leads");
        group.settled().await;
        let before = term(&leader);
        group.stop(leader.id()).await;
        for other in group.members.values() {
            other.hung_up();
        }
        let next = group.leader().await;
        assert!(term(&next) > before);
        next.propose(create(2)).await.expect("it leads");
        assert_eq!(group.settled().await.configs().count(), 2);
        group.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_member_that_lags_behind_is_not_the_one_that_is_elected() {
    let mut group = Group::new(3, patient()).await;
    let leader = group.leader().await;
    assert_eq!(leader.id(), RaftId(1), "it founded the group");
    // The second would be the first to stand for election.
    group.router.cut(RaftId(1), RaftId(2));
    for number in 0..20 {
        leader
            .propose(create(number))
            .await
            .expect("the third is enough");
    }
    group.stop(RaftId(1)).await;
    group.router.heal();
    for other in group.members.values() {
        other.hung_up();
    }
    assert_eq!(group.leader().await.id(), RaftId(3));
    assert_eq!(group.settled().await.configs().count(), 20);
    group.end().await;
}

/// Takes the leader for gone, and counts what it asks the others.
struct Mistaken {
    through: Arc<dyn Peers>,
    asked: AtomicUsize,
}

impl Peers for Mistaken {
    fn call<'a>(
        &'a self,
        to: &'a Peer,
        request: Vec<u8>,
        limit: Duration,
    ) -> BoxFuture<'a, Result<Vec<u8>, PeerError>> {
        Box::pin(async move {
            let answer = self.through.call(to, request, limit).await;
            self.asked.fetch_add(1, Ordering::Relaxed);
            answer
        })
    }

    fn open<'a>(
        &'a self,
        to: &'a Peer,
        limit: Duration,
    ) -> BoxFuture<'a, Result<Box<dyn Line>, PeerError>> {
        self.through.open(to, limit)
    }

    fn is_gone<'a>(&'a self, _peer: &'a Peer) -> BoxFuture<'a, bool> {
        Box::pin(std::future::ready(true))
    }

    fn send_snapshot<'a>(
        &'a self,
        to: &'a Peer,
        request: Vec<u8>,
        body: SnapshotBody,
        idle: Duration,
    ) -> BoxFuture<'a, Result<Vec<u8>, PeerError>> {
        self.through.send_snapshot(to, request, body, idle)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_alone_takes_the_leader_for_gone_disturbs_nobody() {
    let mut group = Group::new(1, patient()).await;
    let leader = group.leader().await;
    let mistaken = Arc::new(Mistaken {
        through: group.router.peers(RaftId(2)),
        asked: AtomicUsize::new(0),
    });
    let second = Store::open_with_peers(group.config(RaftId(2)), mistaken.clone()).await;
    let second = second.expect("it opens");
    group.router.attach(RaftId(2), second.clone());
    group.members.insert(RaftId(2), second.clone());
    group.start(RaftId(3)).await;
    for id in [2, 3].map(RaftId) {
        let added = leader.add_member(id, format!("member-{id}")).await;
        added.expect("it is added");
    }
    group.settled().await;
    let before = term(&leader);
    second.hung_up();
    let refused = timeout(PATIENCE, async {
        while mistaken.asked.load(Ordering::Relaxed) < 3 {
            sleep(Duration::from_millis(5)).await;
        }
    });
    refused.await.expect("it asks more than once");
    assert!(leads(&leader) && term(&leader) == before);
    leader.propose(create(1)).await.expect("it leads");
    assert_eq!(group.settled().await.configs().count(), 1);
    assert_eq!(term(&leader), before, "nobody began a term");
    group.end().await;
}
