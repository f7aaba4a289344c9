//! The leader's loop: read, decide, propose. It holds no policy, and may be dropped at any await.

use std::{sync::Arc, time::Duration};

use rand::rng;
use shoal_raft_store::{
    Commit, Commits, Leadership, ObjectChange, ProposeError, RecvError, State, Store,
};
use shoal_types::{TaskState, Timestamp};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{brain::Brain, hub::Hub, propose};

/// A full pass repairs whatever a missed event left behind.
pub const RESYNC: Duration = Duration::from_secs(30);
/// Before trying again when the store could not take a command.
pub const RETRY: Duration = Duration::from_millis(200);
/// Passes over what users changed begin at least so long after the one before, so that what many of
/// them ask for at once shares a command. A pass that a task's end calls for does not wait.
pub const GATHER: Duration = Duration::from_millis(4);

/// Decides whenever this manager leads, until `stop`.
pub(crate) async fn run(store: Store, hub: &Hub, stop: CancellationToken) {
    let mut leadership = store.leadership();
    loop {
        let now = *leadership.borrow_and_update();
        if let Leadership::Leader { term } = now {
            hub.start_term();
            tracing::info!(raft.term = term, "this manager leads");
            // Each arm only observes, except the term, which is over when another arm wins.
            tokio::select! {
                () = lead(&store, hub) => {}
                () = hub.pulse() => {}
                _ = leadership.changed() => {}
                () = stop.cancelled() => return,
            }
            hub.end_term();
            if *leadership.borrow() == now {
                // The store refused to write; leadership will tell, or it will recover.
                tokio::select! {
                    () = tokio::time::sleep(RETRY) => {}
                    () = stop.cancelled() => return,
                }
            }
            continue;
        }
        tokio::select! {
            changed = leadership.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}

/// One term. Returns when this manager turns out not to lead any more.
async fn lead(store: &Store, hub: &Hub) {
    let mut state = store.state();
    let mut feed = store.changes_after(state.version());
    let mut brain = Brain::new(&state);
    let mut resync_at = hub.clock.steady().after(RESYNC);
    let mut gathered = Instant::now();
    let mut pace = Pace::new(hub.clock.wall(), hub.clock.steady());
    let mut hurry = true;
    loop {
        if !drain(&mut feed, &mut brain, store, &mut hurry) {
            return;
        }
        if !std::mem::take(&mut hurry) && Instant::now() < gathered {
            tokio::time::sleep_until(gathered).await;
            continue;
        }
        state = store.state();
        if hub.clock.steady() >= resync_at {
            brain.resync(&state);
            resync_at = hub.clock.steady().after(RESYNC);
        }
        let (first, alive_at) = hub.decide_liveness(&state);
        let now = pace.now(hub, &state);
        if pace.take_jump() {
            brain.forget_time();
        }
        let plan = brain.decide(&state, first, now, &mut rng());
        let idle = plan.commands.is_empty();
        for command in plan.commands {
            match propose::in_parts(store, command).await {
                Ok(()) => {}
                Err(ProposeError::NotLeader { .. } | ProposeError::Stopped) => return,
                Err(ProposeError::Rejected(rejection)) => {
                    // Somebody changed the object meanwhile: decide again from the newer state.
                    tracing::debug!(error = %rejection, "a plan was refused");
                    brain.revert(&store.state());
                    break;
                }
                Err(error) => {
                    tracing::warn!(error = %error, "a plan could not be committed");
                    brain.revert(&store.state());
                    tokio::time::sleep(RETRY).await;
                    break;
                }
            }
        }
        if !idle {
            gathered = Instant::now() + GATHER;
            hurry = plan.wake_at.is_some_and(|at| at <= now);
            continue;
        }
        let pause = [
            plan.wake_at.map(|at| at.since(pace.now(hub, &state))),
            alive_at.map(|at| until(hub, at)),
            Some(until(hub, resync_at)),
        ];
        let pause = pause.into_iter().flatten().min().unwrap_or(RESYNC);
        // All arms only observe: what is not seen now is seen in the next round.
        tokio::select! {
            next = feed.recv() => match next {
                Ok(commit) => observe(&mut brain, &commit, &mut hurry),
                Err(RecvError::Lagged { .. }) => brain = Brain::new(&store.state()),
                Err(RecvError::Closed) => return,
            },
            () = hub.contact.notified() => {}
            () = tokio::time::sleep(pause.max(Duration::from_millis(1))) => {}
        }
    }
}

/// The leader's time for decisions: the time of day, but never before what is dated already, and never
/// slower than real time. Delays thus end even where clocks were set back.
#[derive(Debug)]
pub struct Pace {
    time: Timestamp,
    steady: Timestamp,
    jumped: bool,
}

/// A clock that gains more than this between two passes was set.
const JUMP: Duration = Duration::from_secs(2);

impl Pace {
    /// Begins at `wall`; `steady` is by the clock that never jumps.
    pub fn new(wall: Timestamp, steady: Timestamp) -> Self {
        Self {
            time: wall,
            steady,
            jumped: false,
        }
    }

    fn now(&mut self, hub: &Hub, state: &State) -> Timestamp {
        self.advance(hub.clock.steady(), hub.clock.wall().max(state.clock()))
    }

    /// The time of decisions at `steady`, on a state that dates nothing after `at_least`.
    pub fn advance(&mut self, steady: Timestamp, at_least: Timestamp) -> Timestamp {
        let passed = steady.since(self.steady);
        self.steady = steady;
        let even = self.time.after(passed);
        self.jumped |= at_least.since(even) > JUMP;
        self.time = even.max(at_least);
        self.time
    }

    /// Whether a clock was set forward since this was asked last.
    pub fn take_jump(&mut self) -> bool {
        std::mem::take(&mut self.jumped)
    }
}

fn until(hub: &Hub, at: Timestamp) -> Duration {
    at.since(hub.clock.steady())
}

/// Takes note of a commit, and of whether it leaves no time to wait for others.
pub fn observe(brain: &mut Brain, commit: &Commit, hurry: &mut bool) {
    for change in &commit.changes {
        brain.observe(change);
        if let ObjectChange::Task {
            before: Some(before),
            after: Some(after),
        } = change
        {
            *hurry |= before.status.state != after.status.state
                && after.status.state >= TaskState::Running;
        }
    }
}

/// Takes note of everything that is committed; false when the store is closed.
fn drain(feed: &mut Commits, brain: &mut Brain, store: &Store, hurry: &mut bool) -> bool {
    loop {
        match feed.try_recv() {
            Ok(Some(commit)) => observe(brain, &commit, hurry),
            Ok(None) => return true,
            Err(RecvError::Lagged { .. }) => {
                let state: Arc<State> = store.state();
                *brain = Brain::new(&state);
            }
            Err(RecvError::Closed) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_when_a_clock_is_set_back() {
        let mut pace = Pace {
            time: Timestamp(100),
            steady: Timestamp(0),
            jumped: false,
        };
        assert_eq!(pace.advance(Timestamp(5), Timestamp(200)), Timestamp(200));
        assert_eq!(pace.advance(Timestamp(8), Timestamp(90)), Timestamp(203));
        assert!(!pace.take_jump());
    }

    #[test]
    fn a_clock_that_is_set_forward_is_noticed_once() {
        let mut pace = Pace::new(Timestamp(100), Timestamp(0));
        let hour = Timestamp(100).after(Duration::from_hours(1));
        assert_eq!(pace.advance(Timestamp(5), hour), hour);
        assert!(pace.take_jump());
        assert!(!pace.take_jump());
    }
}
