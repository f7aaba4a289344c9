//! One agent's session: its checks, its assignments, its reports.
//!
//! Assignments are made from the newest state when there is room to send them, so a slow agent gets
//! fewer sets, never a queue of old ones.

use std::{sync::Arc, time::Duration};

use rand::{RngExt, rng};
use shoal_raft_store::{State, Store};
use shoal_transport::session::{self, ReceiveError, Receiver, SendError, Sender};
use shoal_types::{
    Generation, NodeId,
    object::{Config, Secret, Task},
    spec::{PortConfig, PublishMode},
    wire::{
        AgentMessage, AssignmentChanges, Assignments, ManagerMessage, ManagerPeer,
        NetworkAssignment,
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::timeout,
};

use crate::{
    cluster::{self, Caller},
    hub::{Hub, Session},
};

/// An agent says who it is at once.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// A manager that has just started needs a moment to know whether it leads.
const LEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// Longer explanations are cut: they are for people, and every one of them is replicated.
const MAX_TEXT_BYTES: usize = 4096;
/// Commits come in groups; a set for each would tell the agent the same thing many times.
const COALESCE: Duration = Duration::from_millis(2);

/// Why a session ended. Nobody has to do anything about any of these: the agent comes back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionEnd {
    #[error("the agent did not say who it is")]
    NoHello,
    #[error("refused: {reason}")]
    Refused { reason: String },
    #[error("another manager leads")]
    Elsewhere { leader: Option<ManagerPeer> },
    #[error("the agent left")]
    Left,
    #[error("a newer session of the node took over, or this manager ceased to lead")]
    Superseded,
    #[error("the store is shut down")]
    Stopped,
    #[error(transparent)]
    Send(#[from] SendError),
    #[error(transparent)]
    Receive(#[from] ReceiveError),
}

type ToAgent<S> = Sender<ManagerMessage, S>;
type FromAgent<S> = Receiver<AgentMessage, S>;

/// Serves one agent until either side has enough. `caller` is what its certificate says; an agent of
/// this process has none.
pub(crate) async fn serve<S>(
    store: &Store,
    hub: &Hub,
    caller: Option<Caller>,
    stream: S,
) -> SessionEnd
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut to_agent, mut from_agent) = session::open(stream);
    match welcome(store, hub, caller, &mut to_agent, &mut from_agent).await {
        Ok((session, period)) => {
            let end = converse(store, hub, &session, period, to_agent, from_agent).await;
            hub.close_session(&session);
            end
        }
        Err(SessionEnd::Refused { reason }) => {
            let message = ManagerMessage::Refused {
                reason: reason.clone(),
            };
            match to_agent.send(&message).await {
                Ok(()) => SessionEnd::Refused { reason },
                Err(error) => error.into(),
            }
        }
        Err(SessionEnd::Elsewhere { leader }) => {
            let message = ManagerMessage::Elsewhere {
                leader: leader.clone(),
            };
            match to_agent.send(&message).await {
                Ok(()) => SessionEnd::Elsewhere { leader },
                Err(error) => error.into(),
            }
        }
        Err(end) => end,
    }
}

async fn welcome<S: AsyncRead + AsyncWrite>(
    store: &Store,
    hub: &Hub,
    caller: Option<Caller>,
    to_agent: &mut ToAgent<S>,
    from_agent: &mut FromAgent<S>,
) -> Result<(Arc<Session>, Duration), SessionEnd> {
    let hello = timeout(HELLO_TIMEOUT, from_agent.receive())
        .await
        .map_err(|_elapsed| SessionEnd::NoHello)??;
    let Some(AgentMessage::Hello { node, description }) = hello else {
        return Err(SessionEnd::NoHello);
    };
    if let Some(caller) = caller.as_ref().filter(|caller| caller.node != node) {
        return Err(SessionEnd::Refused {
            reason: format!("node {} may not open a session as node {node}", caller.node),
        });
    }
    must_lead(store, hub).await?;
    check_node(&store.state(), node)?;
    hub.heard(node);
    if let Some(rival) = hub.rival(node).await {
        let state = store.state();
        // The agent of this process calls from nowhere.
        let known = || state.node(&node).map(|node| node.status.addr.clone());
        let addr = rival.addr.clone().or_else(known).unwrap_or_default();
        return Err(SessionEnd::Refused {
            reason: in_use(node, &addr),
        });
    }
    // Not before: it may have been another machine's.
    let known = store
        .state()
        .node(&node)
        .map(|node| node.description.clone());
    if known.is_some_and(|known| known != description) {
        hub.describe(node, description);
    }
    let addr = caller.and_then(|caller| caller.addr);
    let session = hub.open_session(node, addr).ok_or(SessionEnd::Superseded)?;
    let period = hub.config.in_cluster(&store.state()).heartbeat;
    to_agent.send(&welcome_for(period)).await?;
    Ok((session, period))
}

