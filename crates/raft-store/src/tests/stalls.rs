//! Members that stand still, links that come back, disks that fill up, transfers that break off.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use shoal_types::RaftId;
use tokio::{
    io::AsyncReadExt,
    runtime::Runtime,
    time::{Instant, sleep, timeout},
};

use super::{
    full_disk::Tmpfs,
    group::{Group, PATIENCE},
    world::{create, create_sized, tuning},
};
use crate::{Leadership, Line, Peer, PeerError, Peers, RaftTuning, ReadError, SnapshotBody, Store};

/// A member with a thread of its own, which can be made to stand still.
struct Freezable {
    runtime: Option<Runtime>,
    store: Store,
}

impl Freezable {
    async fn start(group: &mut Group, id: RaftId) -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let peers = group.router.peers(id);
        let opened = runtime.spawn(Store::open_with_peers(group.config(id), peers));
        let store = opened.await.expect("it ends").expect("the store opens");
        group.router.attach(id, store.clone());
        group.members.insert(id, store.clone());
        Self {
            runtime: Some(runtime),
            store,
        }
    }

    /// Nothing of it runs for this long, as in a process that is stopped.
    fn freeze(&self, length: Duration) {
        let runtime = self.runtime.as_ref().expect("it is there until dropped");
        runtime.spawn(async move { std::thread::sleep(length) });
    }
}

