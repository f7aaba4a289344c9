//! The server: routes, listeners, and what all answers have in common.

mod body;
mod drain;
mod error;
mod events;
mod filters;
mod find;
mod forward;
mod journal;
mod listen;
mod logs;
mod names;
mod query;
mod routes;
mod stream;
mod version;

use std::sync::Arc;

use axum::Router;

pub(crate) use self::error::with_causes;
pub use self::listen::{Listener, serve, serve_stream};
use self::{
    error::ApiError,
    forward::{Caller, Gate},
    journal::Journal,
};
use crate::engine::{ActiveSwarm, Control, LocalEngine, SwarmState};

/// What the API stands in front of. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    pub(crate) local: Arc<dyn LocalEngine>,
    pub(crate) journal: Arc<Journal>,
}

impl Engine {
    /// Begins to record the events of `local`, and so must be called in a runtime.
    pub fn new(local: impl LocalEngine) -> Self {
        Self::shared(Arc::new(local))
    }

    /// As [`Engine::new`].
    pub fn shared(local: Arc<dyn LocalEngine>) -> Self {
        let journal = Journal::start(&local);
        Self { local, journal }
    }

    /// The swarm that this node manages, else Docker's words for why there is none.
    pub(crate) fn manager(&self) -> Result<Manager, ApiError> {
        match self.local.swarm() {
            SwarmState::Active(swarm) => match swarm.control.clone() {
                Some(control) => Ok(Manager {
                    control,
                    swarm: *swarm,
                }),
                None => Err(ApiError::not_a_manager()),
            },
            SwarmState::Inactive => Err(ApiError::no_swarm()),
            SwarmState::Pending => Err(ApiError::not_yet_a_manager()),
            SwarmState::Error(reason) => Err(ApiError::unavailable(reason)),
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Engine")
    }
}

/// A node that manages a swarm.
pub(crate) struct Manager {
    pub(crate) control: Arc<dyn Control>,
    pub(crate) swarm: ActiveSwarm,
}

/// Every route of the API, with and without a version before it. Requests about the cluster are passed
/// on to the manager that leads.
pub fn router(engine: Engine) -> Router {
    routed(engine, Caller::Client)
}

/// The same for requests that other managers have passed on: they are answered here or not at all. One
/// that needs the manager that leads, and this is not it, has had no effect and is answered with 503 and
/// the header `X-Shoal-Not-Leader: 1`.
pub fn router_for_managers(engine: Engine) -> Router {
    routed(engine, Caller::Manager)
}

fn routed(engine: Engine, caller: Caller) -> Router {
    let routes = routes::all().with_state(engine.clone());
    version::layer(Gate {
        engine,
        routes,
        caller,
    })
}
