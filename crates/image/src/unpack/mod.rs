//! Turns a layer archive into a directory that overlay can stack.
//!
//! One thread inflates and hashes, the caller's thread writes files; a handful of buffers goes
//! round between them. What it keeps true: nothing is created outside the target directory
//! ([`root`]), memory and disk use are bounded ([`UnpackLimits`]), and the tree is only reported as
//! done when every byte of the archive was read and hashed to the expected diff id. The caller
//! owns the target and deletes it when this fails.
//!
//! Whiteouts become what overlay expects: `.wh.name` a character device 0/0, `.wh..wh..opq` the
//! attribute `trusted.overlay.opaque=y` on its directory. Device nodes are made as the archive
//! says: whether a container may open one is decided by its device cgroup, not by the layer.

mod decode;
mod root;
mod tar_reader;
pub(crate) mod tree;

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::fd::OwnedFd,
    path::Path,
};

use rustix::{
    fs::{self as rfs, AtFlags, FileType, Mode, OFlags},
    io::Errno,
};

use decode::{ChunkReader, Decoded, decode};
pub(crate) use decode::{Compression, compress_zstd};
use root::{EntryPath, LayerRoot, finish, finish_special, set_opaque};
use tar_reader::Member;
pub use tar_reader::TarError;
pub(crate) use tar_reader::{Kind, TarReader};

use crate::digest::Digest;

const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";
/// Bytes copied at a time from the archive to a file.
const COPY_BUFFER: usize = 128 * 1024;
/// How often free space is looked at while unpacking.
const SPACE_CHECK_BYTES: u64 = 64 * 1024 * 1024;

/// Bounds on what one layer may cost.
#[derive(Debug, Clone)]
pub struct UnpackLimits {
    /// Members of the archive. The largest public layers have some 500,000.
    pub entries: u64,
    /// Bytes of the archive once inflated, and of the files it makes with their holes.
    pub bytes: u64,
    /// Bytes of the filesystem that unpacking leaves free.
    pub keep_free: u64,
}

impl Default for UnpackLimits {
    fn default() -> Self {
        Self {
            entries: 2_000_000,
            bytes: 64 << 30,
            keep_free: 128 << 20,
        }
    }
}

/// A layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("unpack layer {layer}, entry {entry:?}")]
    Entry {
        layer: String,
        entry: String,
        #[source]
        problem: EntryProblem,
    },
    #[error("unpack layer {layer}")]
    Archive {
        layer: String,
        #[source]
        problem: TarError,
    },
    #[error("unpack layer {layer}: more than {limit} entries")]
    TooManyEntries { layer: String, limit: u64 },
    #[error("unpack layer {layer}: inflates to more than {limit} bytes")]
    TooLarge { layer: String, limit: u64 },
    #[error("unpack layer {layer}: {compression} compression is not supported; use gzip or zstd")]
    Compression {
        layer: String,
        compression: &'static str,
    },
    /// Docker's words for the same.
    #[error(
        "layer {layer}: filesystem layer verification failed for digest {expected}: content is {actual}"
    )]
    WrongContent {
        layer: String,
        expected: Digest,
        actual: Digest,
    },
    #[error("unpack layer {layer}: {action}")]
    Io {
        layer: String,
        action: &'static str,
        #[source]
        source: io::Error,
    },
}

/// What is wrong with one entry of a layer.
#[derive(Debug, thiserror::Error)]
pub enum EntryProblem {
    #[error("points outside the layer")]
    Outside,
    #[error("path or name is too long")]
    PathTooLong,
    #[error("path holds a zero byte")]
    ZeroByte,
    #[error("is not a valid whiteout")]
    Whiteout,
    #[error("the directory it is in cannot be used")]
    Parent(#[source] Errno),
    #[error("hard link to {target:?}, which is not in this layer")]
    LinkTarget {
        target: String,
        #[source]
        source: Option<Errno>,
    },
    #[error("symbolic link target is empty or too long")]
    SymlinkTarget,
    #[error("file is larger than the {limit} bytes that a layer may have")]
    TooLarge { limit: u64 },
    #[error(
        "no space left: less than {keep_free} bytes would stay free; make room, for example by removing images"
    )]
    NoSpace { keep_free: u64 },
    #[error("{0}")]
    Kernel(&'static str, #[source] Errno),
    #[error("{0}")]
    Io(&'static str, #[source] io::Error),
}

/// A finished tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unpacked {
    pub(crate) diff_id: Digest,
    /// Bytes of all regular files, holes included, hard links once: what Docker calls the
    /// layer's size.
    pub(crate) size: u64,
}

