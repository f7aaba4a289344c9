//! How nodes talk: who they are to each other, connections between them, the codec of everything
//! stored or sent, framed sessions between an agent and the dispatcher, and the pause between retries.
//!
//! What it keeps true: `bincode` is used in [`codec`] alone, behind a format byte; a session reads no
//! frame larger than it was told to expect; a stream of the cluster port is between two nodes of one
//! cluster, whose certificates its root signed. It knows no policy: who may join, what a worker may
//! ask for once connected, and what a message means, is decided elsewhere.

pub mod backoff;
pub mod ca;
pub mod call;
pub mod clock;
pub mod cluster;
pub mod codec;
pub mod dial;
pub mod identity;
mod managers;
pub mod session;
pub mod stream;
#[cfg(test)]
mod testing;
pub mod token;