/// Asks for heartbeats, spread out so that a thousand agents do not speak in the same instant.
fn welcome_for(period: Duration) -> ManagerMessage {
    let heartbeat = period.mul_f64(rng().random_range(0.9..=1.0));
    ManagerMessage::Welcome { heartbeat }
}

/// A manager that has just started, or hears of no leader, waits a moment for it to be known.
async fn must_lead(store: &Store, hub: &Hub) -> Result<(), SessionEnd> {
    let mut leading = hub.leading();
    let mut leadership = store.leadership();
    let outcome = timeout(LEADER_TIMEOUT, async {
        loop {
            if *leading.borrow_and_update() {
                return Ok(());
            }
            leadership.mark_unchanged();
            if let Some(leader) = cluster::leader(store) {
                return Err(SessionEnd::Elsewhere {
                    leader: Some(leader),
                });
            }
            // Both only observe.
            tokio::select! {
                changed = leading.changed() => changed.map_err(|_| SessionEnd::Stopped)?,
                changed = leadership.changed() => changed.map_err(|_| SessionEnd::Stopped)?,
            }
        }
    });
    outcome
        .await
        .unwrap_or(Err(SessionEnd::Elsewhere { leader: None }))
}

fn check_node(state: &State, node: NodeId) -> Result<(), SessionEnd> {
    match state.node(&node) {
        Some(_) => Ok(()),
        None => Err(SessionEnd::Refused {
            reason: unknown(node),
        }),
    }
}

fn unknown(node: NodeId) -> String {
    format!(
        "node {node} is not a member of this swarm (any more); leave the swarm and join it again"
    )
}

fn in_use(node: NodeId, addr: &str) -> String {
    format!(
        "node {node} is another machine, at {addr}, which is connected; if this one's data root is a copy \
         of that one's, leave the swarm here with --force and join it again"
    )
}

async fn converse<S>(
    store: &Store,
    hub: &Hub,
    session: &Arc<Session>,
    period: Duration,
    to_agent: ToAgent<S>,
    from_agent: FromAgent<S>,
) -> SessionEnd
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    // Whichever ends first ends the session; the other half is dropped with its stream, so nothing
    // that it was in the middle of can be taken for whole.
    tokio::select! {
        end = listen(hub, session, from_agent) => end,
        end = tell(store, hub, session, period, to_agent) => end,
        () = session.ended.cancelled() => SessionEnd::Superseded,
    }
}

async fn listen<S: AsyncRead>(
    hub: &Hub,
    session: &Arc<Session>,
    mut from_agent: FromAgent<S>,
) -> SessionEnd {
    loop {
        let message = match from_agent.receive().await {
            Ok(Some(message)) => message,
            Ok(None) => return SessionEnd::Left,
            Err(error) => return error.into(),
        };
        session.note_heard();
        hub.heard(session.node);
        match message {
            AgentMessage::Heartbeat => {}
            AgentMessage::Hello { description, .. } | AgentMessage::Description(description) => {
                hub.describe(session.node, description);
            }
            AgentMessage::Status(mut statuses) => {
                for (_, status) in &mut statuses {
                    clip(&mut status.message);
                    clip(&mut status.err);
                }
                hub.report(session, statuses);
            }
            AgentMessage::Applied(generation) => {
                tracing::trace!(node.id = %session.node, %generation, "assignments applied");
            }
        }
    }
}

async fn tell<S: AsyncWrite>(
    store: &Store,
    hub: &Hub,
    session: &Arc<Session>,
    mut period: Duration,
    mut to_agent: ToAgent<S>,
) -> SessionEnd {
    let mut states = store.watch();
    let mut sent: Option<Assignments> = None;
    loop {
        let acknowledged = session.take_acknowledged();
        if !acknowledged.is_empty() {
            let message = ManagerMessage::StatusAccepted(acknowledged);
            if let Err(error) = to_agent.send(&message).await {
                return error.into();
            }
        }
        for (ticket, open) in session.take_openings() {
            let message = ManagerMessage::Open { ticket, open };
            if let Err(error) = to_agent.send(&message).await {
                return error.into();
            }
        }
        let state = states.borrow_and_update().clone();
        if state.node(&session.node).is_none() {
            let reason = unknown(session.node);
            let message = ManagerMessage::Refused {
                reason: reason.clone(),
            };
            return match to_agent.send(&message).await {
                Ok(()) => SessionEnd::Refused { reason },
                Err(error) => error.into(),
            };
        }
        let wanted = hub.config.in_cluster(&state).heartbeat;
        if session.take_probe() || wanted != period {
            if let Err(error) = to_agent.send(&welcome_for(wanted)).await {
                return error.into();
            }
            period = wanted;
        }
        let next = hub.assignments(&state, session.node);
        if let Some(message) = news(sent.as_ref(), &next) {
            if let Err(error) = to_agent.send(&message).await {
                return error.into();
            }
            sent = Some(next);
        }
        if let Err(end) = something_new(&mut states, session).await {
            return end;
        }
    }
}

