//! Groups of members over the router: leaders die, links are cut, members come back.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use shoal_types::RaftId;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use super::world::{config_id, create, tuning};
use crate::{
    DataKey, Leadership, MembershipError, ProposeError, RaftTuning, Router, State, Store,
    StoreConfig,
};

pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Group {
    pub(super) dir: TempDir,
    pub(super) router: Router,
    pub(super) tuning: RaftTuning,
    pub(super) members: BTreeMap<RaftId, Store>,
}

impl Group {
    /// `count` voters, of which the first founded the group; none yet when there are none.
    pub(super) async fn new(count: u64, tuning: RaftTuning) -> Self {
        let mut group = Self {
            dir: tempfile::tempdir().expect("a directory"),
            router: Router::new(),
            tuning,
            members: BTreeMap::new(),
        };
        for id in 1..=count {
            group.start(RaftId(id)).await;
        }
        let Some(first) = group.members.get(&RaftId(1)) else {
            return group;
        };
        first.bootstrap().await.expect("it founds the group");
        for id in 2..=count {
            let added = first.add_member(RaftId(id), format!("member-{id}")).await;
            added.expect("it is added");
        }
        group
    }

    pub(super) fn config(&self, id: RaftId) -> StoreConfig {
        StoreConfig {
            dir: self.dir.path().join(id.to_string()),
            raft: id,
            tuning: self.tuning.clone(),
            // Each member has its own, and finds it again.
            key: DataKey::from_bytes([u8::try_from(id.0).expect("few"); 32]),
            older_keys: Vec::new(),
        }
    }

    pub(super) async fn start(&mut self, id: RaftId) {
        let store = Store::open_with_peers(self.config(id), self.router.peers(id)).await;
        let store = store.expect("the store opens");
        self.router.attach(id, store.clone());
        self.members.insert(id, store);
    }

    pub(super) async fn stop(&mut self, id: RaftId) {
        self.router.detach(id);
        if let Some(store) = self.members.remove(&id) {
            store.shutdown().await;
        }
    }

    /// The member that leads, once there is one among those that run.
    pub(super) async fn leader(&self) -> Store {
        let found = timeout(PATIENCE, async {
            loop {
                let leader = self.members.values().find(|store| leads(store));
                if let Some(leader) = leader {
                    return leader.clone();
                }
                sleep(Duration::from_millis(10)).await;
            }
        });
        found.await.expect("somebody is elected")
    }

    /// Waits until all members that run show the same, and gives it.
    pub(super) async fn settled(&self) -> Arc<State> {
        let found = timeout(PATIENCE, async {
            loop {
                let leader = self.leader().await;
                if let Ok(state) = leader.read().await {
                    let mut others = self.members.values().map(Store::state);
                    if others.all(|other| other.version() == state.version() && *other == *state) {
                        return state;
                    }
                }
                sleep(Duration::from_millis(20)).await;
            }
        });
        found.await.unwrap_or_else(|_| {
            let versions = self.members.values().map(|s| {
                (
                    s.id(),
                    s.state().version(),
                    *s.leadership().borrow(),
                    s.stats(),
                )
            });
            panic!("members do not agree: {:?}", versions.collect::<Vec<_>>())
        })
    }

    pub(super) async fn end(self) {
        for store in self.members.values() {
            store.shutdown().await;
        }
    }
}

pub(super) fn leads(store: &Store) -> bool {
    store.leadership().borrow().is_leader()
}

