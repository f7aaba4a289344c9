//! Managers that ask for a place in the Raft group, or give theirs up.

use std::{net::SocketAddr, time::Duration};

use shoal_raft_store::{Change, Command, MembershipError, State};
use shoal_transport::{cluster, identity::Identity, stream::Stream};
use shoal_types::{
    NodeId, RaftId,
    object::ManagerStatus,
    wire::{MemberAnswer, MemberRequest, Purpose, RaftLane},
};

use super::{CallError, Port, Reach, is_manager, seen_from};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A new manager's port must answer within this.
const REACH_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn serve(
    port: &Port,
    caller: &Identity,
    remote: SocketAddr,
    stream: Stream,
) -> Result<(), CallError> {
    let respond = async |request: MemberRequest| {
        if !port.leads() {
            return MemberAnswer::Elsewhere {
                leader: port.leader(),
            };
        }
        if !is_manager(&port.store.state(), &caller.node) {
            return MemberAnswer::Refused {
                reason: format!("node {} is not a manager of this swarm", caller.node),
            };
        }
        let done = match request {
            MemberRequest::Add { raft, addr } => {
                add(port, caller.node, raft, &seen_from(&addr, remote)).await
            }
            MemberRequest::Move { raft, addr } => {
                relocate(port, caller.node, raft, &seen_from(&addr, remote)).await
            }
            MemberRequest::Leave => leave(port, caller.node).await,
        };
        match done {
            Ok(()) => MemberAnswer::Done,
            // It may be done again: what the last leader began, the next one goes on with.
            Err(_) if !port.leads() => MemberAnswer::Elsewhere {
                leader: port.leader(),
            },
            Err(reason) => {
                tracing::warn!(node.id = %caller.node, reason, "the raft group stays as it was");
                MemberAnswer::Refused { reason }
            }
        }
    };
    Ok(cluster::answer(stream, REQUEST_TIMEOUT, respond).await?)
}

async fn add(port: &Port, node: NodeId, raft: RaftId, addr: &str) -> Result<(), String> {
    let reach = Reach {
        node,
        addr: addr.to_owned(),
    };
    let members = port.store.members();
    let of_node = |member: &&shoal_raft_store::Member| {
        Reach::parse(&member.addr).is_some_and(|reach| reach.node == node)
    };
    if let Some(other) = members.iter().find(|m| m.id == raft && !of_node(m)) {
        return Err(format!(
            "raft id {raft} belongs to the manager at {}",
            other.addr
        ));
    }
    check_reachable(port, &reach, raft).await?;
    // A manager that comes back with an empty disk is a new member; its old self will never answer.
    let before: Vec<RaftId> = members
        .iter()
        .filter(of_node)
        .map(|member| member.id)
        .filter(|id| *id != raft)
        .collect();
    for old in before {
        port.store.remove_member(old).await.map_err(explain)?;
    }
    port.store
        .add_member(raft, reach.to_string())
        .await
        .map_err(explain)?;
    remember(port, node, raft, addr).await?;
    tracing::info!(node.id = %node, %raft, addr, "a manager was added to the raft group");
    Ok(())
}

async fn relocate(port: &Port, node: NodeId, raft: RaftId, addr: &str) -> Result<(), String> {
    let reach = Reach {
        node,
        addr: addr.to_owned(),
    };
    let members = port.store.members();
    let Some(member) = members.iter().find(|member| member.id == raft) else {
        return Err(format!("raft member {raft} is not in the group (any more)"));
    };
    if Reach::parse(&member.addr).is_some_and(|known| known.node != node) {
        return Err(format!("raft id {raft} is another manager's"));
    }
    if member.addr != reach.to_string() {
        check_reachable(port, &reach, raft).await?;
        port.store
            .set_address(raft, reach.to_string())
            .await
            .map_err(explain)?;
    }
    remember(port, node, raft, addr).await
}

/// A manager leaves. One that never was more than accepted is forgotten altogether, although its agent
/// may have been here already.
async fn leave(port: &Port, node: NodeId) -> Result<(), String> {
    let has_no_place = |state: &State| state.node(&node).is_some_and(|n| n.manager.is_none());
    let never_came = has_no_place(&port.store.state());
    remove(port, node).await.map_err(explain)?;
    let state = port.store.state();
    if never_came && has_no_place(&state) && state.tasks_on(node).next().is_none() {
        let command = Command {
            at: port.hub.clock.wall(),
            changes: vec![Change::RemoveNode { id: node }],
        };
        let removed = port.store.propose(command).await;
        removed.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Takes the node's members out of the group, and notes that it is no manager.
pub(super) async fn remove(port: &Port, node: NodeId) -> Result<(), MembershipError> {
    for member in port.store.members() {
        if Reach::parse(&member.addr).is_some_and(|reach| reach.node == node) {
            port.store.remove_member(member.id).await?;
        }
    }
    let command = Command {
        at: port.hub.clock.wall(),
        changes: vec![Change::SetNodeManager {
            id: node,
            manager: None,
        }],
    };
    if let Err(error) = port.store.propose(command).await {
        // The roles are compared with the group again and again.
        tracing::warn!(node.id = %node, %error, "not noted yet that the node is no manager any more");
    }
    Ok(())
}

/// The leader must be able to call the new member, or the group would only get weaker by it.
async fn check_reachable(port: &Port, reach: &Reach, raft: RaftId) -> Result<(), String> {
    let purpose = Purpose::Raft {
        to: raft,
        lane: RaftLane::Heartbeat,
    };
    let Some(tls) = &port.tls else {
        return Err("this swarm is local to its one node".to_owned());
    };
    let call = tls.connect(&reach.addr, Some(reach.node), purpose);
    let reached = tokio::time::timeout(REACH_TIMEOUT, call).await;
    let why = match reached {
        Ok(Ok(_stream)) => return Ok(()),
        Ok(Err(error)) => crate::error_chain(&error),
        Err(_elapsed) => format!("no answer within {} s", REACH_TIMEOUT.as_secs()),
    };
    Err(format!(
        "the leader cannot reach this manager at {}: {why}. Choose an address that the other managers can \
         reach with --advertise-addr, and let TCP port 2377 through firewalls",
        reach.addr
    ))
}

async fn remember(port: &Port, node: NodeId, raft: RaftId, addr: &str) -> Result<(), String> {
    let status = ManagerStatus {
        raft,
        addr: addr.to_owned(),
    };
    let state = port.store.state();
    if state.node(&node).and_then(|node| node.manager.as_ref()) == Some(&status) {
        return Ok(());
    }
    let command = Command {
        at: port.hub.clock.wall(),
        changes: vec![Change::SetNodeManager {
            id: node,
            manager: Some(status),
        }],
    };
    let proposed = port.store.propose(command).await;
    proposed.map(drop).map_err(|error| error.to_string())
}

fn explain(error: MembershipError) -> String {
    crate::error_chain(&error)
}
