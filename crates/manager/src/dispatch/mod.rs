//! What agents are told and what they tell.

mod assignments;
pub(crate) mod reports;
mod session;

pub use assignments::assignments;
pub(crate) use assignments::managers;
pub use session::same_content;
pub(crate) use session::{SessionEnd, serve};
