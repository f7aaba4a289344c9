//! Output of a container to its log: lines, Docker's JSON, rotation.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};

use crate::Stream;
use crate::paths::rotated;
use crate::plan::LogConfig;

/// A line longer than this is split, as Docker's log copier does (`defaultBufSize`).
pub(super) const LINE_LIMIT: usize = 16 * 1024;

/// Cuts `carry` and `data` into log entries: lines with their newline, and pieces of [`LINE_LIMIT`] of longer ones. Returns
/// what is left without an end; with `end`, that too is an entry.
pub(super) fn split(carry: &[u8], data: &[u8], end: bool, mut entry: impl FnMut(&[u8])) -> Vec<u8> {
    let mut pending = carry.to_vec();
    for line in data.split_inclusive(|byte| *byte == b'\n') {
        let mut line = line;
        loop {
            let room = LINE_LIMIT - pending.len();
            // The newline itself does not count: Docker splits on 16 KiB of text.
            let text = line.strip_suffix(b"\n").unwrap_or(line);
            if text.len() <= room {
                break;
            }
            pending.extend_from_slice(&line[..room]);
            entry(&pending);
            pending.clear();
            line = &line[room..];
        }
        pending.extend_from_slice(line);
        if line.ends_with(b"\n") {
            entry(&pending);
            pending.clear();
        }
    }
    if end && !pending.is_empty() {
        entry(&pending);
        pending.clear();
    }
    pending
}

