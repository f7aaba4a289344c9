//! Output of containers, tasks and services.
//!
//! The head of the answer is sent at once; what goes wrong later is told in the stream, as frames of
//! the engine's own. A record is asked for only when the one before it has been sent.

use std::{
    collections::{BTreeSet, VecDeque},
    pin::Pin,
    sync::Arc,
};

use axum::{
    extract::{Path, State},
    response::Response,
};
use bytes::Bytes;
use futures_util::{
    Stream, StreamExt,
    stream::{self, SelectAll},
};
use http::StatusCode;
use shoal_types::{
    NodeId, ServiceId, TaskId, Timestamp,
    object::Task,
    spec::{LogDriver, TaskSpec},
};

use super::{
    Engine,
    error::{ApiError, ApiResult},
    find,
    query::Query,
    routes::find_container,
    stream::response,
};
use crate::{
    engine::{
        BoxStream, Changes, Control, EngineError, LocalEngine, LogRecord, LogRequest, OutputStream,
        Result,
    },
    wire::{LogFrame, LogStream},
};

/// How records are written.
#[derive(Debug, Clone, Copy)]
struct Format {
    timestamps: bool,
    details: bool,
    /// With a terminal there is one stream and no frames.
    tty: bool,
}

/// A record and what `details` says of where it is from.
struct Line {
    record: LogRecord,
    origin: Arc<str>,
}

type Lines = Pin<Box<dyn Stream<Item = Result<Line>> + Send>>;

pub(crate) async fn container(
    State(engine): State<Engine>,
    Path(id): Path<String>,
    query: Query,
) -> ApiResult<Response> {
    let (request, format) = options(&query)?;
    let containers = engine.local.containers().await?;
    let container = find_container(&containers, &id)?;
    readable(container.log.keeps_output())?;
    let format = Format {
        tty: container.tty,
        ..format
    };
    let records = engine.local.container_logs(&container.id, request).await?;
    let origin: Arc<str> = "".into();
    Ok(answer(lines(records, origin), format))
}

pub(crate) async fn task(
    State(engine): State<Engine>,
    Path(id): Path<String>,
    query: Query,
) -> ApiResult<Response> {
    let (request, format) = options(&query)?;
    let manager = engine.manager()?;
    let state = manager.control.state().await?;
    let task = find::task(&state, &id)?;
    readable(keeps_output(&task.spec))?;
    let format = Format {
        tty: task.spec.container.tty,
        ..format
    };
    let lines: Lines = match task.node {
        Some(node) => {
            let records = engine.local.task_logs(task.id, request).await?;
            Box::pin(lines(records, origin(task.service, task.id, node)))
        }
        None => Box::pin(stream::empty()),
    };
    Ok(answer(lines, format))
}

pub(crate) async fn service(
    State(engine): State<Engine>,
    Path(id): Path<String>,
    query: Query,
) -> ApiResult<Response> {
    let (request, format) = options(&query)?;
    let manager = engine.manager()?;
    // Listening before looking, so that no task falls between the two.
    let changes = manager.control.changes();
    let state = manager.control.state().await?;
    let service = find::service(&state, &id)?;
    // Tasks from before its output went nowhere have some that can be read.
    let mut tasks = state.tasks_of(service.id);
    readable(keeps_output(&service.spec.task) || tasks.any(|task| keeps_output(&task.spec)))?;
    let format = Format {
        tty: service.spec.task.container.tty,
        ..format
    };
    let mut merge = Merge {
        local: engine.local.clone(),
        request,
        service: service.id,
        open: SelectAll::new(),
        seen: BTreeSet::new(),
    };
    let mut opened = Vec::new();
    for task in state.tasks_of(service.id) {
        if let Some(lines) = merge.open(task).await {
            opened.push(lines);
        }
    }
    if !request.follow {
        return Ok(answer(in_order(opened), format));
    }
    merge.open.extend(opened);
    Ok(answer(follow(merge, manager.control, changes), format))
}

fn keeps_output(task: &TaskSpec) -> bool {
    task.log_driver.as_ref().is_none_or(LogDriver::keeps_output)
}

fn readable(keeps_output: bool) -> ApiResult<()> {
    if keeps_output {
        return Ok(());
    }
    // In Docker's words.
    Err(ApiError::new(
        StatusCode::NOT_IMPLEMENTED,
        "configured logging driver does not support reading",
    ))
}

