//! The deciding parts of an agent for a simulation that brings its own time, kernel and network. It is
//! no interface: it changes with what it shows.

pub use crate::{
    network::{Nodes, desired, gone},
    session::{Outbox, is_newer},
    task::machine::{Action, Container, decide},
};
