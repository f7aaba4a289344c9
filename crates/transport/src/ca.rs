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
        if x509.public_key().subject_public_key.data != key.public_key_raw() {
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
