//! Connections that nobody uses at the moment, and those that are still being made.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::oneshot, time::timeout};

/// Connections kept for one key.
const KEPT: usize = 4;
/// Connections to one key that are being made at once. Who comes meanwhile waits for one to be given back.
const MAKING: usize = 4;
/// For one attempt. Longer than the patience of who asks: on a busy machine attempts that ended with it would
/// never succeed. Not so long that those begun while a host was away delay the first after it is back.
const ATTEMPT: Duration = Duration::from_millis(800);

/// Connections `S` by what they lead to.
pub(super) struct Pool<K, S>(Arc<Mutex<HashMap<K, Entry<S>>>>);

struct Entry<S> {
    idle: Vec<S>,
    making: usize,
}

impl<S> Default for Entry<S> {
    fn default() -> Self {
        Self {
            idle: Vec::new(),
            making: 0,
        }
    }
}

impl<K, S> Default for Pool<K, S> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K, S> Pool<K, S>
where
    K: Hash + Eq + Clone + Send + 'static,
    S: Send + 'static,
{
    pub(super) fn take(&self, key: &K) -> Option<S> {
        lock(&self.0).get_mut(key)?.idle.pop()
    }

    pub(super) fn give_back(&self, key: K, stream: S) {
        keep(&self.0, key, stream);
    }

    /// One of them is broken, so the others, of the same age, are as well.
    pub(super) fn forget(&self, key: &K) {
        if let Some(entry) = lock(&self.0).get_mut(key) {
            entry.idle.clear();
        }
    }

    /// A new connection, made by `connect`. When the caller does not wait for it any longer, it is finished
    /// all the same and kept for the next; `None` when it takes too long, or too many are being made.
    pub(super) async fn make<E: Send + 'static>(
        &self,
        key: K,
        connect: impl Future<Output = Result<S, E>> + Send + 'static,
    ) -> Option<Result<S, E>> {
        {
            let mut entries = lock(&self.0);
            let entry = entries.entry(key.clone()).or_default();
            if entry.making == MAKING {
                return None;
            }
            entry.making += 1;
        }
        let (wanted, made) = oneshot::channel();
        let pool = self.0.clone();
        tokio::spawn(async move {
            let connected = timeout(ATTEMPT, connect).await.ok();
            if let Some(entry) = lock(&pool).get_mut(&key) {
                entry.making -= 1;
            }
            if let Err(Some(Ok(stream))) = wanted.send(connected) {
                keep(&pool, key, stream);
            }
        });
        made.await.ok().flatten()
    }
}

fn keep<K: Hash + Eq, S>(pool: &Mutex<HashMap<K, Entry<S>>>, key: K, stream: S) {
    let mut entries = lock(pool);
    let idle = &mut entries.entry(key).or_default().idle;
    if idle.len() < KEPT {
        idle.push(stream);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future};

    use super::*;

    #[tokio::test]
    async fn a_connection_that_comes_too_late_for_one_is_there_for_the_next() {
        let pool = Pool::<&str, u8>::default();
        let (answers, answered) = oneshot::channel();
        let connect = async move { Ok::<u8, Infallible>(answered.await.unwrap()) };
        {
            let making = pool.make("peer", connect);
            tokio::pin!(making);
            assert!(futures_util::poll!(making.as_mut()).is_pending());
        }
        assert_eq!(pool.take(&"peer"), None);
        answers.send(7).unwrap();
        while pool.take(&"peer") != Some(7) {
            tokio::task::yield_now().await;
        }
        assert_eq!(lock(&pool.0)["peer"].making, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_to_one_peer_are_few_and_end() {
        let pool = Pool::<&str, u8>::default();
        let never = || future::pending::<Result<u8, Infallible>>();
        let attempts = (0..MAKING).map(|_| pool.make("peer", never()));
        let mut attempts = futures_util::future::join_all(attempts);
        assert!(futures_util::poll!(&mut attempts).is_pending());
        assert_eq!(pool.make("peer", never()).await, None, "one too many");
        assert_eq!(attempts.await, vec![None; MAKING]);
        let made = pool.make("peer", future::ready(Ok::<_, Infallible>(1)));
        assert_eq!(made.await, Some(Ok(1)));
    }
}
