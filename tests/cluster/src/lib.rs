//! The harness of the end-to-end tests: real binaries, each daemon in a network namespace of its own,
//! driven by `shoal` and by the docker CLI.
//!
//! A [`Host`] is a machine as far as a daemon can tell: its own network, data directories and cgroups.
//! A [`Cluster`] is several of them on one switch, whose cables and power can be cut.
//! Dropping it ends everything it started, by pid, and takes its directories away; when the test is
//! failing, the daemon's log stays and its path is printed.
#![expect(
    clippy::print_stderr,
    reason = "a failing test says where its logs are"
)]

mod cluster;
mod command;
mod faults;
mod host;
mod image;
mod inside;
mod leaks;
pub mod line;
mod load;
mod network;
mod process;
mod registry;
mod runbook;
mod wait;

pub use cluster::{Cluster, NodeLine, Role, TaskLine};
pub use command::Output;
pub use host::Host;
pub use image::{busybox_tar, docker_archive, program_tar};
pub use inside::{addresses, fetch, field, inside};
pub use leaks::Inventory;
pub use load::{Answers, Connections, Load};
pub use network::Network;
pub use process::{is_alive, send, start_time};
pub use registry::{REGISTRY, Registry};
pub use runbook::{Runbook, another_build};
pub use wait::{DEADLINE, wait_for};