/// What to unpack, and within which bounds.
pub(crate) struct Job<'a> {
    /// How errors call the layer.
    pub(crate) layer: &'a str,
    /// The archive, compressed or not, from its current position.
    pub(crate) archive: File,
    /// An empty directory that the caller deletes if this fails.
    pub(crate) target: &'a Path,
    pub(crate) expected: Option<&'a Digest>,
    pub(crate) limits: &'a UnpackLimits,
    /// Told how many bytes of the archive, as stored, were read so far.
    pub(crate) progress: &'a (dyn Fn(u64) + Sync),
}

/// Unpacks and verifies; returns once the whole archive was read.
pub(crate) fn unpack(job: &Job<'_>) -> Result<Unpacked, UnpackError> {
    let io_error = |action, source| UnpackError::Io {
        layer: job.layer.to_owned(),
        action,
        source,
    };
    let mut archive = job
        .archive
        .try_clone()
        .map_err(|error| io_error("open archive", error))?;
    let compression =
        Compression::sniff(&mut archive).map_err(|error| io_error("read archive", error))?;
    if let Compression::Unsupported(compression) = compression {
        return Err(UnpackError::Compression {
            layer: job.layer.to_owned(),
            compression,
        });
    }
    let (chunks, feed) = decode::channel();
    std::thread::scope(|scope| {
        let decoder = std::thread::Builder::new()
            .name("layer-decode".to_owned())
            .spawn_scoped(scope, move || {
                decode(archive, compression, job.limits.bytes, &feed, job.progress)
            })
            .map_err(|error| io_error("start decoder", error))?;
        // On failure the reader is dropped here, which ends the decoder too.
        let written = Writer::new(job).and_then(|writer| writer.run(chunks));
        let outcome = decoder.join().expect("the decoder does not panic");
        match outcome {
            // What the writer saw was only the early end of the stream.
            Ok(Decoded::TooLarge) => Err(UnpackError::TooLarge {
                layer: job.layer.to_owned(),
                limit: job.limits.bytes,
            }),
            Err(error) => Err(io_error("inflate", error)),
            Ok(Decoded::Abandoned) => Err(written.expect_err("the writer gave up")),
            Ok(Decoded::Whole(actual)) => {
                let size = written?;
                match job.expected {
                    Some(expected) if *expected != actual => Err(UnpackError::WrongContent {
                        layer: job.layer.to_owned(),
                        expected: expected.clone(),
                        actual,
                    }),
                    _ => Ok(Unpacked {
                        diff_id: actual,
                        size,
                    }),
                }
            }
        }
    })
}

struct Writer<'a> {
    job: &'a Job<'a>,
    root: LayerRoot,
    /// Directories in the order they came; their times are set last, since every file made in
    /// them changes them.
    directories: Vec<(EntryPath, Member)>,
    buffer: Vec<u8>,
    size: u64,
    written: u64,
    next_space_check: u64,
}

impl<'a> Writer<'a> {
    fn new(job: &'a Job<'a>) -> Result<Self, UnpackError> {
        let root = LayerRoot::open(job.target).map_err(|errno| UnpackError::Io {
            layer: job.layer.to_owned(),
            action: "open target",
            source: errno.into(),
        })?;
        Ok(Self {
            job,
            root,
            directories: Vec::new(),
            buffer: vec![0; COPY_BUFFER],
            size: 0,
            written: 0,
            next_space_check: 0,
        })
    }

