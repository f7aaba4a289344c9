//! What is written to disk and sent to other members, in forms of our own.
//!
//! openraft's types derive serde without a promise that the bytes stay the same, so none of them is
//! stored or sent: these are, and golden bytes in the tests hold them still. Variants and fields are
//! only ever appended within a codec format.

use std::collections::{BTreeMap, BTreeSet};

use openraft::{EntryPayload, Membership, impls::BasicNode};
use serde::{Deserialize, Serialize};

use crate::raft::{Entry, LogId, Proposal, SnapshotMeta, StoredMembership, TypeConfig, Vote};

type LeaderId = openraft::type_config::alias::LeaderIdOf<TypeConfig>;

/// A place in the log, together with the leadership that wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Point {
    pub(crate) term: u64,
    pub(crate) leader: u64,
    pub(crate) index: u64,
}

/// Whom a member voted for, and whether a quorum did too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ballot {
    pub(crate) term: u64,
    pub(crate) candidate: u64,
    pub(crate) committed: bool,
}

/// The voters (two sets while a change is under way) and the addresses of all members.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Members {
    pub(crate) configs: Vec<BTreeSet<u64>>,
    pub(crate) addresses: BTreeMap<u64, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Body {
    /// A leader's first entry.
    Blank,
    Command(Proposal),
    Members(Members),
}

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Item {
    pub(crate) at: Point,
    pub(crate) body: Body,
}

impl Item {
    /// About how much memory it takes.
    pub(crate) fn weight(&self) -> usize {
        const FIXED: usize = 128;
        match &self.body {
            Body::Blank => FIXED,
            // The decoded command beside the encoded one.
            Body::Command(proposal) => FIXED + 4 * proposal.encoded_len(),
            Body::Members(members) => FIXED + 64 * members.addresses.len(),
        }
    }
}

/// What a snapshot is the state of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotHead {
    pub(crate) last: Option<Point>,
    pub(crate) members_at: Option<Point>,
    pub(crate) members: Members,
}

impl From<&LogId> for Point {
    fn from(id: &LogId) -> Self {
        Self {
            term: id.leader_id.term,
            leader: id.leader_id.node_id,
            index: id.index,
        }
    }
}

impl From<LogId> for Point {
    fn from(id: LogId) -> Self {
        Self::from(&id)
    }
}

impl From<Point> for LogId {
    fn from(point: Point) -> Self {
        let leader = LeaderId {
            term: point.term,
            node_id: point.leader,
        };
        Self::new(leader, point.index)
    }
}

impl From<&Vote> for Ballot {
    fn from(vote: &Vote) -> Self {
        Self {
            term: vote.leader_id.term,
            candidate: vote.leader_id.node_id,
            committed: vote.committed,
        }
    }
}

impl From<Ballot> for Vote {
    fn from(ballot: Ballot) -> Self {
        if ballot.committed {
            Self::new_committed(ballot.term, ballot.candidate)
        } else {
            Self::new(ballot.term, ballot.candidate)
        }
    }
}

impl From<&Membership<u64, BasicNode>> for Members {
    fn from(membership: &Membership<u64, BasicNode>) -> Self {
        Self {
            configs: membership.get_joint_config().clone(),
            addresses: membership
                .nodes()
                .map(|(id, node)| (*id, node.addr.clone()))
                .collect(),
        }
    }
}

impl From<Members> for Membership<u64, BasicNode> {
    fn from(members: Members) -> Self {
        let nodes: BTreeMap<u64, BasicNode> = members
            .addresses
            .into_iter()
            .map(|(id, addr)| (id, BasicNode::new(addr)))
            .collect();
        // The group without members, which a member that has no group yet starts from, is refused by
        // the one and made by the other.
        Self::new(members.configs.clone(), nodes)
            .unwrap_or_else(|_| Self::new_with_defaults(members.configs, []))
    }
}

impl From<Entry> for Item {
    fn from(entry: Entry) -> Self {
        Self {
            at: entry.log_id.into(),
            body: match entry.payload {
                EntryPayload::Blank => Body::Blank,
                EntryPayload::Normal(proposal) => Body::Command(proposal),
                EntryPayload::Membership(membership) => Body::Members((&membership).into()),
            },
        }
    }
}

impl From<Item> for Entry {
    fn from(item: Item) -> Self {
        Self {
            log_id: item.at.into(),
            payload: match item.body {
                Body::Blank => EntryPayload::Blank,
                Body::Command(proposal) => EntryPayload::Normal(proposal),
                Body::Members(members) => EntryPayload::Membership(members.into()),
            },
        }
    }
}

impl SnapshotHead {
    pub(crate) fn new(last: Option<&LogId>, membership: &StoredMembership) -> Self {
        Self {
            last: last.map(Into::into),
            members_at: membership.log_id().as_ref().map(Into::into),
            members: membership.membership().into(),
        }
    }

    pub(crate) fn membership(&self) -> StoredMembership {
        StoredMembership::new(self.members_at.map(Into::into), self.members.clone().into())
    }

    pub(crate) fn meta(&self) -> SnapshotMeta {
        SnapshotMeta {
            last_log_id: self.last.map(Into::into),
            last_membership: self.membership(),
        }
    }
}

#[cfg(test)]
mod tests {
    use shoal_transport::codec;
    use shoal_types::Timestamp;

    use super::*;
    use crate::command::{Change, Command};

    #[test]
    fn golden_bytes_of_entries_and_heads_do_not_change() {
        let at = Point {
            term: 3,
            leader: 1,
            index: 300,
        };
        let command = Command {
            at: Timestamp(7),
            changes: vec![Change::RemoveTask {
                id: shoal_types::TaskId::from_random([0; 17]),
            }],
        };
        let item = Item {
            at,
            body: Body::Command(Proposal::new(command).expect("encodes")),
        };
        let mut golden = vec![1, 3, 1, 251, 44, 1, 1, 30, 1, 14, 1, 20, 25];
        golden.extend([b'0'; 25]);
        assert_eq!(codec::encode(&item).expect("encodes"), golden);
        assert_eq!(codec::decode::<Item>(&golden).expect("decodes"), item);

        let head = SnapshotHead {
            last: Some(at),
            members_at: None,
            members: Members {
                configs: vec![[1, 2].into()],
                addresses: [(1, "a:1".to_owned()), (2, String::new())].into(),
            },
        };
        let golden = [
            1, 1, 3, 1, 251, 44, 1, 0, 1, 2, 1, 2, 2, 1, 3, b'a', b':', b'1', 2, 0,
        ];
        assert_eq!(codec::encode(&head).expect("encodes"), golden);
        assert_eq!(
            codec::decode::<SnapshotHead>(&golden).expect("decodes"),
            head
        );
    }

    #[test]
    fn entries_and_memberships_survive_the_way_to_our_forms_and_back() {
        let members = Members {
            configs: vec![[1, 2].into(), [2, 3].into()],
            addresses: [1, 2, 3, 4].map(|id| (id, format!("host{id}:1"))).into(),
        };
        let at = Point {
            term: 1,
            leader: 2,
            index: 3,
        };
        for body in [Body::Blank, Body::Members(members)] {
            let item = Item { at, body };
            assert_eq!(Item::from(Entry::from(item.clone())), item);
        }
        let ballot = Ballot {
            term: 9,
            candidate: 4,
            committed: true,
        };
        assert_eq!(Ballot::from(&Vote::from(ballot)), ballot);
    }
}
