//! Reading logs: Docker's JSON lines from the files themselves, so that neither daemon nor supervisor need to have lived.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream as AsyncStream;
use jiff::Timestamp;
use rustix::fs::inotify;
use serde::Deserialize;
use tokio::io::unix::AsyncFd;

use super::error::{LogError, OperationError, WaitError};
use super::runtime::Runtime;
use crate::paths::{Paths, rotated};
use crate::{ExitStatus, Stream};

/// How much is read at a time.
const CHUNK: usize = 64 * 1024;
/// More files than any rotation keeps: where looking for older ones ends.
const MOST_FILES: u32 = 10_000;

/// Which lines of a log, and whether to wait for more.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogOptions {
    /// Go on until the container has ended.
    pub follow: bool,
    /// Only lines at or after this.
    pub since: Option<Timestamp>,
    /// Only lines at or before this.
    pub until: Option<Timestamp>,
    /// Only the last so many of the lines there are.
    pub tail: Option<usize>,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

/// One line of output, or a piece of 16 KiB of a longer one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// The stream it was written to.
    pub stream: Stream,
    /// When the supervisor read it.
    pub at: Timestamp,
    /// The text, with its newline if it had one.
    pub bytes: Vec<u8>,
}

pub(super) fn stream(
    runtime: Runtime,
    paths: Paths,
    id: String,
    options: LogOptions,
) -> impl AsyncStream<Item = Result<LogLine, LogError>> + Send + 'static {
    let state = State::Begin { runtime, paths, id };
    futures_util::stream::unfold((state, options), |(mut state, options)| async move {
        loop {
            match state {
                State::Begin { runtime, paths, id } => {
                    match begin(runtime, &paths, &id, options).await {
                        Ok(reader) => state = State::Reading(Box::new(reader)),
                        Err(error) => return Some((Err(error), (State::Done, options))),
                    }
                }
                State::Reading(mut reader) => match reader.next().await {
                    Some(Ok(line)) => return Some((Ok(line), (State::Reading(reader), options))),
                    Some(Err(error)) => return Some((Err(error), (State::Done, options))),
                    None => return None,
                },
                State::Done => return None,
            }
        }
    })
}

enum State {
    Begin {
        runtime: Runtime,
        paths: Paths,
        id: String,
    },
    Reading(Box<Reader>),
    Done,
}

/// The answer to one question, however often its asker looks whether it has come: each wait is kept by the supervisor.
type Ending = Pin<Box<dyn Future<Output = Result<ExitStatus, WaitError>> + Send>>;

struct Reader {
    options: LogOptions,
    path: PathBuf,
    /// Files still to be read, the oldest first; the last one is the current log.
    files: VecDeque<Arc<File>>,
    offset: u64,
    partial: Vec<u8>,
    ready: VecDeque<LogLine>,
    watch: Option<AsyncFd<OwnedFd>>,
    /// The container's end, when following.
    ending: Ending,
    /// The container has ended: what is in the files is all there will be.
    ended: bool,
    /// A line after `until` was seen.
    past_end: bool,
}

async fn begin(
    runtime: Runtime,
    paths: &Paths,
    id: &str,
    options: LogOptions,
) -> Result<Reader, LogError> {
    crate::plan::check_id(id)?;
    let own = paths.container(id);
    let path = own.log();
    let failed = |source| LogError::Read {
        path: path.clone(),
        source,
    };
    // Watched before anything is read, so that nothing is missed in between.
    let watch = if options.follow {
        Some(watch(&own.state).map_err(failed)?)
    } else {
        None
    };
    let files = open_from(&path, None).map_err(failed)?;
    let id = id.to_owned();
    let mut reader = Reader {
        options,
        path: path.clone(),
        files,
        offset: 0,
        partial: Vec::new(),
        ready: VecDeque::new(),
        watch,
        // Asks nothing until it is first polled.
        ending: Box::pin(async move { runtime.wait(&id).await }),
        ended: false,
        past_end: false,
    };
    if let Some(tail) = options.tail {
        let mut last = VecDeque::new();
        while reader.read_more().await? {
            while let Some(line) = reader.ready.pop_front() {
                last.push_back(line);
                if last.len() > tail {
                    last.pop_front();
                }
            }
        }
        reader.ready = last;
    }
    Ok(reader)
}

/// Watches a container's directory for growing and rotating logs.
fn watch(directory: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    use inotify::{CreateFlags, WatchFlags};
    let watch = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    let changes = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO;
    inotify::add_watch(&watch, directory, changes)?;
    #[expect(
        deprecated,
        reason = "its successor is unsafe; an OwnedFd gives the same descriptor as long as it lives"
    )]
    AsyncFd::new(watch)
}

