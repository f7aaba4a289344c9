//! The conversation with a manager: whole assignment sets in, coalesced statuses out.
//!
//! Nothing here depends on a message arriving. A session that breaks is opened again with a growing
//! pause; whatever had not been accepted is sent again, and the next assignment set is complete, so no
//! loss needs repair. A set at or below the generation in force is ignored: it comes from a manager
//! that has been replaced.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use shoal_transport::{
    backoff::Backoff,
    dial::{DialError, Dialer},
    session::{self, ReceiveError, SendError},
};
use shoal_types::{
    Generation, NodeId, TaskId, TaskState, TaskStatus,
    object::NodeDescription,
    wire::{AgentMessage, Assignments, ChangesError, ManagerMessage, ManagerPeer, Open},
};
use tokio::{
    sync::{Notify, watch},
    time,
};
use tracing::{debug, info, warn};

/// First and longest pause between two attempts to reach a manager. A node that is not back within
/// seconds is given up, so the longest is a fraction of that.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(500));

/// A manager that accepted the stream answers well within this, or is not worth waiting for.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Send(#[from] SendError),
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    #[error("the manager closed the session")]
    Closed,
    #[error("the manager did not answer within {} s", WELCOME_TIMEOUT.as_secs())]
    Silent,
    #[error(transparent)]
    Changes(#[from] ChangesError),
    #[error("the manager refused this node: {0}")]
    Refused(String),
    #[error("the manager does not lead{}", if *known { ", another one does" } else { "" })]
    Elsewhere { known: bool },
}

/// Statuses on their way to a manager: the newest of each task, until it is accepted.
#[derive(Debug, Default)]
pub struct Outbox {
    waiting: Mutex<BTreeMap<TaskId, Pending>>,
    changed: Notify,
}

#[derive(Debug)]
struct Pending {
    status: TaskStatus,
    sent: bool,
}

impl Outbox {
    pub fn put(&self, task: TaskId, status: TaskStatus) {
        self.waiting().insert(
            task,
            Pending {
                status,
                sent: false,
            },
        );
        self.changed.notify_one();
    }

    /// The task is gone; nobody wants its status any more.
    pub fn forget(&self, task: &TaskId) {
        self.waiting().remove(task);
    }

    /// What has not been sent in this session.
    pub fn take_unsent(&self) -> Vec<(TaskId, TaskStatus)> {
        self.waiting()
            .iter_mut()
            .filter(|(_, pending)| !pending.sent)
            .map(|(task, pending)| {
                pending.sent = true;
                (*task, pending.status.clone())
            })
            .collect()
    }

    /// These are committed, unless a newer status of the same task has come up since.
    pub fn accepted(&self, tasks: &[(TaskId, TaskState)]) {
        let mut waiting = self.waiting();
        for (task, state) in tasks {
            let is_this = |pending: &Pending| pending.sent && pending.status.state == *state;
            if waiting.get(task).is_some_and(is_this) {
                waiting.remove(task);
            }
        }
    }

