//! The deciding parts of a manager for a simulation that brings its own time, log and network. It is
//! no interface: it changes with what it shows.

use shoal_raft_store::{Change, State};
use shoal_types::{
    NetworkId, ServiceId,
    spec::{NetworkSpec, ServiceSpec},
};

use crate::{
    allocate,
    control::{self, ControlError},
};
pub use crate::{
    brain::{Brain, Plan},
    dispatch::{assignments, news},
    liveness::Liveness,
    reconcile::{GATHER, Pace, RESYNC, RETRY, observe},
};

/// What `Control::create_service` proposes on `state`.
pub fn create_service(
    state: &State,
    id: ServiceId,
    spec: ServiceSpec,
) -> Result<Change, ControlError> {
    control::check_service(state, None, &spec)?;
    Ok(allocate::creation(id, spec))
}

/// What `Control::update_service` checks.
pub fn check_update(state: &State, id: ServiceId, spec: &ServiceSpec) -> Result<(), ControlError> {
    control::check_service(state, Some(id), spec)
}

/// What `Control::create_network` proposes on `state`.
pub fn create_network(
    state: &State,
    id: NetworkId,
    spec: NetworkSpec,
) -> Result<Change, ControlError> {
    let network = control::checked_network(state, id, spec)?;
    Ok(Change::CreateNetwork(Box::new(network)))
}
