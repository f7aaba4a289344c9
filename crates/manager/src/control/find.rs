//! Objects by what users call them: full id, else exact name, else an unambiguous start of an id.

use std::{fmt::Display, sync::Arc};

use shoal_raft_store::{Kind, State};
use shoal_types::object::{Config, Network, Node, Secret, Service, Task};

use super::{Control, ControlError};

impl Control {
    pub fn find_service(state: &State, reference: &str) -> Result<Arc<Service>, ControlError> {
        let exact = reference.parse().ok().and_then(|id| state.service(&id));
        let named = || {
            state
                .service_named(reference)
                .filter(|s| s.spec.name == reference)
        };
        let all = state.services().map(|s| (s.id, s));
        pick(Kind::Service, reference, exact.or_else(named), all)
    }

    /// Nodes go by id, hostname or a start of the id; hostnames need not be unique.
    pub fn find_node(state: &State, reference: &str) -> Result<Arc<Node>, ControlError> {
        if let Some(node) = reference.parse().ok().and_then(|id| state.node(&id)) {
            return Ok(node.clone());
        }
        let named: Vec<_> = state
            .nodes()
            .filter(|n| n.description.hostname == reference || n.spec.name == reference)
            .collect();
        match named.as_slice() {
            [] => pick(
                Kind::Node,
                reference,
                None,
                state.nodes().map(|n| (n.id, n)),
            ),
            [node] => Ok((*node).clone()),
            several => Err(ambiguous(Kind::Node, reference, several.len())),
        }
    }

    pub fn find_task(state: &State, reference: &str) -> Result<Arc<Task>, ControlError> {
        let exact = reference.parse().ok().and_then(|id| state.task(&id));
        // A task's name ends in its id.
        let by_name = || {
            let id = reference.rsplit('.').next()?.parse().ok()?;
            state.task(&id).filter(|task| task.name() == reference)
        };
        let all = state.tasks().map(|t| (t.id, t));
        pick(Kind::Task, reference, exact.or_else(by_name), all)
    }

    pub fn find_network(state: &State, reference: &str) -> Result<Arc<Network>, ControlError> {
        let exact = reference.parse().ok().and_then(|id| state.network(&id));
        let named = || {
            state
                .network_named(reference)
                .filter(|n| n.spec.name == reference)
        };
        let all = state.networks().map(|n| (n.id, n));
        pick(Kind::Network, reference, exact.or_else(named), all)
    }

    pub fn find_secret(state: &State, reference: &str) -> Result<Arc<Secret>, ControlError> {
        let exact = reference.parse().ok().and_then(|id| state.secret(&id));
        let named = || {
            state
                .secret_named(reference)
                .filter(|s| s.name == reference)
        };
        let all = state.secrets().map(|s| (s.id, s));
        pick(Kind::Secret, reference, exact.or_else(named), all)
    }

    pub fn find_config(state: &State, reference: &str) -> Result<Arc<Config>, ControlError> {
        let exact = reference.parse().ok().and_then(|id| state.config(&id));
        let named = || {
            state
                .config_named(reference)
                .filter(|c| c.name == reference)
        };
        let all = state.configs().map(|c| (c.id, c));
        pick(Kind::Config, reference, exact.or_else(named), all)
    }
}

fn pick<'a, Id: Display, T: 'a>(
    kind: Kind,
    reference: &str,
    exact: Option<&'a Arc<T>>,
    all: impl Iterator<Item = (Id, &'a Arc<T>)>,
) -> Result<Arc<T>, ControlError> {
    if let Some(found) = exact {
        return Ok(found.clone());
    }
    if reference.is_empty() {
        return Err(ControlError::not_found(kind, reference));
    }
    let starting: Vec<&Arc<T>> = all
        .filter(|(id, _)| id.to_string().starts_with(reference))
        .map(|(_, object)| object)
        .collect();
    match starting.as_slice() {
        [] => Err(ControlError::not_found(kind, reference)),
        [one] => Ok((*one).clone()),
        several => Err(ambiguous(kind, reference, several.len())),
    }
}

fn ambiguous(kind: Kind, reference: &str, matches: usize) -> ControlError {
    ControlError::Ambiguous {
        kind,
        reference: reference.to_owned(),
        matches,
    }
}
