//! What a node's certificate says.

use std::fmt;

use shoal_types::{Timestamp, spec::Role};
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

use super::Identity;
use crate::clock::Utc;

const MANAGER: &str = "swarm-manager";
const WORKER: &str = "swarm-worker";

/// The certificate is not one that a cluster gives to its nodes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    #[error("not an X.509 certificate")]
    Encoding,
    #[error("the certificate's subject has no {0}, as a node's has")]
    Missing(&'static str),
    #[error("the certificate's subject names {found:?} as {part}, which no node's does")]
    Foreign { part: &'static str, found: String },
}

/// From when to when a certificate is good, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

impl Validity {
    pub fn contains(&self, now: Timestamp) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

impl fmt::Display for Validity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", Utc(self.not_before), Utc(self.not_after))
    }
}

/// A node's certificate, read but not verified.
#[derive(Debug)]
pub(crate) struct Certificate {
    pub(crate) identity: Identity,
    pub(crate) validity: Validity,
    /// The subject's public key: `SubjectPublicKeyInfo` in DER.
    pub(crate) public_key: Vec<u8>,
}

impl Certificate {
    pub(crate) fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        let x509 = parse(der)?;
        let subject = x509.subject();
        let unit = only("OU", subject.iter_organizational_unit(), subject)?;
        let role = role_of(unit).ok_or_else(|| CertificateError::Foreign {
            part: "role",
            found: unit.to_owned(),
        })?;
        let node = only("CN", subject.iter_common_name(), subject)?;
        let cluster = only("O", subject.iter_organization(), subject)?;
        Ok(Self {
            identity: Identity {
                node: node.parse().map_err(|_| CertificateError::Foreign {
                    part: "node",
                    found: node.to_owned(),
                })?,
                role,
                cluster: cluster.parse().map_err(|_| CertificateError::Foreign {
                    part: "cluster",
                    found: cluster.to_owned(),
                })?,
            },
            validity: validity(&x509),
            public_key: x509.public_key().raw.to_vec(),
        })
    }
}

/// How a role is written in a certificate, as organizational unit and as DNS name.
pub(crate) fn unit_of(role: Role) -> &'static str {
    match role {
        Role::Manager => MANAGER,
        Role::Worker => WORKER,
    }
}

fn role_of(unit: &str) -> Option<Role> {
    [Role::Manager, Role::Worker]
        .into_iter()
        .find(|role| unit_of(*role) == unit)
}

pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    match X509Certificate::from_der(der) {
        Ok(([], x509)) => Ok(x509),
        _ => Err(CertificateError::Encoding),
    }
}

pub(crate) fn validity(x509: &X509Certificate<'_>) -> Validity {
    let at = |time: x509_parser::time::ASN1Time| Timestamp::from_unix(time.timestamp(), 0);
    Validity {
        not_before: at(x509.validity().not_before),
        not_after: at(x509.validity().not_after),
    }
}

/// The one attribute of this kind: two would let two readers see two different nodes.
fn only<'a>(
    part: &'static str,
    mut attributes: impl Iterator<Item = &'a x509_parser::x509::AttributeTypeAndValue<'a>>,
    subject: &X509Name<'_>,
) -> Result<&'a str, CertificateError> {
    let first = attributes.next().ok_or(CertificateError::Missing(part))?;
    if attributes.next().is_some() {
        return Err(CertificateError::Foreign {
            part,
            found: subject.to_string(),
        });
    }
    first.as_str().map_err(|_| CertificateError::Encoding)
}
