//! The Docker Engine API: its JSON, its routes, its streams, and a client for them.
//!
//! What it keeps true:
//! - [`wire`] holds what Docker's clients send and expect, byte for byte. Nothing of it is stored: the
//!   stored types are `shoal-types`, and `convert` goes both ways between the two.
//! - It decides nothing. A request is parsed, checked as far as its own text allows, and handed to
//!   the manager's `Control` or to the node's [`engine::LocalEngine`]; the answer is translated back.
//! - What Shoal cannot do yet is refused by name (400 or 501), never dropped in silence.
//! - A stream ends when its client goes away, and holds a bounded amount of memory however slow it is.

#![expect(
    clippy::zero_sized_map_values,
    reason = "Docker's JSON has maps of empty objects where it means sets"
)]

pub mod client;
mod convert;
pub mod engine;
mod server;
pub mod wire;

pub use server::{Engine, Listener, router, router_for_managers, serve, serve_stream};
