//! The manager's own `Control` as the API's.

use std::sync::Arc;

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};
use shoal_manager::{RecvError, State};
use shoal_types::{
    ConfigId, NetworkId, NodeId, SecretId, ServiceId, Version,
    spec::{NetworkSpec, NodeSpec, ServiceSpec},
};

use super::{
    Change, Changes, ClusterSettings, Control, ControlError, ControlResult, Labels, NewFile,
};
use shoal_manager::Control as Manager;

impl From<shoal_manager::ControlError> for ControlError {
    fn from(error: shoal_manager::ControlError) -> Self {
        use shoal_manager::ControlError as Theirs;

        match error {
            Theirs::Invalid { field, message } => Self::Invalid { field, message },
            Theirs::NotFound { kind, reference } => Self::NotFound {
                kind: kind.to_string(),
                reference,
            },
            Theirs::Ambiguous {
                kind, reference, ..
            } => Self::Ambiguous {
                kind: kind.to_string(),
                reference,
            },
            Theirs::NameConflict { kind, name } => Self::NameConflict {
                kind: kind.to_string(),
                name,
            },
            Theirs::InUse { message, .. } | Theirs::Precondition { message } => {
                Self::InUse(message)
            }
            Theirs::OutOfSequence { .. } => Self::OutOfSequence,
            Theirs::NotSupported { message } => Self::NotSupported(message),
            Theirs::NoLeader { leader: None } => Self::NoLeader,
            Theirs::NoLeader { leader: Some(_) } => Self::NotLeader,
            Theirs::NoCluster | Theirs::Unavailable { .. } => {
                Self::Unavailable(crate::server::with_causes(&error))
            }
        }
    }
}

/// For writes whose answer is only that they were committed.
fn done<'a, T>(
    write: impl Future<Output = Result<T, shoal_manager::ControlError>> + Send + 'a,
) -> BoxFuture<'a, ControlResult<()>> {
    write
        .map(|result| result.map(drop).map_err(Into::into))
        .boxed()
}

fn made<'a, T: Send>(
    write: impl Future<Output = Result<T, shoal_manager::ControlError>> + Send + 'a,
) -> BoxFuture<'a, ControlResult<T>> {
    write.map(|result| result.map_err(Into::into)).boxed()
}

impl Control for Manager {
    fn state(&self) -> BoxFuture<'_, ControlResult<Arc<State>>> {
        made(Self::state(self))
    }

    fn basis(&self) -> BoxFuture<'_, ControlResult<Arc<State>>> {
        made(Self::basis(self))
    }

    fn changes(&self) -> Changes {
        let commits = Self::changes(self);
        stream::unfold(commits, |mut commits| async move {
            loop {
                match commits.recv().await {
                    Ok(commit) => {
                        let change = Change {
                            at: commit.at,
                            objects: commit.changes.clone(),
                        };
                        return Some((change, commits));
                    }
                    // What a slow reader missed is gone for good, as with Docker's events.
                    Err(RecvError::Lagged { .. }) => {}
                    Err(RecvError::Closed) => return None,
                }
            }
        })
        .boxed()
    }

    fn local_state(&self) -> Arc<State> {
        Self::local_state(self)
    }

    fn update_cluster(
        &self,
        version: Version,
        settings: ClusterSettings,
    ) -> BoxFuture<'_, ControlResult<()>> {
        done(Self::update_cluster(self, version, settings))
    }

    fn rotate_tokens(
        &self,
        version: Version,
        worker: bool,
        manager: bool,
    ) -> BoxFuture<'_, ControlResult<()>> {
        done(Self::rotate_tokens(self, version, worker, manager))
    }

    fn create_service(&self, spec: ServiceSpec) -> BoxFuture<'_, ControlResult<ServiceId>> {
        made(Self::create_service(self, spec))
    }

    fn update_service(
        &self,
        id: ServiceId,
        version: Version,
        spec: ServiceSpec,
    ) -> BoxFuture<'_, ControlResult<()>> {
        done(Self::update_service(self, id, version, spec))
    }

    fn rollback_service(
        &self,
        id: ServiceId,
        version: Version,
    ) -> BoxFuture<'_, ControlResult<()>> {
        done(Self::rollback_service(self, id, version))
    }

    fn remove_service(&self, id: ServiceId) -> BoxFuture<'_, ControlResult<()>> {
        done(Self::remove_service(self, id))
    }

    fn update_node(
        &self,
        id: NodeId,
        version: Version,
        spec: NodeSpec,
    ) -> BoxFuture<'_, ControlResult<()>> {
        done(Self::update_node(self, id, version, spec))
    }

    fn remove_node(&self, id: NodeId, force: bool) -> BoxFuture<'_, ControlResult<()>> {
        done(Self::remove_node(self, id, force))
    }

    fn create_network(&self, spec: NetworkSpec) -> BoxFuture<'_, ControlResult<NetworkId>> {
        made(Self::create_network(self, spec))
    }

    fn remove_network(&self, id: NetworkId) -> BoxFuture<'_, ControlResult<()>> {
        done(Self::remove_network(self, id))
    }

    fn create_secret(&self, file: NewFile) -> BoxFuture<'_, ControlResult<SecretId>> {
        made(Self::create_secret(self, file))
    }

    fn update_secret(
        &self,
        id: SecretId,
        version: Version,
        labels: Labels,
    ) -> BoxFuture<'_, ControlResult<()>> {
        done(Self::update_secret(self, id, version, labels))
    }

    fn remove_secret(&self, id: SecretId) -> BoxFuture<'_, ControlResult<()>> {
        done(Self::remove_secret(self, id))
    }

    fn create_config(&self, file: NewFile) -> BoxFuture<'_, ControlResult<ConfigId>> {
        made(Self::create_config(self, file))
    }

    fn update_config(
        &self,
        id: ConfigId,
        version: Version,
        labels: Labels,
    ) -> BoxFuture<'_, ControlResult<()>> {
        done(Self::update_config(self, id, version, labels))
    }

    fn remove_config(&self, id: ConfigId) -> BoxFuture<'_, ControlResult<()>> {
        done(Self::remove_config(self, id))
    }
}