fn options(query: &Query) -> ApiResult<(LogRequest, Format)> {
    let (stdout, stderr) = (query.flag("stdout"), query.flag("stderr"));
    if !stdout && !stderr {
        return Err(ApiError::bad_request(
            "Bad parameters: you must choose at least one stream",
        ));
    }
    let tail = match query.text("tail") {
        "" | "all" => None,
        // A negative number means all of them too, as in Docker.
        text => match text.parse::<i64>() {
            Ok(lines) => u64::try_from(lines).ok(),
            Err(_) => {
                return Err(ApiError::bad_request(format!(
                    "invalid value for \"tail\": {text:?}"
                )));
            }
        },
    };
    let request = LogRequest {
        stdout,
        stderr,
        follow: query.flag("follow"),
        since: query.time("since")?,
        until: query.time("until")?,
        tail,
    };
    let format = Format {
        timestamps: query.flag("timestamps"),
        details: query.flag("details"),
        tty: false,
    };
    Ok((request, format))
}

/// The keys that `docker service logs` looks for; it fails on a line without all three.
fn origin(service: ServiceId, task: TaskId, node: NodeId) -> Arc<str> {
    format!(
        "com.docker.swarm.node.id={node},com.docker.swarm.service.id={service},\
         com.docker.swarm.task.id={task}"
    )
    .into()
}

fn lines(
    records: BoxStream<'static, Result<LogRecord>>,
    origin: Arc<str>,
) -> impl Stream<Item = Result<Line>> + Send + Unpin {
    records.map(move |record| {
        Ok(Line {
            record: record?,
            origin: origin.clone(),
        })
    })
}

fn answer(lines: impl Stream<Item = Result<Line>> + Send + 'static, format: Format) -> Response {
    let media_type = if format.tty {
        "application/vnd.docker.raw-stream"
    } else {
        "application/vnd.docker.multiplexed-stream"
    };
    response(media_type, lines.map(move |line| encode(line, format)))
}

fn encode(line: Result<Line>, format: Format) -> Bytes {
    let (stream, payload) = match line {
        Ok(Line { record, origin }) => {
            let stream = match record.stream {
                OutputStream::Stdout => LogStream::Stdout,
                OutputStream::Stderr => LogStream::Stderr,
            };
            let mut payload = String::new();
            if format.timestamps {
                payload.push_str(&fixed_time(record.at));
                payload.push(' ');
            }
            if format.details {
                payload.push_str(&origin);
                payload.push(' ');
            }
            if payload.is_empty() {
                (stream, record.bytes)
            } else {
                (
                    stream,
                    Bytes::from([payload.as_bytes(), &record.bytes].concat()),
                )
            }
        }
        Err(error) => {
            let text = super::error::with_causes(&error);
            (
                LogStream::System,
                Bytes::from(format!("Error grabbing logs: {text}\n")),
            )
        }
    };
    if format.tty {
        payload
    } else {
        LogFrame { stream, payload }.encode()
    }
}

/// RFC 3339 with exactly nine digits, so that columns line up.
fn fixed_time(at: Timestamp) -> String {
    let at = jiff::Timestamp::from_nanosecond(i128::from(at.0))
        .expect("every i64 of nanoseconds lies in jiff's range");
    format!("{at:.9}")
}

/// The tasks of a service, each opened once.
struct Merge {
    local: Arc<dyn LocalEngine>,
    request: LogRequest,
    service: ServiceId,
    open: SelectAll<Lines>,
    seen: BTreeSet<TaskId>,
}

impl Merge {
    /// `None` for a task that has no output: it has no node, or never came to have a container.
    async fn open(&mut self, task: &Task) -> Option<Lines> {
        let node = task.node?;
        if task.status.container.is_none() || !self.seen.insert(task.id) {
            return None;
        }
        match self.local.task_logs(task.id, self.request).await {
            Ok(records) => Some(Box::pin(lines(
                records,
                origin(self.service, task.id, node),
            ))),
            Err(EngineError::NotFound { .. }) => {
                // Perhaps not yet: the next change of the swarm asks again.
                self.seen.remove(&task.id);
                None
            }
            // One task that cannot be read is told and does not hide the others.
            Err(error) => Some(Box::pin(stream::iter([Err(error)]))),
        }
    }
}

