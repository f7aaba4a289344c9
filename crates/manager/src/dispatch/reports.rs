//! Committing what agents report: one command for all that came in while the last one was committed.

use std::{collections::BTreeMap, time::Duration};

use shoal_raft_store::{Change, Command, ProposeError, Store};
use shoal_types::{TaskId, object::NodeDescription};
use tokio_util::sync::CancellationToken;

use crate::{
    hub::{Hub, Report},
    propose,
};

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
    let described = commit_descriptions(store, hub).await?;
    let reports = hub.take_reports(BATCH);
    if reports.is_empty() {
        return Ok(described);
    }
    match commit_statuses(store, hub, reports).await {
        Ok(()) => Ok(true),
        // The agents will report to the new leader.
        Err(ProposeError::NotLeader { .. } | ProposeError::Stopped) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn commit_descriptions(store: &Store, hub: &Hub) -> Result<bool, ProposeError> {
    let mut descriptions = hub.take_descriptions();
    // A node that was removed meanwhile needs none, and must not stand in the way of the others.
    let state = store.state();
    descriptions.retain(|node, _| state.node(node).is_some());
    if descriptions.is_empty() {
        return Ok(false);
    }
    let change = |(node, description): (&_, &NodeDescription)| Change::SetNodeDescription {
        id: *node,
        description: Box::new(description.clone()),
    };
    let changes = descriptions.iter().map(change).collect();
    match propose::in_parts(store, command(hub, changes)).await {
        Ok(()) => Ok(true),
        Err(ProposeError::NotLeader { .. } | ProposeError::Stopped) => Ok(false),
        Err(ProposeError::Rejected(_)) => {
            // One of the nodes went just now; without it they are taken.
            hub.give_back_descriptions(descriptions);
            Ok(true)
        }
        Err(error) => {
            hub.give_back_descriptions(descriptions);
            Err(error)
        }
    }
}

/// Commits `reports`, in halves if they are too large for one command. What could not be committed is
/// given back.
async fn commit_statuses(
    store: &Store,
    hub: &Hub,
    reports: BTreeMap<TaskId, Report>,
) -> Result<(), ProposeError> {
    let mut parts = vec![reports];
    while let Some(mut reports) = parts.pop() {
        let change = |(task, report): (&_, &Report)| Change::SetTaskStatus {
            id: *task,
            reporter: Some(report.session.node),
            status: report.status.clone(),
        };
        let changes = reports.iter().map(change).collect();
        match store.propose(command(hub, changes)).await {
            Ok(_applied) => {
                for (task, report) in reports {
                    report.session.acknowledge(task, report.status.state);
                }
            }
            Err(ProposeError::TooLarge { .. }) if reports.len() > 1 => {
                let middle = reports.keys().nth(reports.len() / 2).copied();
                let second = middle.map(|middle| reports.split_off(&middle));
                parts.extend(second);
                parts.push(reports);
            }
            Err(error @ ProposeError::TooLarge { .. }) => {
                // Repeating it would not help, and would hold up everybody else's.
                for (task, report) in reports {
                    tracing::warn!(%error, task.id = %task, "a report cannot be stored");
                    report.session.acknowledge(task, report.status.state);
                }
            }
            Err(error) => {
                hub.give_back(reports);
                for part in parts {
                    hub.give_back(part);
                }
                return Err(error);
            }
        }
    }
    Ok(())
}

fn command(hub: &Hub, changes: Vec<Change>) -> Command {
    let at = hub.clock.wall();
    Command { at, changes }
}
