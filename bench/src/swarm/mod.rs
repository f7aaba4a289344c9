//! Services through the Engine API, the same requests to either side.

pub(crate) mod daemon;
mod workload;

pub(crate) use workload::{Plan, measure};