    fn run(mut self, chunks: ChunkReader) -> Result<u64, UnpackError> {
        let layer = || self.job.layer.to_owned();
        let mut tar = TarReader::new(chunks);
        let mut entries = 0;
        loop {
            let member = match tar.next() {
                Ok(Some(member)) => member,
                Ok(None) => break,
                Err(problem) => {
                    return Err(UnpackError::Archive {
                        layer: layer(),
                        problem,
                    });
                }
            };
            entries += 1;
            if entries > self.job.limits.entries {
                let limit = self.job.limits.entries;
                return Err(UnpackError::TooManyEntries {
                    layer: self.job.layer.to_owned(),
                    limit,
                });
            }
            let path = String::from_utf8_lossy(&member.path).into_owned();
            self.entry(member, &mut tar)
                .map_err(|problem| UnpackError::Entry {
                    layer: self.job.layer.to_owned(),
                    entry: path,
                    problem,
                })?;
        }
        self.set_directory_times();
        tar.drain().map_err(|problem| UnpackError::Archive {
            layer: self.job.layer.to_owned(),
            problem,
        })?;
        Ok(self.size)
    }

    fn entry(
        &mut self,
        member: Member,
        tar: &mut TarReader<ChunkReader>,
    ) -> Result<(), EntryProblem> {
        let path = EntryPath::parse(&member.path)?;
        let Some((parents, name)) = path.split() else {
            if member.kind == Kind::Directory {
                self.root.finish_root(&member)?;
                self.directories.push((path, member));
            }
            return Ok(());
        };
        if name.starts_with(WHITEOUT) {
            return self.whiteout(parents, name);
        }
        let parent = self.root.directory(parents)?;
        if member.kind == Kind::Directory {
            self.root.make_directory(&parent, name, &member)?;
            self.directories.push((path, member));
            return Ok(());
        }
        let source = match member.kind {
            Kind::HardLink => Some(self.link_source(&member)?),
            _ => None,
        };
        if let Some((directory, source)) = &source
            && same_file(directory, source, &parent, name)
        {
            return Ok(());
        }
        self.root.displace(&parent, name)?;
        match (member.kind, source) {
            (Kind::File, _) => self.file(&parent, name, &member, tar),
            (Kind::HardLink, Some((directory, source))) => rfs::linkat(
                &directory,
                source.as_slice(),
                &parent,
                name,
                AtFlags::empty(),
            )
            .map_err(|errno| EntryProblem::LinkTarget {
                target: String::from_utf8_lossy(&member.link).into_owned(),
                source: Some(errno),
            }),
            (Kind::Symlink, _) => {
                if member.link.is_empty() || member.link.len() > 4095 || member.link.contains(&0) {
                    return Err(EntryProblem::SymlinkTarget);
                }
                rfs::symlinkat(member.link.as_slice(), &parent, name)
                    .map_err(|errno| EntryProblem::Kernel("make symbolic link", errno))?;
                finish_special(&parent, name, &member, true)
            }
            (Kind::Char, _) => node(&parent, name, &member, FileType::CharacterDevice),
            (Kind::Block, _) => node(&parent, name, &member, FileType::BlockDevice),
            (Kind::Fifo, _) => node(&parent, name, &member, FileType::Fifo),
            (Kind::Directory | Kind::HardLink, _) => unreachable!("handled above"),
        }
    }

    fn whiteout(&mut self, parents: &[Vec<u8>], name: &[u8]) -> Result<(), EntryProblem> {
        if name == WHITEOUT_OPAQUE {
            return set_opaque(&self.root.directory(parents)?);
        }
        if name.starts_with(WHITEOUT_META) {
            // Bookkeeping of aufs (`.wh..wh.plnk`, `.wh..wh.orph`), of no meaning to overlay.
            return Ok(());
        }
        let hidden = &name[WHITEOUT.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(EntryProblem::Whiteout);
        }
        let parent = self.root.directory(parents)?;
        LayerRoot::whiteout(&parent, hidden)
    }

