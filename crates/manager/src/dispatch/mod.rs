//! What agents are told and what they tell.

mod assignments;
pub(crate) mod reports;
mod session;

pub use assignments::assignments;
pub(crate) use assignments::{Networks, assignments_with, managers};
pub use session::news;
pub(crate) use session::{SessionEnd, serve};
