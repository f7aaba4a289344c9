//! The server: routes, listeners, and what all answers have in common.

mod body;
mod error;
mod events;
mod filters;
mod find;
mod listen;
mod logs;
mod names;
mod query;
mod routes;
mod stream;
mod version;

use std::sync::Arc;

use axum::Router;

use self::error::ApiError;
pub(crate) use self::error::with_causes;
pub use self::listen::{Listener, serve};
use crate::engine::{ActiveSwarm, Control, LocalEngine, SwarmState};

/// What the API stands in front of. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    pub(crate) local: Arc<dyn LocalEngine>,
}

impl Engine {
    pub fn new(local: impl LocalEngine) -> Self {
        Self {
            local: Arc::new(local),
        }
    }

    pub fn shared(local: Arc<dyn LocalEngine>) -> Self {
        Self { local }
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
            SwarmState::Inactive | SwarmState::Pending => Err(ApiError::no_swarm()),
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

/// Every route of the API, with and without a version before it.
pub fn router(engine: Engine) -> Router {
    version::layer(engine.clone(), routes::all().with_state(engine))
}
