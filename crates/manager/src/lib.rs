//! The deciding half of a node.
//!
//! What it keeps true: every decision is a function of one state of the store and a time; only the
//! leader decides; what is decided becomes real only as a committed command. It knows no kernel and
//! no HTTP.

mod allocate;
mod brain;
mod dispatch;
mod draft;
mod liveness;
mod orchestrate;
mod schedule;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod testing;
