//! How nodes talk: the codec of everything stored or sent, framed sessions between an agent and the
//! dispatcher, and the pause between retries.
//!
//! What it keeps true: `bincode` is used in [`codec`] alone, behind a format byte; a session reads no
//! frame larger than it was told to expect. It knows no policy: who may connect, and what a message
//! means, is decided elsewhere.

pub mod backoff;
pub mod codec;
pub mod dial;
pub mod session;
