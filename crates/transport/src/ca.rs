//! The cluster's own certificate authority: ECDSA P-256, one root, no intermediates.
//!
//! What it keeps true: everything in a certificate but the public key is decided here. A signing
//! request proves that its sender holds the key, and says nothing else.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use shoal_types::{ClusterId, Timestamp, spec::Role};

use crate::{
    identity::{Identity, Validity, certificate},
    token::JoinToken,
};

/// Certificates begin this long before they are issued, so that nodes whose clocks are a little
/// behind can use them; SwarmKit's value.
pub(crate) const BACKDATE: Duration = Duration::from_hours(1);

/// SwarmKit's name of the root, and a name that every manager's certificate carries.
const ROOT_NAME: &str = "swarm-ca";
/// 20 years.
const ROOT_LIFE: Duration = Duration::from_hours(24 * 365 * 20);
/// An uncompressed point on P-256: a mark and two coordinates.
const POINT_BYTES: usize = 65;

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("the cluster's root certificate cannot be read")]
    RootCertificate,
    #[error("the cluster's root key cannot be used")]
    RootKey(#[source] rcgen::Error),
    #[error("the cluster's root key is not its root certificate's")]
    OtherRootKey,
    #[error("the cluster's root certificate is valid from {validity}, and it is {now}", now = crate::clock::Utc(*now))]
    RootExpired { validity: Validity, now: Timestamp },
    #[error("the signing request cannot be read, or is not signed by its own key")]
    Request(#[source] rcgen::Error),
    #[error("the signing request is not for a P-256 key, the only kind that a node may have")]
    RequestKey,
    #[error("sign the certificate of node {node}")]
    Sign {
        node: shoal_types::NodeId,
        #[source]
        source: rcgen::Error,
    },
}

/// Signs the certificates of a cluster's nodes.
pub struct Authority {
    digest: [u8; 32],
    validity: Validity,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new root: its certificate in DER, and its key in PKCS #8 DER.
    pub fn create(cluster: ClusterId, now: Timestamp) -> (Vec<u8>, Vec<u8>) {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .expect("a P-256 key can be made whenever there is memory and randomness");
        let mut params = CertificateParams::default();
        params.distinguished_name = name(&[
            (DnType::OrganizationName, cluster.as_str()),
            (DnType::CommonName, ROOT_NAME),
        ]);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial());
        set_validity(&mut params, validity(now, ROOT_LIFE));
        let root = params.self_signed(&key);
        let root = root.expect("a root of these fields can be signed by a P-256 key");
        (root.der().to_vec(), key.serialize_der())
    }

    /// From what [`create`](Self::create) made.
    pub fn open(root_certificate: &[u8], root_key: &[u8]) -> Result<Self, AuthorityError> {
        let x509 = certificate::parse(root_certificate);
        let x509 = x509.map_err(|_| AuthorityError::RootCertificate)?;
        let key = KeyPair::from_pkcs8_der_and_sign_algo(
            &PrivatePkcs8KeyDer::from(root_key),
            &PKCS_ECDSA_P256_SHA256,
        )
        .map_err(AuthorityError::RootKey)?;
        if x509.public_key().raw != key.subject_public_key_info() {
            return Err(AuthorityError::OtherRootKey);
        }
        let issuer = Issuer::from_ca_cert_der(&CertificateDer::from(root_certificate), key)
            .map_err(|_| AuthorityError::RootCertificate)?;
        Ok(Self {
            digest: digest(root_certificate),
            validity: certificate::validity(&x509),
            issuer,
        })
    }

    /// A certificate in DER that says `identity` of whoever holds the key of `signing_request`
    /// (PKCS #10, DER). It is good from an hour before `now` for `life` after it, but not for longer
    /// than the root is.
    pub fn issue(
        &self,
        signing_request: &[u8],
        identity: &Identity,
        now: Timestamp,
        life: Duration,
    ) -> Result<Vec<u8>, AuthorityError> {
        if !self.validity.contains(now) {
            return Err(AuthorityError::RootExpired {
                validity: self.validity,
                now,
            });
        }
        let request = CertificateSigningRequestDer::from(signing_request);
        let request = CertificateSigningRequestParams::from_der(&request);
        let key = request.map_err(AuthorityError::Request)?.public_key;
        let is_p256 = *key.algorithm() == PKCS_ECDSA_P256_SHA256;
        if !is_p256 || key.der_bytes().len() != POINT_BYTES {
            return Err(AuthorityError::RequestKey);
        }

        let mut params = CertificateParams::default();
        params.distinguished_name = name(&[
            (DnType::OrganizationName, identity.cluster.as_str()),
            (
                DnType::OrganizationalUnitName,
                certificate::unit_of(identity.role),
            ),
            (DnType::CommonName, identity.node.as_str()),
        ]);
        params.subject_alt_names = names(identity)
            .into_iter()
            .map(|name| SanType::DnsName(name.try_into().expect("ids and roles are ASCII")))
            .collect();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial());
        let mut validity = validity(now, life);
        validity.not_after = validity.not_after.min(self.validity.not_after);
        set_validity(&mut params, validity);
        let signed = params.signed_by(&key, &self.issuer);
        let signed = signed.map_err(|source| AuthorityError::Sign {
            node: identity.node,
            source,
        })?;
        Ok(signed.der().to_vec())
    }

    /// The join token with this secret.
    pub fn token(&self, secret: [u8; 16]) -> JoinToken {
        JoinToken {
            digest: self.digest,
            secret,
        }
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("digest", &hex::encode(self.digest))
            .finish_non_exhaustive()
    }
}

