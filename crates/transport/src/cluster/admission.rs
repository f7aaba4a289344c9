//! Whether a connection may be what it says it is for.
//!
//! The client's first frame is its [`Purpose`]; the server's first is an [`Admission`], so that the
//! one who is refused reads why.

use serde::{Deserialize, Serialize};
use shoal_types::{ClusterId, NodeId, Timestamp, spec::Role, wire::Purpose};

use crate::{
    clock::Utc,
    identity::{Certificate, Identity, Validity},
};

/// Largest frame with a [`Purpose`] or an [`Admission`].
pub(super) const FRAME_BYTES: usize = 4 << 10;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Admission {
    Welcome,
    Refused {
        reason: String,
    },
    /// The client's certificate is not valid at the server's time.
    Clock {
        now: Timestamp,
    },
}

/// Why a connection is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("no certificate was shown; only joining the swarm works without one")]
    NoCertificate,
    #[error("the certificate is of swarm {theirs}, and this is {ours}")]
    OtherCluster { theirs: ClusterId, ours: ClusterId },
    #[error(
        "the certificate is valid from {validity}, and the clock here says {now}",
        now = Utc(*now)
    )]
    Clock { validity: Validity, now: Timestamp },
    #[error("node {node} is a worker, and only managers may do this")]
    Worker { node: NodeId },
    #[error("this manager's release does not know what the connection is for; upgrade it")]
    Unknown,
}

impl From<&Refusal> for Admission {
    fn from(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::Clock { now, .. } => Self::Clock { now: *now },
            other => Self::Refused {
                reason: other.to_string(),
            },
        }
    }
}

/// Decides on a connection for `purpose` from whoever holds `certificate` (signed by the root; all
/// else about it is judged here) to a manager of `ours` at `now`.
pub(super) fn admit(
    certificate: Option<&Certificate>,
    purpose: Purpose,
    ours: ClusterId,
    now: Timestamp,
) -> Result<Option<Identity>, Refusal> {
    let Some(Certificate {
        identity, validity, ..
    }) = certificate
    else {
        return match purpose {
            Purpose::Join => Ok(None),
            _ => Err(Refusal::NoCertificate),
        };
    };
    if identity.cluster != ours {
        return Err(Refusal::OtherCluster {
            theirs: identity.cluster,
            ours,
        });
    }
    if !validity.contains(now) {
        return Err(Refusal::Clock {
            validity: *validity,
            now,
        });
    }
    let for_managers = match purpose {
        Purpose::Raft { .. } | Purpose::Api | Purpose::Member => true,
        Purpose::Join | Purpose::Renew | Purpose::Session | Purpose::Reply { .. } => false,
    };
    if for_managers && identity.role != Role::Manager {
        return Err(Refusal::Worker {
            node: identity.node,
        });
    }
    Ok(Some(*identity))
}
