//! The cluster's replicated state: what it is, how it changes, and how it survives.
//!
//! - [`State`]: ordered maps of objects with the indices that queries need, cheap to snapshot.
//! - [`Command`]: the only way to change it, all of its [`Change`]s or none.
//! - [`Store`]: the state of one member of a Raft group, on disk and in agreement with the others.
//! - [`Peers`]: how its messages get to other members; [`Router`] does it within a process.
//!
//! ```text
//! propose ─► raft ─► write-ahead log ─► disk ──┐ committed
//!              │                               ▼
//!              └──── peers ─► other members   machine ─► state(), watch(), changes()
//!                                              └─► snapshot files
//! ```
//! What it keeps true: `apply` gives the same state on every manager, because ids, times and random
//! parts arrive inside the command and every map is ordered; preconditions are checked in `apply`,
//! never under a lock held over a round trip. A proposal that was answered with `Ok` survives
//! everything that leaves a majority of disks. What a disk holds is sealed under a key that is not on
//! it. It decides nothing, and knows no agent and no API.
//! openraft is known here alone and shows nowhere outside.

mod command;
mod config;
mod feed;
mod key;
mod log;
mod machine;
mod peers;
mod raft;
mod record;
mod seal;
mod snapshot;
mod state;
mod store;
mod stored;
mod table;
#[cfg(test)]
mod tests;
mod wal;

pub use command::{Applied, Change, Command, Kind, Rejection};
pub use config::{RaftTuning, StoreConfig, TuningError};
pub use feed::{Commit, Commits, RecvError, TooOld};
pub use key::{DataKey, KeyError};
pub use peers::{Lane, Line, NoPeers, Peer, PeerError, Peers, Router, SnapshotBody};
pub use snapshot::SnapshotError;
pub use state::{AddressOwner, ObjectChange, State};
pub use store::{
    AnswerError, BootstrapError, Leadership, Member, MemberHealth, MembershipError, OpenError,
    ProposeError, ReadError, SnapshotRequestError, StorageError, Store, StoreStats,
};
pub use table::Table;
pub use wal::WalError;
