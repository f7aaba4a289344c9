//! The output of containers: from their FIFOs into their logs.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::epoll;

use super::journal::{PumpError, Pumped};
use super::note;
use super::server::{RETRY_INTERVAL, Server, Source, data};
use crate::Stream;

/// How often a container's log may be said to be in trouble.
const NOTE_INTERVAL: Duration = Duration::from_mins(1);

impl Server {
    pub(super) fn output_ready(&mut self, key: u64, stream: Stream) {
        let Some(container) = self.containers.get_mut(&key) else {
            return;
        };
        let Some(fifo) = &container.fifos[stream as usize] else {
            return;
        };
        match self
            .journal
            .pump(fifo.as_fd(), stream, &mut container.output)
        {
            Ok(Pumped::Bytes(_) | Pumped::Empty) => {}
            // All writers are gone though the process lives: a program that closed its output. The FIFO can be opened again
            // through nobody, so there is nothing more to come.
            Ok(Pumped::End) => self.close_output(key, stream),
            Err(PumpError::Log(_, error)) => {
                log_trouble(&mut container.log_noted, &container.record.id, &error);
            }
            Err(PumpError::Stuck(error)) => {
                // It stays readable: without a pause it would be tried again without end.
                let _ = epoll::delete(&self.epoll, fifo);
                container.retries[stream as usize] = Some(Instant::now() + RETRY_INTERVAL);
                log_trouble(&mut container.log_noted, &container.record.id, &error);
            }
        }
    }

    /// Listens again to the streams whose pause is over.
    pub(super) fn retry_outputs(&mut self) {
        let now = Instant::now();
        for (key, container) in &mut self.containers {
            for stream in Stream::BOTH {
                let retry = &mut container.retries[stream as usize];
                if retry.is_none_or(|at| now < at) {
                    continue;
                }
                *retry = None;
                if let Some(fifo) = &container.fifos[stream as usize] {
                    let source = data(Source::Output(*key, stream));
                    let added = epoll::add(&self.epoll, fifo, source, epoll::EventFlags::IN);
                    if let Err(error) = added {
                        *retry = Some(now + RETRY_INTERVAL);
                        log_trouble(
                            &mut container.log_noted,
                            &container.record.id,
                            &error.into(),
                        );
                    }
                }
            }
        }
    }

    pub(super) fn close_output(&mut self, key: u64, stream: Stream) {
        let Some(container) = self.containers.get_mut(&key) else {
            return;
        };
        if let Some(fifo) = container.fifos[stream as usize].take() {
            let _ = epoll::delete(&self.epoll, &fifo);
        }
        container.retries[stream as usize] = None;
        if let Err(error) = self.journal.flush(stream, &mut container.output) {
            log_trouble(&mut container.log_noted, &container.record.id, &error);
        }
    }

    /// Takes what an ended container has left in a FIFO: only that, since somebody else may hold it open and go on writing.
    pub(super) fn drain(&mut self, key: u64, stream: Stream) {
        let Some(container) = self.containers.get_mut(&key) else {
            return;
        };
        let Some(fifo) = &container.fifos[stream as usize] else {
            return;
        };
        let mut left = match rustix::io::ioctl_fionread(fifo) {
            Ok(left) => usize::try_from(left).unwrap_or(usize::MAX),
            Err(error) => {
                return log_trouble(
                    &mut container.log_noted,
                    &container.record.id,
                    &error.into(),
                );
            }
        };
        while left > 0 {
            let pumped = self
                .journal
                .pump(fifo.as_fd(), stream, &mut container.output);
            let moved = match pumped {
                Ok(Pumped::Bytes(moved)) => moved,
                Ok(Pumped::Empty | Pumped::End) => return,
                Err(PumpError::Log(moved, error)) => {
                    log_trouble(&mut container.log_noted, &container.record.id, &error);
                    moved
                }
                Err(PumpError::Stuck(error)) => {
                    return log_trouble(&mut container.log_noted, &container.record.id, &error);
                }
            };
            left = left.saturating_sub(moved);
        }
    }
}

/// Notes what is wrong with a container's log, not more often than somebody would read it.
fn log_trouble(noted: &mut Option<Instant>, id: &str, error: &io::Error) {
    let recently = |at: Instant| at.elapsed() < NOTE_INTERVAL;
    if noted.is_some_and(recently) {
        return;
    }
    *noted = Some(Instant::now());
    note(&format!("log of {id}: {error}"));
}