    /// What was sent may not have arrived.
    pub fn session_lost(&self) {
        for pending in self.waiting().values_mut() {
            pending.sent = false;
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, BTreeMap<TaskId, Pending>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a session open for as long as the node belongs to a swarm.
pub(crate) struct Session {
    pub(crate) node: NodeId,
    pub(crate) dialer: Dialer,
    pub(crate) description: watch::Receiver<NodeDescription>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) assignments: watch::Sender<Option<Arc<Assignments>>>,
    /// Called with a ticket and what a manager wants brought; returns at once.
    pub(crate) bring: Box<dyn Fn(u64, Open) + Send + Sync>,
    /// Why there is no session, while there is none.
    pub(crate) trouble: Arc<Mutex<Option<String>>>,
}

impl Session {
    /// Runs until it is dropped.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut moved = false;
        loop {
            let error = match self.converse(&mut backoff).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            self.outbox.session_lost();
            if let SessionError::Elsewhere { known: true } = error {
                // The next call goes there; a pause comes only if it fails, or sends back here.
                debug!(error = %error, "the session moves to another manager");
                if !std::mem::replace(&mut moved, true) {
                    continue;
                }
            }
            self.set_trouble(Some(crate::error_chain(&error)));
            let pause = backoff.next(&mut rand::rng());
            let error = crate::error_chain(&error);
            warn!(
                error,
                pause_ms = pause.as_millis(),
                "session with the manager ended"
            );
            time::sleep(pause).await;
            moved = false;
        }
    }

    async fn converse(
        &mut self,
        backoff: &mut Backoff,
    ) -> Result<std::convert::Infallible, SessionError> {
        let stream = self.dialer.dial().await?;
        let (mut to_manager, mut from_manager) =
            session::open::<AgentMessage, ManagerMessage, _>(stream);
        let description = self.description.borrow_and_update().clone();
        to_manager
            .send(&AgentMessage::Hello {
                node: self.node,
                description,
            })
            .await?;
        let period = loop {
            let answer = time::timeout(WELCOME_TIMEOUT, from_manager.receive()).await;
            match answer.map_err(|_elapsed| SessionError::Silent)?? {
                Some(ManagerMessage::Welcome { heartbeat }) => break heartbeat,
                // A node that was removed has nothing to run, and hears why next.
                Some(ManagerMessage::Assignments(set)) => {
                    self.take(set);
                }
                Some(ManagerMessage::Refused { reason }) => {
                    return Err(SessionError::Refused(reason));
                }
                Some(ManagerMessage::Elsewhere { leader }) => return Err(self.elsewhere(leader)),
                Some(_) | None => return Err(SessionError::Closed),
            }
        };
        info!(
            heartbeat_ms = period.as_millis(),
            "session with the manager opened"
        );
        backoff.reset();
        self.set_trouble(None);

        let mut heartbeat = beats(period);
        loop {
            let unsent = self.outbox.take_unsent();
            if !unsent.is_empty() {
                to_manager.send(&AgentMessage::Status(unsent)).await?;
            }
            // Every arm may be dropped and polled again: a partly read frame stays in the receiver's
            // buffer, a notification is a permit that is kept, an interval keeps its schedule, and a
            // watch remembers what was seen. All sending happens outside of the select.
            let outgoing = tokio::select! {
                message = from_manager.receive() => {
                    match message?.ok_or(SessionError::Closed)? {
                        ManagerMessage::Welcome { heartbeat: period } => {
                            info!(
                                heartbeat_ms = period.as_millis(),
                                "the manager asks for other heartbeats"
                            );
                            heartbeat = beats(period);
                            None
                        }
                        message => self.receive(message)?,
                    }
                }
                () = self.outbox.changed.notified() => None,
                _ = heartbeat.tick() => Some(AgentMessage::Heartbeat),
                Ok(()) = self.description.changed() => {
                    let description = self.description.borrow_and_update().clone();
                    Some(AgentMessage::Description(description))
                }
            };
            if let Some(message) = outgoing {
                to_manager.send(&message).await?;
            }
        }
    }

    fn set_trouble(&self, why: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Takes a set over if it is newer than the one there is.
    fn take(&self, set: Assignments) -> bool {
        let managers = set.managers.clone();
        let taken = self.assignments.send_if_modified(|current| {
            let newer = is_newer(current.as_deref(), set.generation);
            if newer {
                *current = Some(Arc::new(set));
            }
            newer
        });
        if let (true, Some(known)) = (taken, self.dialer.managers()) {
            known.set(managers);
        }
        taken
    }

    fn elsewhere(&self, leader: Option<ManagerPeer>) -> SessionError {
        let known = leader.is_some();
        if let Some(managers) = self.dialer.managers() {
            managers.prefer(leader);
        }
        SessionError::Elsewhere { known }
    }

    /// Takes a message in; gives the answer to it, if there is one.
    fn receive(&self, message: ManagerMessage) -> Result<Option<AgentMessage>, SessionError> {
        match message {
            ManagerMessage::Assignments(set) => {
                let generation = set.generation;
                let taken = self.take(set);
                debug!(%generation, taken, "assignments received");
                Ok(None)
            }
            ManagerMessage::Changes(changes) => {
                let current = self.assignments.borrow().clone().unwrap_or_default();
                let set = changes.apply(&current)?;
                debug!(generation = %set.generation, "changes received");
                self.take(set);
                Ok(None)
            }
            ManagerMessage::StatusAccepted(tasks) => {
                self.outbox.accepted(&tasks);
                Ok(None)
            }
            ManagerMessage::Refused { reason } => Err(SessionError::Refused(reason)),
            ManagerMessage::Elsewhere { leader } => Err(self.elsewhere(leader)),
            ManagerMessage::Open { ticket, open } => {
                (self.bring)(ticket, open);
                Ok(None)
            }
            ManagerMessage::Welcome { .. } => Ok(None),
        }
    }
}

/// Ticks at once, and then every `period`.
fn beats(period: Duration) -> time::Interval {
    let mut beats = time::interval(period);
    beats.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    beats
}

/// Whether a set of `generation` takes the place of the one in force.
pub fn is_newer(current: Option<&Assignments>, generation: Generation) -> bool {
    current.is_none_or(|current| current.generation < generation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_transport::{dial, stream::Stream};

    fn status(state: TaskState) -> TaskStatus {
        TaskStatus {
            state,
            ..TaskStatus::default()
        }
    }

    struct Manager {
        listener: dial::Listener,
    }

    type ToAgent = session::Sender<ManagerMessage, Stream>;
    type FromAgent = session::Receiver<AgentMessage, Stream>;

    impl Manager {
        async fn accept(&mut self) -> (ToAgent, FromAgent) {
            let (_purpose, stream) = self.listener.accept().await.expect("the agent dials");
            let (mut to_agent, mut from_agent) = session::open(stream);
            let hello = from_agent.receive().await.expect("readable");
            assert!(
                matches!(hello, Some(AgentMessage::Hello { .. })),
                "{hello:?}"
            );
            let welcome = ManagerMessage::Welcome {
                heartbeat: Duration::from_secs(1),
            };
            to_agent.send(&welcome).await.expect("sent");
            (to_agent, from_agent)
        }
    }

    async fn next_status(from_agent: &mut FromAgent) -> Vec<(TaskId, TaskStatus)> {
        loop {
            match from_agent.receive().await.expect("readable").expect("open") {
                AgentMessage::Status(statuses) => return statuses,
                AgentMessage::Heartbeat => {}
                other => panic!("{other:?}"),
            }
        }
    }

    type Seen = watch::Receiver<Option<Arc<Assignments>>>;

    fn start() -> (Manager, Arc<Outbox>, Seen, tokio::task::JoinHandle<()>) {
        let (dialer, listener) = dial::local();
        let outbox = Arc::new(Outbox::default());
        let (assignments, seen) = watch::channel(None);
        let (_description, description) = watch::channel(NodeDescription::default());
        let session = Session {
            node: NodeId::from_random([1; 17]),
            dialer,
            description,
            outbox: outbox.clone(),
            assignments,
            bring: Box::new(|ticket, open| panic!("{ticket}: {open:?}")),
            trouble: Arc::default(),
        };
        (
            Manager { listener },
            outbox,
            seen,
            tokio::spawn(session.run()),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn unaccepted_statuses_are_sent_again_in_the_next_session() {
        let (mut manager, outbox, _seen, running) = start();
        let task = TaskId::from_random([2; 17]);
        outbox.put(task, status(TaskState::Preparing));
        let (to_agent, mut from_agent) = manager.accept().await;
        assert_eq!(
            next_status(&mut from_agent).await,
            [(task, status(TaskState::Preparing))]
        );
        drop((to_agent, from_agent));
        outbox.put(task, status(TaskState::Running));
        let (mut to_agent, mut from_agent) = manager.accept().await;
        assert_eq!(
            next_status(&mut from_agent).await,
            [(task, status(TaskState::Running))]
        );
        to_agent
            .send(&ManagerMessage::StatusAccepted(vec![(
                task,
                TaskState::Running,
            )]))
            .await
            .expect("sent");
        outbox.put(TaskId::from_random([3; 17]), status(TaskState::Ready));
        let next = next_status(&mut from_agent).await;
        assert_eq!(
            next.len(),
            1,
            "accepted statuses are not repeated: {next:?}"
        );
        running.abort();
    }

    #[test]
    fn an_acknowledgement_of_an_earlier_state_leaves_the_newer_one_waiting() {
        let outbox = Outbox::default();
        let task = TaskId::from_random([2; 17]);
        outbox.put(task, status(TaskState::Running));
        outbox.take_unsent();
        outbox.put(task, status(TaskState::Failed));
        outbox.take_unsent();
        outbox.accepted(&[(task, TaskState::Running)]);
        outbox.session_lost();
        assert_eq!(outbox.take_unsent(), [(task, status(TaskState::Failed))]);
        outbox.accepted(&[(task, TaskState::Failed)]);
        outbox.session_lost();
        assert_eq!(outbox.take_unsent(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn an_older_generation_is_ignored() {
        let (mut manager, _outbox, mut seen, running) = start();
        let (mut to_agent, _from_agent) = manager.accept().await;
        for generation in [5, 4, 6] {
            let set = Assignments {
                generation: Generation(generation),
                ..Assignments::default()
            };
            to_agent
                .send(&ManagerMessage::Assignments(set))
                .await
                .expect("sent");
        }
        let set = seen
            .wait_for(|s| s.as_ref().is_some_and(|s| s.generation == Generation(6)))
            .await
            .expect("the session lives")
            .clone();
        assert_eq!(set.map(|s| s.generation), Some(Generation(6)));
        running.abort();
    }

    #[test]
    fn an_accepted_status_is_kept_when_a_newer_one_came_up() {
        let outbox = Outbox::default();
        let task = TaskId::from_random([2; 17]);
        outbox.put(task, status(TaskState::Starting));
        outbox.take_unsent();
        outbox.put(task, status(TaskState::Running));
        outbox.accepted(&[(task, TaskState::Starting)]);
        assert_eq!(outbox.take_unsent(), [(task, status(TaskState::Running))]);
    }
}
