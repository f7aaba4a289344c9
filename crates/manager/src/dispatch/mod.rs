//! What agents are told and what they tell.

mod assignments;
pub(crate) mod reports;
mod session;

#[cfg(test)]
pub(crate) use assignments::assignments;
pub(crate) use assignments::{Networks, assignments_with, managers};
pub(crate) use session::{SessionEnd, serve};
