//! The next segment, made ahead on a thread of its own so that nobody waits for it.
//!
//! When the disk is full this is the first to notice, while the current segment still has room: from
//! then on new proposals are refused, and it keeps trying until there is space again.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::JoinHandle,
    time::Duration,
};

use super::segment;

const RETRY: Duration = Duration::from_secs(1);

pub(super) struct Spare {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    path: PathBuf,
    bytes: u64,
    state: Mutex<State>,
    changed: Condvar,
}

enum State {
    Wanted,
    Ready(File),
    Failed(io::Error),
    Stopped,
}

/// A look at the spare from elsewhere.
#[derive(Clone)]
pub(super) struct SpareStatus(Arc<Shared>);

impl Spare {
    pub(super) fn new(dir: &Path, bytes: u64) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            path: dir.join("next.tmp"),
            bytes,
            state: Mutex::new(State::Wanted),
            changed: Condvar::new(),
        });
        let thread = std::thread::Builder::new()
            .name("wal-spare".to_owned())
            .spawn({
                let shared = shared.clone();
                move || shared.run()
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    pub(super) fn status(&self) -> SpareStatus {
        SpareStatus(self.shared.clone())
    }

    /// Gives the spare the name `to`, once there is one, and has the next made.
    pub(super) fn take(&self, to: &Path) -> io::Result<File> {
        let mut state = self.shared.lock();
        if matches!(*state, State::Failed(_)) {
            *state = State::Wanted;
            self.shared.changed.notify_all();
        }
        while matches!(*state, State::Wanted) {
            state = self
                .shared
                .changed
                .wait(state)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        match &*state {
            State::Failed(error) => Err(copy_of(error)),
            State::Wanted | State::Stopped => Err(io::ErrorKind::BrokenPipe.into()),
            State::Ready(_) => {
                fs::rename(&self.shared.path, to)?;
                let State::Ready(file) = std::mem::replace(&mut *state, State::Wanted) else {
                    unreachable!("it was ready and the lock is held");
                };
                self.shared.changed.notify_all();
                Ok(file)
            }
        }
    }
}

impl SpareStatus {
    /// Why no spare could be made at the last attempt.
    pub(super) fn failure(&self) -> Option<io::Error> {
        match &*self.0.lock() {
            State::Failed(error) => Some(copy_of(error)),
            _ => None,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn run(&self) {
        let mut state = self.lock();
        loop {
            match &*state {
                State::Stopped => return,
                State::Ready(_) => {
                    state = self
                        .changed
                        .wait(state)
                        .unwrap_or_else(std::sync::PoisonError::into_inner);
                }
                State::Failed(_) => {
                    let waited = self.changed.wait_timeout(state, RETRY);
                    let (guard, wait) = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
                    state = guard;
                    // It stays a failure for others to see until an attempt succeeds.
                    if wait.timed_out() && matches!(*state, State::Failed(_)) {
                        drop(state);
                        let made = self.make();
                        state = self.lock();
                        self.settle(&mut state, made);
                    }
                }
                State::Wanted => {
                    drop(state);
                    let made = self.make();
                    state = self.lock();
                    self.settle(&mut state, made);
                }
            }
        }
    }

    fn make(&self) -> io::Result<File> {
        segment::zeroed(&self.path, self.bytes).inspect_err(|_| {
            // Whatever part of it exists only makes a full disk fuller.
            let _ = fs::remove_file(&self.path);
        })
    }

    fn settle(&self, state: &mut State, made: io::Result<File>) {
        if matches!(state, State::Stopped) {
            return;
        }
        *state = match made {
            Ok(file) => State::Ready(file),
            Err(error) => {
                if !matches!(state, State::Failed(_)) {
                    tracing::error!(
                        path = %self.path.display(),
                        bytes = self.bytes,
                        error = %error,
                        "no room for the next log segment"
                    );
                }
                State::Failed(error)
            }
        };
        self.changed.notify_all();
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        *self.shared.lock() = State::Stopped;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = fs::remove_file(&self.shared.path);
    }
}

/// `io::Error` cannot be cloned, but several callers need to hear of one.
pub(crate) fn copy_of(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
