//! The cluster's replicated state: what it is, how it changes, and how it survives.
//!
//! - [`State`]: ordered maps of objects with the indices that queries need, cheap to snapshot.
//! - [`Command`]: the only way to change it, all of its [`Change`]s or none.
//!
//! What it keeps true: `apply` gives the same state on every manager, because ids, times and random
//! parts arrive inside the command and every map is ordered; preconditions are checked in `apply`,
//! never under a lock held over a round trip. It decides nothing, and knows no agent and no API.

mod command;
mod state;
mod table;

pub use command::{Applied, Change, Command, Kind, Rejection};
pub use state::{AddressOwner, ObjectChange, State};
pub use table::Table;
