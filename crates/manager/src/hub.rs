//! What the leader's loop and the sessions with agents share: who is connected, what agents report,
//! and when each was last heard.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use shoal_raft_store::{Change, State};
use shoal_transport::stream::Stream;
use shoal_types::{
    NodeId, TaskId, TaskState, TaskStatus, Timestamp,
    object::NodeDescription,
    wire::{Assignments, Open},
};
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    dispatch::{Networks, assignments_with},
    liveness::{Liveness, LivenessConfig},
};

/// What an agent said before it gave its session up, and that it did, is read within this.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// An agent that lives answers a probe within this. The one that waits for it is patient for longer.
const PROBE_PATIENCE: Duration = Duration::from_secs(2);

pub(crate) struct Hub {
    pub(crate) clock: Clock,
    /// For a cluster with Docker's default heartbeat period.
    pub(crate) config: LivenessConfig,
    liveness: Mutex<Liveness>,
    /// Whether a term of this manager is under way. Sessions only begin within one, so that none is
    /// begun before the term that would end it.
    leading: watch::Sender<bool>,
    /// Liveness may want something new.
    pub(crate) contact: Notify,
    sessions: Mutex<HashMap<NodeId, Arc<Session>>>,
    next_session: AtomicU64,
    reports: Mutex<Reports>,
    pub(crate) reported: Notify,
    waiting: Mutex<HashMap<u64, Waiting>>,
    networks: Mutex<Networks>,
}

/// One agent's conversation. The newest of a node ends the one before.
pub(crate) struct Session {
    pub(crate) id: u64,
    pub(crate) node: NodeId,
    pub(crate) ended: CancellationToken,
    accepted: Mutex<Vec<(TaskId, TaskState)>>,
    openings: Mutex<Vec<(u64, Open)>>,
    /// The agent is to say something.
    probed: AtomicBool,
    /// Something waits to be sent: an acknowledgement, a probe, or something to be opened.
    pub(crate) acknowledged: Notify,
    /// The agent has said something.
    heard: Notify,
    /// Where the agent calls from; `None` within this process.
    pub(crate) addr: Option<String>,
}

/// Somebody waits for a connection that an agent was asked for.
struct Waiting {
    node: NodeId,
    stream: oneshot::Sender<Stream>,
}

/// What agents told and is not committed: one status a task, however often it was reported.
#[derive(Default)]
struct Reports {
    statuses: BTreeMap<TaskId, Report>,
    descriptions: BTreeMap<NodeId, NodeDescription>,
}

pub(crate) struct Report {
    pub(crate) session: Arc<Session>,
    pub(crate) status: TaskStatus,
}

impl Hub {
    pub(crate) fn new(clock: Clock, config: LivenessConfig) -> Self {
        Self {
            clock,
            config,
            liveness: Mutex::new(Liveness::new(config, clock.steady())),
            leading: watch::channel(false).0,
            contact: Notify::new(),
            sessions: Mutex::default(),
            next_session: AtomicU64::new(1),
            reports: Mutex::default(),
            reported: Notify::new(),
            waiting: Mutex::default(),
            networks: Mutex::default(),
        }
    }

    /// A new term: every node has to be heard of anew, and old sessions are over.
    pub(crate) fn start_term(&self) {
        *lock(&self.liveness) = Liveness::new(self.config, self.clock.steady());
        self.end_sessions();
        self.leading.send_replace(true);
    }

    pub(crate) fn end_term(&self) {
        self.leading.send_replace(false);
        self.end_sessions();
    }

    pub(crate) fn leading(&self) -> watch::Receiver<bool> {
        self.leading.subscribe()
    }

    fn end_sessions(&self) {
        for (_, session) in lock(&self.sessions).drain() {
            session.ended.cancel();
        }
        *lock(&self.reports) = Reports::default();
    }