/// Merges streams that are each in order of time; holds one line of each.
fn in_order(streams: Vec<Lines>) -> impl Stream<Item = Result<Line>> + Send {
    let waiting: Vec<(Option<Line>, Lines)> = streams.into_iter().map(|s| (None, s)).collect();
    let errors: VecDeque<EngineError> = VecDeque::new();
    stream::unfold((waiting, errors), |(mut waiting, mut errors)| async move {
        let mut n = 0;
        while n < waiting.len() {
            let (head, lines) = &mut waiting[n];
            if head.is_none() {
                match lines.next().await {
                    Some(Ok(line)) => *head = Some(line),
                    Some(Err(error)) => {
                        errors.push_back(error);
                        continue;
                    }
                    None => {
                        drop(waiting.swap_remove(n));
                        continue;
                    }
                }
            }
            n += 1;
        }
        if let Some(error) = errors.pop_front() {
            return Some((Err(error), (waiting, errors)));
        }
        let oldest = waiting.iter_mut().filter_map(|(head, _)| {
            let at = head.as_ref()?.record.at;
            Some((at, head))
        });
        let (_, head) = oldest.min_by_key(|(at, _)| *at)?;
        let line = head.take()?;
        Some((Ok(line), (waiting, errors)))
    })
}

/// Goes on with tasks that come to be, until the service is gone and all that ran has ended.
fn follow(
    merge: Merge,
    control: Arc<dyn Control>,
    changes: Changes,
) -> impl Stream<Item = Result<Line>> + Send {
    stream::unfold(
        (merge, control, Some(changes)),
        |(mut merge, control, mut changes)| async move {
            loop {
                let watching = changes.is_some();
                let quiet = merge.open.is_empty();
                if quiet && !watching {
                    return None;
                }
                // Cancel-safe: both take an item only when they return it.
                tokio::select! {
                    Some(line) = merge.open.next(), if !quiet => {
                        return Some((line, (merge, control, changes)));
                    }
                    change = next_change(&mut changes), if watching => {
                        if change.is_none() {
                            changes = None;
                            continue;
                        }
                        let Ok(state) = control.state().await else { continue };
                        if state.service(&merge.service).is_none() {
                            changes = None;
                        }
                        for task in state.tasks_of(merge.service) {
                            if let Some(lines) = merge.open(task).await {
                                merge.open.push(lines);
                            }
                        }
                    }
                    else => {}
                }
            }
        },
    )
}

async fn next_change(changes: &mut Option<Changes>) -> Option<crate::engine::Change> {
    changes.as_mut()?.next().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(at: i64, text: &str) -> LogRecord {
        LogRecord {
            at: Timestamp(at),
            stream: OutputStream::Stdout,
            bytes: Bytes::copy_from_slice(text.as_bytes()),
        }
    }

    fn of(name: &str, records: Vec<Result<LogRecord>>) -> Lines {
        Box::pin(lines(Box::pin(stream::iter(records)), name.into()))
    }

    #[tokio::test]
    async fn lines_of_several_tasks_come_in_order_of_time_and_errors_hide_nothing() {
        let broken = EngineError::Unavailable("node is down".into());
        let a = of(
            "a",
            vec![Ok(record(1, "1")), Err(broken), Ok(record(4, "4"))],
        );
        let b = of("b", vec![Ok(record(2, "2")), Ok(record(3, "3"))]);
        let merged: Vec<String> = in_order(vec![a, b])
            .map(|line| match line {
                Ok(line) => String::from_utf8(line.record.bytes.to_vec()).unwrap(),
                Err(error) => error.to_string(),
            })
            .collect()
            .await;
        assert_eq!(merged, ["1", "node is down", "2", "3", "4"]);
    }

    #[test]
    fn time_and_origin_come_before_the_line() {
        let line = Line {
            record: record(1_500_000_000, "hi\n"),
            origin: "k=v".into(),
        };
        let format = Format {
            timestamps: true,
            details: true,
            tty: true,
        };
        assert_eq!(
            encode(Ok(line), format),
            "1970-01-01T00:00:01.500000000Z k=v hi\n"
        );
    }
}
