//! The words every part of Shoal shares: ids, specs, stored objects, the task lifecycle, and the
//! messages between managers and agents.
//!
//! What it keeps true: these types are plain values. There is no IO, no clock, no randomness and
//! no async here, and nothing that bincode cannot carry (no `skip_serializing_if`, `flatten` or
//! `untagged`). Docker's JSON is not known here; `engine-api` converts at the edge.
//!
//! Enum variants are only ever appended and fields only ever added behind a new [format], because every
//! one of these types is written to disk or sent to a node that may run another release.

pub mod format;
mod id;
pub mod object;
mod shared;
pub mod spec;
mod task_state;
mod time;
pub mod wire;

pub use id::{
    ClusterId, ConfigId, ContainerId, Generation, NetworkId, NodeId, ParseIdError, RaftId,
    SecretId, ServiceId, Slot, TaskId, Version, VolumeId,
};
pub use shared::Shared;
pub use task_state::{ContainerStatus, Desired, TaskState, TaskStatus};
pub use time::Timestamp;
