//! Where a registry is reached, and how its certificate is checked.

use std::{
    collections::HashMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use reqwest::{Client, Url, redirect::Policy};
use rustls::{
    DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
};

use crate::{locks::lock, reference::HUB};

/// The host behind `docker.io`.
const HUB_HOST: &str = "registry-1.docker.io";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// A body that gives nothing for this long is broken off and resumed.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const REDIRECTS_MAX: usize = 10;

/// How registries are reached.
#[derive(Debug, Clone)]
pub struct RegistryConfig {
    /// Base URLs tried before Docker Hub, in order (dockerd's `registry-mirrors`).
    pub mirrors: Vec<String>,
    /// Registries whose certificate is not checked and that may speak plain HTTP: `host`,
    /// `host:port`, or an address range such as `10.0.0.0/8` (dockerd's `insecure-registries`).
    /// Loopback always is.
    pub insecure: Vec<String>,
    /// For each registry `host[:port]` a folder with `*.crt` files of authorities to trust as
    /// well, and a `*.cert` and `*.key` to show to it (`/etc/docker/certs.d`).
    pub certs_dir: Option<PathBuf>,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            mirrors: Vec::new(),
            insecure: Vec::new(),
            certs_dir: Some(PathBuf::from("/etc/docker/certs.d")),
        }
    }
}

