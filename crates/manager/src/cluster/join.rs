//! Nodes that want a certificate: new ones with a join token, known ones with the one they have.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use shoal_raft_store::{Change, Command, Rejection, State};
use shoal_transport::{
    clock::Utc, cluster, identity::Identity, stream::Stream, token::same_secret,
};
use shoal_types::{
    NodeId, Timestamp,
    object::{Meta, Node, NodeState, NodeStatus, Trust},
    spec::{NodeSpec, Role},
    wire::{Accepted, JoinAnswer, JoinRequest, RenewRequest},
};

use super::{CallError, Port, authority};
use crate::dispatch;

/// A node that asks says what at once.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Certificates are good from an hour before they are made, and nothing of the cluster's depends on
/// finer agreement than that.
const MAX_CLOCK_DIFFERENCE: Duration = Duration::from_mins(30);

pub(super) async fn join(port: &Port, remote: SocketAddr, stream: Stream) -> Result<(), CallError> {
    let respond = async |request: JoinRequest| {
        let node = request.node;
        let answer = decide_join(port, remote, request).await;
        if let JoinAnswer::Refused { reason } = &answer {
            tracing::warn!(%remote, node.id = %node, reason, "a node may not join");
        }
        answer
    };
    Ok(cluster::answer(stream, REQUEST_TIMEOUT, respond).await?)
}

async fn decide_join(port: &Port, remote: SocketAddr, request: JoinRequest) -> JoinAnswer {
    if !port.leads() {
        return elsewhere(port);
    }
    let state = port.store.state();
    let now = port.hub.clock.wall();
    let role = match check_join(&state, &request, now) {
        Ok(role) => role,
        Err(reason) => return JoinAnswer::Refused { reason },
    };
    let node = new_node(&request, role, remote, now);
    let created = port.store.propose(Command {
        at: now,
        changes: vec![Change::CreateNode(Box::new(node))],
    });
    if let Err(error) = created.await {
        return match error {
            shoal_raft_store::ProposeError::NotLeader { .. } => elsewhere(port),
            shoal_raft_store::ProposeError::Rejected(Rejection::Exists { .. }) => {
                refused(in_use(request.node))
            }
            other => refused(format!("the node cannot be added now: {other}")),
        };
    }
    let answer = issue(
        port,
        &port.store.state(),
        request.node,
        role,
        &request.signing_request,
    );
    if let JoinAnswer::Accepted(_) = &answer {
        tracing::info!(%remote, node.id = %request.node, role = role.as_str(), "a node joined");
    }
    answer
}

/// The role that the request's secret gives, or why the node may not join.
fn check_join(state: &State, request: &JoinRequest, now: Timestamp) -> Result<Role, String> {
    let cluster = state.cluster().ok_or("the swarm is not initialised yet")?;
    let role = role_of(&cluster.trust, &request.secret)
        .ok_or("A valid join token is necessary to join this cluster")?;
    let difference = now.since(request.now).max(request.now.since(now));
    if difference > MAX_CLOCK_DIFFERENCE {
        return Err(format!(
            "the clocks of this node ({}) and of the swarm ({}) are {} minutes apart; set them right, \
             for example with an NTP client, and join again",
            Utc(request.now),
            Utc(now),
            difference.as_secs() / 60
        ));
    }
    if state.node(&request.node).is_some() {
        return Err(in_use(request.node));
    }
    if let Some(data_addr) = request.description.data_addr {
        let taken = state.nodes().find(|other| {
            other.description.data_addr == Some(data_addr) && other.status.state == NodeState::Ready
        });
        if let Some(other) = taken {
            return Err(format!(
                "node {} ({}) is already in this swarm with the address {data_addr}; \
                 give this node one of its own with --advertise-addr or --data-path-addr",
                other.id, other.description.hostname
            ));
        }
    }
    Ok(role)
}

fn role_of(trust: &Trust, secret: &[u8; 16]) -> Option<Role> {
    if trust.root_key.is_empty() {
        return None;
    }
    if same_secret(&trust.worker_secret, secret) {
        Some(Role::Worker)
    } else if same_secret(&trust.manager_secret, secret) {
        Some(Role::Manager)
    } else {
        None
    }
}

fn in_use(node: NodeId) -> String {
    format!(
        "the node id {node} is in use in this swarm; leave it with this node first, and join again"
    )
}

fn new_node(request: &JoinRequest, role: Role, remote: SocketAddr, now: Timestamp) -> Node {
    Node {
        id: request.node,
        meta: Meta::default(),
        spec: NodeSpec {
            name: String::new(),
            labels: BTreeMap::new(),
            role,
            availability: request.availability,
        },
        description: request.description.clone(),
        status: NodeStatus {
            state: NodeState::Unknown,
            message: "node has not connected yet".to_owned(),
            addr: remote.ip().to_string(),
            since: now,
        },
        manager: None,
    }
}

pub(super) async fn renew(port: &Port, caller: &Identity, stream: Stream) -> Result<(), CallError> {
    let respond = async |request: RenewRequest| {
        if !port.leads() {
            return elsewhere(port);
        }
        let state = port.store.state();
        match state.node(&caller.node) {
            Some(node) => issue(
                port,
                &state,
                caller.node,
                node.spec.role,
                &request.signing_request,
            ),
            None => refused(format!(
                "node {} is not a member of this swarm (any more); leave the swarm and join it again",
                caller.node
            )),
        }
    };
    Ok(cluster::answer(stream, REQUEST_TIMEOUT, respond).await?)
}

fn issue(
    port: &Port,
    state: &State,
    node: NodeId,
    role: Role,
    signing_request: &[u8],
) -> JoinAnswer {
    let (Some(cluster), Some(authority)) = (state.cluster(), authority(state)) else {
        return refused("this swarm has no certificate authority".to_owned());
    };
    let identity = Identity {
        node,
        role,
        cluster: cluster.id,
    };
    let now = port.hub.clock.wall();
    let life = cluster.trust.certificate_life;
    let issued = authority.and_then(|a| a.issue(signing_request, &identity, now, life));
    match issued {
        Ok(certificate) => JoinAnswer::Accepted(Box::new(Accepted {
            cluster: cluster.id,
            role,
            certificate,
            root_certificate: cluster.trust.root_certificate.clone(),
            managers: dispatch::managers(state),
        })),
        Err(error) => refused(crate::error_chain(&error)),
    }
}

fn refused(reason: String) -> JoinAnswer {
    JoinAnswer::Refused { reason }
}

fn elsewhere(port: &Port) -> JoinAnswer {
    JoinAnswer::Elsewhere {
        leader: port.leader(),
    }
}
