//! The deciding half of a node.
//!
//! ```text
//! Control ──────────────┐ commands          ┌──► Brain ──► commands
//! agents ─► dispatch ───┤                   │    orchestrate · allocate · schedule · liveness
//!              ▲        └──► store ──► state┤
//!              └── assignments ◄────────────┘
//! ```
//! What it keeps true: every decision is a function of one state of the store and a time; only the
//! leader decides; what is decided becomes real only as a committed command; a new leader goes on from
//! the store alone. It knows no kernel and no HTTP.

mod allocate;
mod brain;
mod clock;
mod cluster;
mod control;
#[doc(hidden)]
pub mod cores;
mod dispatch;
mod draft;
mod hub;
mod liveness;
mod manager;
mod orchestrate;
mod propose;
mod reconcile;
mod schedule;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod testing;

pub use control::{ClusterSettings, Control, ControlError, NewFile, Unavailable};
pub use liveness::LivenessConfig;
pub use manager::{
    Founding, InitError, InitOptions, Leader, LogsError, Manager, ManagerConfig, OpenError,
    TakeOverError, Tuning,
};
// What the answers of `Control` are made of, so that its users need not know the store.
pub use shoal_raft_store::{
    Applied, Commit, Commits, DataKey, KeyError, Kind, ObjectChange, RaftTuning, RecvError, State,
};

/// An error with all its causes, in one line.
pub(crate) fn error_chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