/// What a join token says of the root certificate (DER): its SHA-256.
pub fn digest(root_certificate: &[u8]) -> [u8; 32] {
    Sha256::digest(root_certificate).into()
}

/// SwarmKit's DNS names: the role, the node, and of managers that they speak for the CA.
fn names(identity: &Identity) -> Vec<String> {
    let mut names = vec![
        certificate::unit_of(identity.role).to_owned(),
        identity.node.to_string(),
    ];
    if identity.role == Role::Manager {
        names.push(ROOT_NAME.to_owned());
    }
    names
}

fn name(parts: &[(DnType, &str)]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for (kind, value) in parts {
        name.push(kind.clone(), *value);
    }
    name
}

/// 127 random bits: positive, and never given twice.
fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn validity(now: Timestamp, life: Duration) -> Validity {
    let back = i64::try_from(BACKDATE.as_nanos()).expect("an hour of nanoseconds fits");
    Validity {
        not_before: Timestamp(now.0.saturating_sub(back)),
        not_after: now.after(life),
    }
}

fn set_validity(params: &mut CertificateParams, validity: Validity) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    // X.509 has no parts of seconds, and rcgen no dates before the epoch that anyone has.
    let at = |time: Timestamp| epoch + Duration::from_secs(time.since(Timestamp::EPOCH).as_secs());
    params.not_before = at(validity.not_before);
    params.not_after = at(validity.not_after);
}

#[cfg(test)]
mod tests {
    use rcgen::PKCS_ECDSA_P384_SHA384;
    use x509_parser::extensions::{GeneralName, ParsedExtension};

    use super::*;
    use crate::{
        identity::{Certificate, NodeKey},
        testing::{Swarm, node},
    };

    const LIFE: Duration = Duration::from_hours(24);

    fn now() -> Timestamp {
        Timestamp::from_unix(1_800_000_000, 123)
    }

    fn worker(swarm: &Swarm) -> Identity {
        Identity {
            node: node(1),
            role: Role::Worker,
            cluster: swarm.cluster,
        }
    }