    /// The session of another agent that speaks for `node`, when there is one. An agent asks for a session
    /// only when it has given the one before up: that one ends then, or is never heard again. One that goes
    /// on is another machine's with the same identity.
    pub(crate) async fn rival(&self, node: NodeId) -> Option<Arc<Session>> {
        let session = lock(&self.sessions).get(&node)?.clone();
        // To a machine that has forgotten the connection, this ends it.
        session.probe();
        tokio::select! {
            () = session.ended.cancelled() => return None,
            () = tokio::time::sleep(LAST_WORDS) => {}
        }
        let heard = session.heard.notified();
        session.probe();
        tokio::select! {
            () = session.ended.cancelled() => None,
            () = heard => Some(session.clone()),
            () = tokio::time::sleep(PROBE_PATIENCE) => None,
        }
    }

    /// Starts the node's session, and ends the one it had; `None` when the term is over.
    pub(crate) fn open_session(&self, node: NodeId, addr: Option<String>) -> Option<Arc<Session>> {
        let session = Arc::new(Session {
            id: self.next_session.fetch_add(1, Ordering::Relaxed),
            node,
            ended: CancellationToken::new(),
            accepted: Mutex::default(),
            openings: Mutex::default(),
            probed: AtomicBool::new(false),
            acknowledged: Notify::new(),
            heard: Notify::new(),
            addr: addr.clone(),
        });
        let mut sessions = lock(&self.sessions);
        // The end of a term is announced before its sessions are ended under this lock.
        if !*self.leading.borrow() {
            return None;
        }
        if let Some(before) = sessions.insert(node, session.clone()) {
            before.ended.cancel();
        }
        let now = self.clock.steady();
        lock(&self.liveness).opened(node, session.id, addr, now);
        drop(sessions);
        self.contact.notify_one();
        Some(session)
    }

    pub(crate) fn close_session(&self, session: &Session) {
        let mut sessions = lock(&self.sessions);
        if sessions
            .get(&session.node)
            .is_some_and(|s| s.id == session.id)
        {
            sessions.remove(&session.node);
        }
        drop(sessions);
        session.ended.cancel();
        let now = self.clock.steady();
        lock(&self.liveness).closed(session.node, session.id, now);
        self.contact.notify_one();
    }

    /// What `node` is to run and know. Networks are shared among the nodes' sets.
    pub(crate) fn assignments(&self, state: &State, node: NodeId) -> Assignments {
        assignments_with(&mut lock(&self.networks), state, node)
    }

