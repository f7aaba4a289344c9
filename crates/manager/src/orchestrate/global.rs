//! Which nodes a global service fills.

use std::collections::BTreeSet;

use shoal_types::{
    Desired,
    object::{Node, TaskPlace},
    spec::Availability,
};

use super::{Choice, ServiceView, keeps_tasks, place::Place};
use crate::schedule::Constraint;

/// Keeps one task on each node that meets the constraints. A paused node keeps its task and gets no
/// first one.
pub(super) fn choose<'a>(view: &ServiceView<'_>, places: &[Place<'a>]) -> Choice<'a> {
    let eligible = eligible(view);
    let mut choice = Choice {
        kept: Vec::new(),
        surplus: Vec::new(),
        missing: Vec::new(),
    };
    let mut filled = BTreeSet::new();
    for place in places {
        let TaskPlace::Node(id) = &place.at else {
            choice.surplus.push((place.clone(), Desired::Remove));
            continue;
        };
        if view.state.node(id).is_none() {
            choice.surplus.push((place.clone(), Desired::Remove));
        } else if eligible.binary_search_by_key(id, |node| node.id).is_err() {
            choice.surplus.push((place.clone(), Desired::Shutdown));
        } else if place.wanted().next().is_some() || place.finished(view).is_some() {
            filled.insert(*id);
            choice.kept.push(place.clone());
        }
    }
    choice.missing = eligible
        .iter()
        .filter(|node| !filled.contains(&node.id))
        .filter(|node| node.spec.availability == Availability::Active)
        .map(|node| TaskPlace::Node(node.id))
        .collect();
    choice
}

/// Nodes that may have tasks of the service, whether they take new ones now or not, by id.
pub(super) fn eligible<'a>(view: &ServiceView<'a>) -> Vec<&'a Node> {
    let constraints = &view.service.spec.task.placement.constraints;
    let Ok(constraints) = Constraint::parse_all(constraints) else {
        return Vec::new();
    };
    let nodes = view.state.nodes().map(AsRef::as_ref);
    nodes
        .filter(|node| keeps_tasks(node))
        .filter(|node| constraints.iter().all(|c| c.matches(node)))
        .collect()
}
