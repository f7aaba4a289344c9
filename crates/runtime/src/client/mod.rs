//! The daemon's side: a handle that finds, starts and follows the supervisor.

mod connection;
mod error;
mod logs;
mod runtime;

pub use error::{
    CreateError, DeleteError, LogError, OpenError, OperationError, SignalError, StartError,
    WaitError,
};
pub use logs::{LogLine, LogOptions};
pub use runtime::{CreateRequest, Keep, Runtime, RuntimeConfig, Sandbox};
