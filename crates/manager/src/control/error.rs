//! Why a request was not carried out, in Docker's words where Docker has some.

use std::fmt;

use shoal_raft_store::{Kind, ProposeError, ReadError, Rejection};
use shoal_types::RaftId;

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The request itself is wrong; `field` is the path of what has to change.
    #[error("{message}")]
    Invalid { field: String, message: String },
    #[error("{kind} {reference} not found")]
    NotFound { kind: Kind, reference: String },
    #[error("{kind} {reference} is ambiguous ({matches} matches found)")]
    Ambiguous {
        kind: Kind,
        reference: String,
        matches: usize,
    },
    #[error("name conflicts with an existing object: {kind} {name} already exists")]
    NameConflict { kind: Kind, name: String },
    #[error("{message}")]
    InUse { kind: Kind, message: String },
    /// The object has been written since the version that the request names.
    #[error("update out of sequence")]
    OutOfSequence { kind: Kind, id: String },
    /// Not now: the object or the cluster would have to be in another state.
    #[error("{message}")]
    Precondition { message: String },
    #[error("{message}")]
    NotSupported { message: String },
    #[error("{}", no_leader(leader))]
    NoLeader { leader: Option<RaftId> },
    #[error(
        "this node is not part of a swarm: run \"docker swarm init\" or \"docker swarm join\" first"
    )]
    NoCluster,
    #[error("the cluster cannot take the change now")]
    Unavailable {
        #[source]
        source: Unavailable,
    },
}

/// What is wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    #[error(transparent)]
    Write(ProposeError),
    #[error(transparent)]
    Read(ReadError),
    #[error("other changes keep getting in between; try again")]
    Contention,
}

fn no_leader(leader: &Option<RaftId>) -> String {
    match leader {
        Some(leader) => format!("this manager is not the leader, raft member {leader} is; ask it"),
        None => {
            "The swarm does not have a leader. It's possible that too few managers are online. \
                 Make sure more than half of the managers are online."
                .to_owned()
        }
    }
}

impl ControlError {
    pub(crate) fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            message: message.into(),
        }
    }

    pub(crate) fn not_found(kind: Kind, reference: impl fmt::Display) -> Self {
        Self::NotFound {
            kind,
            reference: reference.to_string(),
        }
    }
}

impl From<Rejection> for ControlError {
    fn from(rejection: Rejection) -> Self {
        let message = rejection.to_string();
        match rejection {
            Rejection::NotFound { kind, id } => Self::NotFound {
                kind,
                reference: id,
            },
            Rejection::Exists { kind, id } => Self::NameConflict { kind, name: id },
            Rejection::NameTaken { kind, name } => Self::NameConflict { kind, name },
            Rejection::OutOfSequence { kind, id, .. } => Self::OutOfSequence { kind, id },
            Rejection::InUse { kind, .. } => Self::InUse { kind, message },
            Rejection::NoPreviousSpec { .. }
            | Rejection::AddressTaken { .. }
            | Rejection::Predefined { .. }
            | Rejection::VniTaken { .. }
            | Rejection::IngressExists { .. } => Self::Precondition { message },
            Rejection::PortTaken { .. } => Self::invalid("EndpointSpec.Ports", message),
            Rejection::SubnetOverlap { .. } => Self::invalid("IPAM.Config.Subnet", message),
            Rejection::ModeChange { .. } => Self::NotSupported {
                message: "service mode change is not allowed".to_owned(),
            },
        }
    }
}

impl From<ProposeError> for ControlError {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::Rejected(rejection) => rejection.into(),
            ProposeError::NotLeader { leader } => Self::NoLeader { leader },
            ProposeError::TooLarge { bytes, limit } => Self::invalid(
                "",
                format!("the request takes {bytes} bytes, at most {limit} are allowed"),
            ),
            source => Self::Unavailable {
                source: Unavailable::Write(source),
            },
        }
    }
}

impl From<ReadError> for ControlError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::NotLeader { leader } => Self::NoLeader { leader },
            source => Self::Unavailable {
                source: Unavailable::Read(source),
            },
        }
    }
}
