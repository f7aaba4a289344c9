//! `shoal daemon`: the wiring of a node.

use crate::daemon_args::DaemonArgs;

/// Runs a node until it is told to stop.
pub(crate) fn run(args: DaemonArgs) -> anyhow::Result<()> {
    anyhow::bail!(
        "this build cannot run a node (asked for one in {})",
        args.data_root.display()
    )
}