    /// Asks the agent of `node` to connect and bring something; `None` when it has no session here.
    /// The connection arrives at the receiver, unless the session or the agent ends before.
    pub(crate) fn open(&self, node: NodeId, open: Open) -> Option<Opening<'_>> {
        let session = lock(&self.sessions).get(&node)?.clone();
        // Nobody but the node itself may answer, and it cannot guess another's.
        let ticket = rand::random();
        let (stream, arrives) = oneshot::channel();
        lock(&self.waiting).insert(ticket, Waiting { node, stream });
        lock(&session.openings).push((ticket, open));
        session.acknowledged.notify_one();
        Some(Opening {
            hub: self,
            ticket,
            arrives,
        })
    }

    /// A connection that an agent was asked for.
    pub(crate) fn reply(&self, node: NodeId, ticket: u64, stream: Stream) {
        let mut waiting = lock(&self.waiting);
        if waiting.get(&ticket).is_some_and(|w| w.node == node)
            && let Some(waiting) = waiting.remove(&ticket)
        {
            // Whoever asked may have gone.
            let _ = waiting.stream.send(stream);
        }
    }

    pub(crate) fn heard(&self, node: NodeId) {
        let now = self.clock.steady();
        if lock(&self.liveness).heard(node, now) {
            self.contact.notify_one();
        }
    }

    /// Notes that this manager runs, for as long as it is polled.
    pub(crate) async fn pulse(&self) {
        loop {
            let pulse = lock(&self.liveness).config().pulse();
            tokio::time::sleep(pulse).await;
            let now = self.clock.steady();
            lock(&self.liveness).pulse(now);
        }
    }

    pub(crate) fn decide_liveness(&self, state: &State) -> (Vec<Change>, Option<Timestamp>) {
        let (now, wall) = (self.clock.steady(), self.clock.wall());
        let mut liveness = lock(&self.liveness);
        liveness.pulse(now);
        liveness.configure(self.config.in_cluster(state), now);
        liveness.decide(state, now, wall)
    }

    pub(crate) fn report(&self, session: &Arc<Session>, statuses: Vec<(TaskId, TaskStatus)>) {
        let mut reports = lock(&self.reports);
        if session.ended.is_cancelled() {
            return;
        }
        for (task, status) in statuses {
            let session = session.clone();
            reports.statuses.insert(task, Report { session, status });
        }
        drop(reports);
        self.reported.notify_one();
    }

    pub(crate) fn describe(&self, node: NodeId, description: NodeDescription) {
        lock(&self.reports).descriptions.insert(node, description);
        self.reported.notify_one();
    }

    /// Takes up to `limit` reports.
    pub(crate) fn take_reports(&self, limit: usize) -> BTreeMap<TaskId, Report> {
        let mut reports = lock(&self.reports);
        if reports.statuses.len() <= limit {
            return std::mem::take(&mut reports.statuses);
        }
        let key = reports.statuses.keys().nth(limit).copied();
        let rest = key.map(|key| reports.statuses.split_off(&key));
        std::mem::replace(&mut reports.statuses, rest.unwrap_or_default())
    }

    pub(crate) fn take_descriptions(&self) -> BTreeMap<NodeId, NodeDescription> {
        std::mem::take(&mut lock(&self.reports).descriptions)
    }

    /// Puts descriptions back that could not be committed, unless there are newer ones.
    pub(crate) fn give_back_descriptions(&self, descriptions: BTreeMap<NodeId, NodeDescription>) {
        let mut current = lock(&self.reports);
        for (node, description) in descriptions {
            current.descriptions.entry(node).or_insert(description);
        }
    }

    /// Puts reports back that could not be committed, unless there are newer ones.
    pub(crate) fn give_back(&self, reports: BTreeMap<TaskId, Report>) {
        let mut current = lock(&self.reports);
        for (task, report) in reports {
            if !report.session.ended.is_cancelled() {
                current.statuses.entry(task).or_insert(report);
            }
        }
    }
}

/// A connection that is on its way; dropping it gives it up.
pub(crate) struct Opening<'a> {
    hub: &'a Hub,
    ticket: u64,
    arrives: oneshot::Receiver<Stream>,
}

impl Opening<'_> {
    /// `None` when it did not come within `limit`.
    pub(crate) async fn arrived(mut self, limit: Duration) -> Option<Stream> {
        let arrived = tokio::time::timeout(limit, &mut self.arrives).await;
        arrived.ok()?.ok()
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        lock(&self.hub.waiting).remove(&self.ticket);
    }
}

impl Session {
    /// The report that `task` is in `state` is committed.
    pub(crate) fn acknowledge(&self, task: TaskId, state: TaskState) {
        lock(&self.accepted).push((task, state));
        self.acknowledged.notify_one();
    }

    /// Makes the agent say something.
    fn probe(&self) {
        self.probed.store(true, Ordering::Relaxed);
        self.acknowledged.notify_one();
    }

    /// The agent has said something.
    pub(crate) fn note_heard(&self) {
        self.heard.notify_waiters();
    }

    /// Whether the agent is to be made to say something.
    pub(crate) fn take_probe(&self) -> bool {
        self.probed.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn take_openings(&self) -> Vec<(u64, Open)> {
        std::mem::take(&mut lock(&self.openings))
    }

    pub(crate) fn take_acknowledged(&self) -> Vec<(TaskId, TaskState)> {
        std::mem::take(&mut lock(&self.accepted))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
