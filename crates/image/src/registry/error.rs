//! What can go wrong with a registry, in Docker's words (moby `daemon/internal/distribution`).

use http::StatusCode;
use serde::Deserialize;

use super::{ManifestError, RegistryConfigError};
use crate::{digest::Digest, document::DocumentError, reference::ParseReferenceError};

/// A registry did not give what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error(
        "pull access denied for {repository}, repository does not exist or may require 'docker login': {cause}"
    )]
    Denied { repository: String, cause: String },
    #[error("{url}: unauthorized: {cause}")]
    Unauthorized { url: String, cause: String },
    #[error("manifest for {reference} not found: {cause}")]
    ManifestUnknown { reference: String, cause: String },
    #[error("repository {repository} not found: {cause}")]
    NameUnknown { repository: String, cause: String },
    #[error("{url}: blob {digest} not found")]
    BlobUnknown { url: String, digest: Digest },
    #[error("toomanyrequests: {cause}")]
    TooManyRequests { cause: String },
    #[error("{url}: unexpected status {status}: {cause}")]
    Status {
        url: String,
        status: StatusCode,
        cause: String,
    },
    #[error("Get {url:?}")]
    Connection {
        url: String,
        #[source]
        source: reqwest::Error,
    },
    /// The connection broke again and again.
    #[error("{url}: broken off after {received} of {size} bytes")]
    Interrupted {
        url: String,
        received: u64,
        size: u64,
    },
    #[error("{url}: token server {realm:?} must be reached by https")]
    InsecureRealm { url: String, realm: String },
    #[error("{url}: the token server's answer holds no token")]
    NoToken { url: String },
    /// Docker's words for the same.
    #[error("filesystem layer verification failed for digest {expected}: content is {actual}")]
    WrongContent { expected: Digest, actual: Digest },
    #[error("manifest verification failed for digest {expected}: content is {actual}")]
    WrongManifest { expected: Digest, actual: Digest },
    #[error("{url}: more than {limit} bytes")]
    TooLarge { url: String, limit: u64 },
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Config(#[from] RegistryConfigError),
    #[error("make the built-in image")]
    Builtin(#[source] Box<crate::import::ImportError>),
    #[error("keep what {url} sends")]
    Disk {
        url: String,
        #[source]
        source: std::io::Error,
    },
}

impl RegistryError {
    /// No answer came at all.
    pub(super) fn is_connection(&self) -> bool {
        matches!(self, Self::Connection { .. })
    }

    /// What was asked for is not there, or not for this user: HTTP 404 in Docker's API.
    pub fn is_not_found(&self) -> bool {
        matches!(
            self,
            Self::Denied { .. } | Self::ManifestUnknown { .. } | Self::NameUnknown { .. }
        )
    }
}

/// A name could not be looked up in its registry.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    #[error(transparent)]
    Reference(ParseReferenceError),
    #[error("{0:?} is no registry's address: it needs a dot or a port")]
    Server(String),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("image configuration in registry")]
    Document(#[from] DocumentError),
}

/// The body of an error answer (distribution-spec, "Error Codes").
#[derive(Deserialize, Default)]
pub(super) struct ErrorBody {
    #[serde(default)]
    errors: Vec<ErrorItem>,
}

#[derive(Deserialize)]
struct ErrorItem {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl ErrorBody {
    pub(super) fn parse(body: &[u8]) -> Self {
        serde_json::from_slice(body).unwrap_or_default()
    }

    pub(super) fn code(&self) -> &str {
        self.errors.first().map_or("", |error| error.code.as_str())
    }

    /// `manifest unknown: manifest unknown`, or the fallback when the body says nothing.
    pub(super) fn text(&self, fallback: &str) -> String {
        match self.errors.first() {
            Some(error) => {
                let code = error.code.to_lowercase().replace('_', " ");
                if error.message.is_empty() {
                    code
                } else {
                    format!("{code}: {}", error.message)
                }
            }
            None => fallback.to_owned(),
        }
    }
}