/// Opens the log's files, the oldest first; with `after`, only those newer than that inode.
fn open_from(log: &Path, after: Option<u64>) -> io::Result<VecDeque<Arc<File>>> {
    let mut files = VecDeque::new();
    for n in 0..MOST_FILES {
        match File::open(rotated(log, n)) {
            Ok(file) if after == Some(file.metadata()?.ino()) => break,
            Ok(file) => files.push_front(Arc::new(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && n > 0 => break,
            // In the middle of a rotation the current one is missing for a moment; the older ones are there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

impl Reader {
    async fn next(&mut self) -> Option<Result<LogLine, LogError>> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(Ok(line));
            }
            if self.past_end {
                return None;
            }
            match self.read_more().await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => return Some(Err(error)),
            }
            if !self.options.follow || self.ended {
                return None;
            }
            if let Err(error) = self.changed_or_ended().await {
                return Some(Err(error));
            }
        }
    }

    /// Reads the next chunk, turning to newer files. `false`: there is no more at the moment.
    async fn read_more(&mut self) -> Result<bool, LogError> {
        loop {
            let Some(file) = self.files.front().map(Arc::clone) else {
                self.files = self.open_newer(None)?;
                if self.files.is_empty() {
                    return Ok(false);
                }
                continue;
            };
            let offset = self.offset;
            let handle = Arc::clone(&file);
            let read = tokio::task::spawn_blocking(move || {
                let mut buffer = vec![0; CHUNK];
                let count = handle.read_at(&mut buffer, offset)?;
                buffer.truncate(count);
                // The only file of a log is emptied when it is full.
                let shrunk = count == 0 && handle.metadata()?.len() < offset;
                Ok((buffer, shrunk))
            });
            let (bytes, shrunk) = match read.await {
                Ok(result) => result.map_err(|source| self.failed(source))?,
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            };
            if shrunk {
                (self.offset, self.partial) = (0, Vec::new());
                continue;
            }
            if bytes.is_empty() {
                if self.files.len() == 1 {
                    let inode = file.metadata().map_err(|source| self.failed(source))?.ino();
                    let newer = self.open_newer(Some(inode))?;
                    if newer.is_empty() {
                        return Ok(false);
                    }
                    // It may have grown between our last look and its rotation.
                    let grown =
                        file.metadata().map_err(|source| self.failed(source))?.len() > self.offset;
                    self.files.extend(newer);
                    if grown {
                        continue;
                    }
                }
                self.files.pop_front();
                (self.offset, self.partial) = (0, Vec::new());
                continue;
            }
            self.offset += bytes.len() as u64;
            self.take_lines(&bytes);
            return Ok(true);
        }
    }

    fn open_newer(&self, after: Option<u64>) -> Result<VecDeque<Arc<File>>, LogError> {
        open_from(&self.path, after).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> LogError {
        LogError::Read {
            path: self.path.clone(),
            source,
        }
    }

    fn take_lines(&mut self, bytes: &[u8]) {
        self.partial.extend_from_slice(bytes);
        let mut rest = std::mem::take(&mut self.partial);
        let mut start = 0;
        while let Some(length) = rest[start..].iter().position(|byte| *byte == b'\n') {
            // A line a machine crash cut in two is no line.
            if let Some(line) = parse(&rest[start..start + length]) {
                self.take_line(line);
            }
            start += length + 1;
        }
        rest.drain(..start);
        self.partial = rest;
    }

    fn take_line(&mut self, line: LogLine) {
        let options = &self.options;
        if options.until.is_some_and(|until| line.at > until) {
            self.past_end = true;
        }
        let wanted = match line.stream {
            Stream::Stdout => options.stdout,
            Stream::Stderr => options.stderr,
        };
        if wanted && !self.past_end && options.since.is_none_or(|since| line.at >= since) {
            self.ready.push_back(line);
        }
    }

    /// Waits until the log may have grown or the container has ended.
    async fn changed_or_ended(&mut self) -> Result<(), LogError> {
        let watch = self.watch.as_ref().expect("a follower has a watch");
        let until = self.options.until;
        let deadline = async {
            match until {
                // Nothing that comes after this moment is wanted.
                Some(until) => {
                    let left = until.duration_since(Timestamp::now()).unsigned_abs();
                    tokio::time::sleep(if until < Timestamp::now() {
                        std::time::Duration::ZERO
                    } else {
                        left
                    })
                    .await;
                }
                None => std::future::pending().await,
            }
        };
        // All arms are cancel-safe: readiness and time are levels, and the wait is kept.
        tokio::select! {
            ready = watch.readable() => {
                let mut guard = ready.map_err(|source| LogError::Read { path: self.path.clone(), source })?;
                // Which file it was does not matter: they are read again anyway.
                while rustix::io::read(watch.get_ref(), &mut [0; 4096]).is_ok() {}
                guard.clear_ready();
            }
            ended = &mut self.ending => match ended {
                Ok(_) | Err(OperationError::NotFound(_)) => self.ended = true,
                Err(error) => return Err(LogError::Wait(error)),
            },
            () = deadline => self.ended = true,
        }
        Ok(())
    }
}

fn parse(line: &[u8]) -> Option<LogLine> {
    #[derive(Deserialize)]
    struct Entry {
        log: String,
        stream: Stream,
        time: Timestamp,
    }
    let entry: Entry = serde_json::from_slice(line).ok()?;
    Some(LogLine {
        stream: entry.stream,
        at: entry.time,
        bytes: entry.log.into_bytes(),
    })
}
