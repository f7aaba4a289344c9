//! An ordered map whose copies are cheap.
//!
//! A B+ tree whose nodes may be shared. A copy copies one pointer; writing to a copy copies the few
//! small nodes on the way to the row, and what no copy shares is written in place. So readers get a
//! whole immutable state after every batch of commits, decisions are drafted on another, and both cost
//! the same however many rows there are.

use std::{
    fmt,
    ops::{Bound, RangeBounds},
    slice,
    sync::Arc,
};

use arrayvec::ArrayVec;

/// A node that grows past this is split in two. Small, because a write to a copy takes a reference to
/// everything in the nodes that it copies, and memory is slow.
const NODE_MAX: usize = 16;
/// A node that shrinks below this joins a neighbour that has room.
const NODE_MIN: usize = NODE_MAX / 4;

/// Rows of `K` and `V`, sorted by key.
#[derive(Clone)]
pub struct Table<K, V> {
    root: Arc<Node<K, V>>,
    len: usize,
}

/// All leaves are at the same depth, and none but the root's is empty. What is in a node lies in it and
/// not behind another pointer: a step down the tree is one place in memory less to wait for.
#[derive(Clone)]
enum Node<K, V> {
    /// Keys ascend.
    Leaf(Items<(K, V)>),
    Inner(Items<Child<K, V>>),
}

type Items<T> = ArrayVec<T, NODE_MAX>;

#[derive(Clone)]
struct Child<K, V> {
    /// No key in `node` is less, and every key of the children before it is. The first child's means
    /// nothing.
    low: K,
    node: Arc<Node<K, V>>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            root: Arc::new(Node::Leaf(Items::new())),
            len: 0,
        }
    }
}

impl<K, V> Table<K, V> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        Rows::of(&self.root).map(|(key, value)| (key, value))
    }

    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<K: Ord + Clone, V: Clone> Table<K, V> {
    pub fn get(&self, key: &K) -> Option<&V> {
        let mut node = &*self.root;
        loop {
            match node {
                Node::Inner(children) => node = &children[child_of(children, key)].node,
                Node::Leaf(rows) => {
                    let at = rows.binary_search_by(|(k, _)| k.cmp(key)).ok()?;
                    return Some(&rows[at].1);
                }
            }
        }
    }

    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// Puts a row in, and returns the value it replaces.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let (replaced, split) = Arc::make_mut(&mut self.root).insert(key, value);
        if let Some(upper) = split {
            let lower = Child {
                low: upper.low.clone(),
                node: self.root.clone(),
            };
            self.root = Arc::new(Node::Inner(Items::from_iter([lower, upper])));
        }
        self.len += usize::from(replaced.is_none());
        replaced
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        // Nothing is copied for a row that is not there.
        self.get(key)?;
        let removed = Arc::make_mut(&mut self.root).remove(key)?;
        self.len -= 1;
        while let Node::Inner(children) = &*self.root
            && let [only] = children.as_slice()
        {
            self.root = only.node.clone();
        }
        Some(removed)
    }

    /// The rows whose keys lie in `range`, in order; finding the first takes O(log n).
    pub fn range(&self, range: impl RangeBounds<K>) -> impl Iterator<Item = (&K, &V)> {
        Rows::from(&self.root, range.start_bound())
            .map(|(key, value)| (key, value))
            .take_while(move |(key, _)| match range.end_bound() {
                Bound::Included(end) => *key <= end,
                Bound::Excluded(end) => *key < end,
                Bound::Unbounded => true,
            })
    }
}

impl<K: Ord + Clone, V: Clone> Node<K, V> {
    fn len(&self) -> usize {
        match self {
            Self::Leaf(rows) => rows.len(),
            Self::Inner(children) => children.len(),
        }
    }

    /// Gives the value that was replaced, and the upper part of the node if it had to be split.
    fn insert(&mut self, key: K, value: V) -> (Option<V>, Option<Child<K, V>>) {
        match self {
            Self::Leaf(rows) => match rows.binary_search_by(|(k, _)| k.cmp(&key)) {
                Ok(at) => (Some(std::mem::replace(&mut rows[at].1, value)), None),
                Err(at) => {
                    let upper = put(rows, at, (key, value));
                    let upper = upper.map(|upper| Child {
                        low: upper[0].0.clone(),
                        node: Arc::new(Self::Leaf(upper)),
                    });
                    (None, upper)
                }
            },
            Self::Inner(children) => {
                let at = child_of(children, &key);
                let child = Arc::make_mut(&mut children[at].node);
                let (replaced, split) = child.insert(key, value);
                let upper = split.and_then(|upper| put(children, at + 1, upper));
                let upper = upper.map(|upper| Child {
                    low: upper[0].low.clone(),
                    node: Arc::new(Self::Inner(upper)),
                });
                (replaced, upper)
            }
        }
    }

