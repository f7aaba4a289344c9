//! One connection to a supervisor: many requests in flight, replies matched by number.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{oneshot, watch};

use crate::protocol::{Decoder, Reply, Request, encode};
use crate::sys::fdpass;

type Answer = (Reply, Vec<OwnedFd>);

/// The connection broke before the answer came; asking again on another one is safe.
#[derive(Debug)]
pub(super) struct Disconnected;

pub(super) struct Connection {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    next: AtomicU64,
    /// `None` once the connection is gone.
    pending: Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>,
    end: watch::Sender<bool>,
}

impl Connection {
    /// Connects, and runs `gone` when the connection ends.
    pub(super) async fn open(
        path: &Path,
        gone: impl FnOnce() + Send + 'static,
    ) -> io::Result<Arc<Self>> {
        let (reader, writer) = UnixStream::connect(path).await?.into_split();
        let connection = Arc::new(Self {
            writer: tokio::sync::Mutex::new(writer),
            next: AtomicU64::new(1),
            pending: Mutex::new(Some(HashMap::new())),
            end: watch::Sender::new(false),
        });
        let weak = Arc::downgrade(&connection);
        tokio::spawn(async move {
            let mut decoder = Decoder::default();
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let mut fds = Vec::new();
                let stream: &UnixStream = reader.as_ref();
                let received = stream.async_io(Interest::READABLE, || {
                    fdpass::receive(stream.as_fd(), &mut buffer, &mut fds)
                });
                match received.await {
                    Ok(1..) if weak.strong_count() == 0 => return,
                    Ok(count @ 1..) => decoder.bytes.extend_from_slice(&buffer[..count]),
                    Ok(0) | Err(_) => break,
                }
                decoder.fds.extend(fds);
                let Some(connection) = weak.upgrade() else {
                    return;
                };
                if !connection.take_replies(&mut decoder) {
                    break;
                }
            }
            if let Some(connection) = weak.upgrade() {
                connection.close();
            }
            gone();
        });
        Ok(connection)
    }

    /// Hands whole replies to their askers. `false`: the stream makes no sense any more.
    fn take_replies(&self, decoder: &mut Decoder) -> bool {
        loop {
            match decoder.next::<Reply>() {
                Ok(None) => return true,
                Ok(Some((frame, fds))) => {
                    let asker = self
                        .lock()
                        .as_mut()
                        .and_then(|map| map.remove(&frame.sequence));
                    if let Some(asker) = asker {
                        // The asker may have stopped waiting.
                        let _ = asker.send((frame.body, fds));
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "supervisor connection closed on a malformed message");
                    return false;
                }
            }
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.lock().is_some()
    }

    /// Fails everyone who waits.
    fn close(&self) {
        self.lock().take();
        self.end.send_replace(true);
    }

    /// Waits for the end of the connection.
    pub(super) async fn closed(&self) {
        // An error would mean that the sender is gone, and the connection with it.
        let _ = self.end.subscribe().wait_for(|ended| *ended).await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<Answer>>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request and waits for its answer.
    pub(super) async fn call(&self, request: &Request) -> Result<Answer, Disconnected> {
        let sequence = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        self.lock()
            .as_mut()
            .ok_or(Disconnected)?
            .insert(sequence, sender);
        let forget = Forget {
            connection: self,
            sequence,
        };
        let frame = encode(sequence, 0, request);
        let mut writer = self.writer.lock().await;
        // A frame cut off by cancellation would garble the stream, so it is not sent from the caller's future in parts: a
        // short one goes out in one write; after a partial one the connection is given up.
        let guard = CloseOnDrop(Some(self));
        let written = writer.write_all(&frame).await;
        guard.disarm();
        drop(writer);
        if written.is_err() {
            self.close();
            return Err(Disconnected);
        }
        let answer = receiver.await.map_err(|_| Disconnected);
        drop(forget);
        answer
    }
}

/// Takes a request out of the pending ones when its caller goes away.
struct Forget<'a> {
    connection: &'a Connection,
    sequence: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(map) = self.connection.lock().as_mut() {
            map.remove(&self.sequence);
        }
    }
}

/// Closes the connection unless disarmed: the caller was cancelled in the middle of a frame.
struct CloseOnDrop<'a>(Option<&'a Connection>);

impl CloseOnDrop<'_> {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.0 {
            connection.close();
        }
    }
}
