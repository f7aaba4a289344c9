//! Which entries the log holds, where they lie, and the newest of them in memory.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::Arc,
};

use super::{record::Marks, segment::Segment};
use crate::stored::{Item, Point};

/// The log as readers see it. Entries are here from the moment they are handed over, flushed or not.
pub(super) struct Tail {
    /// Index of the first slot.
    first: u64,
    slots: VecDeque<Slot>,
    pub(super) marks: Marks,
    /// The mark of what is committed, if the writer does not have it yet.
    pub(super) committed_news: Option<Point>,
    pub(super) segments: BTreeMap<u64, Arc<Segment>>,
    /// Set by the first write that fails: from then on nothing is accepted.
    pub(super) poison: Option<io::Error>,
    next_ticket: u64,
    /// Entries below this index are only on disk.
    cached_from: u64,
    cached_bytes: usize,
    cache_limit: usize,
}

struct Slot {
    term: u64,
    leader: u64,
    /// Tells an entry from a truncated one of the same index that is still being written.
    ticket: u64,
    /// Where it lies, once it is on disk.
    position: Option<Position>,
    item: Option<Arc<Item>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) segment: u64,
    pub(super) offset: u64,
    pub(super) size: usize,
}

/// Where a reader gets an entry from.
pub(super) enum Found {
    Memory(Arc<Item>),
    Disk(Arc<Segment>, Position),
}

impl Tail {
    pub(super) fn new(cache_limit: usize) -> Self {
        Self {
            first: 0,
            slots: VecDeque::new(),
            marks: Marks::default(),
            committed_news: None,
            segments: BTreeMap::new(),
            poison: None,
            next_ticket: 0,
            cached_from: 0,
            cached_bytes: 0,
            cache_limit,
        }
    }

    pub(super) fn first(&self) -> Option<u64> {
        (!self.slots.is_empty()).then_some(self.first)
    }

    fn end(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    pub(super) fn last(&self) -> Option<Point> {
        self.slots.back().map(|slot| Point {
            term: slot.term,
            leader: slot.leader,
            index: self.end() - 1,
        })
    }

    /// Takes in the next entry and gives its ticket.
    pub(super) fn push(&mut self, item: Arc<Item>) -> io::Result<u64> {
        let index = item.at.index;
        if self.slots.is_empty() {
            self.first = index;
            self.cached_from = index;
        } else if index != self.end() {
            let text = format!("entry {index} does not follow entry {}", self.end() - 1);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.cached_bytes += item.weight();
        self.slots.push_back(Slot {
            term: item.at.term,
            leader: item.at.leader,
            ticket,
            position: None,
            item: Some(item),
        });
        Ok(ticket)
    }

    pub(super) fn truncate_after(&mut self, last: Option<u64>) {
        while !self.slots.is_empty() && last.is_none_or(|last| self.end() - 1 > last) {
            let slot = self.slots.pop_back();
            self.forget(slot);
        }
        self.cached_from = self.cached_from.min(self.end());
    }

    pub(super) fn purge(&mut self, upto: Point) {
        while !self.slots.is_empty() && self.first <= upto.index {
            let slot = self.slots.pop_front();
            self.forget(slot);
            self.first += 1;
        }
        self.marks.purged = self.marks.purged.max(Some(upto));
        self.cached_from = self.cached_from.max(self.first);
    }

    fn forget(&mut self, slot: Option<Slot>) {
        if let Some(item) = slot.and_then(|slot| slot.item) {
            self.cached_bytes -= item.weight();
        }
    }

    /// Notes where an entry lies, unless it was truncated or purged meanwhile.
    pub(super) fn placed(&mut self, index: u64, ticket: u64, position: Position) {
        if let Some(slot) = self.slot_mut(index)
            && slot.ticket == ticket
        {
            slot.position = Some(position);
        }
    }

    /// Drops the oldest entries from memory while they take more than their share.
    pub(super) fn evict(&mut self) {
        while self.cached_bytes > self.cache_limit {
            let index = self.cached_from;
            let Some(slot) = self.slot_mut(index) else {
                return;
            };
            if slot.position.is_none() {
                return;
            }
            let item = slot.item.take();
            self.cached_bytes -= item.map_or(0, |item| item.weight());
            self.cached_from += 1;
        }
    }

    /// The entries of `from..to` that there are, as far as `max_bytes` go but one at least.
    pub(super) fn find(&self, from: u64, to: u64, max_bytes: usize) -> Vec<Found> {
        let mut found = Vec::new();
        let mut bytes = 0;
        for index in from.max(self.first)..to.min(self.end()) {
            let Some(slot) = self.slot(index) else {
                break;
            };
            let (entry, size) = match (&slot.item, slot.position) {
                (Some(item), _) => (Found::Memory(item.clone()), item.weight()),
                (None, Some(position)) => {
                    let segment = self.segments.get(&position.segment);
                    let segment = segment.expect("a segment stays until its entries are purged");
                    (Found::Disk(segment.clone(), position), position.size)
                }
                (None, None) => unreachable!("an entry leaves memory only once it is on disk"),
            };
            bytes += size;
            if bytes > max_bytes && !found.is_empty() {
                break;
            }
            found.push(entry);
        }
        found
    }

    fn slot(&self, index: u64) -> Option<&Slot> {
        let at = index.checked_sub(self.first)?;
        self.slots.get(usize::try_from(at).ok()?)
    }

    fn slot_mut(&mut self, index: u64) -> Option<&mut Slot> {
        let at = index.checked_sub(self.first)?;
        self.slots.get_mut(usize::try_from(at).ok()?)
    }
}
