//! The one place of the agent that reads the wall clock.

use std::time::{SystemTime, UNIX_EPOCH};

use shoal_types::Timestamp;

pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::EPOCH.after(since)
}
