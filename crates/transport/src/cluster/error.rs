//! Why a manager could not be connected to, in words for the one who runs the cluster.

use std::{io, time::Duration};

use rustls::AlertDescription;
use shoal_types::{ClusterId, NodeId, Timestamp};

use super::tls::OtherDigest;
use crate::{
    clock::Utc,
    identity::{CertificateError, Validity},
    session::{ReceiveError, SendError},
};

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{addr} cannot be reached")]
    Unreachable {
        addr: String,
        #[source]
        source: io::Error,
    },
    #[error("{addr} cannot be reached: {doing} took longer than {} s", limit.as_secs_f32())]
    Timeout {
        addr: String,
        doing: &'static str,
        limit: Duration,
    },
    #[error("{addr} is not the cluster port of a manager: it does not speak the protocol")]
    NotShoal {
        addr: String,
        #[source]
        source: Option<io::Error>,
    },
    /// Docker's words.
    #[error(
        "{addr}: remote CA does not match fingerprint. Expected: {}",
        hex::encode(expected)
    )]
    Fingerprint { addr: String, expected: [u8; 32] },
    #[error(
        "the certificate that {addr} shows is signed by another CA than this node's: it is a \
         manager of another swarm, or no manager"
    )]
    ForeignCa {
        addr: String,
        #[source]
        source: rustls::Error,
    },
    #[error(
        "{addr} does not accept this node's certificate: it is signed by another CA than the one \
         there. The swarm was made anew, or this node is of another one; to use it there, leave \
         the swarm and join again"
    )]
    UnknownThere { addr: String },
    #[error("{addr} is a manager of swarm {theirs}, and this node is of {ours}")]
    ForeignCluster {
        addr: String,
        theirs: ClusterId,
        ours: ClusterId,
    },
    #[error(
        "the certificate of {addr} (node {node}) is valid from {validity}, but the clock here says \
         {now}. One of the two clocks is wrong, or the certificate is too old: compare `date -u` \
         on both machines",
        now = Utc(*now)
    )]
    Clock {
        addr: String,
        node: NodeId,
        validity: Validity,
        now: Timestamp,
    },
    #[error(
        "{addr} does not accept this node's certificate: it is valid from {validity}, the clock \
         there says {theirs}, the clock here {ours}. {}",
        advice(validity, *ours),
        theirs = Utc(*theirs), ours = Utc(*ours)
    )]
    ClockThere {
        addr: String,
        validity: Validity,
        theirs: Timestamp,
        ours: Timestamp,
    },
    #[error("the certificate that {addr} shows is not a node's")]
    Certificate {
        addr: String,
        #[source]
        source: CertificateError,
    },
    #[error("{addr} is node {found}, not {expected}")]
    OtherNode {
        addr: String,
        expected: NodeId,
        found: NodeId,
    },
    #[error("{addr} is node {node}, which is a worker; only managers can be connected to")]
    Worker { addr: String, node: NodeId },
    #[error("{addr} refused the connection: {reason}")]
    Refused { addr: String, reason: String },
    #[error("{addr} closed the connection")]
    Closed {
        addr: String,
        #[source]
        source: Option<io::Error>,
    },
    #[error("{addr} answered in a way that this release does not understand")]
    Answer {
        addr: String,
        #[source]
        source: ReceiveError,
    },
    #[error("TLS with {addr}")]
    Tls {
        addr: String,
        #[source]
        source: rustls::Error,
    },
}

impl ConnectError {
    /// Whether another try at the same address can end otherwise without anyone doing anything.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::Closed { .. }
        )
    }

    /// From an error of the TLS handshake, or of reading after it: with TLS 1.3 the server judges the
    /// client's certificate when the client believes the handshake to be over.
    pub(super) fn from_io(addr: &str, digest: Option<[u8; 32]>, error: io::Error) -> Self {
        let addr = addr.to_owned();
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref());
        let Some(tls) = tls else {
            return Self::Closed {
                addr,
                source: Some(error),
            };
        };
        match tls {
            rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))
                if other.0.is::<OtherDigest>() =>
            {
                Self::Fingerprint {
                    addr,
                    expected: digest.unwrap_or_default(),
                }
            }
            // Whatever is wrong with it, this swarm's root gives no such certificate.
            rustls::Error::InvalidCertificate(_) => Self::ForeignCa {
                addr,
                source: tls.clone(),
            },
            rustls::Error::AlertReceived(
                AlertDescription::UnknownCA
                | AlertDescription::BadCertificate
                | AlertDescription::DecryptError
                | AlertDescription::CertificateUnknown,
            ) => Self::UnknownThere { addr },
            rustls::Error::InvalidMessage(_)
            | rustls::Error::InappropriateMessage { .. }
            | rustls::Error::InappropriateHandshakeMessage { .. }
            | rustls::Error::PeerIncompatible(_)
            | rustls::Error::PeerMisbehaved(_)
            | rustls::Error::NoApplicationProtocol
            | rustls::Error::AlertReceived(
                AlertDescription::NoApplicationProtocol
                | AlertDescription::ProtocolVersion
                | AlertDescription::HandshakeFailure
                | AlertDescription::UnrecognisedName,
            ) => Self::NotShoal {
                addr,
                source: Some(error),
            },
            other => Self::Tls {
                addr,
                source: other.clone(),
            },
        }
    }

    pub(super) fn from_send(addr: &str, error: SendError) -> Self {
        match error {
            SendError::Io(error) => Self::from_io(addr, None, error),
            SendError::Encode(_) => unreachable!("a purpose has no part that cannot be encoded"),
        }
    }

    pub(super) fn from_receive(addr: &str, error: ReceiveError) -> Self {
        match error {
            ReceiveError::Io(error) => Self::from_io(addr, None, error),
            source => Self::Answer {
                addr: addr.to_owned(),
                source,
            },
        }
    }
}

fn advice(validity: &Validity, here: Timestamp) -> &'static str {
    if here > validity.not_after {
        "Swarm certificates have expired. To replace them, leave the swarm and join again."
    } else {
        "Set the clocks right: compare `date -u` on both machines."
    }
}
