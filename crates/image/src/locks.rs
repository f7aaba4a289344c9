//! Who works on what: one worker a digest, and pins that keep the sweeper away.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::sync::OwnedMutexGuard;

use crate::digest::Digest;

/// A poisoned lock means a panic elsewhere; the maps here are consistent after every statement.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One lock for each digest that is being worked on. Whoever waits finds the work done.
#[derive(Default)]
pub(crate) struct KeyedLocks(Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>);

impl KeyedLocks {
    pub(crate) async fn acquire(&self, key: &Digest) -> OwnedMutexGuard<()> {
        let mutex = {
            let mut map = lock(&self.0);
            if let Some(mutex) = map.get(key).and_then(Weak::upgrade) {
                mutex
            } else {
                map.retain(|_, mutex| mutex.strong_count() > 0);
                let mutex = Arc::new(tokio::sync::Mutex::new(()));
                map.insert(key.clone(), Arc::downgrade(&mutex));
                mutex
            }
        };
        mutex.lock_owned().await
    }

    /// True when nobody works on `key` now.
    pub(crate) fn is_free(&self, key: &Digest) -> bool {
        lock(&self.0)
            .get(key)
            .is_none_or(|mutex| mutex.strong_count() == 0)
    }
}

/// Digests that a running operation needs although no image names them yet.
#[derive(Default)]
pub(crate) struct Pins(Mutex<HashMap<Digest, usize>>);

impl Pins {
    /// Holds the map: nothing can be pinned meanwhile, so "unpinned" stays true.
    pub(crate) fn freeze(&self) -> MutexGuard<'_, HashMap<Digest, usize>> {
        lock(&self.0)
    }
}

/// Pins of one operation, released when it is dropped.
pub(crate) struct PinSet {
    pins: Arc<Pins>,
    held: Mutex<Vec<Digest>>,
}

impl PinSet {
    pub(crate) fn new(pins: &Arc<Pins>) -> Self {
        Self {
            pins: Arc::clone(pins),
            held: Mutex::default(),
        }
    }

    /// What is pinned before it is looked up is still there afterwards.
    pub(crate) fn add(&self, digest: &Digest) {
        *self.pins.freeze().entry(digest.clone()).or_insert(0) += 1;
        lock(&self.held).push(digest.clone());
    }
}

impl PinSet {
    /// Lets everything go; more may be added afterwards.
    pub(crate) fn release(&self) {
        let mut pins = self.pins.freeze();
        for digest in lock(&self.held).drain(..) {
            if let Some(count) = pins.get_mut(&digest) {
                *count -= 1;
                if *count == 0 {
                    pins.remove(&digest);
                }
            }
        }
    }
}

impl Drop for PinSet {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_lasts_as_long_as_its_last_holder() {
        let pins = Arc::new(Pins::default());
        let digest = Digest::of(b"x");
        let (a, b) = (PinSet::new(&pins), PinSet::new(&pins));
        a.add(&digest);
        b.add(&digest);
        drop(a);
        assert!(pins.freeze().contains_key(&digest));
        drop(b);
        assert!(pins.freeze().is_empty());
    }
}
