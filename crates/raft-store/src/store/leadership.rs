//! Who leads, as the parts that only work on a leader need to know it.
//!
//! Leadership is announced once everything that any leader before ever acknowledged is in `state()`,
//! and it is taken back when no majority has been heard of for as long as the others need to elect
//! somebody else, which the leader in a minority learns from nobody.

use std::time::Duration;

use openraft::{Instant, ReadPolicy, async_runtime::WatchReceiver};
use shoal_types::RaftId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::members::{finish, is_half_done};
use crate::raft::Raft;

/// The part this member plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leadership {
    /// It leads, and its state holds all that was ever acknowledged. A new term is a new leadership.
    Leader { term: u64 },
    /// It does not lead (yet, or any more). `leader` may be this member while it catches up.
    Follower { leader: Option<RaftId> },
}

impl Leadership {
    pub fn is_leader(self) -> bool {
        matches!(self, Self::Leader { .. })
    }
}

/// How often openraft is asked what it says when it has said nothing new for a while, and there is no
/// majority whose silence has to be noticed.
const LOOK: Duration = Duration::from_secs(10);

const NOBODY: Leadership = Leadership::Follower { leader: None };

pub(super) fn channel() -> (watch::Sender<Leadership>, watch::Receiver<Leadership>) {
    watch::channel(NOBODY)
}

/// What openraft says of this member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct View {
    leads: bool,
    term: u64,
    leader: Option<u64>,
    /// Time since a majority answered, when there is anyone to answer.
    silence: Option<Duration>,
    /// Nobody else belongs to the group, not even without a vote.
    is_only_member: bool,
}

impl View {
    fn leads_others(self) -> bool {
        self.leads && !self.is_only_member
    }

    /// Whether time matters to openraft: whoever leads only itself has nobody to tell that it lives, and
    /// no election to wait for.
    fn needs_ticks(self) -> bool {
        !self.leads || self.leads_others()
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Say(Leadership),
    /// Announce this term once the state is known to be complete.
    Confirm {
        term: u64,
    },
}

fn decide(view: View, said: Leadership, patience: Duration) -> Step {
    let leader = view.leader.map(RaftId);
    if !view.leads {
        return Step::Say(Leadership::Follower { leader });
    }
    if view.silence.is_some_and(|silence| silence > patience) {
        return Step::Say(NOBODY);
    }
    match said {
        Leadership::Leader { term } if term == view.term => Step::Say(said),
        _ => Step::Confirm { term: view.term },
    }
}

/// Keeps `announced` up to date until the store is shut down.
pub(super) async fn follow(
    raft: Raft,
    mut gone: watch::Receiver<u64>,
    patience: Duration,
    announced: watch::Sender<Leadership>,
    stopped: CancellationToken,
) {
    // Dropping any of it at any await loses nothing: each round looks at everything anew.
    stopped
        .run_until_cancelled(async {
            let mut server = raft.server_metrics();
            let mut is_news = true;
            loop {
                let said = *announced.borrow();
                let lost = *gone.borrow_and_update();
                let now = view(&raft, lost);
                raft.runtime_config().tick(now.needs_ticks());
                // The news comes a moment before what it is about can be read.
                let mut pause = if is_news || now.leads_others() {
                    patience / 4
                } else {
                    LOOK
                };
                let say = match decide(now, said, patience) {
                    Step::Say(say) => say,
                    Step::Confirm { term } => {
                        // A leadership that ended is never shown as if it went on.
                        show(&announced, NOBODY);
                        let confirmed = raft.ensure_linearizable(ReadPolicy::ReadIndex).await;
                        if confirmed.is_ok() && view(&raft, lost).term == term {
                            if is_half_done(&raft) {
                                let raft = raft.clone();
                                tokio::spawn(async move {
                                    // Whoever changes the members next tries again.
                                    if let Err(error) =
                                        raft.change_membership(finish(), false).await
                                    {
                                        tracing::warn!(%error, "half-done change of the members");
                                    }
                                });
                            }
                            Leadership::Leader { term }
                        } else {
                            pause = Duration::from_millis(10);
                            NOBODY
                        }
                    }
                };
                show(&announced, say);
                // All only observe.
                is_news = tokio::select! {
                    changed = server.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        true
                    }
                    _ = gone.changed() => true,
                    () = tokio::time::sleep(pause) => false,
                };
            }
        })
        .await;
    show(&announced, NOBODY);
}

fn show(announced: &watch::Sender<Leadership>, say: Leadership) {
    announced.send_if_modified(|said| {
        let changed = *said != say;
        if changed {
            tracing::info!(state.from = ?said, state.to = ?say, "raft leadership");
            *said = say;
        }
        changed
    });
}

/// As this member sees it, when the leader of term `lost` is known to be gone.
fn view(raft: &Raft, lost: u64) -> View {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let alone = metrics.membership_config.voter_ids().count() <= 1;
    let silence = metrics.last_quorum_acked.as_ref().map(|at| at.elapsed());
    View {
        leads: metrics.running_state.is_ok() && metrics.state.is_leader(),
        term: metrics.current_term,
        leader: metrics
            .current_leader
            .filter(|_| metrics.current_term != lost),
        silence: silence.filter(|_| !alone),
        is_only_member: metrics.membership_config.nodes().count() <= 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(2);

    fn view(leads: bool, term: u64, silence: u64) -> View {
        View {
            leads,
            term,
            leader: Some(7),
            silence: Some(Duration::from_secs(silence)),
            is_only_member: false,
        }
    }

    #[test]
    fn only_a_leader_without_others_needs_no_ticks() {
        let cases = [(true, true), (true, false), (false, true), (false, false)];
        let needs = cases.map(|(leads, is_only_member)| {
            let view = View {
                is_only_member,
                ..view(leads, 1, 0)
            };
            view.needs_ticks()
        });
        assert_eq!(needs, [false, true, true, true]);
    }

    #[test]
    fn leadership_is_confirmed_once_a_term_and_lost_with_the_majority() {
        let follower = Leadership::Follower {
            leader: Some(RaftId(7)),
        };
        let leader = Leadership::Leader { term: 4 };
        let cases = [
            (view(false, 4, 0), leader, Step::Say(follower)),
            (view(true, 4, 0), follower, Step::Confirm { term: 4 }),
            (view(true, 4, 1), leader, Step::Say(leader)),
            (view(true, 5, 0), leader, Step::Confirm { term: 5 }),
            (view(true, 4, 3), leader, Step::Say(NOBODY)),
            (view(true, 4, 3), NOBODY, Step::Say(NOBODY)),
        ];
        for (view, said, step) in cases {
            assert_eq!(
                decide(view, said, PATIENCE),
                step,
                "{view:?} after {said:?}"
            );
        }
    }
}
