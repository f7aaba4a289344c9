//! One snapshot file: a head, one record for each object, and an end that says how many there are.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufReader, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use shoal_transport::codec::{self, DecodeError};
use shoal_types::{Timestamp, Version};

use crate::{
    record::{self, FrameError, HEADER_BYTES},
    state::{ObjectChange, State},
    stored::SnapshotHead,
};

/// Tells the records of a snapshot from those of a log.
const CONTEXT: u64 = u64::from_le_bytes(*b"snapshot");
/// Written with one call each time this much has come together.
const WRITE_BYTES: usize = 1 << 20;
/// No record is larger; a length field that claims more is damage.
const MAX_RECORD_BYTES: usize = codec::MAX_ENCODED_BYTES + 64;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Part<O> {
    Head(SnapshotHead),
    Object(O),
    End {
        objects: u64,
    },
    /// Follows the head. Snapshots without it are of times before it was kept.
    Clock(Timestamp),
}

/// Why a snapshot cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("{action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "there is no snapshot in {} of the entries up to {index}, which the log does not hold any \
         more; restore the directory from a backup, or remove this member from the cluster and let \
         it join again with an empty one",
        dir.display()
    )]
    Missing { dir: PathBuf, index: u64 },
    #[error(
        "{} is damaged at offset {offset}: {reason}; restore the directory from a backup, or remove \
         this member from the cluster and let it join again with an empty one",
        path.display()
    )]
    Damaged {
        path: PathBuf,
        offset: u64,
        reason: String,
    },
    #[error("read the record at offset {offset} of {}", path.display())]
    Record {
        path: PathBuf,
        offset: u64,
        #[source]
        source: DecodeError,
    },
}

impl SnapshotError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

pub(super) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Writes `state` and flushes it. Objects are encoded one at a time, whatever their number.
pub(super) fn write(file: &mut File, head: &SnapshotHead, state: &State) -> io::Result<()> {
    let mut buffer = Vec::new();
    let mut number = 0;
    let mut put = |buffer: &mut Vec<u8>, part: &Part<ObjectChange>| {
        number += 1;
        record::append(buffer, CONTEXT, number, part)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    };
    put(&mut buffer, &Part::Head(head.clone()))?;
    put(&mut buffer, &Part::Clock(state.clock()))?;
    let mut objects = 0;
    for object in state.objects() {
        put(&mut buffer, &Part::Object(object))?;
        objects += 1;
        if buffer.len() >= WRITE_BYTES {
            file.write_all(&buffer)?;
            buffer.clear();
        }
    }
    put(&mut buffer, &Part::End { objects })?;
    file.write_all(&buffer)?;
    file.sync_all()
}

/// Reads and checks all of it.
pub(super) fn read(path: &Path) -> Result<(SnapshotHead, State), SnapshotError> {
    let mut reader = Reader::open(path)?;
    let head = reader.head()?;
    let version = Version(head.last.map_or(0, |last| last.index));
    let mut error = None;
    let mut objects = 0;
    let mut clock = Timestamp::default();
    let rows = std::iter::from_fn(|| {
        loop {
            return match reader.part() {
                Ok(Part::Object(object)) => {
                    objects += 1;
                    Some(object)
                }
                Ok(Part::End { objects: claimed }) => {
                    if claimed != objects {
                        error = Some(reader.damaged(format!("{objects} objects, not {claimed}")));
                    }
                    None
                }
                Ok(Part::Clock(at)) => {
                    clock = at;
                    continue;
                }
                Ok(Part::Head(_)) => {
                    error = Some(reader.damaged("a second head".to_owned()));
                    None
                }
                Err(e) => {
                    error = Some(e);
                    None
                }
            };
        }
    });
    let state = State::restore(version, rows);
    match error {
        Some(error) => Err(error),
        None => Ok((head, state.with_clock(clock))),
    }
}

struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    offset: u64,
    number: u64,
    frame: Vec<u8>,
}

impl Reader {
    fn open(path: &Path) -> Result<Self, SnapshotError> {
        let file = File::open(path).map_err(SnapshotError::io("open", path))?;
        Ok(Self {
            path: path.to_owned(),
            file: BufReader::with_capacity(1 << 18, file),
            offset: 0,
            number: 0,
            frame: Vec::new(),
        })
    }

    fn head(&mut self) -> Result<SnapshotHead, SnapshotError> {
        match self.part()? {
            Part::Head(head) => Ok(head),
            _ => Err(self.damaged("it does not start with a head".to_owned())),
        }
    }

    fn part(&mut self) -> Result<Part<ObjectChange>, SnapshotError> {
        self.next()
    }

    fn next<T: DeserializeOwned>(&mut self) -> Result<T, SnapshotError> {
        let mut header = [0; HEADER_BYTES];
        self.fill(&mut header)?;
        let size = record::claimed_size(&header);
        if size > MAX_RECORD_BYTES {
            return Err(self.damaged(FrameError::Checksum.to_string()));
        }
        let mut frame = std::mem::take(&mut self.frame);
        frame.clear();
        frame.extend(header);
        frame.resize(size.max(HEADER_BYTES), 0);
        self.fill(&mut frame[HEADER_BYTES..])?;
        let value = match record::parse(&frame, CONTEXT) {
            Ok(Some(parsed)) if parsed.batch == self.number + 1 => codec::decode(parsed.payload)
                .map_err(|source| SnapshotError::Record {
                    path: self.path.clone(),
                    offset: self.offset,
                    source,
                }),
            Ok(_) => Err(self.damaged("records are missing".to_owned())),
            Err(error) => Err(self.damaged(error.to_string())),
        };
        self.number += 1;
        self.offset += size as u64;
        self.frame = frame;
        value
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), SnapshotError> {
        self.file.read_exact(bytes).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                self.damaged("the file is cut short".to_owned())
            } else {
                SnapshotError::io("read", &self.path)(error)
            }
        })
    }

    fn damaged(&self, reason: String) -> SnapshotError {
        SnapshotError::Damaged {
            path: self.path.clone(),
            offset: self.offset,
            reason,
        }
    }
}
