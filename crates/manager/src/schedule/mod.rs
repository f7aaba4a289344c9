//! Where a task runs: filters say which nodes may, the rank says which is best.
//!
//! Keeps true: the same index and request give the same node; a task that has no node carries the
//! reason, in Swarm's words; placing one task reads the nodes it passes over and no more.

mod constraint;
mod filter;
mod index;
mod place;

pub(crate) use constraint::Constraint;
pub(crate) use filter::Request;
pub(crate) use index::{NodeIndex, takes_new_tasks};
pub(crate) use place::Placer;
