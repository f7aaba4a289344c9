//! Who a node is: its key, its certificate, and the root that vouches for it.
//!
//! What it keeps true: [`Credentials`] that exist fit together (the key is the certificate's, the
//! certificate is signed by the root, its subject is an [`Identity`]). Whether they are still valid
//! at some time is asked where they are used.

use std::{path::Path, sync::Arc, sync::OnceLock, time::Duration};

use rand::{Rng, RngExt};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::{
    ClientConfig, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};
use shoal_types::{ClusterId, NodeId, Timestamp, spec::Role};

use crate::{ca::BACKDATE, cluster::tls};

pub(crate) mod certificate;
mod store;

pub(crate) use certificate::Certificate;
pub use certificate::{CertificateError, Validity};
pub use store::CredentialsError;

/// What a certificate says of its node, in SwarmKit's places: node in CN, role in OU
/// (`swarm-manager` or `swarm-worker`), cluster in O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    pub node: NodeId,
    pub role: Role,
    pub cluster: ClusterId,
}

/// A private key that has no certificate yet: ECDSA P-256.
pub struct NodeKey(KeyPair);

impl NodeKey {
    pub fn generate() -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256);
        Self(key.expect("a P-256 key can be made whenever there is memory and randomness"))
    }

    /// PKCS #10, DER. It names nobody: who the certificate is for is decided by who signs it.
    pub fn signing_request(&self) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let request = params.serialize_request(&self.0);
        let request = request.expect("a request without a subject can be signed by a P-256 key");
        request.der().to_vec()
    }

    pub(crate) fn from_pkcs8(der: &[u8]) -> Result<Self, rcgen::Error> {
        KeyPair::from_pkcs8_der_and_sign_algo(
            &PrivatePkcs8KeyDer::from(der),
            &PKCS_ECDSA_P256_SHA256,
        )
        .map(Self)
    }

    fn pkcs8(&self) -> &[u8] {
        self.0.serialized_der()
    }
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeKey").finish_non_exhaustive()
    }
}

/// A node's key and certificate, and the root certificate of its cluster. A clone is a reference.
#[derive(Clone)]
pub struct Credentials(Arc<Inner>);

struct Inner {
    identity: Identity,
    validity: Validity,
    key: NodeKey,
    certificate: CertificateDer<'static>,
    root: CertificateDer<'static>,
    /// Made when first used, then shared by all handshakes.
    client: OnceLock<Arc<ClientConfig>>,
    server: OnceLock<Arc<ServerConfig>>,
}

impl Credentials {
    /// Both certificates in DER. Fails unless the three fit together.
    pub fn new(
        key: NodeKey,
        certificate: Vec<u8>,
        root: Vec<u8>,
    ) -> Result<Self, CredentialsError> {
        let parsed = Certificate::parse(&certificate)?;
        if parsed.public_key != key.0.subject_public_key_info() {
            return Err(CredentialsError::OtherKey);
        }
        let (certificate, root) = (
            CertificateDer::from(certificate),
            CertificateDer::from(root),
        );
        if !tls::is_signed_by(&certificate, &root) {
            return Err(CredentialsError::OtherRoot);
        }
        Ok(Self(Arc::new(Inner {
            identity: parsed.identity,
            validity: parsed.validity,
            key,
            certificate,
            root,
            client: OnceLock::new(),
            server: OnceLock::new(),
        })))
    }

    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    pub fn not_before(&self) -> Timestamp {
        self.0.validity.not_before
    }

    pub fn expires(&self) -> Timestamp {
        self.0.validity.not_after
    }

    pub fn validity(&self) -> Validity {
        self.0.validity
    }

    /// DER.
    pub fn root_certificate(&self) -> &[u8] {
        &self.0.root
    }

    /// DER.
    pub fn certificate(&self) -> &[u8] {
        &self.0.certificate
    }

    /// When to ask for the next certificate: a random point between 50 % and 80 % of the time from
    /// issue to expiry, as SwarmKit does, so that nodes that joined together do not renew together.
    pub fn renew_at(&self, rng: &mut impl Rng) -> Timestamp {
        // Not from `not_before`: it lies before the issue, by more than a short life is long.
        let issued = self.not_before().after(BACKDATE).min(self.expires());
        let life = self.expires().since(issued);
        issued.after(life.mul_f64(rng.random_range(0.5..=0.8)))
    }

    /// Keeps the credentials in `dir`, which is made if need be, as `node.crt`, `node.key` (for the
    /// owner alone) and `ca.crt` in PEM. All three change at once: after a crash the directory holds
    /// the old set or the new one.
    pub fn save(&self, dir: &Path) -> std::io::Result<()> {
        store::save(self, dir)
    }

