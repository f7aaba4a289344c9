//! The manager's control surface as the API sees it: the same calls, the API's own errors.

use std::sync::Arc;

use futures_util::{FutureExt, future::BoxFuture, stream};
use shoal_engine_api::engine::{
    self as api, Change, Changes, ClusterSettings, ControlError, ControlResult, Labels, NewFile,
};
use shoal_manager::{self as manager, RecvError, State};
use shoal_types::{
    ConfigId, NetworkId, NodeId, SecretId, ServiceId, Version,
    spec::{NetworkSpec, NodeSpec, ServiceSpec},
};

use super::translate::chain;

/// The control surface of this node's manager.
pub(crate) struct ManagerControl(pub(crate) manager::Control);

/// Forwards a call, and turns its errors into the API's.
macro_rules! forward {
    ($self:ident . $call:ident ( $($arg:expr),* )) => {
        async move { $self.0.$call($($arg),*).await.map(drop).map_err(error) }.boxed()
    };
    ($self:ident . $call:ident ( $($arg:expr),* ) => value) => {
        async move { $self.0.$call($($arg),*).await.map_err(error) }.boxed()
    };
}

impl api::Control for ManagerControl {
    fn state(&self) -> BoxFuture<'_, ControlResult<Arc<State>>> {
        forward!(self.state() => value)
    }

    fn changes(&self) -> Changes {
        Box::pin(stream::unfold(self.0.changes(), |mut commits| async move {
            loop {
                match commits.recv().await {
                    Ok(commit) => {
                        let change = Change { at: commit.at, objects: commit.changes.clone() };
                        return Some((change, commits));
                    }
                    // A client that is too slow misses events, as Docker's do.
                    Err(RecvError::Lagged { .. }) => {}
                    Err(RecvError::Closed) => return None,
                }
            }
        }))
    }

    fn update_cluster(
        &self,
        version: Version,
        settings: ClusterSettings,
    ) -> BoxFuture<'_, ControlResult<()>> {
        let settings = manager::ClusterSettings {
            labels: settings.labels,
            task_history_limit: settings.task_history_limit,
        };
        forward!(self.update_cluster(version, settings))
    }

    fn create_service(&self, spec: ServiceSpec) -> BoxFuture<'_, ControlResult<ServiceId>> {
        forward!(self.create_service(spec) => value)
    }

    fn update_service(
        &self,
        id: ServiceId,
        version: Version,
        spec: ServiceSpec,
    ) -> BoxFuture<'_, ControlResult<()>> {
        forward!(self.update_service(id, version, spec))
    }

    fn rollback_service(
        &self,
        id: ServiceId,
        version: Version,
    ) -> BoxFuture<'_, ControlResult<()>> {
        forward!(self.rollback_service(id, version))
    }

    fn remove_service(&self, id: ServiceId) -> BoxFuture<'_, ControlResult<()>> {
        forward!(self.remove_service(id))
    }

    fn update_node(
        &self,
        id: NodeId,
        version: Version,
        spec: NodeSpec,
    ) -> BoxFuture<'_, ControlResult<()>> {
        forward!(self.update_node(id, version, spec))
    }

    fn remove_node(&self, id: NodeId, force: bool) -> BoxFuture<'_, ControlResult<()>> {
        forward!(self.remove_node(id, force))
    }

    fn create_network(&self, spec: NetworkSpec) -> BoxFuture<'_, ControlResult<NetworkId>> {
        forward!(self.create_network(spec) => value)
    }

    fn remove_network(&self, id: NetworkId) -> BoxFuture<'_, ControlResult<()>> {
        forward!(self.remove_network(id))
    }

    fn create_secret(&self, file: NewFile) -> BoxFuture<'_, ControlResult<SecretId>> {
        forward!(self.create_secret(new_file(file)) => value)
    }

    fn update_secret(
        &self,
        id: SecretId,
        version: Version,
        labels: Labels,
    ) -> BoxFuture<'_, ControlResult<()>> {
        forward!(self.update_secret(id, version, labels))
    }

    fn remove_secret(&self, id: SecretId) -> BoxFuture<'_, ControlResult<()>> {
        forward!(self.remove_secret(id))
    }

    fn create_config(&self, file: NewFile) -> BoxFuture<'_, ControlResult<ConfigId>> {
        forward!(self.create_config(new_file(file)) => value)
    }

    fn update_config(
        &self,
        id: ConfigId,
        version: Version,
        labels: Labels,
    ) -> BoxFuture<'_, ControlResult<()>> {
        forward!(self.update_config(id, version, labels))
    }

    fn remove_config(&self, id: ConfigId) -> BoxFuture<'_, ControlResult<()>> {
        forward!(self.remove_config(id))
    }
}

fn new_file(file: NewFile) -> manager::NewFile {
    manager::NewFile { name: file.name, labels: file.labels, data: file.data }
}

fn error(error: manager::ControlError) -> ControlError {
    use manager::ControlError as From;
    match error {
        From::Invalid { field, message } => ControlError::Invalid { field, message },
        From::NotFound { kind, reference } => {
            ControlError::NotFound { kind: kind.to_string(), reference }
        }
        From::Ambiguous { kind, reference, .. } => {
            ControlError::Ambiguous { kind: kind.to_string(), reference }
        }
        From::NameConflict { kind, name } => {
            ControlError::NameConflict { kind: kind.to_string(), name }
        }
        From::InUse { message, .. } | From::Precondition { message } => {
            ControlError::InUse(message)
        }
        From::OutOfSequence { .. } => ControlError::OutOfSequence,
        From::NotSupported { message } => ControlError::NotSupported(message),
        From::NoLeader { leader: None } => ControlError::NoLeader,
        error @ (From::NoLeader { .. } | From::NoCluster | From::Unavailable { .. }) => {
            ControlError::Unavailable(chain(&error))
        }
    }
}
