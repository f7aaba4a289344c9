//! Errors, by operation.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::plan::InvalidSpec;
use crate::protocol::{Failure, ProtocolError};

/// Why no supervisor could be reached.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A path of the configuration cannot be used.
    #[error("{path} cannot be used: {reason}")]
    Path {
        /// The offending path.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A directory could not be made or cleaned.
    #[error("prepare {path}")]
    Prepare {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The supervisor's executable could not be run.
    #[error("run supervisor {exe}")]
    Run {
        /// The configured executable.
        exe: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The supervisor ran and refused to serve.
    #[error("the supervisor did not start: {0}")]
    Refused(String),
    /// The socket is there and does not answer.
    #[error("connect to {path}")]
    Connect {
        /// The supervisor's socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The living supervisor is of another version, and could not be upgraded.
    #[error(
        "the supervisor speaks version {theirs} of the protocol, not {}: {reason}",
        crate::protocol::PROTOCOL
    )]
    Outdated {
        /// Its version.
        theirs: u32,
        /// Why it could not be upgraded.
        reason: String,
    },
    /// Supervisors came and went for too long.
    #[error("no supervisor answered for {0:?}")]
    GaveUp(Duration),
    /// What answers at the socket is no supervisor of ours.
    #[error("the supervisor's answer makes no sense")]
    Protocol(#[source] Option<Box<dyn std::error::Error + Send + Sync>>),
}

impl From<ProtocolError> for OpenError {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(Some(Box::new(error)))
    }
}

/// Why an operation on a container failed.
#[derive(Debug, thiserror::Error)]
pub enum OperationError {
    /// There is no such container.
    #[error("no container {0}")]
    NotFound(String),
    /// The container is in another state.
    #[error("{0}")]
    State(String),
    /// A step of the work failed.
    #[error("{0}")]
    Step(String),
    /// No supervisor could be reached.
    #[error("reach the supervisor")]
    Supervisor(#[from] OpenError),
}

/// Why a container could not be created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The request asks for what cannot be done; nothing was made.
    #[error("invalid container")]
    Invalid(#[from] InvalidSpec),
    /// Making it failed; everything made was removed.
    #[error("create container: {0}")]
    Failed(String),
    /// A container of this id has already ended; delete it first.
    #[error("create container: {0}")]
    State(String),
    /// No supervisor could be reached.
    #[error("reach the supervisor")]
    Supervisor(#[from] OpenError),
}

/// Why a container could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The program could not be executed; the container has ended with `exit_code`.
    #[error("{message}")]
    Exec {
        /// Docker's words, such as `exec: "foo": executable file not found in $PATH`.
        message: String,
        /// 127: not found; 126: not executable; 128: something before it.
        exit_code: i32,
    },
    /// Anything else.
    #[error(transparent)]
    Operation(#[from] OperationError),
}

/// Why there is no outcome of a process in a container.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The request makes no sense; nothing was started.
    #[error("invalid command: {0}")]
    Invalid(&'static str),
    /// The program could not be executed.
    #[error("{message}")]
    Start {
        /// Docker's words, such as `exec: "foo": executable file not found in $PATH`.
        message: String,
        /// 127: not found; 126: not executable; 128: something before it.
        exit_code: i32,
    },
    /// The supervisor was replaced meanwhile, and the process killed. It says nothing of the container.
    #[error("the process was killed because the supervisor was replaced; run it again")]
    Interrupted,
    /// Anything else.
    #[error(transparent)]
    Operation(#[from] OperationError),
}

/// Why a container could not be deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// The supervisor could not remove it.
    #[error(transparent)]
    Operation(#[from] OperationError),
    /// Its data could not be removed.
    #[error("remove {path}")]
    Remove {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Why a signal was not sent.
pub type SignalError = OperationError;
/// Why a container's end could not be waited for.
pub type WaitError = OperationError;

/// Why a log could not be read on.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The id is no container id.
    #[error(transparent)]
    Id(#[from] InvalidSpec),
    /// Reading failed.
    #[error("read log {path}")]
    Read {
        /// The log file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Whether the container has ended could not be learnt.
    #[error("follow the container")]
    Wait(#[source] OperationError),
}

impl OperationError {
    pub(super) fn from_failure(id: &str, failure: Failure) -> Self {
        match failure {
            Failure::NotFound => Self::NotFound(id.to_owned()),
            Failure::State(text) => Self::State(text),
            Failure::Step(text) | Failure::Start { message: text, .. } => Self::Step(text),
            Failure::Interrupted => Self::Step("the supervisor is being replaced".to_owned()),
        }
    }
}