/// The settings make no sense.
#[derive(Debug, thiserror::Error)]
pub enum RegistryConfigError {
    #[error("invalid mirror {0:?}: expected http://host[:port] or https://host[:port]")]
    Mirror(String),
    #[error("invalid insecure registry {0:?}: expected host, host:port or address/bits")]
    Insecure(String),
    /// Docker's words for the same.
    #[error(
        "missing key {} for client certificate {}: CA certificates must use the extension .crt",
        .certificate.with_extension("key").display(), .certificate.display()
    )]
    MissingKey { certificate: PathBuf },
    #[error("read {}", .path.display())]
    Pem {
        path: PathBuf,
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    #[error("set up TLS")]
    Tls(#[source] rustls::Error),
    #[error("set up the HTTP client")]
    Client(#[source] reqwest::Error),
}

/// One way to reach a registry.
#[derive(Clone)]
pub(super) struct Endpoint {
    /// Scheme, host and port.
    pub(super) base: Url,
    pub(super) client: Client,
    /// It stands in for another, so what it does not have may still exist.
    pub(super) is_mirror: bool,
    /// Secrets may travel in the clear to and for it.
    pub(super) allows_http: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Trust {
    System,
    /// The system's authorities and those of a folder.
    Folder(PathBuf),
    Nobody,
    /// Unchecked, and never through a proxy.
    Loopback,
}

pub(super) struct Endpoints {
    mirrors: Vec<Url>,
    insecure_hosts: Vec<String>,
    insecure_ranges: Vec<(IpAddr, u8)>,
    certs_dir: Option<PathBuf>,
    clients: Mutex<HashMap<Trust, Client>>,
}

impl Endpoints {
    pub(super) fn new(config: RegistryConfig) -> Result<Self, RegistryConfigError> {
        let mut mirrors = Vec::new();
        for text in &config.mirrors {
            let url = Url::parse(text).ok().filter(|url| {
                matches!(url.scheme(), "http" | "https")
                    && url.has_host()
                    && url.query().is_none()
                    && url.path() == "/"
            });
            mirrors.push(url.ok_or_else(|| RegistryConfigError::Mirror(text.clone()))?);
        }
        let (mut hosts, mut ranges) = (Vec::new(), Vec::new());
        for text in config.insecure {
            let bad = || RegistryConfigError::Insecure(text.clone());
            if text.is_empty() || text.contains("://") {
                return Err(bad());
            }
            match text.split_once('/') {
                None => hosts.push(text.to_ascii_lowercase()),
                Some((address, bits)) => {
                    let address: IpAddr = address.parse().map_err(|_| bad())?;
                    let bits: u8 = bits.parse().map_err(|_| bad())?;
                    if bits > if address.is_ipv4() { 32 } else { 128 } {
                        return Err(bad());
                    }
                    ranges.push((address, bits));
                }
            }
        }
        Ok(Self {
            mirrors,
            insecure_hosts: hosts,
            insecure_ranges: ranges,
            certs_dir: config.certs_dir,
            clients: Mutex::default(),
        })
    }

    /// All ways to reach the registry of `domain`, best first.
    pub(super) fn of(&self, domain: &str) -> Result<Vec<Endpoint>, RegistryConfigError> {
        let mut endpoints = Vec::new();
        if domain == HUB {
            for mirror in &self.mirrors {
                let host = authority(mirror);
                let insecure = mirror.scheme() == "http" || self.is_insecure(&host);
                endpoints.push(self.endpoint(mirror.clone(), &host, insecure, true)?);
            }
        }
        let host = if domain == HUB { HUB_HOST } else { domain };
        let insecure = self.is_insecure(host);
        let schemes: &[&str] = if insecure {
            &["https", "http"]
        } else {
            &["https"]
        };
        for scheme in schemes {
            let url = Url::parse(&format!("{scheme}://{host}/"))
                .expect("a parsed reference has a valid domain");
            endpoints.push(self.endpoint(url, host, insecure, false)?);
        }
        Ok(endpoints)
    }

    fn endpoint(
        &self,
        base: Url,
        host: &str,
        insecure: bool,
        is_mirror: bool,
    ) -> Result<Endpoint, RegistryConfigError> {
        let folder = self
            .certs_dir
            .as_ref()
            .map(|dir| dir.join(host))
            .filter(|dir| dir.is_dir());
        let trust = match (is_loopback(host_of(host)), insecure, folder) {
            (true, _, _) => Trust::Loopback,
            (_, true, _) => Trust::Nobody,
            (_, _, Some(folder)) => Trust::Folder(folder),
            _ => Trust::System,
        };
        Ok(Endpoint {
            base,
            client: self.client(trust)?,
            is_mirror,
            allows_http: insecure,
        })
    }

    fn client(&self, trust: Trust) -> Result<Client, RegistryConfigError> {
        // A folder may have changed since; as with Docker, no restart is needed.
        if matches!(trust, Trust::Folder(_)) {
            return build_client(&trust);
        }
        if let Some(client) = lock(&self.clients).get(&trust) {
            return Ok(client.clone());
        }
        let client = build_client(&trust)?;
        lock(&self.clients).insert(trust, client.clone());
        Ok(client)
    }

    fn is_insecure(&self, host_and_port: &str) -> bool {
        let lower = host_and_port.to_ascii_lowercase();
        let host = host_of(&lower);
        if is_loopback(host)
            || self
                .insecure_hosts
                .iter()
                .any(|known| *known == lower || known == host)
        {
            return true;
        }
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
        address.is_ok_and(|address| {
            self.insecure_ranges
                .iter()
                .any(|(range, bits)| in_range(address, *range, *bits))
        })
    }
}

fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Without the port.
fn host_of(authority: &str) -> &str {
    if authority.starts_with('[') {
        return authority.split_inclusive(']').next().unwrap_or(authority);
    }
    authority.split(':').next().unwrap_or(authority)
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

fn in_range(address: IpAddr, range: IpAddr, bits: u8) -> bool {
    match (address, range) {
        (IpAddr::V4(a), IpAddr::V4(r)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            a.to_bits() & mask == r.to_bits() & mask
        }
        (IpAddr::V6(a), IpAddr::V6(r)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            a.to_bits() & mask == r.to_bits() & mask
        }
        _ => false,
    }
}

fn build_client(trust: &Trust) -> Result<Client, RegistryConfigError> {
    // Named explicitly, so that nothing depends on who installed a process-wide default.
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(RegistryConfigError::Tls)?;
    let checked = !matches!(trust, Trust::Nobody | Trust::Loopback);
    let tls = if checked {
        let mut roots = system_roots();
        let mut own = None;
        if let Trust::Folder(folder) = trust {
            for path in files(folder, "crt") {
                add_file(&mut roots, &path);
            }
            own = client_certificate(folder)?;
        }
        let builder = builder.with_root_certificates(roots);
        match own {
            Some((chain, key)) => builder
                .with_client_auth_cert(chain, key)
                .map_err(RegistryConfigError::Tls)?,
            None => builder.with_no_client_auth(),
        }
    } else {
        let verifier = Arc::new(Unchecked(provider));
        builder
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth()
    };
    // reqwest drops credentials on its own when a redirect leaves the host.
    let redirects = Policy::custom(move |attempt| {
        if attempt.previous().len() > REDIRECTS_MAX {
            return attempt.error("too many redirects");
        }
        let was_https = attempt
            .previous()
            .last()
            .is_some_and(|url| url.scheme() == "https");
        if checked && was_https && attempt.url().scheme() != "https" {
            return attempt.error("redirect from https to http refused");
        }
        attempt.follow()
    });
    let mut client = Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(redirects)
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .user_agent(concat!("shoal/", env!("CARGO_PKG_VERSION")));
    if *trust == Trust::Loopback {
        client = client.no_proxy();
    }
    client.build().map_err(RegistryConfigError::Client)
}

/// The system's authorities, from where distributions put them (as Go's `crypto/x509`). None is
/// no error here: then every checked connection fails and says why.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let usual = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
        "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
        "/etc/ssl/cert.pem",
    ];
    for path in named.into_iter().chain(usual.map(PathBuf::from)) {
        add_file(&mut roots, &path);
        if !roots.is_empty() {
            break;
        }
    }
    roots
}

/// The files of a folder that end like this, in the order of their names.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == ending)
        })
        .collect();
    paths.sort();
    paths
}

