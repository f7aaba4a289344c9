//! The one thread that writes the log.
//!
//! It takes all that is queued, writes it with one call, flushes it with one `fdatasync`, and answers
//! everyone who waits: however many proposals arrive during a flush, the next one covers them all.

use std::{
    collections::VecDeque,
    fs, io,
    os::unix::fs::FileExt,
    sync::{Arc, atomic::Ordering, mpsc},
};

use super::{
    Shared, WalConfig,
    record::{Head, Marks, Record},
    recover::Resume,
    segment::{self, FILE_HEADER_BYTES, Segment},
    spare::{Spare, copy_of},
    tail::Position,
};
use crate::{
    record::{self, Place},
    seal::Nonces,
    stored::{Ballot, Item, Point},
};

/// A batch is closed when it holds this much, so that nobody waits for a flush without end.
const BATCH_BYTES: usize = 4 << 20;

/// Whom to tell how a write went. Told exactly once, even if the writer dies.
pub(crate) struct Done(Option<Box<dyn FnOnce(io::Result<()>) + Send>>);

impl Done {
    pub(crate) fn new(tell: impl FnOnce(io::Result<()>) + Send + 'static) -> Self {
        Self(Some(Box::new(tell)))
    }

    fn tell(mut self, result: io::Result<()>) {
        if let Some(tell) = self.0.take() {
            tell(result);
        }
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        if let Some(tell) = self.0.take() {
            let text = "the log writer has ended";
            tell(Err(io::Error::new(io::ErrorKind::BrokenPipe, text)));
        }
    }
}

/// What is to be written next.
pub(super) struct Order {
    /// Written before it: how far the log is known to be committed, if that is news.
    pub(super) committed: Option<Point>,
    pub(super) op: Op,
}

pub(super) enum Op {
    Append {
        items: Vec<(u64, Arc<Item>)>,
        done: Done,
    },
    Vote(Ballot, Done),
    Group(u64, Done),
    Alone {
        group: u64,
        vote: Ballot,
        item: (u64, Arc<Item>),
        done: Done,
    },
    /// Writes nothing: all that was queued before is on disk when it is answered.
    Sync(Done),
    TruncateAfter(Option<u64>),
    Purge(Point),
    Stop(Done),
}

/// A segment that is not written to any more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sealed {
    pub(super) sequence: u64,
    /// Of the entries in it, also of truncated ones.
    pub(super) max_index: Option<u64>,
}

pub(super) struct Writer {
    config: WalConfig,
    shared: Arc<Shared>,
    spare: Spare,
    nonces: Nonces,
    active: Active,
    sealed: VecDeque<Sealed>,
    /// As the records up to here say.
    marks: Marks,
    batch: u64,
    /// What is not written yet; it goes to the end of the active segment.
    buffer: Vec<u8>,
    /// Where the last frame starts in `buffer`.
    last_frame: usize,
    placed: Vec<(u64, u64, Position)>,
    done: Vec<Done>,
    purged: bool,
}

struct Active {
    segment: Arc<Segment>,
    /// Of a new segment, until it is written.
    header: Option<[u8; FILE_HEADER_BYTES]>,
    capacity: u64,
    offset: u64,
    max_index: Option<u64>,
}

impl Writer {
    /// Goes on where the log ends. What it finds out about the disk, it finds out here.
    pub(super) fn start(
        config: WalConfig,
        shared: Arc<Shared>,
        sealed: Vec<Sealed>,
        resume: Option<Resume>,
    ) -> io::Result<Self> {
        let spare = Spare::new(&config.dir, config.segment_bytes)?;
        let marks = shared.tail().marks;
        let is_current = resume
            .as_ref()
            .is_none_or(|resume| resume.segment.is_current);
        let (active, batch) = match resume {
            Some(resume) => (
                Active {
                    segment: resume.segment,
                    header: None,
                    capacity: resume.capacity,
                    offset: resume.offset,
                    max_index: resume.max_index,
                },
                resume.batch,
            ),
            None => (create(&config, &spare, 1, 0)?, 1),
        };
        let mut writer = Self {
            config,
            shared,
            spare,
            nonces: Nonces::new(),
            active,
            sealed: sealed.into(),
            marks,
            batch,
            buffer: Vec::new(),
            last_frame: 0,
            placed: Vec::new(),
            done: Vec::new(),
            purged: true,
        };
        let segment = writer.active.segment.clone();
        writer
            .shared
            .tail()
            .segments
            .insert(segment.sequence, segment);
        if writer.active.offset == 0 {
            writer.begin_segment(None)?;
        } else if !is_current {
            // Nothing new is sealed under an older key.
            writer.rotate(0)?;
        } else {
            let head = writer.head(None);
            writer.put(&Record::Head(head))?;
        }
        writer.flush()?;
        Ok(writer)
    }

