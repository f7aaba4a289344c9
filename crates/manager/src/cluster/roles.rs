//! Keeps the Raft group equal to the managers that the state names.
//!
//! A promoted node asks for its place itself, once it has opened its store. A demoted or removed one is
//! taken out here, by the leader, again and again until it is out.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use shoal_raft_store::State;
use shoal_types::{NodeId, spec::Role};
use tokio_util::sync::CancellationToken;

use super::{Port, Reach, member};

/// Before trying again what could not be done.
const RETRY: Duration = Duration::from_secs(1);
/// After a change of the state, so that all the changes of a busy cluster are not looked at one by one.
const GATHER: Duration = Duration::from_millis(100);

/// Works while this manager leads, until `stop`.
pub(crate) async fn run(port: Arc<Port>, stop: CancellationToken) {
    let mut states = port.store.watch();
    let mut leading = port.hub.leading();
    loop {
        let state = states.borrow_and_update().clone();
        let mut again = false;
        if *leading.borrow_and_update() {
            for node in surplus(&state, &members(&port)) {
                if let Err(error) = member::remove(&port, node).await {
                    again = true;
                    tracing::warn!(
                        node.id = %node,
                        error = crate::error_chain(&error),
                        "a node that is no manager any more is still in the raft group"
                    );
                }
            }
        }
        // All of them only observe.
        tokio::select! {
            changed = states.changed() => {
                let gathered = stop.run_until_cancelled(tokio::time::sleep(GATHER)).await;
                if changed.is_err() || gathered.is_none() {
                    return;
                }
            }
            changed = leading.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if again => {}
            () = stop.cancelled() => return,
        }
    }
}

fn members(port: &Port) -> BTreeSet<NodeId> {
    let members = port.store.members();
    let reach = members.iter().filter_map(|m| Reach::parse(&m.addr));
    reach.map(|reach| reach.node).collect()
}

/// The nodes that are members of the group, or noted as such, and should not be.
fn surplus(state: &State, members: &BTreeSet<NodeId>) -> Vec<NodeId> {
    let is_worker = |node: &NodeId| match state.node(node) {
        Some(node) => node.spec.role == Role::Worker,
        // Removed; before the state knows any node, nothing can be said.
        None => state.nodes().next().is_some(),
    };
    let noted = state
        .nodes()
        .filter(|node| node.spec.role == Role::Worker && node.manager.is_some());
    let members = members.iter().copied().filter(is_worker);
    let all: BTreeSet<NodeId> = members.chain(noted.map(|node| node.id)).collect();
    all.into_iter().collect()
}