    /// What [`save`](Self::save) kept in `dir`; `None` when it never did.
    pub fn load(dir: &Path) -> Result<Option<Self>, CredentialsError> {
        store::load(dir)
    }

    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.0.key.pkcs8().to_vec()).into()
    }

    /// The root goes along, so that a node that joins can hold it against its token's digest.
    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.0.certificate.clone(), self.0.root.clone()]
    }

    pub(crate) fn root(&self) -> &CertificateDer<'static> {
        &self.0.root
    }

    pub(crate) fn client_config(&self) -> Arc<ClientConfig> {
        let make = || Arc::new(tls::client_config(self));
        Arc::clone(self.0.client.get_or_init(make))
    }

    pub(crate) fn server_config(&self) -> Arc<ServerConfig> {
        let make = || Arc::new(tls::server_config(self));
        Arc::clone(self.0.server.get_or_init(make))
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("identity", &self.0.identity)
            .field("validity", &self.0.validity)
            .finish_non_exhaustive()
    }
}

/// How long a certificate is good for when nothing else was said: Docker's 90 days.
pub const DEFAULT_CERTIFICATE_LIFE: Duration = Duration::from_hours(2160);

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{
        ca::Authority,
        clock,
        testing::{Swarm, node},
    };

    #[test]
    fn credentials_say_what_the_certificate_says() {
        let swarm = Swarm::new(1);
        let credentials = swarm.credentials(3, Role::Manager);
        let expected = Identity {
            node: node(3),
            role: Role::Manager,
            cluster: swarm.cluster,
        };
        assert_eq!(*credentials.identity(), expected);
        assert_eq!(credentials.root_certificate(), swarm.root);
        assert!(credentials.validity().contains(clock::now()));
        let shown = format!("{credentials:?}");
        assert!(!shown.contains("key"), "{shown}");
    }

    #[test]
    fn parts_that_do_not_fit_together_are_refused() {
        let (swarm, other) = (Swarm::new(1), Swarm::new(2));
        let certificate = swarm.credentials(1, Role::Worker).certificate().to_vec();
        let root = swarm.root.clone();
        let error = Credentials::new(NodeKey::generate(), certificate, root.clone());
        assert!(matches!(error, Err(CredentialsError::OtherKey)));
        let (key, certificate) = swarm.key_and_certificate(1, Role::Worker);
        let error = Credentials::new(key, certificate, other.root);
        assert!(matches!(error, Err(CredentialsError::OtherRoot)));
        let (key, _) = swarm.key_and_certificate(1, Role::Worker);
        let error = Credentials::new(key, root.clone(), root.clone());
        assert!(matches!(error, Err(CredentialsError::Certificate(_))));
        let error = Credentials::new(NodeKey::generate(), vec![1, 2], root);
        assert!(matches!(
            error,
            Err(CredentialsError::Certificate(CertificateError::Encoding))
        ));
    }

    #[test]
    fn a_root_is_told_by_its_key_and_not_by_its_name() {
        let cluster = Swarm::new(1).cluster;
        let now = clock::now();
        let (true_root, _) = Authority::create(cluster, now);
        let (false_root, false_key) = Authority::create(cluster, now);
        let forger = Swarm::of(cluster, false_root, &false_key);
        let (key, certificate) = forger.key_and_certificate(1, Role::Manager);
        let error = Credentials::new(key, certificate, true_root);
        assert!(matches!(error, Err(CredentialsError::OtherRoot)));
    }

    #[test]
    fn renewal_is_due_between_half_and_four_fifths_of_the_life() {
        let mut rng = StdRng::seed_from_u64(5);
        let now = Timestamp::from_unix(1_800_000_000, 0);
        for life in [DEFAULT_CERTIFICATE_LIFE, Duration::from_mins(1)] {
            let credentials = Swarm::at(1, now).credentials_at(1, Role::Worker, now, life);
            let points: Vec<Duration> = (0..200)
                .map(|_| credentials.renew_at(&mut rng).since(now))
                .collect();
            let (low, high) = (life.mul_f64(0.5), life.mul_f64(0.8));
            assert!(points.iter().all(|point| (low..=high).contains(point)));
            let early = points.iter().any(|point| *point < life.mul_f64(0.52));
            let late = points.iter().any(|point| *point > life.mul_f64(0.78));
            assert!(early && late, "{points:?}");
        }
    }
}
