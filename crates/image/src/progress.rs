//! What long operations tell while they run, in the shape of Docker's progress stream.

use std::{fmt, sync::Arc};

/// One line of progress. Docker's JSON is `{status, id, progressDetail: {current, total}}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    pub status: String,
    /// The short digest of the layer, or the tag; absent on lines about the whole operation.
    pub id: Option<String>,
    /// Bytes done.
    pub current: Option<u64>,
    /// Bytes to do; absent when the sender did not say.
    pub total: Option<u64>,
}

/// Where progress goes. Called from any thread, so it must not block: an HTTP stream should drop
/// or coalesce lines that its client is too slow to read.
#[derive(Clone, Default)]
pub struct ProgressSink(Option<Arc<dyn Fn(Progress) + Send + Sync>>);

impl ProgressSink {
    pub fn new(sink: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(sink)))
    }

    /// Nobody listens.
    pub fn none() -> Self {
        Self(None)
    }

    pub(crate) fn line(&self, status: impl Into<String>) {
        self.send(status.into(), None, None, None);
    }

    pub(crate) fn item(&self, id: &str, status: impl Into<String>) {
        self.send(status.into(), Some(id), None, None);
    }

    pub(crate) fn bytes(&self, id: &str, status: &str, current: u64, total: u64) {
        let total = (total > 0).then_some(total);
        self.send(status.to_owned(), Some(id), Some(current), total);
    }

    fn send(&self, status: String, id: Option<&str>, current: Option<u64>, total: Option<u64>) {
        if let Some(sink) = &self.0 {
            sink(Progress {
                status,
                id: id.map(str::to_owned),
                current,
                total,
            });
        }
    }
}

impl fmt::Debug for ProgressSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() {
            "ProgressSink(..)"
        } else {
            "ProgressSink(none)"
        })
    }
}
