//! Committing what agents report: one command for all that came in while the last one was committed.

use std::time::Duration;

use shoal_raft_store::{Change, Command, ProposeError, Store};
use tokio_util::sync::CancellationToken;

use crate::hub::Hub;

/// Statuses in one command.
const BATCH: usize = 1000;
/// Before trying again when the store could not take a command.
const RETRY: Duration = Duration::from_millis(100);

/// Commits reports until `stop`.
pub(crate) async fn run(store: Store, hub: &Hub, stop: CancellationToken) {
    loop {
        // Cancel-safe: a notification that is not taken is kept, and reports stay where they are.
        tokio::select! {
            () = hub.reported.notified() => {}
            () = stop.cancelled() => return,
        }
        loop {
            match commit(&store, hub).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::warn!(error = %error, "reports of agents could not be committed");
                    tokio::select! {
                        () = tokio::time::sleep(RETRY) => {}
                        () = stop.cancelled() => return,
                    }
                }
            }
        }
    }
}

/// Commits one batch; tells whether there was anything to commit.
async fn commit(store: &Store, hub: &Hub) -> Result<bool, ProposeError> {
    let at = hub.clock.wall();
    for (node, description) in hub.take_descriptions() {
        let description = Box::new(description);
        let change = Change::SetNodeDescription {
            id: node,
            description,
        };
        let changes = vec![change];
        match store.propose(Command { at, changes }).await {
            // A node that was removed meanwhile needs no description.
            Ok(_) | Err(ProposeError::Rejected(_) | ProposeError::NotLeader { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let reports = hub.take_reports(BATCH);
    if reports.is_empty() {
        return Ok(false);
    }
    let change = |(task, report): (&_, &crate::hub::Report)| Change::SetTaskStatus {
        id: *task,
        reporter: Some(report.session.node),
        status: report.status.clone(),
    };
    let changes = reports.iter().map(change).collect();
    match store.propose(Command { at, changes }).await {
        Ok(_applied) => {
            for (task, report) in reports {
                report.session.acknowledge(task);
            }
            Ok(true)
        }
        // The agents will report to the new leader.
        Err(ProposeError::NotLeader { .. } | ProposeError::Stopped) => Ok(false),
        Err(error) => {
            hub.give_back(reports);
            Err(error)
        }
    }
}