    /// Where a hard link's target is. The target itself is not followed.
    fn link_source(&self, member: &Member) -> Result<(OwnedFd, Vec<u8>), EntryProblem> {
        let missing = |source| EntryProblem::LinkTarget {
            target: String::from_utf8_lossy(&member.link).into_owned(),
            source,
        };
        let target = EntryPath::parse(&member.link)?;
        let (parents, name) = target.split().ok_or_else(|| missing(None))?;
        let directory = self
            .root
            .existing_directory(parents)
            .map_err(|errno| missing(Some(errno)))?;
        rfs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| missing(Some(errno)))?;
        Ok((directory, name.to_vec()))
    }

    fn file(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        member: &Member,
        tar: &mut TarReader<ChunkReader>,
    ) -> Result<(), EntryProblem> {
        self.size = self.size.saturating_add(member.size);
        if self.size > self.job.limits.bytes {
            return Err(EntryProblem::TooLarge {
                limit: self.job.limits.bytes,
            });
        }
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rfs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| EntryProblem::Kernel("create file", errno))?;
        let mut file = File::from(fd);
        match &member.extents {
            None => self.copy(tar, &mut file, member.size)?,
            Some(extents) => {
                for extent in extents {
                    file.seek(SeekFrom::Start(extent.offset))
                        .map_err(|error| EntryProblem::Io("write file", error))?;
                    self.copy(tar, &mut file, extent.length)?;
                }
                file.set_len(member.size)
                    .map_err(|error| EntryProblem::Io("write file", error))?;
            }
        }
        finish(&OwnedFd::from(file), member)
    }

    fn copy(
        &mut self,
        tar: &mut TarReader<ChunkReader>,
        file: &mut File,
        length: u64,
    ) -> Result<(), EntryProblem> {
        let mut left = length;
        while left > 0 {
            let want = usize::try_from(left)
                .unwrap_or(COPY_BUFFER)
                .min(COPY_BUFFER);
            let n = tar
                .read(&mut self.buffer[..want])
                .map_err(|error| EntryProblem::Io("read archive", error))?;
            self.written += n as u64;
            if self.written >= self.next_space_check {
                self.check_space(file)?;
            }
            file.write_all(&self.buffer[..n])
                .map_err(|error| EntryProblem::Io("write file", error))?;
            left -= n as u64;
        }
        Ok(())
    }

    fn check_space(&mut self, file: &File) -> Result<(), EntryProblem> {
        let stat = rfs::fstatvfs(file)
            .map_err(|errno| EntryProblem::Kernel("ask for free space", errno))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let keep_free = self.job.limits.keep_free;
        if free < keep_free {
            return Err(EntryProblem::NoSpace { keep_free });
        }
        self.next_space_check = self.written + SPACE_CHECK_BYTES.min(free - keep_free).max(1 << 20);
        Ok(())
    }

    /// A directory that a later entry replaced is passed over.
    fn set_directory_times(&self) {
        for (path, member) in self.directories.iter().rev() {
            let Some((parents, name)) = path.split() else {
                let _ = self.root.finish_root(member);
                continue;
            };
            let Ok(parent) = self.root.existing_directory(parents) else {
                continue;
            };
            let is_directory = rfs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
            if is_directory {
                let times = root::timestamps(member);
                let _ = rfs::utimensat(&parent, name, &times, AtFlags::SYMLINK_NOFOLLOW);
            }
        }
    }
}

fn node(
    parent: &OwnedFd,
    name: &[u8],
    member: &Member,
    kind: FileType,
) -> Result<(), EntryProblem> {
    let device = match kind {
        FileType::Fifo => 0,
        _ => rfs::makedev(member.device.0, member.device.1),
    };
    rfs::mknodat(parent, name, kind, Mode::RUSR | Mode::WUSR, device)
        .map_err(|errno| EntryProblem::Kernel("make device or pipe", errno))?;
    finish_special(parent, name, member, false)
}

/// True when both names are already one file, as in archives that list a link to itself.
fn same_file(a: &OwnedFd, a_name: &[u8], b: &OwnedFd, b_name: &[u8]) -> bool {
    let stat = |fd, name| rfs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW);
    match (stat(a, a_name), stat(b, b_name)) {
        (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
        _ => false,
    }
}