/// What a registry that asks who is there is shown: the first `*.cert` of its folder.
fn client_certificate(
    folder: &Path,
) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>, RegistryConfigError> {
    let Some(certificate) = files(folder, "cert").into_iter().next() else {
        return Ok(None);
    };
    let key = certificate.with_extension("key");
    if !key.exists() {
        return Err(RegistryConfigError::MissingKey { certificate });
    }
    let pem = |path: &Path| {
        let path = path.to_owned();
        move |source| RegistryConfigError::Pem { path, source }
    };
    let chain = CertificateDer::pem_file_iter(&certificate)
        .and_then(Iterator::collect)
        .map_err(pem(&certificate))?;
    let key = PrivateKeyDer::from_pem_file(&key).map_err(pem(&key))?;
    Ok(Some((chain, key)))
}

fn add_file(roots: &mut RootCertStore, path: &Path) {
    let Ok(certificates) = CertificateDer::pem_file_iter(path) else {
        return;
    };
    roots.add_parsable_certificates(certificates.flatten());
}

/// Takes any certificate: for registries listed as insecure.
#[derive(Debug)]
struct Unchecked(Arc<CryptoProvider>);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(endpoints: &Endpoints, domain: &str) -> Vec<String> {
        endpoints
            .of(domain)
            .unwrap()
            .iter()
            .map(|e| e.base.to_string())
            .collect()
    }

    #[test]
    fn only_loopback_and_listed_registries_may_be_plain() {
        let config = RegistryConfig {
            mirrors: vec!["http://127.0.0.1:1".into()],
            insecure: vec!["reg.lan:5000".into(), "10.1.0.0/16".into()],
            certs_dir: None,
        };
        let endpoints = Endpoints::new(config).unwrap();
        assert_eq!(
            bases(&endpoints, "docker.io"),
            ["http://127.0.0.1:1/", "https://registry-1.docker.io/"]
        );
        assert_eq!(bases(&endpoints, "quay.io"), ["https://quay.io/"]);
        for insecure in [
            "localhost:5000",
            "127.9.9.9",
            "[::1]:5000",
            "reg.lan:5000",
            "10.1.2.3:80",
        ] {
            assert_eq!(bases(&endpoints, insecure).len(), 2, "{insecure}");
        }
        for secure in [
            "reg.lan",
            "10.2.0.1",
            "[2001:db8::1]:5000",
            "localhost.example.com",
        ] {
            assert_eq!(bases(&endpoints, secure).len(), 1, "{secure}");
        }
    }

    #[test]
    fn settings_are_checked() {
        let with = |mirror: &[&str], insecure: &[&str]| {
            Endpoints::new(RegistryConfig {
                mirrors: mirror.iter().map(|&text| text.to_owned()).collect(),
                insecure: insecure.iter().map(|&text| text.to_owned()).collect(),
                certs_dir: None,
            })
            .map(|_| ())
        };
        assert!(with(&["ftp://x"], &[]).is_err());
        assert!(with(&["https://x/path"], &[]).is_err());
        assert!(with(&[], &["http://x"]).is_err());
        assert!(with(&[], &["10.0.0.0/33"]).is_err());
        assert!(with(&["https://x"], &["x:1", "::1/128"]).is_ok());
    }
}
