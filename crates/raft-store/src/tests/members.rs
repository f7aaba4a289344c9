//! Who belongs to a group, and who may leave it.

use std::time::Duration;

use shoal_types::RaftId;
use tokio::time::{sleep, timeout};

use super::{
    group::{Group, PATIENCE},
    world::{create, tuning},
};
use crate::{MemberHealth, MembershipError, RaftTuning, Store};

fn quick() -> RaftTuning {
    RaftTuning {
        propose_timeout: Duration::from_secs(2),
        ..tuning()
    }
}

/// Waits until what the leader knows of its members is as wanted.
async fn health_is(leader: &Store, wanted: impl Fn(&[MemberHealth]) -> bool) -> Vec<MemberHealth> {
    let found = timeout(PATIENCE, async {
        loop {
            let health = leader.health();
            if wanted(&health) {
                return health;
            }
            sleep(Duration::from_millis(10)).await;
        }
    });
    let found = found.await;
    found.unwrap_or_else(|_| panic!("it stays {:?}", leader.health()))
}

fn another(group: &Group, than: &[RaftId]) -> RaftId {
    let other = group.members.keys().find(|id| !than.contains(id));
    *other.expect("there are more")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_never_answers_is_taken_out_again_and_named() {
    let group = Group::new(1, quick()).await;
    let leader = group.leader().await;
    let before = leader.members();
    let added = leader.add_member(RaftId(7), "nowhere:1").await;
    match added {
        Err(MembershipError::NoAnswer { id, addr }) => {
            assert_eq!((id, addr.as_str()), (RaftId(7), "nowhere:1"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(leader.members(), before);
    leader.propose(create(1)).await.expect("it still leads");
    group.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn adding_again_changes_nothing_and_another_address_is_refused() {
    let group = Group::new(2, quick()).await;
    let leader = group.leader().await;
    let before = (leader.members(), leader.stats().last_index);
    let again = leader.add_member(RaftId(2), "member-2").await;
    again.expect("it is one already");
    assert_eq!((leader.members(), leader.stats().last_index), before);
    let moved = leader.add_member(RaftId(2), "elsewhere").await;
    assert!(
        matches!(moved, Err(MembershipError::OtherAddress { .. })),
        "{moved:?}"
    );
    leader
        .set_address(RaftId(2), "elsewhere")
        .await
        .expect("a majority is there");
    leader
        .add_member(RaftId(2), "elsewhere")
        .await
        .expect("it is there now");
    group.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_one_leader_began_to_add_is_finished_by_the_next() {
    let mut group = Group::new(3, quick()).await;
    group.start(RaftId(4)).await;
    let first = group.leader().await;
    for number in 0..30 {
        first.propose(create(number)).await.expect("it leads");
    }
    first
        .add_learner(RaftId(4), "member-4")
        .await
        .expect("it catches up");
    let learner = first.members().pop().expect("there are four");
    assert!(learner.id == RaftId(4) && !learner.voter);
    let first_id = first.id();
    group.stop(first_id).await;
    let second = group.leader().await;
    second
        .add_member(RaftId(4), "member-4")
        .await
        .expect("it gets its vote");
    assert!(second.members().iter().all(|member| member.voter));
    let removed = second.remove_member(first_id).await;
    removed.expect("a dead member can go");
    assert_eq!(group.settled().await.configs().count(), 30);
    group.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_knows_who_answers_and_keeps_its_quorum() {
    let mut group = Group::new(3, quick()).await;
    let leader = group.leader().await;
    leader.propose(create(1)).await.expect("it leads");
    let health = health_is(&leader, |health| {
        health.len() == 3 && health.iter().all(|m| m.reachable)
    })
    .await;
    assert!(health.iter().all(|m| m.voter && m.matched.is_some()));
    let gone = another(&group, &[leader.id()]);
    let left = another(&group, &[leader.id(), gone]);
    assert_eq!(group.members[&left].health(), [], "a follower cannot tell");
    group.stop(gone).await;
    health_is(&leader, |health| {
        health.iter().all(|m| m.reachable == (m.id != gone))
    })
    .await;

    let refused = leader.remove_member(left).await;
    assert!(
        matches!(
            refused,
            Err(MembershipError::WouldLoseQuorum {
                voters: 2,
                reachable: 1,
                needed: 2
            })
        ),
        "{refused:?}"
    );
    let own = leader.remove_member(leader.id()).await;
    assert!(
        matches!(own, Err(MembershipError::WouldLoseQuorum { .. })),
        "{own:?}"
    );
    assert_eq!(leader.members().len(), 3);
    // The dead one may go, and then the other as well.
    leader.remove_member(gone).await.expect("it is dead");
    leader
        .remove_member(left)
        .await
        .expect("one of one is left");
    assert_eq!(leader.members().len(), 1);
    let last = leader.remove_member(leader.id()).await;
    assert!(matches!(last, Err(MembershipError::LastVoter { .. })));
    leader.propose(create(2)).await.expect("it is alone");
    group.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_no_change_is_begun() {
    let mut group = Group::new(2, quick()).await;
    let leader = group.leader().await;
    let gone = another(&group, &[leader.id()]);
    group.stop(gone).await;
    health_is(&leader, |health| {
        health.iter().all(|m| m.reachable == (m.id != gone))
    })
    .await;
    let refused = leader.remove_member(gone).await;
    assert!(
        matches!(
            refused,
            Err(MembershipError::NoQuorum {
                voters: 2,
                reachable: 1,
                needed: 2
            })
        ),
        "{refused:?}"
    );
    group.start(gone).await;
    let leader = group.leader().await;
    assert_eq!(leader.members().len(), 2);
    let other = another(&group, &[leader.id()]);
    leader.remove_member(other).await.expect("both are back");
    group.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_stops_in_order_hands_leadership_over_first() {
    let mut group = Group::new(3, tuning()).await;
    let old = group.leader().await;
    old.propose(create(1)).await.expect("it leads");
    health_is(&old, |health| health.iter().all(|m| m.reachable)).await;
    let began = tokio::time::Instant::now();
    old.hand_over().await.expect("the others can take it");
    assert!(!old.leadership().borrow().is_leader());
    assert!(began.elapsed() < tuning().election_max * 2);
    group.members.remove(&old.id());
    let new = group.leader().await;
    new.propose(create(2)).await.expect("it leads");
    old.hand_over().await.expect("there is nothing to do");
    old.shutdown_gracefully().await;
    group.router.detach(old.id());
    group.end().await;
}