    fn remove(&mut self, key: &K) -> Option<V> {
        match self {
            Self::Leaf(rows) => {
                let at = rows.binary_search_by(|(k, _)| k.cmp(key)).ok()?;
                Some(rows.remove(at).1)
            }
            Self::Inner(children) => {
                let at = child_of(children, key);
                let child = Arc::make_mut(&mut children[at].node);
                let removed = child.remove(key)?;
                match child.len() {
                    0 => drop(children.remove(at)),
                    1..NODE_MIN => join(children, at),
                    _enough => {}
                }
                Some(removed)
            }
        }
    }
}

/// Where in `children` a key is, or would be.
fn child_of<K: Ord, V>(children: &[Child<K, V>], key: &K) -> usize {
    let after = children.partition_point(|child| child.low <= *key);
    after.saturating_sub(1)
}

/// Puts `item` in at `at`; gives the upper part of `items` when they are too many.
fn put<T>(items: &mut Items<T>, at: usize, item: T) -> Option<Items<T>> {
    if !items.is_full() {
        items.insert(at, item);
        return None;
    }
    // What comes in order leaves full nodes behind it.
    let middle = if at == NODE_MAX {
        NODE_MAX
    } else {
        NODE_MAX / 2
    };
    let mut upper: Items<T> = items.drain(middle..).collect();
    if at < middle {
        items.insert(at, item);
    } else {
        upper.insert(at - middle, item);
    }
    Some(upper)
}

/// Joins the small child at `at` with a neighbour, if the two leave room in one.
fn join<K: Ord + Clone, V: Clone>(children: &mut Items<Child<K, V>>, at: usize) {
    let left = at.saturating_sub(1);
    let Some(right) = children.get(left + 1) else {
        return;
    };
    if children[left].node.len() + right.node.len() > NODE_MAX - NODE_MIN {
        return;
    }
    let Child { low, node } = children.remove(left + 1);
    match (
        Arc::make_mut(&mut children[left].node),
        Arc::unwrap_or_clone(node),
    ) {
        (Node::Leaf(rows), Node::Leaf(upper)) => rows.extend(upper),
        (Node::Inner(nodes), Node::Inner(mut upper)) => {
            upper[0].low = low;
            nodes.extend(upper);
        }
        _ => unreachable!("all leaves are at the same depth"),
    }
}

/// Walks the leaves from left to right.
struct Rows<'a, K, V> {
    rows: slice::Iter<'a, (K, V)>,
    /// What is still to come at each level above, the lowest one last.
    above: Vec<slice::Iter<'a, Child<K, V>>>,
}

impl<'a, K, V> Rows<'a, K, V> {
    fn of(root: &'a Node<K, V>) -> Self {
        let mut walk = Self {
            rows: [].iter(),
            above: Vec::new(),
        };
        walk.descend(root);
        walk
    }

    /// Goes on with the first row below `node`.
    fn descend(&mut self, mut node: &'a Node<K, V>) {
        loop {
            match node {
                Node::Leaf(rows) => {
                    self.rows = rows.iter();
                    return;
                }
                Node::Inner(children) => {
                    node = &children[0].node;
                    self.above.push(children[1..].iter());
                }
            }
        }
    }
}

impl<'a, K: Ord, V> Rows<'a, K, V> {
    /// From the first row at or after `start` on.
    fn from(root: &'a Node<K, V>, start: Bound<&K>) -> Self {
        let (Bound::Included(key) | Bound::Excluded(key)) = start else {
            return Self::of(root);
        };
        let mut above = Vec::new();
        let mut node = root;
        loop {
            match node {
                Node::Leaf(rows) => {
                    let before = |k: &K| match start {
                        Bound::Excluded(_) => k <= key,
                        _included => k < key,
                    };
                    let at = rows.partition_point(|(k, _)| before(k));
                    let rows = rows[at..].iter();
                    return Self { rows, above };
                }
                Node::Inner(children) => {
                    let at = child_of(children, key);
                    node = &children[at].node;
                    above.push(children[at + 1..].iter());
                }
            }
        }
    }
}

