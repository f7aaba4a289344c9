//! The types openraft is instantiated with. Nothing of them leaves this crate.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use shoal_transport::codec::{self, DecodeError, EncodeError};

use crate::command::{Applied, Command, Rejection};

openraft::declare_raft_types!(
    /// Commands in, outcomes out, members known by number and address.
    pub(crate) TypeConfig:
        D = Proposal,
        R = Outcome,
        NodeId = u64,
        Node = openraft::impls::BasicNode,
);

pub(crate) type Raft = openraft::Raft<TypeConfig, crate::machine::Machine>;
pub(crate) type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
pub(crate) type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Snapshot =
    openraft::type_config::alias::SnapshotOf<TypeConfig, crate::snapshot::SnapshotFile>;

/// A command with the bytes it is stored and sent as, so that it is encoded once, by its proposer.
#[derive(Clone)]
pub(crate) struct Proposal {
    command: Arc<Command>,
    encoded: Arc<[u8]>,
}

impl Proposal {
    pub(crate) fn new(command: Command) -> Result<Self, EncodeError> {
        let encoded = codec::encode(&command)?.into();
        Ok(Self {
            command: Arc::new(command),
            encoded,
        })
    }

    fn from_encoded(encoded: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self {
            command: Arc::new(codec::decode(encoded)?),
            encoded: encoded.into(),
        })
    }

    pub(crate) fn command(&self) -> &Command {
        &self.command
    }

    pub(crate) fn encoded_len(&self) -> usize {
        self.encoded.len()
    }
}

impl PartialEq for Proposal {
    fn eq(&self, other: &Self) -> bool {
        self.encoded == other.encoded
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Says how much, not what: commands hold secrets, and openraft writes its requests to the log.
impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let changes = self.command.changes.len();
        write!(f, "{changes} changes in {} bytes", self.encoded.len())
    }
}

impl Serialize for Proposal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.encoded)
    }
}

impl<'de> Deserialize<'de> for Proposal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FromBytes;
        impl de::Visitor<'_> for FromBytes {
            type Value = Proposal;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an encoded command")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Proposal, E> {
                Proposal::from_encoded(bytes).map_err(|error| {
                    // The codec names the cause in its source, which serde's errors cannot carry.
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    E::custom(format_args!("{error}: {}", cause.unwrap_or_default()))
                })
            }

            fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Proposal, E> {
                self.visit_bytes(&bytes)
            }
        }
        deserializer.deserialize_byte_buf(FromBytes)
    }
}

/// What became of a committed entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outcome(pub(crate) Result<Applied, Rejection>);

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Ok(applied) => write!(f, "applied as {}", applied.version),
            Err(rejection) => rejection.fmt(f),
        }
    }
}
