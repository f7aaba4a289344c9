//! The worker half of a node: takes whole assignment sets from a manager and makes the node look like
//! them.
//!
//! What it keeps true: it never decides where a task runs; every step of a task is idempotent and has
//! one owner, the task's worker; networks are brought up to date before tasks are; containers and
//! networks outlive the agent, and a new one takes them over. It translates: `runtime`, `image` and
//! `network` below it know no task.

mod agent;
mod clock;
#[doc(hidden)]
pub mod cores;
mod description;
mod logs;
mod network;
mod saved;
mod session;
mod task;
mod volumes;

pub use agent::{Agent, AgentConfig, Diagnosis, LocalTask};
pub use description::describe;
pub use task::{
    container_id,
    health::{Health, HealthStatus, Probe},
    mounts::{MountSource, TaskMount, VolumeUse},
    resources::resource_variables,
    template::expanded,
};
pub use volumes::{Volume, VolumeError, Volumes};
// The API's half of the house reaches the parts of a node through its agent.
pub use {shoal_image as image, shoal_network as datapath, shoal_runtime as runtime};

/// An error and its causes in one line.
pub(crate) fn error_chain(error: &(impl std::error::Error + ?Sized)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
