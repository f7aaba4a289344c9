//! TLS as the cluster port speaks it: 1.3 only, both ends known by certificates of one root.
//!
//! The verifiers ask whether the root signed a certificate, and nothing else. Who the peer is and
//! what its clock says is looked at after the handshake, where the answer can be a sentence instead
//! of an alert. Nothing is resumed: a resumed session would outlive its certificate.

use std::sync::Arc;

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    RootCertStore, ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::TLS13,
};

use crate::{
    ca,
    identity::{Credentials, certificate},
};

/// Protocol of the cluster port, for ALPN (RFC 7301).
pub(super) const ALPN: &[u8] = b"shoal/1";

/// The name that every manager's certificate carries; which manager it is, is checked by its id.
pub(super) fn server_name() -> ServerName<'static> {
    ServerName::try_from("swarm-manager").expect("a DNS name")
}

/// What a manager offers to those that connect.
pub(crate) fn server_config(credentials: &Credentials) -> ServerConfig {
    let provider = provider();
    let chain = WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots(credentials.root())),
        Arc::clone(&provider),
    )
    .allow_unauthenticated()
    .build()
    .expect("the root verified this node's own certificate");
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3")
        .with_client_cert_verifier(Arc::new(SignedClient(chain)))
        .with_single_cert(credentials.chain(), credentials.private_key())
        .expect("the key is the certificate's");
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config
}

/// What a node shows and accepts when it connects.
pub(crate) fn client_config(credentials: &Credentials) -> ClientConfig {
    let verifier = SignedServer {
        trust: Trust::Root(roots(credentials.root())),
        provider: provider(),
    };
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(credentials.chain(), credentials.private_key())
        .expect("the key is the certificate's");
    finish(config)
}

/// For a node that has no certificate, and knows of the root its SHA-256 alone.
pub(super) fn joining_config(digest: [u8; 32]) -> ClientConfig {
    let verifier = SignedServer {
        trust: Trust::Digest(digest),
        provider: provider(),
    };
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    finish(config)
}

fn finish(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config
}

/// Named here and nowhere else, so that nothing depends on what the process installed as default.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Whether `root` signed `certificate`, at whatever time.
pub(crate) fn is_signed_by(certificate: &CertificateDer<'_>, root: &CertificateDer<'_>) -> bool {
    signed_by_one_of(certificate, &roots(root)).is_ok()
}

/// The certificate of `chain` that has this digest.
pub(super) fn find_root<'c, 'd>(
    chain: &'c [CertificateDer<'d>],
    digest: [u8; 32],
) -> Option<&'c CertificateDer<'d>> {
    chain.iter().find(|root| ca::digest(root) == digest)
}

/// None of the server's certificates has the digest that the join token names.
#[derive(Debug, thiserror::Error)]
#[error("no certificate has the digest that the join token names")]
pub(super) struct OtherDigest;

/// A root that cannot be used leaves the store empty, which trusts nobody.
fn roots(root: &CertificateDer<'_>) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates([root.clone().into_owned()]);
    roots
}

fn signed_by_one_of(certificate: &CertificateDer<'_>, roots: &RootCertStore) -> Result<(), Error> {
    verify_server_cert_signed_by_trust_anchor(
        &ParsedCertificate::try_from(certificate)?,
        roots,
        &[],
        valid_time(certificate)?,
        provider().signature_verification_algorithms.all,
    )
}

/// A time at which the certificate is valid, if there is any.
fn valid_time(certificate: &CertificateDer<'_>) -> Result<UnixTime, Error> {
    let x509 = certificate::parse(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let since = certificate::validity(&x509)
        .not_before
        .since(shoal_types::Timestamp::EPOCH);
    Ok(UnixTime::since_unix_epoch(since))
}

#[derive(Debug)]
enum Trust {
    Root(RootCertStore),
    Digest([u8; 32]),
}

/// Accepts a server whose certificate the root signed.
#[derive(Debug)]
struct SignedServer {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for SignedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.trust {
            Trust::Root(roots) => signed_by_one_of(end_entity, roots)?,
            Trust::Digest(digest) => {
                let root = find_root(others, *digest)
                    .ok_or_else(|| CertificateError::Other(OtherError(Arc::new(OtherDigest))))?;
                signed_by_one_of(end_entity, &roots(root))?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

/// Accepts a client without a certificate, and one whose certificate the root signed.
#[derive(Debug)]
struct SignedClient(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for SignedClient {
    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _others: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.0
            .verify_client_cert(end_entity, &[], valid_time(end_entity)?)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

fn no_tls12() -> Error {
    Error::General("the cluster port speaks TLS 1.3 only".to_owned())
}
