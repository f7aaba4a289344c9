//! What a command fails with, and the exit code that scripts see for it.

use std::{io, process::ExitCode};

use shoal_engine_api::client::Endpoint;

use crate::{opts::BadValue, template::TemplateError};

pub(crate) type Result<T = (), E = CliError> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The daemon's own words.
    #[error("Error response from daemon: {message}")]
    Refused { status: u16, message: String },
    #[error(
        "Cannot connect to the Shoal daemon at {endpoint}. Is the daemon running? Start it with: shoal daemon"
    )]
    Unreachable {
        endpoint: Endpoint,
        #[source]
        source: io::Error,
    },
    #[error(
        "permission denied while trying to connect to the Shoal daemon socket at {endpoint}. Run this as root or join the group that owns the socket"
    )]
    Forbidden { endpoint: Endpoint },
    #[error("error during connect: {method} {path}: {source}")]
    Transport {
        method: http::Method,
        path: String,
        #[source]
        source: hyper::Error,
    },
    #[error("the daemon's answer to {method} {path} is not JSON: {source}")]
    Answer {
        method: http::Method,
        path: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("connection to the daemon lost: {0}")]
    Lost(#[source] hyper::Error),
    #[error(transparent)]
    Frame(#[from] shoal_engine_api::wire::FrameError),
    #[error("template parsing error: {0}")]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Value(#[from] BadValue),
    /// Wrong use of the command line, with the usage text.
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Message(String),
    /// One line an error, when a command goes on with its other arguments.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Several(Vec<Self>),
    #[error("{path}: {source}")]
    File {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("write output: {0}")]
    Output(#[source] io::Error),
}

/// The reader of our output went away; a shell shows this for a program that SIGPIPE ended.
const BROKEN_PIPE: u8 = 128 + 13;

/// Wrong use of flags, as in Docker.
pub(crate) const USAGE: u8 = 125;

impl CliError {
    pub(crate) fn message(text: impl Into<String>) -> Self {
        Self::Message(text.into())
    }

    pub(crate) fn file(path: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// Whether nobody is there to read even this error.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(USAGE),
            error if error.is_broken_pipe() => ExitCode::from(BROKEN_PIPE),
            _ => ExitCode::FAILURE,
        }
    }

    /// Ends a command that went through all its arguments.
    pub(crate) fn all(errors: Vec<Self>) -> Result {
        if errors.is_empty() {
            Ok(())
        } else {
            Err(Self::Several(errors))
        }
    }
}
