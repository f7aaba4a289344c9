//! The managers, as the API sees them.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use shoal_manager::{ObjectChange, State};
use shoal_types::{
    ConfigId, NetworkId, NodeId, SecretId, ServiceId, Timestamp, Version,
    spec::{NetworkSpec, NodeSpec, ServiceSpec},
};

pub use shoal_manager::{ClusterSettings, NewFile};

use super::BoxStream;

pub type ControlResult<T> = Result<T, ControlError>;

/// Why the managers refused, or did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    #[error("{message}{}", place(field))]
    Invalid { field: String, message: String },
    #[error("{kind} {reference} not found")]
    NotFound { kind: String, reference: String },
    #[error("{kind} {reference} is ambiguous: more than one id begins with it")]
    Ambiguous { kind: String, reference: String },
    #[error("name conflicts with an existing object: {kind} {name} already exists")]
    NameConflict { kind: String, name: String },
    /// Not as things stand: the object is in use, or the cluster would have to be in another state.
    #[error("{0}")]
    InUse(String),
    #[error("update out of sequence")]
    OutOfSequence,
    #[error("{0}")]
    NotSupported(String),
    /// Nothing changed.
    #[error(
        "The swarm does not have a leader. It's possible that too few managers are online. \
         Make sure more than half of the managers are online."
    )]
    NoLeader,
    /// This manager did not take the request, since another one leads. Nothing changed.
    #[error("this manager does not lead the swarm")]
    NotLeader,
    #[error("{0}")]
    Unavailable(String),
}

/// Where to look, when that is known.
fn place(field: &str) -> String {
    if field.is_empty() {
        String::new()
    } else {
        format!(" ({field})")
    }
}

/// One commit: when, and what it did.
#[derive(Debug, Clone)]
pub struct Change {
    pub at: Timestamp,
    pub objects: Vec<ObjectChange>,
}

/// Commits as they happen, from now on; ends when the manager stops.
pub type Changes = BoxStream<'static, Change>;

/// Reads and writes of what the managers agree on. A write is done when it is committed and visible
/// in the next [`Control::state`].
pub trait Control: Send + Sync + 'static {
    /// The newest committed state, at least as new as any write that was answered before the call.
    fn state(&self) -> BoxFuture<'_, ControlResult<Arc<State>>>;

    /// The state to check a request against that is to change it; the change is checked again when it
    /// is made.
    fn basis(&self) -> BoxFuture<'_, ControlResult<Arc<State>>> {
        self.state()
    }
    fn changes(&self) -> Changes;
    /// The newest state that this manager has, which may lag behind the leader's.
    fn local_state(&self) -> Arc<State>;

    fn update_cluster(
        &self,
        version: Version,
        settings: ClusterSettings,
    ) -> BoxFuture<'_, ControlResult<()>>;
    /// Makes new join tokens for the roles that are named; the old ones are worth nothing from then on.
    fn rotate_tokens(
        &self,
        version: Version,
        worker: bool,
        manager: bool,
    ) -> BoxFuture<'_, ControlResult<()>>;

    fn create_service(&self, spec: ServiceSpec) -> BoxFuture<'_, ControlResult<ServiceId>>;
    fn update_service(
        &self,
        id: ServiceId,
        version: Version,
        spec: ServiceSpec,
    ) -> BoxFuture<'_, ControlResult<()>>;
    fn rollback_service(&self, id: ServiceId, version: Version)
    -> BoxFuture<'_, ControlResult<()>>;
    fn remove_service(&self, id: ServiceId) -> BoxFuture<'_, ControlResult<()>>;

    fn update_node(
        &self,
        id: NodeId,
        version: Version,
        spec: NodeSpec,
    ) -> BoxFuture<'_, ControlResult<()>>;
    fn remove_node(&self, id: NodeId, force: bool) -> BoxFuture<'_, ControlResult<()>>;

    fn create_network(&self, spec: NetworkSpec) -> BoxFuture<'_, ControlResult<NetworkId>>;
    fn remove_network(&self, id: NetworkId) -> BoxFuture<'_, ControlResult<()>>;

    fn create_secret(&self, file: NewFile) -> BoxFuture<'_, ControlResult<SecretId>>;
    fn update_secret(
        &self,
        id: SecretId,
        version: Version,
        labels: Labels,
    ) -> BoxFuture<'_, ControlResult<()>>;
    fn remove_secret(&self, id: SecretId) -> BoxFuture<'_, ControlResult<()>>;
    fn create_config(&self, file: NewFile) -> BoxFuture<'_, ControlResult<ConfigId>>;
    fn update_config(
        &self,
        id: ConfigId,
        version: Version,
        labels: Labels,
    ) -> BoxFuture<'_, ControlResult<()>>;
    fn remove_config(&self, id: ConfigId) -> BoxFuture<'_, ControlResult<()>>;
}

pub type Labels = std::collections::BTreeMap<String, String>;
