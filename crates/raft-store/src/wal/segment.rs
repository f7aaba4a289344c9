//! Segment files: their names, their first bytes, and how they come and go.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::WalError;

/// Bytes before the first frame: magic, format, sequence number, CRC-32, padding.
pub(super) const FILE_HEADER_BYTES: usize = 32;
const MAGIC: &[u8; 8] = b"SHOALWAL";
const FORMAT: u32 = 1;
const SUFFIX: &str = ".wal";

/// One file of the log. Files are numbered without gaps, and a number is never used twice.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) sequence: u64,
    pub(super) path: PathBuf,
    pub(super) file: File,
}

impl Segment {
    pub(super) fn open(dir: &Path, sequence: u64) -> Result<Self, WalError> {
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
        })
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

/// The segments in `dir` in order. Files of unfinished work are removed on the way.
pub(super) fn list(dir: &Path) -> Result<Vec<u64>, WalError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(WalError::io("read", dir))? {
        let path = entry.map_err(WalError::io("read", dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".tmp") {
            fs::remove_file(&path).map_err(WalError::io("remove", &path))?;
            continue;
        }
        let digits = name.strip_suffix(SUFFIX).filter(|d| d.len() == 16);
        match digits.and_then(|d| u64::from_str_radix(d, 16).ok()) {
            Some(sequence) => found.push(sequence),
            None => {
                return Err(WalError::Foreign { path: path.clone() });
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

pub(super) fn file_header(sequence: u64) -> [u8; FILE_HEADER_BYTES] {
    let mut header = [0; FILE_HEADER_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    header[16..24].copy_from_slice(&sequence.to_le_bytes());
    let crc = crc32fast::hash(&header[..24]);
    header[24..28].copy_from_slice(&crc.to_le_bytes());
    header
}

/// What is wrong with the header of the segment of this number, if anything.
pub(super) fn check_header(bytes: &[u8], sequence: u64) -> Result<(), HeaderError> {
    let Some(header) = bytes.first_chunk::<FILE_HEADER_BYTES>() else {
        return Err(HeaderError::Damaged);
    };
    let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| header[at + i]));
    if &header[..8] != MAGIC || number(24) != crc32fast::hash(&header[..24]) {
        return Err(HeaderError::Damaged);
    }
    if number(8) != FORMAT {
        return Err(HeaderError::Format { found: number(8) });
    }
    if *header == file_header(sequence) {
        Ok(())
    } else {
        Err(HeaderError::Damaged)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeaderError {
    Damaged,
    Format { found: u32 },
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
