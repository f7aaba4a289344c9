//! Reading the log back: everything that was ever reported as written, or an error that says which
//! bytes are in the way. Never less, in silence.

use std::{fs, os::unix::fs::FileExt, path::Path, sync::Arc};

use shoal_transport::codec;

use super::{
    WalConfig, WalError,
    record::{Marks, Record},
    segment::{self, FILE_HEADER_BYTES, HeaderError, Segment},
    tail::{Position, Tail},
    writer::Sealed,
};
use crate::{
    record::{self, Place},
    stored::Item,
};

/// The log as it was found, and where its writer goes on.
pub(super) struct Recovered {
    pub(super) tail: Tail,
    pub(super) sealed: Vec<Sealed>,
    pub(super) resume: Option<Resume>,
}

/// The segment to go on in.
pub(super) struct Resume {
    pub(super) segment: Arc<Segment>,
    pub(super) capacity: u64,
    pub(super) offset: u64,
    /// Greater than that of any frame in the log.
    pub(super) batch: u64,
    pub(super) max_index: Option<u64>,
}

pub(super) fn recover(config: &WalConfig) -> Result<Recovered, WalError> {
    let segment::Listed {
        sequences,
        unfinished,
    } = segment::list(&config.dir)?;
    // Before anything is changed: with another key everything would look like damage.
    let headers = sequences.iter().map(|sequence| {
        let path = segment::path_of(&config.dir, *sequence);
        let header = segment::read_header(&path).map_err(WalError::io("read", &path))?;
        match segment::check_header(&header, *sequence, &config.keys) {
            Ok(sealer) => {
                let is_current = segment::is_of_key(&header, &config.keys.current);
                Ok((Some(sealer), is_current))
            }
            Err(HeaderError::Damaged) => Ok((None, true)),
            Err(HeaderError::Format { found }) => Err(WalError::Format { path, found }),
            Err(HeaderError::OtherKey) => Err(WalError::OtherKey { path }),
        }
    });
    let sealers = headers.collect::<Result<Vec<_>, _>>()?;
    for path in unfinished {
        fs::remove_file(&path).map_err(WalError::io("remove", &path))?;
    }
    if let Some(gap) = sequences.windows(2).find(|w| w[1] != w[0] + 1) {
        return Err(WalError::Missing {
            path: segment::path_of(&config.dir, gap[0] + 1),
        });
    }
    let mut replay = Replay {
        config,
        tail: Tail::new(config.cache_bytes),
        batch: 0,
        previous_end: None,
    };
    let mut sealed = Vec::new();
    let mut resume = None;
    for (nth, (&sequence, (sealer, is_current))) in sequences.iter().zip(sealers).enumerate() {
        let segment = Arc::new(Segment::open(&config.dir, sequence, sealer, is_current)?);
        let is_last = nth + 1 == sequences.len();
        let Some(read) = replay.segment(&segment, is_last)? else {
            // It was just being started. The one before it is whole, and goes on.
            fs::remove_file(&segment.path)
                .and_then(|()| segment::sync_dir(&config.dir))
                .map_err(WalError::io("remove", &segment.path))?;
            break;
        };
        replay.tail.segments.insert(sequence, segment.clone());
        let before = resume.replace(Resume {
            segment,
            capacity: read.capacity,
            offset: read.end,
            batch: 0,
            max_index: read.max_index,
        });
        sealed.extend(before.map(|before| Sealed {
            sequence: before.segment.sequence,
            max_index: before.max_index,
        }));
    }
    if let Some(resume) = &mut resume {
        resume.batch = replay.batch + 1;
    }
    let mut tail = replay.tail;
    if let Some(purged) = tail.marks.purged {
        tail.purge(purged);
    }
    check_gap(&tail, &config.dir)?;
    tail.evict();
    Ok(Recovered {
        tail,
        sealed,
        resume,
    })
}

/// Whether the entries follow on what a snapshot has to hold.
fn check_gap(tail: &Tail, dir: &Path) -> Result<(), WalError> {
    let expected = tail.marks.purged.map_or(0, |purged| purged.index + 1);
    match tail.first() {
        Some(first) if first > expected => Err(WalError::Gap {
            dir: dir.to_owned(),
            from: expected,
            to: first - 1,
        }),
        _ => Ok(()),
    }
}

struct Replay<'a> {
    config: &'a WalConfig,
    tail: Tail,
    /// The highest so far.
    batch: u64,
    /// Where the segment before this one ended.
    previous_end: Option<u64>,
}

struct Read {
    /// Behind the last intact frame.
    end: u64,
    capacity: u64,
    max_index: Option<u64>,
}