impl Drop for Freezable {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Two ordinary voters and a third that can be frozen.
async fn group_with_freezable() -> (Group, Freezable) {
    let mut group = Group::new(2, tuning()).await;
    let third = Freezable::start(&mut group, RaftId(3)).await;
    let leader = group.leader().await;
    let added = leader.add_member(RaftId(3), "member-3").await;
    added.expect("it is added");
    leader.propose(create(0)).await.expect("it leads");
    (group, third)
}

fn term(store: &Store) -> u64 {
    match *store.leadership().borrow() {
        Leadership::Leader { term } => term,
        Leadership::Follower { .. } => 0,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stands_still_is_replaced_and_follows_when_it_wakes() {
    let (group, frozen) = group_with_freezable().await;
    let leader = group.leader().await;
    leader
        .transfer_leader(RaftId(3))
        .await
        .expect("it is handed over");
    let mut leadership = frozen.store.leadership();
    let gained = timeout(PATIENCE, leadership.wait_for(|now| now.is_leader())).await;
    gained.expect("in time").expect("it runs");
    frozen.store.propose(create(1)).await.expect("it leads");

    frozen.freeze(tuning().election_max * 5);
    // Whoever asks it in its sleep must not be told that it worked unless it did.
    let asked = frozen.store.propose(create(2));
    let others = async {
        let new = timeout(PATIENCE, async {
            loop {
                let new = [1, 2].map(|id| &group.members[&RaftId(id)]);
                if let Some(new) = new.into_iter().find(|store| term(store) > 0) {
                    return new.clone();
                }
                sleep(Duration::from_millis(10)).await;
            }
        });
        let new = new.await.expect("one of the others takes over");
        new.propose(create(3)).await.expect("there is a majority");
    };
    let (asked, ()) = tokio::join!(asked, others);
    let lost = timeout(PATIENCE, leadership.wait_for(|now| !now.is_leader())).await;
    lost.expect("in time").expect("it runs");
    let state = group.settled().await;
    let written = state.config_named("config-2").is_some();
    assert!(written || asked.is_err(), "{asked:?} and it is not there");
    assert!(state.config_named("config-3").is_some());
    group.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_stands_still_for_seconds_disturbs_nobody() {
    let (group, frozen) = group_with_freezable().await;
    let leader = group.leader().await;
    assert_ne!(leader.id(), RaftId(3));
    let before = term(&leader);
    let until = Instant::now() + Duration::from_secs(5);
    frozen.freeze(Duration::from_secs(5));
    let mut number = 10;
    while Instant::now() < until {
        leader.propose(create(number)).await.expect("it leads");
        number += 1;
        sleep(Duration::from_millis(5)).await;
    }
    group.settled().await;
    assert_eq!(term(&leader), before, "nobody was elected meanwhile");
    group.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_cut_off_comes_back_without_an_election() {
    let group = Group::new(3, tuning()).await;
    let leader = group.leader().await;
    let before = term(&leader);
    let others = group.members.keys();
    let away = others.copied().find(|id| *id != leader.id());
    group.router.isolate(away.expect("there are two"));
    // Long enough for several elections that it cannot win.
    let until = Instant::now() + tuning().election_max * 6;
    let mut number = 0;
    while Instant::now() < until {
        leader.propose(create(number)).await.expect("it leads");
        number += 1;
        sleep(Duration::from_millis(10)).await;
    }
    group.router.heal();
    let state = group.settled().await;
    assert_eq!(state.configs().count() as u64, number);
    assert_eq!(term(&leader), before, "it disturbed the others");
    group.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_whose_disk_is_full_stops_alone_and_catches_up_with_room() {
    let disk = Tmpfs::new(4096);
    let mut group = Group::new(2, tuning()).await;
    let dir = group.dir.path().join("3");
    std::os::unix::fs::symlink(disk.path(), dir).expect("it can be made");
    group.start(RaftId(3)).await;
    let leader = group.leader().await;
    let added = leader.add_member(RaftId(3), "member-3").await;
    added.expect("it is added");
    let ballast = disk.path().join("ballast");
    std::fs::write(&ballast, vec![1; 3500 << 10]).expect("there is room");
    let full = group.members[&RaftId(3)].clone();
    let mut number = 0;
    loop {
        leader
            .propose(create_sized(number, 8000))
            .await
            .expect("the others are a majority");
        number += 1;
        assert!(number < 500, "the disk is never full");
        if matches!(full.read().await, Err(ReadError::Storage(_))) {
            break;
        }
    }
    leader.propose(create(number)).await.expect("it leads");
    std::fs::remove_file(&ballast).expect("it is there");
    group.stop(RaftId(3)).await;
    group.start(RaftId(3)).await;
    let state = group.settled().await;
    assert_eq!(state.configs().count() as u64, number + 1);
    group.end().await;
}

/// Brings the first snapshot to its receiver only in part.
struct BreaksOff {
    through: Arc<dyn Peers>,
    receiver: Mutex<Option<Store>>,
    broken: AtomicUsize,
}

impl Peers for BreaksOff {
    fn call<'a>(
        &'a self,
        to: &'a Peer,
        request: Vec<u8>,
        limit: Duration,
    ) -> BoxFuture<'a, Result<Vec<u8>, PeerError>> {
        self.through.call(to, request, limit)
    }

    fn open<'a>(
        &'a self,
        to: &'a Peer,
        limit: Duration,
    ) -> BoxFuture<'a, Result<Box<dyn Line>, PeerError>> {
        self.through.open(to, limit)
    }

    fn is_gone<'a>(&'a self, peer: &'a Peer) -> BoxFuture<'a, bool> {
        self.through.is_gone(peer)
    }

    fn send_snapshot<'a>(
        &'a self,
        to: &'a Peer,
        request: Vec<u8>,
        body: SnapshotBody,
        idle: Duration,
    ) -> BoxFuture<'a, Result<Vec<u8>, PeerError>> {
        let receiver = self.receiver.lock().expect("not poisoned").take();
        let Some(receiver) = receiver else {
            return self.through.send_snapshot(to, request, body, idle);
        };
        Box::pin(async move {
            let half = body.len() / 2;
            let answer = receiver.receive_snapshot(&request, body.take(half)).await;
            answer.expect_err("half a snapshot is none");
            self.broken.fetch_add(1, Ordering::Relaxed);
            Err(PeerError::Timeout { id: to.id })
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_dies_while_it_receives_a_snapshot_gets_a_whole_one_later() {
    let mut group = Group::new(
        0,
        RaftTuning {
            snapshot_after: 100,
            keep_entries: 10,
            ..tuning()
        },
    )
    .await;
    let peers = Arc::new(BreaksOff {
        through: group.router.peers(RaftId(1)),
        receiver: Mutex::new(None),
        broken: AtomicUsize::new(0),
    });
    let leader = Store::open_with_peers(group.config(RaftId(1)), peers.clone()).await;
    let leader = leader.expect("it opens");
    group.router.attach(RaftId(1), leader.clone());
    group.members.insert(RaftId(1), leader.clone());
    leader.bootstrap().await.expect("it founds the group");
    for id in [2, 3].map(RaftId) {
        group.start(id).await;
        let added = leader.add_member(id, format!("member-{id}")).await;
        added.expect("it is added");
    }
    group.stop(RaftId(3)).await;
    for number in 0..400 {
        leader.propose(create(number)).await.expect("it leads");
    }
    leader.snapshot().await.expect("it is written");
    // It comes back with a log that ends where the leader's no longer begins.
    group.start(RaftId(3)).await;
    let third = group.members[&RaftId(3)].clone();
    *peers.receiver.lock().expect("not poisoned") = Some(third);
    let broke = timeout(PATIENCE, async {
        while peers.broken.load(Ordering::Relaxed) == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    });
    broke.await.expect("it is sent one");
    group.stop(RaftId(3)).await;
    let snapshots = group.dir.path().join("3/snapshots");
    let left = std::fs::read_dir(snapshots).expect("it is there");
    let unfinished = left.filter(|entry| {
        let path = entry.as_ref().expect("it can be read").path();
        path.extension().is_some_and(|extension| extension == "tmp")
    });
    assert_eq!(unfinished.count(), 0, "half of one is left");
    group.start(RaftId(3)).await;
    assert_eq!(group.settled().await.configs().count(), 400);
    group.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leader_that_dies_is_replaced_within_two_seconds_at_default_tuning() {
    const ROUNDS: u64 = 7;
    let mut group = Group::new(3, RaftTuning::default()).await;
    let mut took = Vec::new();
    for round in 0..ROUNDS {
        let leader = group.leader().await;
        leader.propose(create(round * 2)).await.expect("it leads");
        group.settled().await;
        let id = leader.id();
        group.router.isolate(id);
        let dead = group.members.remove(&id).expect("it ran");
        let died = Instant::now();
        let new = group.leader().await;
        new.propose(create(round * 2 + 1)).await.expect("it leads");
        took.push(died.elapsed());
        group.router.detach(id);
        dead.shutdown().await;
        group.router.heal();
        group.start(id).await;
    }
    took.sort_unstable();
    println!("a dead leader was replaced after {took:?}");
    let (median, longest) = (took[took.len() / 2], took[took.len() - 1]);
    assert!(median < Duration::from_secs(1), "{took:?}");
    assert!(longest < Duration::from_secs(2), "{took:?}");
    group.end().await;
}
