//! What other nodes ask of a manager over the cluster port, and what it asks of other managers.
//!
//! The transport has checked that the caller holds a certificate of this cluster, and a manager's for
//! what only managers may ask. Whether the node still is what its certificate says is checked here,
//! against the state.

mod join;
mod member;
mod peers;
mod pool;
mod roles;

use std::{net::SocketAddr, sync::Arc};

use shoal_raft_store::{Leadership, State, Store};
use shoal_transport::{
    ca::Authority,
    cluster::{ClusterTls, Incoming},
};
use shoal_types::{
    NodeId, RaftId, Timestamp,
    spec::Role,
    wire::{ManagerPeer, Purpose},
};

pub(crate) use self::{
    peers::{Reach, TlsPeers},
    roles::run as keep_roles,
};
use crate::{
    dispatch::{self, SessionEnd},
    hub::Hub,
};

/// What the cluster port needs of its manager.
pub(crate) struct Port {
    pub(crate) store: Store,
    pub(crate) hub: Arc<Hub>,
    /// `None` in local mode.
    pub(crate) tls: Option<ClusterTls>,
}

impl Port {
    /// Serves one connection to its end.
    pub(crate) async fn serve(&self, incoming: Incoming) {
        if let Err(error) = check_revoked(&self.store.state(), &incoming) {
            tracing::warn!(remote = %incoming.remote, purpose = ?incoming.purpose, %error, "refused");
            return;
        }
        let Incoming {
            identity,
            issued: _,
            remote,
            purpose,
            stream,
        } = incoming;
        let result = match (purpose, identity) {
            (Purpose::Join, _) => join::join(self, remote, stream).await,
            (Purpose::Renew, Some(caller)) => join::renew(self, &caller, stream).await,
            (Purpose::Session, Some(caller)) => {
                let from = Caller {
                    node: caller.node,
                    addr: Some(remote.ip().to_string()),
                };
                let end = dispatch::serve(&self.store, &self.hub, Some(from), stream).await;
                log_session(caller.node, &end);
                Ok(())
            }
            (Purpose::Reply { ticket }, Some(caller)) => {
                self.hub.reply(caller.node, ticket, stream);
                Ok(())
            }
            (Purpose::Raft { to, lane }, Some(_)) => {
                peers::answer(&self.store, to, lane, stream).await
            }
            (Purpose::Member, Some(caller)) => member::serve(self, &caller, remote, stream).await,
            // The API is served by whoever wired this manager.
            (Purpose::Api, _) | (_, None) => Err(CallError::Unauthorised),
        };
        if let Err(error) = result {
            tracing::debug!(
                %remote,
                ?purpose,
                error = crate::error_chain(&error),
                "a call on the cluster port failed"
            );
        }
    }

    fn leader(&self) -> Option<ManagerPeer> {
        leader(&self.store)
    }

    fn leads(&self) -> bool {
        self.store.leadership().borrow().is_leader()
    }
}

pub(crate) fn log_session(node: NodeId, end: &SessionEnd) {
    tracing::debug!(node.id = %node, reason = %end, "a session with an agent ended");
}

/// The node at the other end of a connection, as its certificate says.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) node: NodeId,
    /// Where it calls from; `None` within this process.
    pub(crate) addr: Option<String>,
}

