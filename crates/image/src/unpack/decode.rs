//! Inflates an archive on a thread of its own and hashes what comes out.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek as _, SeekFrom, Write as _},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
};

use flate2::bufread::MultiGzDecoder;

use crate::digest::{Digest, Hasher, HashingWriter};

/// Buffers that go round, and their size: enough that neither thread waits for one burst.
const CHUNKS: usize = 6;
const CHUNK: usize = 256 * 1024;
const INPUT_BUFFER: usize = 128 * 1024;
/// The level that packs text about as well as gzip -6 at four times its speed.
const ZSTD_LEVEL: i32 = 3;

/// How an archive is packed, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
    Unsupported(&'static str),
}

impl Compression {
    /// Looks at the first bytes and goes back to where it was.
    pub(crate) fn sniff(file: &mut File) -> io::Result<Self> {
        let start = file.stream_position()?;
        let mut magic = Vec::new();
        Read::by_ref(file).take(6).read_to_end(&mut magic)?;
        file.seek(SeekFrom::Start(start))?;
        Ok(Self::of(&magic))
    }

    pub(crate) fn of(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or a skippable one in front of it (RFC 8878 §3.1).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [b'B', b'Z', b'h', ..] => Self::Unsupported("bzip2"),
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Self::Unsupported("xz"),
            _ => Self::None,
        }
    }

    /// A reader of the plain bytes.
    pub(crate) fn reader<'a>(self, input: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::None => Box::new(input),
            // Layers by pigz and estargz consist of several members.
            Self::Gzip => Box::new(MultiGzDecoder::new(input)),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(input)?),
            Self::Unsupported(_) => return Err(io::ErrorKind::Unsupported.into()),
        })
    }
}

/// How inflating ended.
pub(super) enum Decoded {
    /// All of it was read; this is its digest.
    Whole(Digest),
    /// The reader went away.
    Abandoned,
    /// More came out than the limit allows.
    TooLarge,
}

/// The decoder's end of the buffers.
pub(super) struct Feed {
    full: SyncSender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
}

/// The writer's end: a reader of the inflated bytes.
pub(super) struct ChunkReader {
    full: Receiver<Vec<u8>>,
    empty: SyncSender<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
}

pub(super) fn channel() -> (ChunkReader, Feed) {
    let (full_out, full_in) = sync_channel(CHUNKS);
    let (empty_out, empty_in) = sync_channel(CHUNKS);
    for _ in 0..CHUNKS {
        let _ = empty_out.try_send(Vec::new());
    }
    let reader = ChunkReader {
        full: full_in,
        empty: empty_out,
        chunk: Vec::new(),
        at: 0,
    };
    (
        reader,
        Feed {
            full: full_out,
            empty: empty_in,
        },
    )
}

pub(super) fn decode(
    archive: File,
    compression: Compression,
    limit: u64,
    feed: &Feed,
    progress: &(dyn Fn(u64) + Sync),
) -> io::Result<Decoded> {
    let counted = Counted {
        inner: archive,
        read: 0,
        progress,
    };
    let mut input = compression.reader(BufReader::with_capacity(INPUT_BUFFER, counted))?;
    let mut hasher = Hasher::default();
    let mut total = 0_u64;
    loop {
        let Ok(mut chunk) = feed.empty.recv() else {
            return Ok(Decoded::Abandoned);
        };
        chunk.resize(CHUNK, 0);
        let n = fill(&mut input, &mut chunk)?;
        if n == 0 {
            return Ok(Decoded::Whole(hasher.finish()));
        }
        total += n as u64;
        if total > limit {
            return Ok(Decoded::TooLarge);
        }
        hasher.update(&chunk[..n]);
        chunk.truncate(n);
        if feed.full.send(chunk).is_err() {
            return Ok(Decoded::Abandoned);
        }
    }
}

fn fill(input: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match input.read(&mut buf[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

impl Read for ChunkReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at == self.chunk.len() {
            // The decoder is gone: the end, or an error that the caller learns from it.
            let Ok(next) = self.full.recv() else {
                return Ok(0);
            };
            let used = std::mem::replace(&mut self.chunk, next);
            // The first buffer given back is the empty one this started with.
            let _ = self.empty.try_send(used);
            self.at = 0;
        }
        let n = buf.len().min(self.chunk.len() - self.at);
        buf[..n].copy_from_slice(&self.chunk[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

struct Counted<'a> {
    inner: File,
    read: u64,
    progress: &'a (dyn Fn(u64) + Sync),
}

impl Read for Counted<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.read += n as u64;
        (self.progress)(self.read);
        Ok(n)
    }
}

/// Packs `input` into `output`; the digest and length of what was written.
pub(crate) fn compress_zstd(input: &mut impl Read, output: File) -> io::Result<(Digest, u64)> {
    let mut encoder = zstd::stream::write::Encoder::new(HashingWriter::new(output), ZSTD_LEVEL)?;
    encoder.include_checksum(true)?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let n = fill(input, &mut buffer)?;
        if n == 0 {
            break;
        }
        encoder.write_all(&buffer[..n])?;
    }
    let (file, digest, size) = encoder.finish()?.finish();
    file.sync_data()?;
    Ok((digest, size))
}
