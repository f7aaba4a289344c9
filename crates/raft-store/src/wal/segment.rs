//! Segment files: their names, their first bytes, and how they come and go.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::WalError;
use crate::{
    key::{DataKey, KeyRing, random},
    seal::{SALT_BYTES, Sealer},
};

/// Bytes before the first frame: magic, format, sequence number, which data key, the salt of the
/// segment's own key, CRC-32, padding.
pub(super) const FILE_HEADER_BYTES: usize = 80;
const KEY_AT: usize = 24;
const SALT_AT: usize = 40;
const CRC_AT: usize = SALT_AT + SALT_BYTES;
const MAGIC: &[u8; 8] = b"SHOALWAL";
/// 1 was not sealed.
const FORMAT: u32 = 2;
/// Where the checksum stood in format 1.
const FIRST_CRC_AT: usize = 24;
const SUFFIX: &str = ".wal";

/// One file of the log. Files are numbered without gaps, and a number is never used twice.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) sequence: u64,
    pub(super) path: PathBuf,
    pub(super) file: File,
    /// None for one whose header is damaged.
    pub(super) sealer: Option<Sealer>,
    /// It is sealed under the key that new segments are.
    pub(super) is_current: bool,
}

impl Segment {
    pub(super) fn open(
        dir: &Path,
        sequence: u64,
        sealer: Option<Sealer>,
        is_current: bool,
    ) -> Result<Self, WalError> {
        let path = path_of(dir, sequence);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(WalError::io("open", &path))?;
        Ok(Self {
            sequence,
            path,
            file,
            sealer,
            is_current,
        })
    }

    pub(super) fn sealer(&self) -> &Sealer {
        let sealer = self.sealer.as_ref();
        sealer.expect("records of a segment are read and written only when its header is whole")
    }

    pub(super) fn read_all(&self) -> Result<Vec<u8>, WalError> {
        let error = WalError::io("read", &self.path);
        let length = match self.file.metadata() {
            Ok(metadata) => metadata.len(),
            Err(source) => return Err(error(source)),
        };
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        self.file.read_exact_at(&mut bytes, 0).map_err(error)?;
        Ok(bytes)
    }
}

pub(super) fn path_of(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(format!("{sequence:016x}{SUFFIX}"))
}

/// What a directory of a log holds.
#[derive(Debug, Default)]
pub(super) struct Listed {
    /// In order.
    pub(super) sequences: Vec<u64>,
    /// Files of unfinished work.
    pub(super) unfinished: Vec<PathBuf>,
}

pub(super) fn list(dir: &Path) -> Result<Listed, WalError> {
    let mut listed = Listed::default();
    for entry in fs::read_dir(dir).map_err(WalError::io("read", dir))? {
        let path = entry.map_err(WalError::io("read", dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".tmp") {
            listed.unfinished.push(path);
            continue;
        }
        let digits = name.strip_suffix(SUFFIX).filter(|d| d.len() == 16);
        match digits.and_then(|d| u64::from_str_radix(d, 16).ok()) {
            Some(sequence) => listed.sequences.push(sequence),
            None => {
                return Err(WalError::Foreign { path: path.clone() });
            }
        }
    }
    listed.sequences.sort_unstable();
    Ok(listed)
}

/// The header of a new segment, and what seals its records.
pub(super) fn new_header(sequence: u64, key: &DataKey) -> ([u8; FILE_HEADER_BYTES], Sealer) {
    let salt = random();
    let mut header = [0; FILE_HEADER_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    header[16..KEY_AT].copy_from_slice(&sequence.to_le_bytes());
    header[KEY_AT..SALT_AT].copy_from_slice(&key.id());
    header[SALT_AT..CRC_AT].copy_from_slice(&salt);
    let crc = crc32fast::hash(&header[..CRC_AT]);
    header[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    (header, Sealer::of_segment(key, &salt))
}

/// What opens the records of the segment of this number, or what is wrong with its header.
pub(super) fn check_header(
    bytes: &[u8],
    sequence: u64,
    keys: &KeyRing,
) -> Result<Sealer, HeaderError> {
    let Some(header) = bytes.first_chunk::<FILE_HEADER_BYTES>() else {
        return Err(HeaderError::Damaged);
    };
    let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| header[at + i]));
    let is_whole = |crc_at: usize| number(crc_at) == crc32fast::hash(&header[..crc_at]);
    if &header[..8] != MAGIC {
        return Err(HeaderError::Damaged);
    }
    if !is_whole(CRC_AT) {
        let is_first = number(8) == 1 && is_whole(FIRST_CRC_AT);
        return Err(if is_first {
            HeaderError::Format { found: 1 }
        } else {
            HeaderError::Damaged
        });
    }
    if number(8) != FORMAT {
        return Err(HeaderError::Format { found: number(8) });
    }
    let padding = [&header[12..16], &header[CRC_AT + 4..]].concat();
    if header[16..KEY_AT] != sequence.to_le_bytes() || padding.iter().any(|b| *b != 0) {
        return Err(HeaderError::Damaged);
    }
    let key = keys.find(&header[KEY_AT..SALT_AT]);
    let key = key.ok_or(HeaderError::OtherKey)?;
    let salt = header[SALT_AT..].first_chunk();
    let salt = salt.expect("the header goes on behind the salt");
    Ok(Sealer::of_segment(key, salt))
}

/// Whether a segment with this header is sealed under `key`.
pub(super) fn is_of_key(header: &[u8], key: &DataKey) -> bool {
    header.get(KEY_AT..SALT_AT) == Some(&key.id()[..])
}

/// The first bytes of a segment, as far as they go.
pub(super) fn read_header(path: &Path) -> io::Result<Vec<u8>> {
    let mut header = Vec::new();
    let file = File::open(path)?;
    file.take(FILE_HEADER_BYTES as u64)
        .read_to_end(&mut header)?;
    Ok(header)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeaderError {
    Damaged,
    Format {
        found: u32,
    },
    /// It is whole, and sealed under a key that is not here.
    OtherKey,
}

/// A new file of `bytes` zeros, which are on disk: writing over them changes no metadata, so that a
/// flush is one write and not two (`fallocate` marks blocks as unwritten, and each first write to one
/// costs a journal commit).
pub(super) fn zeroed(path: &Path, bytes: u64) -> io::Result<File> {
    const CHUNK: usize = 1 << 20;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    let zeros = vec![0; CHUNK.min(usize::try_from(bytes).unwrap_or(CHUNK))];
    let mut at = 0;
    while at < bytes {
        let length = (bytes - at).min(zeros.len() as u64);
        let part = usize::try_from(length).expect("no more than a chunk");
        file.write_all_at(&zeros[..part], at)?;
        at += length;
    }
    file.sync_all()?;
    Ok(file)
}

/// Makes creations, renames and removals in `dir` last.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
