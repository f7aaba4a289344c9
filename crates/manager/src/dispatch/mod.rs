//! What agents are told and what they tell.

mod assignments;

pub(crate) use assignments::assignments;
