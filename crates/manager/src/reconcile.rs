//! The leader's loop: read, decide, propose. It holds no policy, and may be dropped at any await.

use std::{sync::Arc, time::Duration};

use rand::rng;
use shoal_raft_store::{Command, Commits, Leadership, ProposeError, RecvError, State, Store};
use shoal_types::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::{brain::Brain, hub::Hub};

/// A full pass repairs whatever a missed event left behind.
const RESYNC: Duration = Duration::from_secs(30);
/// Before trying again when the store could not take a command.
const RETRY: Duration = Duration::from_millis(200);

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
    loop {
        if !drain(&mut feed, &mut brain, store) {
            return;
        }
        state = store.state();
        if hub.clock.steady() >= resync_at {
            brain.resync(&state);
            resync_at = hub.clock.steady().after(RESYNC);
        }
        let (first, alive_at) = hub.decide_liveness(&state);
        let plan = brain.decide(&state, first, hub.clock.wall(), &mut rng());
        let idle = plan.commands.is_empty();
        for command in plan.commands {
            match propose(store, command).await {
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
            continue;
        }
        let pause = [
            plan.wake_at.map(|at| at.since(hub.clock.wall())),
            alive_at.map(|at| until(hub, at)),
            Some(until(hub, resync_at)),
        ];
        let pause = pause.into_iter().flatten().min().unwrap_or(RESYNC);
        // All arms only observe: what is not seen now is seen in the next round.
        tokio::select! {
            next = feed.recv() => match next {
                Ok(commit) => commit.changes.iter().for_each(|change| brain.observe(change)),
                Err(RecvError::Lagged { .. }) => brain = Brain::new(&store.state()),
                Err(RecvError::Closed) => return,
            },
            () = hub.contact.notified() => {}
            () = tokio::time::sleep(pause.max(Duration::from_millis(1))) => {}
        }
    }
}

fn until(hub: &Hub, at: Timestamp) -> Duration {
    at.since(hub.clock.steady())
}

/// Takes note of everything that is committed; false when the store is closed.
fn drain(feed: &mut Commits, brain: &mut Brain, store: &Store) -> bool {
    loop {
        match feed.try_recv() {
            Ok(Some(commit)) => commit
                .changes
                .iter()
                .for_each(|change| brain.observe(change)),
            Ok(None) => return true,
            Err(RecvError::Lagged { .. }) => {
                let state: Arc<State> = store.state();
                *brain = Brain::new(&state);
            }
            Err(RecvError::Closed) => return false,
        }
    }
}

/// Proposes `command`, in halves if it is too large for the log.
async fn propose(store: &Store, command: Command) -> Result<(), ProposeError> {
    let mut parts = vec![command];
    while let Some(command) = parts.pop() {
        match store.propose(command.clone()).await {
            Ok(_applied) => {}
            Err(ProposeError::TooLarge { .. }) if command.changes.len() > 1 => {
                let at = command.at;
                let mut first = command.changes;
                let second = first.split_off(first.len() / 2);
                parts.push(Command {
                    at,
                    changes: second,
                });
                parts.push(Command { at, changes: first });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
