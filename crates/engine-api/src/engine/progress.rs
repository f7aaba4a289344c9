//! Progress of long work, from whoever does it to a client that may be slow.
//!
//! Sending never waits. What counts is the newest line of each item, so a line replaces an older one
//! about the same item that has not been read yet; memory is bounded by the number of items.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// One line of progress, as Docker's clients show it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    pub status: String,
    /// Short digest of a layer, or a tag; absent on lines about the whole.
    pub id: Option<String>,
    /// Bytes done and to do.
    pub current: Option<u64>,
    pub total: Option<u64>,
}

/// Lines without an item do not replace each other; more unread ones than this and the oldest go.
const MAX_UNREAD: usize = 4096;

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Notify,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<Progress>,
    senders: usize,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // A line is moved in or out as a whole: a panic elsewhere leaves the queue intact.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where progress goes. Cheap to clone; the receiver ends when all clones are gone.
pub struct ProgressSink(Arc<Shared>);

/// Where it comes out.
pub struct ProgressReceiver(Arc<Shared>);

/// A new channel.
pub fn progress() -> (ProgressSink, ProgressReceiver) {
    let shared = Arc::new(Shared::default());
    shared.queue().senders = 1;
    (ProgressSink(shared.clone()), ProgressReceiver(shared))
}

impl ProgressSink {
    pub fn send(&self, line: Progress) {
        let mut queue = self.0.queue();
        let same = |old: &&mut Progress| line.id.is_some() && old.id == line.id;
        if let Some(old) = queue
            .lines
            .iter_mut()
            .rev()
            .find(same)
            .filter(|old| old.current.is_some() && line.current.is_some())
        {
            *old = line;
        } else {
            if queue.lines.len() >= MAX_UNREAD {
                queue.lines.pop_front();
            }
            queue.lines.push_back(line);
        }
        drop(queue);
        self.0.changed.notify_one();
    }
}

impl Clone for ProgressSink {
    fn clone(&self) -> Self {
        self.0.queue().senders += 1;
        Self(self.0.clone())
    }
}

impl Drop for ProgressSink {
    fn drop(&mut self) {
        self.0.queue().senders -= 1;
        self.0.changed.notify_one();
    }
}

impl fmt::Debug for ProgressSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProgressSink")
    }
}

impl ProgressReceiver {
    /// The next line; `None` when every sink is gone and all lines have been read. Cancel-safe.
    pub async fn next(&mut self) -> Option<Progress> {
        loop {
            {
                let mut queue = self.0.queue();
                if let Some(line) = queue.lines.pop_front() {
                    return Some(line);
                }
                if queue.senders == 0 {
                    return None;
                }
            }
            // A line sent between the look and the wait leaves a permit.
            self.0.changed.notified().await;
        }
    }
}

impl fmt::Debug for ProgressReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProgressReceiver")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(id: &str, status: &str, current: Option<u64>) -> Progress {
        Progress {
            status: status.into(),
            id: Some(id.into()),
            current,
            total: None,
        }
    }

    #[tokio::test]
    async fn unread_byte_counts_are_replaced_and_everything_else_is_kept() {
        let (sink, mut lines) = progress();
        sink.send(line("a", "Downloading", Some(1)));
        sink.send(line("b", "Downloading", Some(1)));
        sink.send(line("a", "Downloading", Some(2)));
        sink.send(line("a", "Download complete", None));
        sink.send(line("a", "Extracting", Some(1)));
        drop(sink);
        let mut read = Vec::new();
        while let Some(line) = lines.next().await {
            read.push((line.id.unwrap(), line.status, line.current));
        }
        let expected = [
            ("a", "Downloading", Some(2)),
            ("b", "Downloading", Some(1)),
            ("a", "Download complete", None),
            ("a", "Extracting", Some(1)),
        ];
        assert_eq!(
            read,
            expected.map(|(id, s, c)| (id.to_owned(), s.to_owned(), c))
        );
    }

    #[tokio::test]
    async fn a_reader_that_never_reads_costs_a_bounded_amount() {
        let (sink, lines) = progress();
        for n in 0..3 * MAX_UNREAD {
            sink.send(line("x", "Downloading", Some(n as u64)));
            sink.send(Progress {
                status: n.to_string(),
                ..Progress::default()
            });
        }
        assert!(lines.0.queue().lines.len() <= MAX_UNREAD);
    }
}
