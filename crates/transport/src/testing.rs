//! Small real swarms for this crate's tests.

use std::time::Duration;

use shoal_types::{ClusterId, NodeId, Timestamp, spec::Role};

use crate::{
    ca::Authority,
    clock,
    identity::{Credentials, DEFAULT_CERTIFICATE_LIFE, Identity, NodeKey},
};

/// In the order of `n`.
pub(crate) fn node(n: u8) -> NodeId {
    format!("{n:0>25}").parse().expect("25 digits")
}

/// A cluster's authority.
pub(crate) struct Swarm {
    pub(crate) cluster: ClusterId,
    pub(crate) root: Vec<u8>,
    pub(crate) authority: Authority,
}

impl Swarm {
    /// Two of the same number have the same id, and different roots.
    pub(crate) fn new(n: u8) -> Self {
        Self::at(n, clock::now())
    }

    pub(crate) fn at(n: u8, now: Timestamp) -> Self {
        let cluster = ClusterId::from_random([n; 17]);
        let (root, key) = Authority::create(cluster, now);
        Self::of(cluster, root, &key)
    }

    pub(crate) fn of(cluster: ClusterId, root: Vec<u8>, key: &[u8]) -> Self {
        Self {
            cluster,
            authority: Authority::open(&root, key).expect("opens"),
            root,
        }
    }

    pub(crate) fn credentials(&self, n: u8, role: Role) -> Credentials {
        self.credentials_at(n, role, clock::now(), DEFAULT_CERTIFICATE_LIFE)
    }

    pub(crate) fn credentials_at(
        &self,
        n: u8,
        role: Role,
        now: Timestamp,
        life: Duration,
    ) -> Credentials {
        let identity = Identity {
            node: node(n),
            role,
            cluster: self.cluster,
        };
        self.credentials_of(&identity, now, life)
    }

    /// Whatever `identity` says, of another cluster too.
    pub(crate) fn credentials_of(
        &self,
        identity: &Identity,
        now: Timestamp,
        life: Duration,
    ) -> Credentials {
        let key = NodeKey::generate();
        let request = key.signing_request();
        let issued = self.authority.issue(&request, identity, now, life);
        let issued = issued.expect("issued");
        Credentials::new(key, issued, self.root.clone()).expect("fit together")
    }

    pub(crate) fn key_and_certificate(&self, n: u8, role: Role) -> (NodeKey, Vec<u8>) {
        let key = NodeKey::generate();
        let identity = Identity {
            node: node(n),
            role,
            cluster: self.cluster,
        };
        let request = key.signing_request();
        let life = DEFAULT_CERTIFICATE_LIFE;
        let issued = self
            .authority
            .issue(&request, &identity, clock::now(), life);
        (key, issued.expect("issued"))
    }
}
