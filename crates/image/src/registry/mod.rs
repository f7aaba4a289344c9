//! A client of registries (OCI distribution-spec; Docker's Registry HTTP API v2).
//!
//! What it keeps true: nothing it returns differs from the digest it was asked for; credentials
//! go only to the registry and the token server it names; a request is repeated when the network
//! or the server failed, never when the answer was no.

mod auth;
mod endpoint;
mod error;
mod manifest;
mod session;

use std::sync::Arc;

use auth::TokenCache;
pub use auth::{ParseAuthError, RegistryAuth};
use endpoint::Endpoints;
pub use endpoint::{RegistryConfig, RegistryConfigError};
pub use error::{RegistryError, ResolveError};
pub(crate) use manifest::{
    IndexEntry, Manifest, OCI_INDEX, OCI_MANIFEST, build, choose, config_descriptor,
    host_architecture,
};
pub use manifest::{ManifestError, Platform};
pub(crate) use session::{Resolved, Session};

use crate::{
    catalog::Descriptor,
    document::ImageDocument,
    hello,
    reference::{HUB, HUB_LEGACY, ParseReferenceError, Reference},
    store::ImageStore,
};

/// What a registry knows of a name (`GET /distribution/{name}/json`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DistributionInfo {
    pub descriptor: Descriptor,
    pub platforms: Vec<Platform>,
}

pub(crate) struct Registry {
    endpoints: Endpoints,
    tokens: Arc<TokenCache>,
}

impl Registry {
    pub(crate) fn new(config: RegistryConfig) -> Result<Self, RegistryConfigError> {
        Ok(Self {
            endpoints: Endpoints::new(config)?,
            tokens: Arc::default(),
        })
    }

    async fn login(&self, server: &Reference, auth: RegistryAuth) -> Result<(), RegistryError> {
        let endpoints = self.endpoints.of(server.domain())?;
        let mut last_error = None;
        for endpoint in endpoints.into_iter().filter(|one| !one.is_mirror) {
            // Tokens that were given to others tell nothing.
            match Session::login(endpoint, auth.clone()).await {
                Err(error) if error.is_connection() => last_error = Some(error),
                answered => return answered,
            }
        }
        Err(last_error.expect("every domain has an endpoint that is no mirror"))
    }

    /// Fetches the manifest that `reference` names, from the first endpoint that has it. The
    /// session in the answer stays with that endpoint.
    pub(crate) async fn resolve(
        &self,
        reference: &Reference,
        auth: Option<RegistryAuth>,
    ) -> Result<Resolved, RegistryError> {
        let endpoints = self.endpoints.of(reference.domain())?;
        let mut last_error = None;
        let count = endpoints.len();
        for (at, endpoint) in endpoints.into_iter().enumerate() {
            let is_last = at + 1 == count;
            let is_mirror = endpoint.is_mirror;
            // A mirror is another party: the registry's credentials are not for it.
            let auth = auth.clone().filter(|_| !is_mirror);
            let session =
                Session::new(endpoint, reference, auth, Arc::clone(&self.tokens), is_last);
            match session.resolve(reference).await {
                Ok(resolved) => return Ok(resolved),
                Err(error) if is_mirror => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "mirror passed over"
                    );
                }
                // Only "it does not speak TLS here" leads on to plain HTTP, not an answer.
                Err(error) if !error.is_connection() => return Err(error),
                Err(error) => last_error = Some(error),
            }
        }
        Err(last_error.expect("every domain has an endpoint that is no mirror"))
    }
}

impl ImageStore {
    /// Tries credentials with the registry they name, which is Docker Hub when they name none.
    pub async fn login(&self, auth: RegistryAuth) -> Result<(), ResolveError> {
        let server = auth.server_address.as_str();
        let server = server.split_once("://").map_or(server, |(_, rest)| rest);
        let domain = match server.split('/').next() {
            None | Some("") => HUB,
            Some(host) => host,
        };
        // A name without a dot would be taken for a part of the Hub: a slash more is of no image.
        let reference = Reference::parse(&format!("{domain}/login"))
            .map_err(|source: ParseReferenceError| ResolveError::Reference(source))?;
        if !matches!(domain, HUB | HUB_LEGACY) && reference.domain() != domain {
            return Err(ResolveError::Server(domain.to_owned()));
        }
        Ok(self.inner.registry.login(&reference, auth).await?)
    }

    /// Asks the registry what `reference` is, without pulling it.
    pub async fn resolve_digest(
        &self,
        reference: &str,
        auth: Option<RegistryAuth>,
    ) -> Result<DistributionInfo, ResolveError> {
        let reference = Reference::parse(reference)
            .map_err(|source: ParseReferenceError| ResolveError::Reference(source))?
            .with_default_tag();
        if hello::serves(&reference) {
            return Ok(hello::resolve(self, &reference).await?);
        }
        let resolved = self.inner.registry.resolve(&reference, auth).await?;
        let platforms = match &resolved.manifest {
            Manifest::Index(entries) => entries
                .iter()
                .filter_map(|entry| entry.platform.clone())
                .collect(),
            Manifest::Image { config, .. } => {
                let raw = resolved.session.small_blob(config).await?;
                let document = ImageDocument::parse(&raw)?;
                vec![Platform {
                    architecture: document.architecture().to_string(),
                    os: document.os().to_string(),
                    os_version: document.os_version().clone(),
                    variant: document.variant().clone(),
                }]
            }
        };
        Ok(DistributionInfo {
            descriptor: resolved.descriptor,
            platforms,
        })
    }
}
