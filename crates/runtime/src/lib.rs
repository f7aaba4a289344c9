//! Containers: an OCI spec in, a container out.
//!
//! A daemon holds a [`Runtime`], a client of one small *supervisor* process per node, which makes the containers, is their
//! parent, writes their logs and remembers how they ended ([`supervisor_main`]). What this crate keeps true:
//!
//! - Containers outlive the daemon and the supervisor; a new supervisor adopts them with their output and exit statuses.
//! - What is asked for happens or is refused by name ([`InvalidSpec`]); nothing of a spec is silently left out.
//! - Every operation is idempotent by container id, and a failed one leaves nothing behind: no process, mount, cgroup,
//!   FIFO or directory.
//! - A container's mounts live in its own mount namespace and go with it.
//!
//! It knows containers only: no task, service, node, registry or network. Whoever attaches a network does so between
//! [`Runtime::create`] and [`Runtime::start`], through the network namespace in [`Sandbox`].

mod cgroup;
mod child;
mod client;
mod paths;
mod plan;
mod protocol;
mod seccomp;
mod state;
mod supervisor;
mod sys;

pub use cgroup::LimitSupport;
pub use client::{
    CreateError, CreateRequest, DeleteError, ExecError, ExecOutcome, ExecSpec, Keep, LogError,
    LogLine, LogOptions, OpenError, OperationError, Runtime, RuntimeConfig, Sandbox, SignalError,
    StartError, WaitError,
};
pub use plan::{ContainerFile, EtcFiles, InvalidSpec, LogConfig, Rootfs, default_spec};
pub use seccomp::{ProfileError, SeccompError, SeccompFilter, default_seccomp, docker_profile};
pub use state::{ContainerState, ExitStatus, Phase, Started, Stream};
pub use supervisor::supervisor_main;
pub use sys::memory;

/// A signal that can be sent to a container.
pub use rustix::process::Signal;