    #[test]
    fn a_request_for_another_identity_gets_the_one_that_is_decided_here() {
        let swarm = Swarm::at(1, now());
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        let mut wish = CertificateParams::default();
        wish.distinguished_name = name(&[
            (DnType::OrganizationName, swarm.cluster.as_str()),
            (DnType::OrganizationalUnitName, "swarm-manager"),
            (DnType::CommonName, node(9).as_str()),
        ]);
        wish.subject_alt_names = vec![SanType::DnsName("swarm-manager".try_into().expect("dns"))];
        wish.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        wish.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let request = wish.serialize_request(&key).expect("signed");

        let decided = worker(&swarm);
        let issued = swarm.authority.issue(request.der(), &decided, now(), LIFE);
        let issued = issued.expect("issued");
        let read = Certificate::parse(&issued).expect("a node's certificate");
        assert_eq!(read.identity, decided);
        assert_eq!(read.public_key, key.subject_public_key_info());

        let x509 = certificate::parse(&issued).expect("X.509");
        assert!(!x509.is_ca());
        assert_eq!(x509.subject().iter().count(), 3);
        let mut names = Vec::new();
        for extension in x509.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(found) => {
                    names.extend(found.general_names.iter().map(|name| match name {
                        GeneralName::DNSName(name) => (*name).to_owned(),
                        other => panic!("{other:?}"),
                    }));
                }
                ParsedExtension::KeyUsage(usage) => {
                    assert!(usage.digital_signature() && !usage.key_cert_sign());
                }
                _ => {}
            }
        }
        assert_eq!(names, ["swarm-worker", node(1).as_str()]);
    }

    #[test]
    fn certificates_begin_an_hour_early_and_end_with_the_root_at_the_latest() {
        let cluster = ClusterId::from_random([1; 17]);
        let (root, key) = Authority::create(cluster, now());
        let authority = Authority::open(&root, &key).expect("opens");
        let request = NodeKey::generate().signing_request();
        let identity = Identity {
            node: node(1),
            role: Role::Manager,
            cluster,
        };
        let validity = |at, life| {
            let issued = authority.issue(&request, &identity, at, life)?;
            let read = Certificate::parse(&issued).expect("a node's certificate");
            Ok::<_, AuthorityError>(read.validity)
        };
        let whole = |seconds: i64| Timestamp::from_unix(1_800_000_000 + seconds, 0);
        let ordinary = validity(now(), LIFE).expect("issued");
        assert_eq!(ordinary.not_before, whole(-3600));
        assert_eq!(ordinary.not_after, whole(24 * 3600));
        let end = whole(20 * 365 * 24 * 3600);
        let late = validity(Timestamp(end.0 - 1), LIFE).expect("issued");
        assert_eq!(late.not_after, end);
        let after = end.after(Duration::from_secs(1));
        let error = validity(after, LIFE).expect_err("the root has expired");
        assert!(matches!(error, AuthorityError::RootExpired { .. }));
        assert!(error.to_string().contains("2047"), "{error}");
    }

    #[test]
    fn a_request_that_is_damaged_or_for_another_kind_of_key_is_refused() {
        let swarm = Swarm::at(1, now());
        let issue = |request: &[u8]| {
            let issued = swarm.authority.issue(request, &worker(&swarm), now(), LIFE);
            issued.expect_err("must be refused")
        };
        let mut request = NodeKey::generate().signing_request();
        // The signature is at the end.
        *request.last_mut().expect("not empty") ^= 1;
        assert!(matches!(issue(&request), AuthorityError::Request(_)));
        assert!(matches!(issue(b""), AuthorityError::Request(_)));
        assert!(matches!(issue(&[0x30; 4000]), AuthorityError::Request(_)));
        let other = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).expect("a key");
        let request = CertificateParams::default().serialize_request(&other);
        let request = request.expect("signed");
        assert!(matches!(issue(request.der()), AuthorityError::RequestKey));
    }

    #[test]
    fn a_key_of_another_root_does_not_open() {
        let cluster = ClusterId::from_random([1; 17]);
        let (root, _) = Authority::create(cluster, now());
        let (_, other) = Authority::create(cluster, now());
        let open = |root: &[u8], key: &[u8]| Authority::open(root, key).expect_err("must fail");
        assert!(matches!(open(&root, &other), AuthorityError::OtherRootKey));
        assert!(matches!(open(&root, b"x"), AuthorityError::RootKey(_)));
        assert!(matches!(
            open(b"x", &other),
            AuthorityError::RootCertificate
        ));
    }

    #[test]
    fn the_token_names_the_root_and_serials_are_never_the_same() {
        let swarm = Swarm::at(1, now());
        let token = swarm.authority.token([7; 16]);
        assert_eq!(token.digest, digest(&swarm.root));
        assert_eq!(token.secret, [7; 16]);
        assert_ne!(token.digest, digest(&Swarm::at(1, now()).root));
        let serials: std::collections::BTreeSet<Vec<u8>> = (0..64)
            .map(|_| {
                let bytes = serial().to_bytes();
                assert!(bytes.len() == 16 && bytes[0] & 0x80 == 0);
                bytes
            })
            .collect();
        assert_eq!(serials.len(), 64);
    }
}