/// Appends one entry as Docker's `json-file` driver writes it.
pub(super) fn encode(entry: &[u8], stream: Stream, at: &str, into: &mut Vec<u8>) {
    into.extend_from_slice(br#"{"log":"#);
    serde_json::to_writer(&mut *into, &String::from_utf8_lossy(entry))
        .expect("a string always becomes JSON, a vector always takes it");
    into.extend_from_slice(br#","stream":""#);
    into.extend_from_slice(stream.name().as_bytes());
    into.extend_from_slice(br#"","time":""#);
    into.extend_from_slice(at.as_bytes());
    into.extend_from_slice(b"\"}\n");
}

/// The times of lines that were read together: each is a nanosecond after the one before, so that every line of a container
/// can be told by its time.
pub(super) struct Stamp {
    at: Timestamp,
    text: String,
}

impl Stamp {
    /// Up to the seconds every time has one length, `2024-01-02T03:04:05`: years before 0 and after 9999 do not occur.
    const SECONDS: usize = 19;

    pub(super) fn new(first: Timestamp) -> Self {
        Self {
            at: first,
            text: first.to_string(),
        }
    }

    /// Of the next line.
    pub(super) fn at(&self) -> Timestamp {
        self.at
    }

    /// RFC 3339 with as many digits of a second as are needed, as Go's `RFC3339Nano`.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn advance(&mut self) {
        self.at = self
            .at
            .saturating_add(SignedDuration::from_nanos(1))
            .expect("no units but of time");
        let nanos = self.at.subsec_nanosecond();
        if nanos <= 0 {
            self.text = self.at.to_string();
            return;
        }
        self.text.truncate(Self::SECONDS);
        write!(self.text, ".{nanos:09}").expect("a string takes everything");
        self.text.truncate(self.text.trim_end_matches('0').len());
        self.text.push('Z');
    }
}

/// A container's log file.
pub(super) struct LogFile {
    path: PathBuf,
    config: LogConfig,
    /// `None`: it could not be opened yet.
    file: Option<fs::File>,
    /// Where the next entry goes.
    size: u64,
    /// How long the file may be: beyond `size` is what a write that failed has left.
    reach: u64,
}

impl LogFile {
    pub(super) fn new(path: &Path, config: LogConfig) -> Self {
        Self {
            path: path.to_path_buf(),
            config,
            file: None,
            size: 0,
            reach: 0,
        }
    }

    /// Opens the file, unless it is open.
    pub(super) fn open(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            let file = open(&self.path)?;
            self.size = file.metadata()?.len();
            self.reach = self.size;
            self.file = Some(file);
        }
        Ok(())
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Writes `bytes` at `offset` and ends the file there: what a dead supervisor may have written beyond is the same again.
    /// After an error the file ends at `offset`: half an entry would garble the next one.
    pub(super) fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let Some(file) = &self.file else {
            return Err(io::Error::other("the log is not open"));
        };
        let end = offset + bytes.len() as u64;
        let before = self.reach;
        self.reach = before.max(end);
        let written = file.write_all_at(bytes, offset);
        self.size = if written.is_ok() { end } else { offset };
        if written.is_err() || self.size < before {
            match file.set_len(self.size) {
                Ok(()) => self.reach = self.size,
                // The next write tries again.
                Err(error) => return written.and(Err(error)),
            }
        }
        written
    }

    /// Opens the log if need be, and begins a new file when the current one is full: `log` becomes `log.1`, that `log.2`,
    /// and the oldest goes. After an error the current file is gone on with, however large it is.
    pub(super) fn prepare(&mut self) -> io::Result<()> {
        self.open()?;
        let Some(file) = &self.file else {
            return Ok(());
        };
        if self.config.max_size.is_none_or(|limit| self.size < limit) {
            return Ok(());
        }
        if self.config.max_files <= 1 {
            file.set_len(0)?;
        } else {
            // Made first: a full disk must not leave the log without its current file.
            let fresh = self.path.with_extension("log.new");
            let file = open(&fresh)?;
            file.set_len(0)?;
            for n in (2..self.config.max_files).rev() {
                match fs::rename(rotated(&self.path, n - 1), rotated(&self.path, n)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            match fs::rename(&self.path, rotated(&self.path, 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            fs::rename(fresh, &self.path)?;
            self.file = Some(file);
        }
        (self.size, self.reach) = (0, 0);
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o640)
        .open(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries(carry: &[u8], data: &[u8], end: bool) -> (Vec<Vec<u8>>, Vec<u8>) {
        let mut entries = Vec::new();
        let rest = split(carry, data, end, |entry| entries.push(entry.to_vec()));
        (entries, rest)
    }

    #[test]
    fn lines_keep_their_newline_and_the_rest_is_carried() {
        let (lines, rest) = entries(b"a", b"b\n\nc", false);
        assert_eq!(lines, [b"ab\n".to_vec(), b"\n".to_vec()]);
        assert_eq!(rest, b"c");
        assert_eq!(entries(b"c", b"", true), (vec![b"c".to_vec()], Vec::new()));
    }

    #[test]
    fn long_lines_are_split_at_16_kib() {
        let mut line = vec![b'x'; LINE_LIMIT + 10];
        line.push(b'\n');
        let (lines, rest) = entries(b"", &line, false);
        assert_eq!(
            lines.iter().map(Vec::len).collect::<Vec<_>>(),
            [LINE_LIMIT, 11]
        );
        assert!(rest.is_empty());
        let mut exact = vec![b'x'; LINE_LIMIT];
        exact.push(b'\n');
        assert_eq!(entries(b"", &exact, false).0.len(), 1);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_however_output_is_cut(
            parts in prop::collection::vec(prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'x')], 0..40), 0..10),
        ) {
            let (mut seen, mut carry) = (Vec::new(), Vec::new());
            for part in &parts {
                carry = split(&carry, part, false, |entry| seen.extend_from_slice(entry));
            }
            split(&carry, b"", true, |entry| seen.extend_from_slice(entry));
            prop_assert_eq!(seen, parts.concat());
        }
    }

    #[test]
    fn entries_are_dockers_json() {
        let mut line = Vec::new();
        encode(
            b"say \"hi\"\n",
            Stream::Stderr,
            "2024-01-02T03:04:05.5Z",
            &mut line,
        );
        let expected = "{\"log\":\"say \\\"hi\\\"\\n\",\"stream\":\"stderr\",\"time\":\"2024-01-02T03:04:05.5Z\"}\n";
        assert_eq!(String::from_utf8(line).expect("UTF-8"), expected);
    }

    #[test]
    fn every_line_has_a_time_of_its_own() {
        for first in [
            "2024-01-02T03:04:05Z",
            "2024-01-02T03:04:05.123456789Z",
            "2024-12-31T23:59:59.999999998Z",
        ] {
            let mut at: Timestamp = first.parse().expect("a time");
            let mut stamp = Stamp::new(at);
            for _ in 0..12 {
                assert_eq!(stamp.text(), at.to_string());
                assert_eq!(stamp.at(), at);
                stamp.advance();
                at += SignedDuration::from_nanos(1);
            }
        }
    }

    #[test]
    fn a_log_that_cannot_be_opened_is_tried_again() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("later/log");
        let mut log = LogFile::new(&path, LogConfig::default());
        assert!(log.prepare().is_err());
        assert!(log.write_at(0, b"lost").is_err());
        fs::create_dir(directory.path().join("later")).expect("a directory");
        log.prepare().expect("opens");
        log.write_at(log.size(), b"kept").expect("writes");
        assert_eq!(fs::read(&path).expect("a log"), b"kept");
    }

    #[test]
    fn a_rotation_that_fails_leaves_the_log_as_it_is() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("log");
        let config = LogConfig {
            max_size: Some(2),
            max_files: 3,
            ..LogConfig::default()
        };
        let mut log = LogFile::new(&path, config);
        log.prepare().expect("opens");
        log.write_at(0, b"aa").expect("writes");
        // A file cannot take the place of a directory that is not empty.
        fs::create_dir_all(rotated(&path, 1).join("x")).expect("a directory");
        fs::create_dir_all(rotated(&path, 2).join("x")).expect("a directory");
        assert!(log.prepare().is_err());
        log.write_at(log.size(), b"bb").expect("writes");
        assert_eq!(fs::read(&path).expect("a log"), b"aabb");
        fs::remove_dir_all(rotated(&path, 1)).expect("is removed");
        fs::remove_dir_all(rotated(&path, 2)).expect("is removed");
        log.prepare().expect("rotates");
        assert_eq!(fs::read(rotated(&path, 1)).expect("a log"), b"aabb");
        assert_eq!(fs::read(&path).expect("a log"), b"");
    }

    #[test]
    fn a_write_cut_short_leaves_no_half_entry() {
        // Every write beyond its room fails with ENOSPC, after a part of it was written or not.
        let mut log = LogFile::new(Path::new("/dev/full"), LogConfig::default());
        log.prepare().expect("opens");
        assert!(log.write_at(0, b"text").is_err());
        assert_eq!(log.size(), 0);
    }

    #[test]
    fn full_logs_are_rotated_and_the_oldest_goes() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("log");
        let config = LogConfig {
            max_size: Some(2),
            max_files: 3,
            ..LogConfig::default()
        };
        let mut log = LogFile::new(&path, config);
        for text in ["aa", "bb", "cc", "dd"] {
            log.prepare().expect("rotates");
            log.write_at(log.size(), text.as_bytes()).expect("writes");
        }
        let read = |n| fs::read_to_string(rotated(&path, n)).ok();
        assert_eq!(
            [read(0), read(1), read(2), read(3)],
            [
                Some("dd".into()),
                Some("cc".into()),
                Some("bb".into()),
                None
            ]
        );
    }
}