/// Why a call got no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("the caller may not ask for this")]
    Unauthorised,
    #[error("the manager's certificate of node {node} was revoked when it ceased to be one")]
    Revoked { node: NodeId },
    #[error("a message for raft member {to} reached member {me}")]
    OtherMember { to: RaftId, me: RaftId },
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Answer(#[from] shoal_transport::call::AnswerError),
    #[error("answer a member of the raft group")]
    Raft(#[from] shoal_raft_store::AnswerError),
}

/// The manager that leads, when one is known and is not this one.
pub(crate) fn leader(store: &Store) -> Option<ManagerPeer> {
    let Leadership::Follower { leader: Some(raft) } = *store.leadership().borrow() else {
        return None;
    };
    if raft == store.id() {
        return None;
    }
    let members = store.members();
    let member = members.iter().find(|member| member.id == raft)?;
    let reach = Reach::parse(&member.addr)?;
    Some(ManagerPeer {
        node: reach.node,
        addr: reach.addr,
    })
}

/// What only managers may do is done by whoever holds a manager's certificate: a member of the Raft
/// group that lags behind cannot ask its state who the managers are. But that somebody is no manager
/// any more never ceases to be true for the certificates from before.
pub(crate) fn check_revoked(state: &State, incoming: &Incoming) -> Result<(), CallError> {
    let for_managers = matches!(
        incoming.purpose,
        Purpose::Raft { .. } | Purpose::Api | Purpose::Member
    );
    let (Some(identity), Some(issued), true) = (&incoming.identity, incoming.issued, for_managers)
    else {
        return Ok(());
    };
    let revoked = state.cluster().is_some_and(|cluster| {
        let revoked = cluster.trust.revoked.iter();
        // Certificates say their second only.
        let is_before = |at: Timestamp| issued.0 < at.0 - at.0.rem_euclid(1_000_000_000);
        revoked
            .filter(|revoked| revoked.node == identity.node)
            .any(|revoked| is_before(revoked.at))
    });
    if revoked {
        return Err(CallError::Revoked {
            node: identity.node,
        });
    }
    Ok(())
}

/// Whether the node is a manager now, whatever its certificate says.
pub(crate) fn is_manager(state: &State, node: &NodeId) -> bool {
    state
        .node(node)
        .is_some_and(|node| node.spec.role == Role::Manager)
}

fn authority(state: &State) -> Option<Result<Authority, shoal_transport::ca::AuthorityError>> {
    let trust = &state.cluster()?.trust;
    (!trust.root_key.is_empty()).then(|| Authority::open(&trust.root_certificate, &trust.root_key))
}

/// `addr` with the caller's own address in place of an unspecified one.
fn seen_from(addr: &str, remote: SocketAddr) -> String {
    match addr.parse::<SocketAddr>() {
        Ok(parsed) if parsed.ip().is_unspecified() => {
            SocketAddr::new(remote.ip(), parsed.port()).to_string()
        }
        _ => addr.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use shoal_raft_store::{Change, Command};
    use shoal_types::{ClusterId, Version, spec::NodeSpec, wire::RaftLane};

    use shoal_transport::identity::Identity;

    use super::*;
    use crate::testing;

    fn incoming(node: NodeId, purpose: Purpose, issued: Timestamp) -> Incoming {
        let (stream, _other) = shoal_transport::session::local_stream();
        Incoming {
            identity: Some(Identity {
                node,
                role: Role::Manager,
                cluster: ClusterId::from_random([1; 17]),
            }),
            issued: Some(issued),
            remote: ([127, 0, 0, 1], 1).into(),
            purpose,
            stream: Box::new(stream),
        }
    }

    #[test]
    fn who_is_no_manager_any_more_is_refused_until_it_has_a_new_certificate() {
        let at = |seconds| Timestamp::from_unix(seconds, 0);
        let mut state = State::default();
        let mut version = 0;
        let mut apply = |state: &mut State, seconds, change| {
            version += 1;
            let command = Command {
                at: at(seconds),
                changes: vec![change],
            };
            state.apply(Version(version), &command).unwrap();
        };
        for change in testing::cluster_changes() {
            apply(&mut state, 10, change);
        }
        let mut node = testing::node(1);
        node.spec.role = Role::Manager;
        node.manager = Some(shoal_types::object::ManagerStatus {
            raft: RaftId(1),
            addr: "10.0.0.1:2377".to_owned(),
        });
        let id = node.id;
        apply(&mut state, 10, Change::CreateNode(Box::new(node)));
        let raft = Purpose::Raft {
            to: RaftId(1),
            lane: RaftLane::Log,
        };
        let judge = |state: &State, purpose, seconds| {
            check_revoked(state, &incoming(id, purpose, at(seconds))).is_ok()
        };
        assert!(judge(&state, raft, 10));

        let known = state.node(&id).unwrap().clone();
        let spec = NodeSpec {
            role: Role::Worker,
            ..known.spec.clone()
        };
        let demote = Change::UpdateNodeSpec {
            id,
            version: known.meta.version,
            spec,
        };
        apply(&mut state, 15, demote);
        assert!(judge(&state, raft, 10), "it is still in the raft group");
        apply(&mut state, 20, Change::SetNodeManager { id, manager: None });
        assert!(!judge(&state, raft, 10));
        assert!(!judge(&state, Purpose::Api, 10));
        assert!(judge(&state, Purpose::Session, 10), "it still is a worker");
        assert!(judge(&state, raft, 21), "promoted again");

        apply(&mut state, 30, Change::RemoveNode { id });
        assert!(!judge(&state, raft, 21));
    }
}
