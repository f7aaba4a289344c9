//! One snapshot file: a header with its key, a head, one record for each object, and an end that says
//! how many there are.
//!
//! All records are sealed under a key of this snapshot alone, which stands in the header, wrapped under
//! the data key of the member. Another member gets the records as they are, and the key beside them:
//! nothing is opened and sealed again on the way, and no disk ever holds any of it in the clear.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufReader, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use shoal_transport::codec::{self, DecodeError};
use shoal_types::{Timestamp, Version};

use crate::{
    key::{DataKey, KEY_ID_BYTES, KeyRing},
    record::{self, FrameError, HEADER_BYTES, Place},
    seal::{FileKey, Nonces, SALT_BYTES, Sealer, WRAPPED_BYTES, WrappedKey},
    state::{ObjectChange, State},
    stored::SnapshotHead,
};

/// Bytes before the first record: magic, format, which data key, the salt it wraps with, the wrapped
/// key, CRC-32, padding.
pub(super) const FILE_HEADER_BYTES: usize = 120;
const MAGIC: &[u8; 8] = b"SHOALSNP";
/// Snapshots without a header are of before they were sealed.
const FORMAT: u32 = 2;
const KEY_AT: usize = 16;
const SALT_AT: usize = KEY_AT + KEY_ID_BYTES;
const WRAPPED_AT: usize = SALT_AT + SALT_BYTES;
const CRC_AT: usize = WRAPPED_AT + WRAPPED_BYTES;

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
    #[error(
        "{} was written in format {found}, which this release does not read; upgrade it, or go back \
         to the release that wrote the data",
        path.display()
    )]
    Format { path: PathBuf, found: u32 },
    #[error(
        "{} is sealed under another data key; use the key that this directory was written with, \
         nothing was changed",
        path.display()
    )]
    OtherKey { path: PathBuf },
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

/// What a file whose records are sealed under `key` starts with.
pub(super) fn header(key: &FileKey, data_key: &DataKey) -> [u8; FILE_HEADER_BYTES] {
    let WrappedKey { id, salt, wrapped } = key.wrap(data_key);
    let mut header = [0; FILE_HEADER_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    header[KEY_AT..SALT_AT].copy_from_slice(&id);
    header[SALT_AT..WRAPPED_AT].copy_from_slice(&salt);
    header[WRAPPED_AT..CRC_AT].copy_from_slice(&wrapped);
    let crc = crc32fast::hash(&header[..CRC_AT]);
    header[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    header
}

/// The key of the snapshot at `path`, from its header.
pub(super) fn key_of(path: &Path, keys: &KeyRing) -> Result<FileKey, SnapshotError> {
    let damaged = |reason: &str| SnapshotError::Damaged {
        path: path.to_owned(),
        offset: 0,
        reason: reason.to_owned(),
    };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_HEADER_BYTES as u64).read_to_end(&mut bytes))
        .map_err(SnapshotError::io("read", path))?;
    let header = bytes.first_chunk::<FILE_HEADER_BYTES>();
    let header = header.ok_or_else(|| damaged("the file is cut short"))?;
    let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| header[at + i]));
    let padding = [&header[12..KEY_AT], &header[CRC_AT + 4..]].concat();
    if &header[..8] != MAGIC
        || number(CRC_AT) != crc32fast::hash(&header[..CRC_AT])
        || padding.iter().any(|b| *b != 0)
    {
        return Err(damaged("the file's header"));
    }
    if number(8) != FORMAT {
        return Err(SnapshotError::Format {
            path: path.to_owned(),
            found: number(8),
        });
    }
    let wrapped = WrappedKey {
        id: part(header, KEY_AT),
        salt: part(header, SALT_AT),
        wrapped: part(header, WRAPPED_AT),
    };
    match wrapped.unwrap(keys) {
        Ok(Some(key)) => Ok(key),
        Ok(None) => Err(SnapshotError::OtherKey {
            path: path.to_owned(),
        }),
        Err(error) => Err(damaged(&error.to_string())),
    }
}

fn part<const N: usize>(header: &[u8], at: usize) -> [u8; N] {
    let part = header[at..].first_chunk();
    *part.expect("the header has all its parts")
}

/// Writes `state` behind the header and flushes it. Objects are encoded one at a time, whatever their
/// number.
pub(super) fn write(
    file: &mut File,
    key: &FileKey,
    head: &SnapshotHead,
    state: &State,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    let mut number = 0;
    let mut offset = 0;
    let mut nonces = Nonces::new();
    let sealer = key.sealer();
    let mut put = |buffer: &mut Vec<u8>, part: &Part<ObjectChange>| {
        number += 1;
        let place = Place {
            context: CONTEXT,
            offset,
        };
        let size = record::append(buffer, place, number, part, &sealer, nonces.next())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        offset += size as u64;
        io::Result::Ok(())
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
pub(super) fn read(path: &Path, key: &FileKey) -> Result<(SnapshotHead, State), SnapshotError> {
    let mut reader = Reader::open(path, key)?;
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
    sealer: Sealer,
    /// Behind the header.
    offset: u64,
    number: u64,
    frame: Vec<u8>,
}

impl Reader {
    fn open(path: &Path, key: &FileKey) -> Result<Self, SnapshotError> {
        let mut file = File::open(path).map_err(SnapshotError::io("open", path))?;
        file.seek(io::SeekFrom::Start(FILE_HEADER_BYTES as u64))
            .map_err(SnapshotError::io("read", path))?;
        Ok(Self {
            path: path.to_owned(),
            file: BufReader::with_capacity(1 << 18, file),
            sealer: key.sealer(),
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
            Ok(Some(parsed)) if parsed.batch == self.number + 1 => {
                let place = Place {
                    context: CONTEXT,
                    offset: self.offset,
                };
                match parsed.open(&self.sealer, place) {
                    Ok(opened) => codec::decode(&opened).map_err(|source| SnapshotError::Record {
                        path: self.path.clone(),
                        offset: self.at(),
                        source,
                    }),
                    Err(error) => Err(self.damaged(error.to_string())),
                }
            }
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

    /// In the file.
    fn at(&self) -> u64 {
        FILE_HEADER_BYTES as u64 + self.offset
    }

    fn damaged(&self, reason: String) -> SnapshotError {
        SnapshotError::Damaged {
            path: self.path.clone(),
            offset: self.at(),
            reason,
        }
    }
}
