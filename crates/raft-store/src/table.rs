//! An ordered map whose copies are cheap.
//!
//! Rows live in sorted chunks behind `Arc`s. A copy copies one pointer a chunk; writing to a copy
//! copies the one chunk it touches. With a million rows a copy is some 8,000 pointers, so readers get
//! a whole immutable state after every batch of commits and nobody ever waits for a lock.

use std::{
    fmt,
    ops::{Bound, RangeBounds},
    sync::Arc,
};

/// A chunk that grows past this is split in two. Large enough for few chunks, small enough that
/// copying one costs little beside the commit that caused it.
const CHUNK_MAX: usize = 256;

/// Rows of `K` and `V`, sorted by key.
#[derive(Clone)]
pub struct Table<K, V> {
    /// Never holds an empty chunk; keys ascend within and across chunks.
    chunks: Vec<Arc<Vec<(K, V)>>>,
    len: usize,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            chunks: Vec::new(),
            len: 0,
        }
    }
}

impl<K: Ord + Clone, V: Clone> Table<K, V> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn get(&self, key: &K) -> Option<&V> {
        let chunk = self.chunks.get(self.chunk_of(key))?;
        chunk
            .binary_search_by(|(k, _)| k.cmp(key))
            .ok()
            .map(|at| &chunk[at].1)
    }

    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// Puts a row in, and returns the value it replaces.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        if self.chunks.is_empty() {
            self.chunks.push(Arc::new(vec![(key, value)]));
            self.len = 1;
            return None;
        }
        let index = self.chunk_of(&key).min(self.chunks.len() - 1);
        let chunk = Arc::make_mut(&mut self.chunks[index]);
        match chunk.binary_search_by(|(k, _)| k.cmp(&key)) {
            Ok(at) => Some(std::mem::replace(&mut chunk[at].1, value)),
            Err(at) => {
                chunk.insert(at, (key, value));
                self.len += 1;
                if chunk.len() > CHUNK_MAX {
                    let upper = chunk.split_off(CHUNK_MAX / 2);
                    self.chunks.insert(index + 1, Arc::new(upper));
                }
                None
            }
        }
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        let index = self.chunk_of(key);
        let at = self
            .chunks
            .get(index)?
            .binary_search_by(|(k, _)| k.cmp(key))
            .ok()?;
        let chunk = Arc::make_mut(&mut self.chunks[index]);
        let (_key, value) = chunk.remove(at);
        self.len -= 1;
        if chunk.is_empty() {
            self.chunks.remove(index);
        }
        Some(value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.chunks
            .iter()
            .flat_map(|chunk| chunk.iter().map(|(k, v)| (k, v)))
    }

    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(k, _)| k)
    }

    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, v)| v)
    }

    /// The rows whose keys lie in `range`, in order; finding the first takes O(log n).
    pub fn range(&self, range: impl RangeBounds<K>) -> impl Iterator<Item = (&K, &V)> {
        let before = |key: &K| match range.start_bound() {
            Bound::Included(start) => key < start,
            Bound::Excluded(start) => key <= start,
            Bound::Unbounded => false,
        };
        let chunk = self
            .chunks
            .partition_point(|c| c.last().is_some_and(|(k, _)| before(k)));
        let at = self
            .chunks
            .get(chunk)
            .map_or(0, |c| c.partition_point(|(k, _)| before(k)));
        let rest = self.chunks.get(chunk..).unwrap_or_default();
        rest.iter()
            .flat_map(|chunk| chunk.iter())
            .skip(at)
            .map(|(k, v)| (k, v))
            .take_while(move |(key, _)| match range.end_bound() {
                Bound::Included(end) => *key <= end,
                Bound::Excluded(end) => *key < end,
                Bound::Unbounded => true,
            })
    }

    /// Index of the chunk that holds `key`, or would; one past the last when it sorts after every key.
    fn chunk_of(&self, key: &K) -> usize {
        self.chunks
            .partition_point(|chunk| chunk.last().is_some_and(|(last, _)| last < key))
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for Table<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(rows: I) -> Self {
        let mut table = Self::default();
        for (key, value) in rows {
            table.insert(key, value);
        }
        table
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(
                self.chunks
                    .iter()
                    .flat_map(|c| c.iter().map(|(k, v)| (k, v))),
            )
            .finish()
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for Table<K, V> {
    fn eq(&self, other: &Self) -> bool {
        fn rows<K, V>(table: &Table<K, V>) -> impl Iterator<Item = &(K, V)> {
            table.chunks.iter().flat_map(|chunk| chunk.iter())
        }
        self.len == other.len && rows(self).eq(rows(other))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_as_a_btree_map_and_copies_do_not_change(
            steps in proptest::collection::vec((any::<bool>(), 0u16..900, any::<u8>()), 0..2000),
            low in 0u16..900,
            width in 0u16..300,
        ) {
            let mut table = Table::default();
            let mut model = BTreeMap::new();
            let mut copy = (table.clone(), model.clone());
            for (i, (insert, key, value)) in steps.into_iter().enumerate() {
                if insert {
                    prop_assert_eq!(table.insert(key, value), model.insert(key, value));
                } else {
                    prop_assert_eq!(table.remove(&key), model.remove(&key));
                }
                prop_assert_eq!(table.get(&key), model.get(&key));
                prop_assert_eq!(table.len(), model.len());
                if i % 500 == 0 {
                    copy = (table.clone(), model.clone());
                }
            }
            prop_assert!(table.iter().eq(model.iter()));
            prop_assert!(copy.0.iter().eq(copy.1.iter()));
            let range = low..low + width;
            prop_assert!(table.range(range.clone()).eq(model.range(range)));
            let range = low..=low + width;
            prop_assert!(table.range(range.clone()).eq(model.range(range)));
            prop_assert!(table.range(low..).eq(model.range(low..)));
        }
    }

    #[test]
    fn a_large_table_stays_in_chunks() {
        let table: Table<u32, u32> = (0..100_000).map(|i| (i * 7919 % 100_000, i)).collect();
        assert_eq!(table.len(), 100_000);
        assert!(table.chunks.len() < 100_000 / (CHUNK_MAX / 4));
        assert!(table.keys().copied().eq(0..100_000));
    }
}