#[tokio::test(flavor = "multi_thread")]
async fn three_members_agree_and_followers_name_the_leader() {
    let group = Group::new(3, tuning()).await;
    let leader = group.leader().await;
    for number in 0..50 {
        leader.propose(create(number)).await.expect("it leads");
    }
    let state = group.settled().await;
    assert_eq!(state.configs().count(), 50);
    let follower = group.members.values().find(|s| s.id() != leader.id());
    let follower = follower.expect("there are two");
    let refused = follower.propose(create(99)).await;
    match refused {
        Err(ProposeError::NotLeader { leader: named }) => assert_eq!(named, Some(leader.id())),
        other => panic!("{other:?}"),
    }
    let members = leader.members();
    assert!(members.len() == 3 && members.iter().all(|member| member.voter));
    assert_eq!(members[1].addr, "member-2");
    group.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_handed_over_and_a_leader_can_be_removed() {
    let mut group = Group::new(3, tuning()).await;
    let first = group.leader().await;
    first.propose(create(1)).await.expect("it leads");
    let next = group.members.keys().find(|id| **id != first.id()).copied();
    let next = next.expect("there are two");
    first
        .transfer_leader(next)
        .await
        .expect("it is handed over");
    let mut leadership = group.members[&next].leadership();
    let gained = timeout(PATIENCE, leadership.wait_for(|now| now.is_leader())).await;
    gained.expect("in time").expect("it runs");
    let second = group.members[&next].clone();
    second.propose(create(2)).await.expect("it leads");
    let stale = first.transfer_leader(next).await;
    assert!(matches!(stale, Err(MembershipError::NotLeader { .. })));
    let unknown = second.remove_member(RaftId(9)).await;
    assert!(matches!(
        unknown,
        Err(MembershipError::NoMember { id: RaftId(9) })
    ));

    second.remove_member(next).await.expect("it is removed");
    let lost = timeout(PATIENCE, leadership.wait_for(|now| !now.is_leader())).await;
    lost.expect("in time").expect("it runs");
    group.stop(next).await;
    let third = group.leader().await;
    assert_ne!(third.id(), next);
    third.propose(create(3)).await.expect("it leads");
    assert_eq!(group.settled().await.configs().count(), 3);
    assert_eq!(third.members().len(), 2);
    group.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_a_majority_says_so_and_acknowledges_nothing() {
    let group = Group::new(
        3,
        RaftTuning {
            propose_timeout: Duration::from_secs(2),
            ..tuning()
        },
    )
    .await;
    let old = group.leader().await;
    old.propose(create(1)).await.expect("it leads");
    let mut leadership = old.leadership();
    group.router.isolate(old.id());
    let proposal = old.propose(create(2)).await;
    assert!(
        matches!(
            proposal,
            Err(ProposeError::Timeout | ProposeError::NotLeader { .. })
        ),
        "{proposal:?}"
    );
    let lost = timeout(PATIENCE, leadership.wait_for(|now| !now.is_leader())).await;
    lost.expect("in time").expect("it runs");
    assert!(old.read().await.is_err(), "it cannot know the newest state");
    let new = group.leader().await;
    assert_ne!(new.id(), old.id());
    new.propose(create(3)).await.expect("it leads");
    group.router.heal();
    let state = group.settled().await;
    assert!(state.config(&config_id(3)).is_some());
    group.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_away_catches_up_by_snapshot() {
    let tuning = RaftTuning {
        snapshot_after: 100,
        keep_entries: 10,
        ..tuning()
    };
    let mut group = Group::new(3, tuning).await;
    let leader = group.leader().await;
    let away = group
        .members
        .keys()
        .rfind(|id| **id != leader.id())
        .copied();
    let away = away.expect("there are two");
    group.stop(away).await;
    for number in 0..500 {
        leader
            .propose(create(number))
            .await
            .expect("there is a majority");
    }
    leader.snapshot().await.expect("it is written");
    assert!(leader.stats().purged_index > 300, "{:?}", leader.stats());
    group.start(away).await;
    let back = group.members[&away].clone();
    assert!(back.state().configs().count() < 500);
    let state = group.settled().await;
    assert_eq!(state.configs().count(), 500);
    assert!(back.stats().snapshot_index > 300, "{:?}", back.stats());
    // It has it on disk as well.
    group.stop(away).await;
    group.start(away).await;
    group.settled().await;
    group.end().await;
}

/// Numbers that are proposed, and those that were acknowledged.
#[derive(Default)]
struct Ledger {
    next: AtomicU64,
    acknowledged: Mutex<BTreeSet<u64>>,
}

async fn write(
    stores: Arc<Mutex<BTreeMap<RaftId, Store>>>,
    ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
) {
    while !stop.load(Ordering::Relaxed) {
        let leader = {
            let stores = stores.lock().expect("not poisoned");
            stores.values().find(|store| leads(store)).cloned()
        };
        let Some(leader) = leader else {
            sleep(Duration::from_millis(5)).await;
            continue;
        };
        let number = ledger.next.fetch_add(1, Ordering::Relaxed);
        if leader.propose(create(number)).await.is_ok() {
            ledger
                .acknowledged
                .lock()
                .expect("not poisoned")
                .insert(number);
        } else {
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// One run of faults under load. Afterwards all members agree, and nothing acknowledged is lost.
async fn chaos(members: u64, seed: u64, length: Duration) {
    let tuning = RaftTuning {
        snapshot_after: 300,
        keep_entries: 50,
        propose_timeout: Duration::from_secs(2),
        ..tuning()
    };
    let mut group = Group::new(members, tuning).await;
    let running = Arc::new(Mutex::new(group.members.clone()));
    let ledger = Arc::new(Ledger::default());
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..8)
        .map(|_| tokio::spawn(write(running.clone(), ledger.clone(), stop.clone())))
        .collect();
    let mut rng = StdRng::seed_from_u64(seed);
    let end = Instant::now() + length;
    let mut faults = 0;
    while Instant::now() < end {
        let ids: Vec<RaftId> = group.members.keys().copied().collect();
        let pick = |rng: &mut StdRng| ids[rng.random_range(0..ids.len())];
        let leader = group.members.values().find(|store| leads(store));
        let leader = leader.map(Store::id);
        match rng.random_range(0..5) {
            0 => group.router.isolate(pick(&mut rng)),
            1 => group.router.isolate(leader.unwrap_or(ids[0])),
            2 => {
                for _ in 0..members {
                    group.router.cut(pick(&mut rng), pick(&mut rng));
                }
            }
            3 => {
                let id = leader.unwrap_or(ids[0]);
                running.lock().expect("not poisoned").remove(&id);
                group.stop(id).await;
                sleep(Duration::from_millis(rng.random_range(0..900))).await;
                group.start(id).await;
                let store = group.members[&id].clone();
                running.lock().expect("not poisoned").insert(id, store);
            }
            _ => {
                if let Some(leader) = leader {
                    // It may be too late for that by now.
                    let _ = group.members[&leader].transfer_leader(pick(&mut rng)).await;
                }
            }
        }
        faults += 1;
        sleep(Duration::from_millis(rng.random_range(200..1200))).await;
        group.router.heal();
        sleep(Duration::from_millis(rng.random_range(0..600))).await;
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("it ends in order");
    }
    let leader = group.leader().await;
    let last = ledger.next.fetch_add(1, Ordering::Relaxed);
    leader
        .propose(create(last))
        .await
        .expect("all is well again");
    let state = group.settled().await;
    let acknowledged = std::mem::take(&mut *ledger.acknowledged.lock().expect("not poisoned"));
    let missing: Vec<u64> = acknowledged
        .iter()
        .copied()
        .filter(|number| state.config(&config_id(*number)).is_none())
        .collect();
    assert!(missing.is_empty(), "seed {seed}: lost {missing:?}");
    assert!(!acknowledged.is_empty());
    tracing::info!(
        seed,
        members,
        faults,
        acknowledged = acknowledged.len(),
        "healed"
    );
    group.end().await;
}

/// `SHOAL_CHAOS_SEEDS=n` runs more of them, `SHOAL_SEED=s` starts at another.
fn seeds() -> std::ops::Range<u64> {
    let number =
        |name, default| std::env::var(name).map_or(default, |text| text.parse().expect("a number"));
    let first = number("SHOAL_SEED", 1);
    first..first + number("SHOAL_CHAOS_SEEDS", 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_acknowledged_is_lost_by_three_members_under_faults() {
    for seed in seeds() {
        chaos(3, seed, Duration::from_secs(8)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_acknowledged_is_lost_by_five_members_under_faults() {
    for seed in seeds() {
        chaos(5, seed, Duration::from_secs(6)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_was_shut_down_as_a_whole_comes_back() {
    let mut group = Group::new(3, tuning()).await;
    let leader = group.leader().await;
    for number in 0..20 {
        leader.propose(create(number)).await.expect("it leads");
    }
    let ids: Vec<RaftId> = group.members.keys().copied().collect();
    for id in &ids {
        group.stop(*id).await;
    }
    for id in &ids {
        group.start(*id).await;
    }
    assert_eq!(group.settled().await.configs().count(), 20);
    let leader = group.leader().await;
    leader.bootstrap().await.expect("it has a group");
    assert!(matches!(
        *leader.leadership().borrow(),
        Leadership::Leader { .. }
    ));
    group.end().await;
}
