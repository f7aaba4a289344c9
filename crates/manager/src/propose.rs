//! Commands that may be too large for one entry of the log.

use shoal_raft_store::{Command, ProposeError, Store};

/// Proposes `command`, in halves if it is too large for the log. A single change that is too large is
/// left out: it would be so in every attempt, and everything else would wait for it for ever.
pub(crate) async fn in_parts(store: &Store, command: Command) -> Result<(), ProposeError> {
    let mut parts = vec![command];
    while let Some(mut command) = parts.pop() {
        match store.propose(command.clone()).await {
            Ok(_applied) => {}
            Err(ProposeError::TooLarge { .. }) if command.changes.len() > 1 => {
                let changes = command.changes.split_off(command.changes.len() / 2);
                let at = command.at;
                parts.push(Command { at, changes });
                parts.push(command);
            }
            Err(error @ ProposeError::TooLarge { .. }) => {
                tracing::error!(%error, "a change is left out");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
