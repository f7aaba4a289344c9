//! Tests of whole stores: one member, groups of them, and members that die.

mod alone;
mod crash;
mod full_disk;
mod group;
mod members;
mod sealed;
mod single;
mod stalls;
mod succession;
mod suite;
pub(crate) mod world;
