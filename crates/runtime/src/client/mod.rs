//! The daemon's side: a handle that finds, starts and follows the supervisor.

mod connection;
mod error;
mod exec;
mod logs;
mod runtime;

pub use error::{
    CreateError, DeleteError, ExecError, LogError, OpenError, OperationError, SignalError,
    StartError, WaitError,
};
pub use exec::{ExecOutcome, ExecSpec};
pub use logs::{LogLine, LogOptions};
pub use runtime::{CreateRequest, Keep, Runtime, RuntimeConfig, Sandbox};