/// Waits for a newer state or an acknowledgement. Both arms only observe, so dropping one loses nothing:
/// a notification that was not taken stays, and a state that was not seen is seen next time.
async fn something_new(
    states: &mut watch::Receiver<Arc<State>>,
    session: &Session,
) -> Result<(), SessionEnd> {
    tokio::select! {
        changed = states.changed() => {
            changed.map_err(|_closed| SessionEnd::Stopped)?;
            tokio::time::sleep(COALESCE).await;
        }
        () = session.acknowledged.notified() => {}
    }
    Ok(())
}

/// What to tell a node that was sent `last` in this session, when `next` is what it is to run and know.
pub fn news(last: Option<&Assignments>, next: &Assignments) -> Option<ManagerMessage> {
    match last {
        None => Some(ManagerMessage::Assignments(next.clone())),
        Some(last) if same_content(last, next) => None,
        Some(last) => {
            let changes = AssignmentChanges::between(last, next, same_orders);
            Some(ManagerMessage::Changes(Box::new(changes)))
        }
    }
}

/// Whether the sets differ in nothing that the node acts on: neither the generation nor what became
/// of a task, which the node knows best, is worth sending everything again.
fn same_content(a: &Assignments, b: &Assignments) -> bool {
    let Assignments {
        generation: Generation(_),
        tasks,
        networks,
        secrets,
        configs,
        role,
        managers,
        peers,
        data_path_port,
    } = a;
    all_alike(tasks, &b.tasks, same_orders)
        && all_alike(secrets, &b.secrets, Secret::eq)
        && all_alike(configs, &b.configs, Config::eq)
        && all_alike(networks, &b.networks, NetworkAssignment::eq)
        && *role == b.role
        && *managers == b.managers
        && *peers == b.peers
        && *data_path_port == b.data_path_port
}

/// Objects that did not change are not compared: their places in memory are the same.
fn all_alike<T>(a: &[Arc<T>], b: &[Arc<T>], alike: fn(&T, &T) -> bool) -> bool {
    let alike = |(a, b): (&Arc<T>, &Arc<T>)| Arc::ptr_eq(a, b) || alike(a, b);
    a.len() == b.len() && a.iter().zip(b).all(alike)
}

/// A task's spec never changes. Its host ports go when it has ended.
fn same_orders(a: &Task, b: &Task) -> bool {
    let has_ended = |task: &Task| task.status.state.is_terminal();
    let on_host = |port: &PortConfig| port.mode == PublishMode::Host;
    a.id == b.id
        && a.desired == b.desired
        && a.attachments == b.attachments
        && (has_ended(a) == has_ended(b) || !a.endpoint.ports.iter().any(on_host))
}

fn clip(text: &mut String) {
    if text.len() > MAX_TEXT_BYTES {
        text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
    }
}

#[cfg(test)]
mod tests {
    use shoal_types::{Desired, TaskState};

    use super::*;
    use crate::testing;

    #[test]
    fn a_set_is_new_when_orders_change_but_not_for_what_the_node_reported() {
        let set = |edit: fn(&mut Task)| {
            let mut task = testing::task(1, 1);
            edit(&mut task);
            Assignments {
                tasks: vec![Arc::new(task)],
                ..Assignments::default()
            }
        };
        let same = |edit| same_content(&set(|_| {}), &set(edit));
        assert!(same(|task| task.status.state = TaskState::Running));
        assert!(same(|task| task.status.state = TaskState::Failed));
        assert!(!same(|task| task.desired = Desired::Shutdown));
        assert!(!same(|task| task.id = testing::task_id(2)));
        let port = |mode| PortConfig {
            name: String::new(),
            protocol: shoal_types::spec::Protocol::Tcp,
            target: 80,
            published: 80,
            mode,
        };
        let with_port = |state| {
            let mut task = testing::task(1, 1);
            task.endpoint.ports = vec![port(PublishMode::Host)];
            task.status.state = state;
            task
        };
        let (running, failed) = (with_port(TaskState::Running), with_port(TaskState::Failed));
        assert!(!same_orders(&running, &failed), "its port is free now");
    }
}