    pub(super) fn spare_status(&self) -> super::spare::SpareStatus {
        self.spare.status()
    }

    pub(super) fn run(mut self, queue: &mpsc::Receiver<Order>) {
        while let Ok(order) = queue.recv() {
            let mut stop = None;
            let result = self.batch(order, queue, &mut stop);
            if let Err(error) = result {
                self.fail(&error);
                drop(stop);
                return;
            }
            if let Some(done) = stop {
                done.tell(Ok(()));
                return;
            }
        }
    }

    fn batch(
        &mut self,
        first: Order,
        queue: &mpsc::Receiver<Order>,
        stop: &mut Option<Done>,
    ) -> io::Result<()> {
        let mut next = Some(first);
        while let Some(Order { committed, op }) = next {
            if let Some(point) = committed {
                self.marks.committed = Some(point);
                self.put(&Record::Committed(point))?;
            }
            if let Op::Stop(done) = op {
                *stop = Some(done);
                break;
            }
            self.take(op)?;
            if self.buffer.len() >= BATCH_BYTES {
                break;
            }
            next = queue.try_recv().ok();
        }
        self.flush()?;
        self.delete_purged();
        Ok(())
    }

    fn take(&mut self, op: Op) -> io::Result<()> {
        match op {
            Op::Append { items, done } => {
                self.append(&items, done)?;
            }
            Op::Vote(vote, done) => {
                self.marks.vote = Some(vote);
                let result = self.put(&Record::Vote(vote));
                self.done.push(done);
                result?;
            }
            Op::Group(group, done) => {
                self.marks.group = Some(group);
                let result = self.put(&Record::Group(group));
                self.done.push(done);
                result?;
            }
            Op::Alone {
                group,
                vote,
                item: (ticket, item),
                done,
            } => {
                // A new segment may be begun for it, and says what holds before it.
                let index = item.at.index;
                let item = &*item;
                let position = self.put_at(&Record::Alone { group, vote, item })?;
                self.marks.group = Some(group);
                self.marks.vote = Some(vote);
                self.placed.push((index, ticket, position));
                self.active.max_index = self.active.max_index.max(Some(index));
                self.done.push(done);
            }
            Op::Sync(done) => self.done.push(done),
            Op::TruncateAfter(last) => self.put(&Record::TruncateAfter(last))?,
            Op::Purge(point) => {
                self.marks.purged = self.marks.purged.max(Some(point));
                self.purged = true;
                self.put(&Record::Purged(point))?;
            }
            Op::Stop(_) => unreachable!("the batch loop ends with it"),
        }
        Ok(())
    }

    fn append(&mut self, items: &[(u64, Arc<Item>)], done: Done) -> io::Result<()> {
        let result = items.iter().try_for_each(|(ticket, item)| {
            let index = item.at.index;
            let position = self.put_at(&Record::Item(&**item))?;
            self.placed.push((index, *ticket, position));
            self.active.max_index = self.active.max_index.max(Some(index));
            Ok(())
        });
        // Only now: a flush in the middle, for a new segment, must not answer for the whole.
        self.done.push(done);
        result
    }

    fn put(&mut self, record: &Record<&Item>) -> io::Result<()> {
        self.put_at(record).map(drop)
    }

    fn put_at(&mut self, record: &Record<&Item>) -> io::Result<Position> {
        let start = self.buffer.len();
        let mut size = self.encode(record)?;
        if self.active.offset + self.buffer.len() as u64 > self.active.capacity {
            self.buffer.truncate(start);
            self.flush()?;
            self.rotate(size)?;
            size = self.encode(record)?;
        }
        let start = self.buffer.len() - size;
        self.last_frame = start;
        Ok(Position {
            segment: self.active.segment.sequence,
            offset: self.active.offset + start as u64,
            size,
        })
    }

    fn encode(&mut self, record: &Record<&Item>) -> io::Result<usize> {
        let segment = &self.active.segment;
        let place = Place {
            context: segment.sequence,
            offset: self.active.offset + self.buffer.len() as u64,
        };
        // A record that is encoded again, for the next segment, is sealed anew.
        let nonce = self.nonces.next();
        let (buffer, sealer) = (&mut self.buffer, segment.sealer());
        record::append(buffer, place, self.batch, record, sealer, nonce)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Writes and flushes what is in the buffer, and answers everyone who waits for it.
    fn flush(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            let sequence = self.active.segment.sequence;
            record::mark_last(&mut self.buffer[self.last_frame..], sequence);
            let file = &self.active.segment.file;
            file.write_all_at(&self.buffer, self.active.offset)?;
            file.sync_data()?;
            self.shared.flushes.fetch_add(1, Ordering::Relaxed);
            self.active.offset += self.buffer.len() as u64;
            self.batch += 1;
            self.buffer.clear();
            self.buffer.shrink_to(BATCH_BYTES);
            let mut tail = self.shared.tail();
            for (index, ticket, position) in self.placed.drain(..) {
                tail.placed(index, ticket, position);
            }
            tail.evict();
        }
        for done in self.done.drain(..) {
            done.tell(Ok(()));
        }
        Ok(())
    }