impl<'a, K, V> Iterator for Rows<'a, K, V> {
    type Item = &'a (K, V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.rows.next() {
                return Some(row);
            }
            match self.above.last_mut()?.next() {
                Some(child) => self.descend(&child.node),
                None => drop(self.above.pop()),
            }
        }
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
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for Table<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    impl<K: Ord + Clone + fmt::Debug, V: Clone> Table<K, V> {
        /// The depth of the leaves, after a look at what every node promises.
        fn checked_depth(&self) -> usize {
            fn check<K: Ord + Clone + fmt::Debug, V: Clone>(
                node: &Node<K, V>,
                low: Option<&K>,
                high: Option<&K>,
            ) -> usize {
                assert!(node.len() <= NODE_MAX);
                match node {
                    Node::Leaf(rows) => {
                        assert!(rows.is_sorted_by(|(a, _), (b, _)| a < b));
                        let within =
                            |k: &K| low.is_none_or(|l| l <= k) && high.is_none_or(|h| k < h);
                        assert!(rows.iter().all(|(k, _)| within(k)));
                        1
                    }
                    Node::Inner(children) => {
                        let depths = children.iter().enumerate().map(|(at, child)| {
                            assert!(child.node.len() > 0, "an empty node was left");
                            let low = if at == 0 { low } else { Some(&child.low) };
                            let next = children.get(at + 1).map(|next| &next.low);
                            check(&child.node, low, next.or(high))
                        });
                        let depths: Vec<usize> = depths.collect();
                        assert!(depths.iter().all(|depth| *depth == depths[0]));
                        depths[0] + 1
                    }
                }
            }
            check(&self.root, None, None)
        }
    }

    proptest! {
        #[test]
        fn behaves_as_a_btree_map_and_copies_do_not_change(
            steps in proptest::collection::vec((0u8..4, 0u16..900, any::<u8>()), 0..2000),
            inserts in 1u8..4,
            low in 0u16..900,
            width in 0u16..300,
        ) {
            let mut table = Table::default();
            let mut model = BTreeMap::new();
            let mut copies = vec![(table.clone(), model.clone())];
            for (i, (kind, key, value)) in steps.into_iter().enumerate() {
                if kind < inserts {
                    prop_assert_eq!(table.insert(key, value), model.insert(key, value));
                } else {
                    prop_assert_eq!(table.remove(&key), model.remove(&key));
                }
                prop_assert_eq!(table.get(&key), model.get(&key));
                prop_assert_eq!(table.len(), model.len());
                if i % 500 == 0 {
                    copies.push((table.clone(), model.clone()));
                }
            }
            copies.push((table, model));
            for (table, model) in copies {
                table.checked_depth();
                prop_assert!(table.iter().eq(model.iter()));
                let range = low..low + width;
                prop_assert!(table.range(range.clone()).eq(model.range(range)));
                let range = low..=low + width;
                prop_assert!(table.range(range.clone()).eq(model.range(range)));
                prop_assert!(table.range(low..).eq(model.range(low..)));
                let range = (Bound::Excluded(low), Bound::Unbounded);
                prop_assert!(table.range(range).eq(model.range(range)));
            }
        }
    }

    #[test]
    fn a_large_table_stays_flat_and_ends_as_it_began() {
        let mut table: Table<u32, u32> = (0..100_000).map(|i| (i * 7919 % 100_000, i)).collect();
        assert_eq!(table.len(), 100_000);
        assert!(table.checked_depth() <= 6);
        assert!(table.keys().copied().eq(0..100_000));
        for i in 0..100_000 {
            assert!(table.remove(&(i * 31 % 100_000)).is_some());
        }
        assert!(table.is_empty());
        assert_eq!(table.checked_depth(), 1);
    }

    #[test]
    fn a_write_to_a_copy_shares_all_but_its_own_path() {
        fn leaves<'a>(node: &'a Arc<Node<u32, u32>>, found: &mut Vec<&'a Arc<Node<u32, u32>>>) {
            match &**node {
                Node::Leaf(_) => found.push(node),
                Node::Inner(children) => {
                    for child in children {
                        leaves(&child.node, found);
                    }
                }
            }
        }
        let table: Table<u32, u32> = (0..10_000).map(|i| (i, 0)).collect();
        let mut copy = table.clone();
        copy.insert(5000, 1);
        let (mut old, mut new) = (Vec::new(), Vec::new());
        leaves(&table.root, &mut old);
        leaves(&copy.root, &mut new);
        let apart = old.iter().zip(&new).filter(|(a, b)| !Arc::ptr_eq(a, b));
        assert_eq!(apart.count(), 1);
    }
}
