//! What agents are told and what they tell.

mod assignments;
pub(crate) mod reports;
mod session;

pub(crate) use assignments::{assignments, managers};
pub(crate) use session::{SessionEnd, serve};