    /// Starts the next segment, with room for a frame of `size` bytes.
    fn rotate(&mut self, size: usize) -> io::Result<()> {
        let sequence = self.active.segment.sequence + 1;
        let new = create(&self.config, &self.spare, sequence, size)?;
        let old = std::mem::replace(&mut self.active, new);
        // Gives the unused end back. If that is lost in a crash, zeros stand there, which is as good.
        if let Err(error) = old.segment.file.set_len(old.offset) {
            tracing::warn!(path = %old.segment.path.display(), %error, "segment not shortened");
        }
        self.sealed.push_back(Sealed {
            sequence: old.segment.sequence,
            max_index: old.max_index,
        });
        let segment = self.active.segment.clone();
        self.shared.tail().segments.insert(sequence, segment);
        self.begin_segment(Some(old.offset))
    }

    /// Puts the first bytes of the active segment into the buffer.
    fn begin_segment(&mut self, previous_end: Option<u64>) -> io::Result<()> {
        let header = self.active.header.take();
        self.buffer.extend(header.expect("a segment is begun once"));
        let head = self.head(previous_end);
        self.put(&Record::Head(head))
    }

    fn head(&self, previous_end: Option<u64>) -> Head {
        Head {
            member: self.config.member,
            previous_end,
            marks: self.marks,
        }
    }

    /// Removes the segments of which nothing is needed any more. Called when that is on disk.
    fn delete_purged(&mut self) {
        if !std::mem::take(&mut self.purged) {
            return;
        }
        let purged = self.marks.purged.map(|point| point.index);
        let mut removed = false;
        while let Some(oldest) = self.sealed.front()
            && (oldest.max_index.is_none() || oldest.max_index <= purged)
        {
            let path = segment::path_of(&self.config.dir, oldest.sequence);
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                // It is tried again with the next purge.
                tracing::warn!(path = %path.display(), %error, "purged segment not removed");
                break;
            }
            self.shared.tail().segments.remove(&oldest.sequence);
            self.sealed.pop_front();
            removed = true;
        }
        if removed && let Err(error) = segment::sync_dir(&self.config.dir) {
            tracing::warn!(path = %self.config.dir.display(), %error, "directory not flushed");
        }
    }

    /// After a failed write nobody knows what is on disk: say so to everyone from now on.
    fn fail(&mut self, error: &io::Error) {
        tracing::error!(
            path = %self.active.segment.path.display(),
            offset = self.active.offset,
            error = %error,
            "the log cannot be written any more"
        );
        let text = format!(
            "write the log at offset {} of {}: {error}",
            self.active.offset,
            self.active.segment.path.display(),
        );
        self.shared.tail().poison = Some(io::Error::new(error.kind(), text.clone()));
        for done in self.done.drain(..) {
            done.tell(Err(io::Error::new(error.kind(), text.clone())));
        }
    }
}

/// A new segment under its name, with room for a frame of `size` bytes.
fn create(config: &WalConfig, spare: &Spare, sequence: u64, size: usize) -> io::Result<Active> {
    // Header and head take far less.
    const OVERHEAD: u64 = 512;
    let path = segment::path_of(&config.dir, sequence);
    let needed = size as u64 + OVERHEAD + FILE_HEADER_BYTES as u64;
    let file = if needed <= config.segment_bytes {
        spare.take(&path)?
    } else {
        let temporary = path.with_extension("tmp");
        let made = segment::zeroed(&temporary, needed);
        let file = made.inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })?;
        fs::rename(&temporary, &path)?;
        file
    };
    segment::sync_dir(&config.dir)?;
    let (header, sealer) = segment::new_header(sequence, &config.keys.current);
    Ok(Active {
        segment: Arc::new(Segment {
            sequence,
            path,
            file,
            sealer: Some(sealer),
            is_current: true,
        }),
        header: Some(header),
        capacity: needed.max(config.segment_bytes),
        offset: 0,
        max_index: None,
    })
}

/// What a caller hears of the error that ended the log.
pub(super) fn poisoned(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(_) => copy_of(error),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