impl Replay<'_> {
    /// `None` for a segment that not even has a head, which only the last may lack.
    fn segment(&mut self, segment: &Arc<Segment>, is_last: bool) -> Result<Option<Read>, WalError> {
        let bytes = segment.read_all()?;
        let capacity = bytes.len() as u64;
        let mut read = Read {
            end: 0,
            capacity,
            max_index: None,
        };
        if segment.sealer.is_none() {
            self.torn_or_damaged(segment, &bytes, 0, true, is_last, "the file's header")?;
            return Ok(None);
        }
        let mut at = FILE_HEADER_BYTES;
        let mut batch_is_whole = true;
        let mut is_first = true;
        loop {
            let frame = match record::parse(&bytes[at..], segment.sequence) {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    if bytes[at..].iter().any(|b| *b != 0) {
                        let what = "records are missing";
                        self.torn_or_damaged(segment, &bytes, at, batch_is_whole, is_last, what)?;
                    }
                    break;
                }
                Err(error) => {
                    let what = error.to_string();
                    self.torn_or_damaged(segment, &bytes, at, batch_is_whole, is_last, &what)?;
                    break;
                }
            };
            let damaged = |reason: String| WalError::Damaged {
                path: segment.path.clone(),
                offset: at as u64,
                reason,
            };
            // A run that ended inside a batch leaves it unmarked; the next run starts a new one.
            let in_order =
                frame.batch > self.batch || (frame.batch == self.batch && !batch_is_whole);
            if !in_order {
                return Err(damaged(format!(
                    "batch {} stands after batch {}",
                    frame.batch, self.batch
                )));
            }
            let place = Place {
                context: segment.sequence,
                offset: at as u64,
            };
            let opened = frame.open(segment.sealer(), place);
            let opened = opened.map_err(|error| damaged(error.to_string()))?;
            let record: Record<Item> =
                codec::decode(&opened).map_err(|source| WalError::Record {
                    path: segment.path.clone(),
                    offset: at as u64,
                    source,
                })?;
            let position = Position {
                segment: segment.sequence,
                offset: at as u64,
                size: frame.size,
            };
            if let Record::Head(head) = &record {
                self.check_head(segment, head, is_first, at)?;
            } else if is_first {
                return Err(damaged(
                    "the segment does not start with its head".to_owned(),
                ));
            }
            if let Some(index) = self.take(record, position).map_err(damaged)? {
                read.max_index = read.max_index.max(Some(index));
            }
            is_first = false;
            self.batch = frame.batch;
            batch_is_whole = frame.last_of_batch;
            at += frame.size;
        }
        if is_first {
            if !is_last {
                let what = "the segment's head is missing";
                self.torn_or_damaged(segment, &bytes, at, true, false, what)?;
            }
            return Ok(None);
        }
        read.end = at as u64;
        self.previous_end = Some(read.end);
        Ok(Some(read))
    }

    fn check_head(
        &self,
        segment: &Segment,
        head: &super::record::Head,
        is_first: bool,
        at: usize,
    ) -> Result<(), WalError> {
        if head.member != self.config.member {
            return Err(WalError::OtherMember {
                dir: self.config.dir.clone(),
                found: head.member,
                expected: self.config.member,
            });
        }
        match (self.previous_end, head.previous_end) {
            (Some(found), Some(expected)) if is_first && found != expected => {
                Err(WalError::Damaged {
                    path: segment::path_of(&self.config.dir, segment.sequence - 1),
                    offset: found,
                    reason: format!(
                        "records up to {expected} are missing, see offset {at} of the next segment"
                    ),
                })
            }
            _ => Ok(()),
        }
    }

    /// Makes the record part of the log; gives the index when it is an entry.
    fn take(&mut self, record: Record<Item>, position: Position) -> Result<Option<u64>, String> {
        match record {
            Record::Head(head) => {
                let Marks {
                    vote,
                    purged,
                    committed,
                    group,
                } = head.marks;
                self.tail.marks = Marks {
                    vote,
                    purged: self.tail.marks.purged.max(purged),
                    committed,
                    group,
                };
            }
            Record::Item(item) => return self.push(item, position).map(Some),
            Record::Alone { group, vote, item } => {
                self.tail.marks.group = Some(group);
                self.tail.marks.vote = Some(vote);
                return self.push(item, position).map(Some);
            }
            Record::Group(group) => self.tail.marks.group = Some(group),
            Record::Vote(vote) => self.tail.marks.vote = Some(vote),
            Record::TruncateAfter(last) => self.tail.truncate_after(last),
            Record::Purged(point) => self.tail.purge(point),
            Record::Committed(point) => self.tail.marks.committed = Some(point),
        }
        Ok(None)
    }

    fn push(&mut self, item: Item, position: Position) -> Result<u64, String> {
        let index = item.at.index;
        let ticket = self.tail.push(Arc::new(item)).map_err(|e| e.to_string())?;
        self.tail.placed(index, ticket, position);
        self.tail.evict();
        Ok(index)
    }

    /// Judges the bad bytes at `at`. When they are what a crash leaves in the middle of a write, they
    /// are zeroed, so that what is written next is not followed by old bytes.
    fn torn_or_damaged(
        &self,
        segment: &Segment,
        bytes: &[u8],
        at: usize,
        batch_is_whole: bool,
        is_last: bool,
        what: &str,
    ) -> Result<(), WalError> {
        // A batch is written once the one before it is on disk. So the bad bytes belong to the batch
        // after the last whole one, and were acknowledged only if a still later batch exists.
        let torn = if batch_is_whole {
            self.batch + 1
        } else {
            self.batch
        };
        let rest = at.next_multiple_of(8).min(bytes.len());
        let later = record::find_batch(&bytes[rest..], segment.sequence, torn + 1);
        if !is_last || later.is_some() {
            let reason = match later {
                Some(found) => format!("{what}, and intact records follow at {}", rest + found),
                None => format!("{what}, and later segments follow"),
            };
            return Err(WalError::Damaged {
                path: segment.path.clone(),
                offset: at as u64,
                reason,
            });
        }
        let garbage = bytes
            .iter()
            .rposition(|b| *b != 0)
            .map_or(at, |last| last + 1);
        if garbage > at {
            tracing::warn!(
                path = %segment.path.display(),
                offset = at,
                bytes = garbage - at,
                reason = what,
                "dropping a write that a crash cut short"
            );
            let zeros = vec![0; garbage - at];
            segment
                .file
                .write_all_at(&zeros, at as u64)
                .and_then(|()| segment.file.sync_data())
                .map_err(WalError::io("repair", &segment.path))?;
        }
        Ok(())
    }
}
