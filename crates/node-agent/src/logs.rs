//! The output of a task, for a manager that asked for it.

use std::time::Duration;

use futures_util::StreamExt;
use shoal_runtime::{LogOptions, Runtime, Stream as Output};
use shoal_transport::{
    dial::{DialError, Dialer},
    session::{self, SendError},
};
use shoal_types::{
    TaskId, Timestamp,
    wire::{self, LogFrame, Purpose},
};
use tokio::time;
use tracing::debug;

use crate::task::container_id;

/// Whoever asked waits for the connection no longer than this.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
enum BringError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("no manager was reached in time")]
    Late,
    #[error(transparent)]
    Send(#[from] SendError),
}

/// Brings the output of `task` to the manager that gave the ticket.
pub(crate) async fn bring(
    runtime: Runtime,
    dialer: Dialer,
    ticket: u64,
    task: TaskId,
    options: wire::LogOptions,
) {
    // A manager that has lost interest hangs up, and asks again if it has not.
    if let Err(error) = try_bring(&runtime, &dialer, ticket, task, options).await {
        debug!(task.id = %task, error = crate::error_chain(&error), "output not brought");
    }
}

async fn try_bring(
    runtime: &Runtime,
    dialer: &Dialer,
    ticket: u64,
    task: TaskId,
    options: wire::LogOptions,
) -> Result<(), BringError> {
    let dial = dialer.dial_for(Purpose::Reply { ticket });
    let stream = time::timeout(DIAL_TIMEOUT, dial).await;
    let stream = stream.map_err(|_elapsed| BringError::Late)??;
    let (mut to_manager, mut from_manager) = session::open::<LogFrame, LogFrame, _>(stream);
    let container = container_id(&task);
    let state = runtime.state(container.as_str()).await;
    let failed = |error: &dyn std::error::Error| LogFrame::Failed {
        reason: crate::error_chain(error),
    };
    match state {
        // A task without a container has written nothing.
        Ok(None) => return Ok(to_manager.close().await?),
        Ok(Some(_)) => {}
        Err(error) => {
            to_manager.send(&failed(&error)).await?;
            return Ok(to_manager.close().await?);
        }
    }
    let mut lines = std::pin::pin!(runtime.logs(container.as_str(), translate(options)));
    loop {
        let line = tokio::select! {
            line = lines.next() => line,
            // The manager says nothing; its end of the stream is all that can come.
            _gone = from_manager.receive() => return Ok(()),
        };
        match line {
            None => return Ok(to_manager.close().await?),
            Some(Ok(line)) => {
                let record = LogFrame::Record {
                    at: from_jiff(line.at),
                    stderr: line.stream == Output::Stderr,
                    bytes: line.bytes,
                };
                to_manager.send(&record).await?;
            }
            Some(Err(error)) => {
                to_manager.send(&failed(&error)).await?;
                return Ok(to_manager.close().await?);
            }
        }
    }
}

fn translate(options: wire::LogOptions) -> LogOptions {
    LogOptions {
        follow: options.follow,
        since: options.since.map(to_jiff),
        until: options.until.map(to_jiff),
        tail: options
            .tail
            .map(|lines| usize::try_from(lines).unwrap_or(usize::MAX)),
        stdout: options.stdout,
        stderr: options.stderr,
    }
}

fn from_jiff(at: jiff::Timestamp) -> Timestamp {
    Timestamp(i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX))
}

/// A time that jiff can't hold is further away than any log.
fn to_jiff(at: Timestamp) -> jiff::Timestamp {
    jiff::Timestamp::from_nanosecond(i128::from(at.0)).unwrap_or(jiff::Timestamp::MAX)
}
